"""`runaway hosts list|check|show`: the names a person may use as REMOTE."""

from __future__ import annotations

import json
import os

import click


@click.group(invoke_without_command=True)
@click.pass_context
def command(ctx: click.Context) -> int:
    """The hosts that can be named: `local`, profiles, ssh aliases."""
    if ctx.invoked_subcommand is None:
        return int(ctx.invoke(list_hosts, as_json=False))
    return 0


@command.command("list")
@click.option("--json", "as_json", is_flag=True, help="One JSON value.")
def list_hosts(as_json: bool) -> int:
    """List every host there is a name for, and what is wrong with profiles that cannot be read."""
    from liborch.places import places
    from liborch.plain_text import neutral
    from liborch.profiles.find import load_all
    from liborch.profiles.names import LOCAL, ssh_aliases
    from runaway.places import ssh_config_of
    from runaway.records import SCHEMA_VERSION
    from runaway.tables import columns

    folders = places(dict(os.environ))
    profiles, errors = load_all(folders.profiles)
    rows = [(LOCAL, "built in", "this machine")]
    rows += [
        (
            profile.name,
            "profile" if profile.batch_system == "none" else f"profile, {profile.batch_system}",
            profile.source,
        )
        for profile in profiles
    ]
    config = ssh_config_of(folders)
    known = {row[0] for row in rows}
    rows += [(name, "ssh alias", str(config)) for name in ssh_aliases(config) if name not in known]
    if as_json:
        hosts = [dict(zip(("name", "kind", "source"), row, strict=True)) for row in rows]
        click.echo(
            json.dumps({"schema_version": SCHEMA_VERSION, "hosts": hosts, "errors": [str(e) for e in errors]})
        )
    else:
        for line in columns(["NAME", "KIND", "FROM"], rows):
            click.echo(line)
        for error in errors:
            click.echo(neutral(f"runaway: {error}"), err=True)
    return 2 if errors else 0


@command.command("show")
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="One JSON value.")
def show_host(name: str, as_json: bool) -> int:
    """Show what NAME stands for: the whole profile, defaults included."""
    import msgspec

    from liborch.places import places
    from liborch.plain_text import neutral
    from liborch.profiles.find import find_host
    from runaway.records import SCHEMA_VERSION

    folders = places(dict(os.environ))
    profile = find_host(name, folders.profiles, folders.ssh_config)
    fields = msgspec.to_builtins(profile)
    if as_json:
        click.echo(json.dumps({"schema_version": SCHEMA_VERSION, **fields}))
        return 0
    for key, value in fields.items():
        if value not in (None, "", (), [], {}):
            text = value if isinstance(value, str) else json.dumps(value)
            click.echo(f"{key:<14}{neutral(text)}")
    return 0


@command.command("check")
@click.argument("names", nargs=-1, required=True)
@click.option(
    "--accept-new", is_flag=True, help="Trust the key of a host that is not known yet, and remember it."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON value per node, one per line.")
def check_hosts(names: tuple[str, ...], accept_new: bool, as_json: bool) -> int:
    """Connect to NAMES and say what is there: latency, python, agent, room."""
    from runaway.checking import check

    return check(names, accept_new=accept_new, as_json=as_json)
