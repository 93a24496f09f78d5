"""`expegit sync`: pull and push until both sides hold everything."""

from __future__ import annotations

import click

from expegit.commands.options import campaign_option, find, json_option, plural, tell


def run(folder: str, as_json: bool, *, pull: bool, push: bool) -> None:
    """Sync in one direction or both, and say what came of it."""
    from expegit.syncing import sync

    done = sync(find(folder), pull=pull, push=push)
    tell(
        {"came": done.came, "went": done.went, "tries": done.tries},
        as_json,
        lambda: ", ".join(
            [
                *([f"{plural(done.came, 'commit')} came"] if pull else []),
                *([f"{plural(done.went, 'commit')} went"] if push else []),
            ]
        ),
    )


@click.command()
@campaign_option
@json_option
def command(folder: str, as_json: bool) -> None:
    """Pull what others recorded and push what is recorded here, until both sides hold everything."""
    run(folder, as_json, pull=True, push=True)
