"""`expegit exec`: the executions of a campaign, one by one."""

from __future__ import annotations

import json
import sys
from typing import Any

import click

from expegit.commands.options import campaign_option, find, json_option, plural, tell
from liborch.command_line import SCHEMA_VERSION


@click.group()
def command() -> None:
    """List, show, tag and remove executions. An ID is a unique prefix of one."""


def _ids(campaign: Any, words: tuple[str, ...]) -> list[str]:
    from liborch.names import resolve_prefix

    known = sorted(campaign.ids())
    if "last" in words:
        # The only one for which every record has to be read.
        records = sorted(campaign.records(lambda _x, _why: None), key=lambda each: (each.created, each.id))
        known = [each.id for each in records]
    return list(dict.fromkeys(resolve_prefix(word, known) for word in words))


@command.command("list")
@campaign_option
@json_option
def list_(folder: str, as_json: bool) -> int:
    """List every execution, oldest first; with --json a line each."""
    from liborch.plain_text import neutral
    from runaway.tables import columns

    campaign = find(folder)
    damaged: list[str] = []
    records = sorted(
        campaign.records(lambda _x, why: damaged.append(str(why))), key=lambda each: (each.created, each.id)
    )
    if as_json:
        import msgspec

        for record in records:
            click.echo(json.dumps({"schema_version": SCHEMA_VERSION, **msgspec.to_builtins(record)}))
    elif records:
        rows = [
            [
                each.id[:8],
                each.state,
                each.node or each.host,
                each.created[:19].replace("T", " "),
                neutral(" ".join(each.arguments)),
            ]
            for each in records
        ]
        for line in columns(["ID", "STATE", "NODE", "CREATED (UTC)", "ARGUMENTS"], rows):
            click.echo(line)
    for why in damaged:
        click.echo(f"damaged: {why}", err=True)
    return 1 if damaged else 0


@command.command()
@click.argument("ids", metavar="ID...", nargs=-1, required=True)
@campaign_option
def show(ids: tuple[str, ...], folder: str) -> None:
    """Print the records of executions, as they are in the campaign, and name their files."""
    from expegit.layout import RECORD, folder_of

    campaign = find(folder)
    for x in _ids(campaign, ids):
        inside = folder_of(x)
        click.echo((campaign.read(f"{inside}/{RECORD}") or b"").decode("utf-8", "replace"), nl=False)
        for path, size in campaign.files(inside):
            if path != RECORD:
                click.echo(f"{path}\t{size}")


@command.command()
@click.argument("x", metavar="ID")
@campaign_option
def params(x: str, folder: str) -> None:
    """Print the parameters of an execution: one argument a line, exactly as the program was given them."""
    campaign = find(folder)
    for word in campaign.record(_ids(campaign, (x,))[0]).arguments:
        sys.stdout.buffer.write(word.encode("utf-8", "surrogateescape") + b"\n")
    sys.stdout.buffer.flush()


@command.command()
@click.argument("ids", metavar="ID...", nargs=-1, required=True)
@click.option("--add", "-a", "added", multiple=True, metavar="TAG", help="May be given several times.")
@click.option("--remove", "-r", "removed", multiple=True, metavar="TAG", help="May be given several times.")
@click.option("--push", is_flag=True, help="Sync afterwards.")
@campaign_option
@json_option
def tag(
    ids: tuple[str, ...],
    added: tuple[str, ...],
    removed: tuple[str, ...],
    push: bool,
    folder: str,
    as_json: bool,
) -> None:
    """Add tags to executions, or remove them."""
    import msgspec

    from expegit.layout import RECORD, folder_of
    from expegit.records import write_record

    campaign = find(folder)
    found = _ids(campaign, ids)
    changes = []
    for x in found:
        record = campaign.record(x)
        tags = tuple(sorted({*record.tags, *added} - set(removed)))
        if tags != record.tags:
            path = f"{folder_of(x)}/{RECORD}"
            changes.append(
                (path, write_record(msgspec.structs.replace(record, tags=tags), campaign.read(path)))
            )
    if changes:
        campaign.commit(changes, f"Tag {plural(len(changes), 'execution')}")
    _finish(campaign, push)
    tell(
        {"ids": found, "changed": len(changes)},
        as_json,
        lambda: f"{plural(len(changes), 'execution')} changed",
    )


@command.command()
@click.argument("ids", metavar="ID...", nargs=-1, required=True)
@click.option("--push", is_flag=True, help="Sync afterwards.")
@campaign_option
@json_option
def remove(ids: tuple[str, ...], push: bool, folder: str, as_json: bool) -> None:
    """Remove executions from the campaign, with all their files. Its history still has them."""
    from expegit.layout import folder_of

    campaign = find(folder)
    found = _ids(campaign, ids)
    campaign.commit([(folder_of(x), None) for x in found], f"Remove {plural(len(found), 'execution')}")
    _finish(campaign, push)
    tell({"ids": found}, as_json, lambda: f"{plural(len(found), 'execution')} removed")


def _finish(campaign: Any, push: bool) -> None:
    if push:
        from expegit.syncing import sync

        sync(campaign)
