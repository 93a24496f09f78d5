"""`expegit init`: make a campaign."""

from __future__ import annotations

from pathlib import Path

import click

from expegit.commands.options import json_option, tell


@click.command()
@click.argument("experiment", metavar="[EXPERIMENT]", default="")
@click.argument("path", metavar="[PATH]", default="")
@click.option(
    "--branch",
    metavar="NAME",
    is_flag=False,
    flag_value="campaign",
    default=None,
    help="As a branch of the experiment's own repository, in a worktree beside it. [NAME: campaign]",
)
@click.option("--name", metavar="NAME", default="", help="What the campaign is called. [default: its folder]")
@json_option
def command(experiment: str, path: str, branch: str | None, name: str, as_json: bool) -> None:
    """Make a campaign of EXPERIMENT (an address or a folder; here when it is not given) in PATH.

    The campaign is a repository of its own, with the experiment as a submodule pinned to its newest commit; or, with --branch, a branch
    of the experiment's repository. PATH is the experiment's name and `-campaign`, beside it, when it is not given.
    """
    from expegit import creating
    from expegit.git import Git

    here = Path.cwd()
    if not experiment and Git(here).answers("rev-parse", "--verify", "--quiet", "HEAD"):
        experiment = Git(here).text("rev-parse", "--show-toplevel")
    stem = Path(experiment.rstrip("/")).name.removesuffix(".git") or here.name
    is_here = bool(experiment) and Path(experiment).is_dir()
    beside = Path(experiment).resolve().parent if is_here else here
    folder = Path(path).absolute() if path else beside / f"{stem}-campaign"
    if branch is not None:
        campaign = creating.init_branch(Path(experiment or here).resolve(), folder, branch, name)
    else:
        campaign = creating.init(experiment, folder, name)
    tell(
        {"folder": str(folder), "name": campaign.settings.name, "experiment": campaign.pin()},
        as_json,
        lambda: (
            f"{folder}: campaign {campaign.settings.name}"
            + (f", experiment at {campaign.pin()[:12]}" if campaign.pin() else ", without an experiment")
        ),
    )
