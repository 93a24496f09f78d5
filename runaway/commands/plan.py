"""`runaway plan REMOTE[,REMOTE...] SCRIPT [-- TEMPLATE]`: `runaway batch --simulate`, with the same options."""

from __future__ import annotations

from typing import Any

import click

from runaway.commands.batch import command as batch

#: Of no use for what is not started.
_LEFT_OUT = frozenset({"simulate", "detach", "follow", "dry_run"})


def _plan(**options: Any) -> Any:
    """Say how a batch would run on REMOTE: makespan, waiting, allocations, node-hours. Nothing is started, no host is asked.

    The options are those of `runaway batch`. What is decided, and when, is decided by the code that would run it; nodes, their batch
    system and time are a model. See docs/planning.md.
    """
    assert batch.callback is not None
    return batch.callback(simulate=True, detach=False, follow=False, dry_run=False, **options)


command = click.Command(
    "plan",
    context_settings=batch.context_settings,
    params=[each for each in batch.params if each.name not in _LEFT_OUT],
    callback=_plan,
    help=_plan.__doc__,
)
