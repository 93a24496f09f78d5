"""`expegit status`: what is in a campaign, and what is not yet pushed."""

from __future__ import annotations

from collections import Counter

import click

from expegit.commands.options import campaign_option, find, json_option, plural, tell


@click.command()
@campaign_option
@json_option
def command(folder: str, as_json: bool) -> int:
    """Say what is in a campaign: executions by state, the experiment's pin, commits that are not pushed. Asks no remote."""
    campaign = find(folder)
    damaged: list[str] = []
    states = Counter(record.state for record in campaign.records(lambda _x, why: damaged.append(str(why))))
    ahead = campaign.ahead()
    value = {
        "folder": str(campaign.folder),
        "name": campaign.settings.name,
        "experiment": campaign.pin(),
        "executions": dict(states),
        "damaged": damaged,
        "not_pushed": ahead,
    }

    def text() -> str:
        lines = [f"campaign {campaign.settings.name} in {campaign.folder}"]
        if campaign.pin():
            lines.append(f"experiment {campaign.settings.experiment_url} at {campaign.pin()[:12]}")
        told = ", ".join(f"{count} {state}" for state, count in sorted(states.items()))
        lines.append(f"{plural(sum(states.values()), 'execution')}{': ' if told else ''}{told}")
        if ahead is None:
            lines.append("not pushed anywhere yet; `git remote add origin ADDRESS`, then `expegit sync`")
        elif ahead:
            lines.append(f"{plural(ahead, 'commit')} to push: `expegit sync`")
        lines += [f"damaged: {why}" for why in damaged]
        return "\n".join(lines)

    tell(value, as_json, text)
    return 1 if damaged else 0
