"""Makes campaigns: a repository of its own, or a branch of the experiment's; and brings one from elsewhere.

Either way the experiment is pinned in the campaign's tree as a submodule is. On a branch of the experiment's own repository
its address is "./": the same place, whatever that is called.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import pygit2

from expegit.git import Git
from expegit.layout import EXPERIMENT, SETTINGS, Settings, write_settings
from expegit.store import Campaign
from liborch.errors import CampaignError, GitError

#: Schemes and forms of addresses that git fetches from without running a command of the address's choice.
_ADDRESS = re.compile(r"(?:(?:https?|ssh|git|file)://[^\s-]|(?![-:])[^\s:/]+:(?!:)|\.{0,2}/|[^:\s-][^:]*\Z)")
MODULES = ".gitmodules"


def check_address(address: str, where: str) -> str:
    """Return an address of a repository. Raises CampaignError for one that is an option, or would run a command."""
    if not _ADDRESS.match(address) or "\n" in address:
        raise CampaignError(
            where, f"{address!r} is no address of a repository: https, ssh, or a path is expected"
        )
    return address


def init(experiment: str, folder: Path, name: str = "") -> Campaign:
    """Make a campaign in a repository of its own, with the experiment as a submodule at its newest commit.

    Args:
        experiment: Address or path of the experiment's repository; "": none yet.
        folder: Where; must not be there, or be empty.

    Raises:
        CampaignError: The folder is in use, or the address is none.
        GitError: The experiment cannot be fetched. Nothing is left then.
    """
    _check_free(folder)
    there = folder.exists()
    if experiment:
        experiment = _absolute(check_address(experiment, "expegit init"))
    folder.mkdir(parents=True, exist_ok=True)
    try:
        git = Git(folder)
        git.run("init", "--quiet", "-b", "main")
        if experiment:
            git.run(*files_too(experiment), "submodule", "--quiet", "add", "--", experiment, EXPERIMENT)
        settings = Settings(name=name or folder.name, experiment_url=experiment)
        (folder / SETTINGS).write_bytes(write_settings(settings))
        git.run("add", "--", SETTINGS, *([MODULES, EXPERIMENT] if experiment else ()))
        git.run("commit", "--quiet", "-m", f"Begin campaign {settings.name}")
        return _narrowed(folder)
    except BaseException:
        _remove(folder, keep=there)
        raise


def init_branch(repository: Path, folder: Path, branch: str = "campaign", name: str = "") -> Campaign:
    """Make a campaign on a branch of its own of the experiment's repository, in a worktree.

    Raises:
        CampaignError: The folder or the branch is in use, or there is no repository.
        GitError: git refused. Nothing is left then.
    """
    _check_free(folder)
    git = Git(repository)
    try:
        head = git.text("rev-parse", "--verify", "HEAD^{commit}")
    except GitError as error:
        raise CampaignError(str(repository), "is no repository with a commit to pin") from error
    if git.answers("show-ref", "--verify", "--quiet", f"refs/heads/{branch}"):
        raise CampaignError(
            str(repository), f"has a branch {branch} already; --branch=NAME gives it another name"
        )
    opened = pygit2.Repository(git.text("rev-parse", "--absolute-git-dir"))
    settings = Settings(name=name or folder.name, experiment_url="./")
    builder = opened.TreeBuilder()
    builder.insert(SETTINGS, opened.create_blob(write_settings(settings)), 0o100644)
    modules = f'[submodule "{EXPERIMENT}"]\n\tpath = {EXPERIMENT}\n\turl = ./\n'
    builder.insert(MODULES, opened.create_blob(modules.encode()), 0o100644)
    builder.insert(EXPERIMENT, pygit2.Oid(hex=head), 0o160000)
    commit = git.text("commit-tree", str(builder.write()), "-m", f"Begin campaign {settings.name}")
    git.run("update-ref", f"refs/heads/{branch}", commit, "")
    try:
        git.run("worktree", "add", "--quiet", str(folder), branch)
        return _narrowed(folder)
    except BaseException:
        git.run("worktree", "remove", "--force", str(folder), fine=(0, 128))
        git.run("update-ref", "-d", f"refs/heads/{branch}", commit)
        raise


def clone(address: str, folder: Path, branch: str = "") -> Campaign:
    """Bring a campaign from elsewhere.

    Args:
        branch: The campaign's branch; "": the one that is checked out there, or the only one that is a campaign's.

    Raises:
        CampaignError: What is there is no campaign, or the folder is in use. Nothing is left then.
        GitError: It cannot be fetched.
    """
    _check_free(folder)
    there = folder.exists()
    address = _absolute(check_address(address, "expegit clone"))
    try:
        words = ["--branch", branch] if branch else []
        Git(Path.cwd()).run(
            "clone", "--quiet", "--no-checkout", "--no-tags", *words, "--", address, str(folder)
        )
        git = Git(folder)
        found = branch or _campaign_among(git, address)
        git.run("symbolic-ref", "HEAD", f"refs/heads/{found}")
        git.run("update-ref", f"refs/heads/{found}", f"refs/remotes/origin/{found}")
        git.run("branch", "--quiet", f"--set-upstream-to=origin/{found}", found)
        if not _is_campaign(git, "HEAD"):
            raise CampaignError(address, f"has no campaign on its branch {found}: there is no {SETTINGS}")
        git.run("sparse-checkout", "set", "--cone", "--sparse-index")
        git.run("read-tree", "-m", "-u", "HEAD")
        return Campaign(folder)
    except BaseException:
        _remove(folder, keep=there)
        raise


def _campaign_among(git: Git, address: str) -> str:
    """The branch of a clone that is a campaign's: the one checked out there, or the only one. Raises CampaignError."""
    prefix = "refs/remotes/origin/"
    listed = git.text("for-each-ref", "--format=%(refname)", prefix).splitlines()
    names = [name.removeprefix(prefix) for name in listed if name != f"{prefix}HEAD"]
    first = git.run("symbolic-ref", "--quiet", f"{prefix}HEAD", fine=(0, 1)).text.removeprefix(prefix)
    found = [name for name in names if _is_campaign(git, f"{prefix}{name}")]
    if first in found or len(found) == 1:
        return first if first in found else found[0]
    if found:
        raise CampaignError(address, f"holds several campaigns, {', '.join(found)}: --branch says which")
    raise CampaignError(address, f"is no campaign: there is no {SETTINGS} on any of its branches")


def _is_campaign(git: Git, commit: str) -> bool:
    return git.answers("cat-file", "-e", f"{commit}:{SETTINGS}")


def _narrowed(folder: Path) -> Campaign:
    """The working tree holds what the person asks for: the top, at first, however many executions there are."""
    Git(folder).run("sparse-checkout", "set", "--cone", "--sparse-index")
    return Campaign(folder)


def _check_free(folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise CampaignError(str(folder), "is there already, and not empty; name another folder")


def _absolute(address: str) -> str:
    """A path as it is called from everywhere; other addresses as they are."""
    path = Path(address).expanduser()
    return str(path.resolve()) if path.exists() else address


def files_too(address: str) -> list[str]:
    """git fetches submodules from paths only when told to: a path that the person typed is fine."""
    return (
        ["-c", "protocol.file.allow=always"] if os.path.isabs(address) or address.startswith("file:") else []
    )


def _remove(folder: Path, *, keep: bool) -> None:
    if keep:
        for path in folder.iterdir() if folder.exists() else ():
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    else:
        shutil.rmtree(folder, ignore_errors=True)
