"""`expegit import`: record what a batch left."""

from __future__ import annotations

import click

from expegit.commands.options import campaign_option, find, json_option, plural, tell


@click.command()
@click.argument("batch", metavar="BATCH")
@campaign_option
@json_option
def command(batch: str, folder: str, as_json: bool) -> None:
    """Record what BATCH left (a prefix of its id, or `last`): every execution that has ended and is not in the campaign yet."""
    from expegit.importing import import_batch
    from runaway.records import Records

    campaign = find(folder)
    records = Records()
    found = records.find_batch(batch)
    done = import_batch(campaign, records, found)

    def text() -> str:
        more = [f"{done.known} were there"] if done.known else []
        more += [f"{done.under_way} have not ended"] if done.under_way else []
        lines = [", ".join([f"{plural(len(done.recorded), 'execution')} recorded", *more])]
        lines += [f"left out: {path}: {why}" for path, why in done.left_out]
        return "\n".join(lines)

    tell(
        {
            "batch": found.id,
            "recorded": done.recorded,
            "known": done.known,
            "under_way": done.under_way,
            "left_out": [list(each) for each in done.left_out],
        },
        as_json,
        text,
    )
