"""The experiment's code as it was at a commit: naming the commit, and having its files in a folder.

A folder of the cache for each commit, made whole or not at all and never changed: what is sent to hosts comes from there.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from pathlib import Path

from expegit.creating import check_address, files_too
from expegit.git import Git
from expegit.layout import EXPERIMENT
from expegit.store import Campaign
from liborch.errors import CampaignError, GitError, StorageError
from liborch.names import nearest
from liborch.places import Places


def repository_of(campaign: Campaign) -> Git:
    """Git in the experiment's repository; fetched first where it is not here yet.

    Raises:
        CampaignError: The campaign has no experiment.
        GitError: It cannot be fetched.
    """
    address = campaign.settings.experiment_url
    if not address or not campaign.pin():
        raise CampaignError(
            str(campaign.folder), "pins no experiment; `expegit init EXPERIMENT` makes a campaign of one"
        )
    if address == "./":
        return campaign.git
    folder = campaign.folder / EXPERIMENT
    if not (folder / ".git").exists():
        check_address(address, str(campaign.folder))
        campaign.git.run(*files_too(address), "submodule", "--quiet", "update", "--init", "--", EXPERIMENT)
    return Git(folder)


def resolve(campaign: Campaign, commit: str = "") -> str:
    """Return the whole name of a commit of the experiment; "": the pinned one.

    Raises:
        CampaignError: There is none of that name, or several; names the nearest.
        GitError: The experiment cannot be fetched.
    """
    git = repository_of(campaign)
    wanted = commit or campaign.pin()
    found = git.run(
        "rev-parse", "--verify", "--quiet", "--end-of-options", f"{wanted}^{{commit}}", fine=(0, 1, 128)
    )
    if found.status == 0:
        return found.text
    if "ambiguous" in found.stderr:
        raise CampaignError(str(git.folder), f"{commit!r} begins several commits: write more of it")
    names = git.text(
        "for-each-ref", "--format=%(refname:short)", "refs/heads", "refs/tags", "refs/remotes"
    ).split("\n")
    near = nearest(wanted, names)
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    raise CampaignError(str(git.folder), f"the experiment has no commit {wanted!r}{hint}")


def export(campaign: Campaign, commit: str, folders: Places) -> Path:
    """Return a folder with the files of a commit, as git would check them out.

    Raises:
        CampaignError: It has submodules, which are not taken along yet: names them.
        GitError, StorageError: git, or the disk, refused. Nothing half is left.
    """
    git = repository_of(campaign)
    there = folders.cache / "code" / commit
    if there.is_dir():
        return there
    listed = git.text("ls-tree", "-r", "-z", "--full-tree", commit).split("\0")
    links = [line.partition("\t")[2] for line in listed if line.startswith("160000")]
    if links:
        raise CampaignError(
            str(git.folder),
            f"commit {commit[:12]} has submodules, which are not taken along yet: {', '.join(links)}",
        )
    try:
        there.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{commit[:12]}-", dir=there.parent))
    except OSError as error:
        raise StorageError("this machine", str(there), error.errno or 0, "checking out code") from error
    try:
        index = {"GIT_INDEX_FILE": str(work / "index")}
        git.run("read-tree", commit, extra=index)
        git.run("checkout-index", "--all", "--force", f"--prefix={work}/files/", extra=index)
        (work / "files").mkdir(exist_ok=True)
        # Who was faster made the same.
        with contextlib.suppress(FileExistsError, OSError):
            os.rename(work / "files", there)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    if not there.is_dir():
        raise GitError("git checkout-index", str(there), "the folder is not there")
    return there
