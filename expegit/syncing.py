"""Pulls and pushes until both sides hold everything: fetch, merge in memory, push, and again when somebody was faster.

====================================  =====================================================================
the remote has the same               done
the remote has more                   its commits are taken over, merged with ours where there are some
we have more                          pushed
somebody pushed in between            fetched and merged again, after a short random wait that grows
the remote's rules refuse             an error with what they say; trying again would not help
the remote cannot be reached          an error; what is recorded here waits for the next time
====================================  =====================================================================

Nothing is ever forced, and nothing but the campaign's branch and its snapshots is pushed.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass

import pygit2

from expegit.git import Git
from expegit.store import Campaign
from liborch.errors import CampaignError, GitError

#: References of exact working trees that ran; they are made once and never move.
SNAPSHOTS = "refs/orchestra/snapshots/*"
#: Longest wait before the n-th try: so long * 2**n, at most the cap, in seconds. A low cap: who has waited long is to have a
#: chance against those who just come.
_WAIT_S, _WAIT_CAP_S = 0.05, 1.0
#: For how long others may be faster before that is an error, in seconds.
GIVE_UP_S = 900.0
#: What git says of a push that came too late, as opposed to one that is not wanted.
_LATE = (
    "fetch first",
    "non-fast-forward",
    "cannot lock ref",
    "failed to update ref",
    "stale info",
    "reference already exists",
)


@dataclass
class Synced:
    """What syncing did."""

    #: Commits that came, and that went.
    came: int = 0
    went: int = 0
    #: How often somebody else was faster.
    tries: int = 0


def sync(
    campaign: Campaign,
    *,
    pull: bool = True,
    push: bool = True,
    wait: Callable[[float], object] = time.sleep,
) -> Synced:
    """Bring the campaign's branch here and at its remote to the same state.

    Args:
        pull: Take over what is there. Without, a push that came too late is an error.
        push: Give what is here.

    Raises:
        GitError: The remote cannot be reached (`retriable`), or refuses: with what it said.
        CampaignError: There is no remote.
    """
    remote = remote_of(campaign)
    branch = campaign.reference.removeprefix("refs/heads/")
    done = Synced()
    until = time.monotonic() + GIVE_UP_S
    before, theirs = campaign.head, _tracked(campaign, remote, branch)
    if push and theirs != campaign.head:
        # One connection, mostly: what goes through as it is says that there was nothing to take over.
        said = _push(campaign.git, remote, branch)
    else:
        said = ""
    while said is not None:
        if said:
            done.tries += 1
            if not pull or time.monotonic() > until:
                raise GitError(f"git push {remote}", str(campaign.folder), said, retriable=True)
            if done.tries > 1:
                wait(random.uniform(0, min(_WAIT_CAP_S, _WAIT_S * 2**done.tries)))
        theirs = _fetch(campaign, remote, branch)
        if pull and theirs is not None:
            ours = campaign.head
            made = campaign.merge_commit(ours, theirs, f"Merge {branch} of {remote}")
            if made != ours:
                campaign.advance(made, ours, f"Merge {branch} of {remote}")
        if not push or campaign.head == theirs:
            break
        said = _push(campaign.git, remote, branch)
    if said is None:
        done.went = _count(campaign, campaign.head, theirs)
    if pull and theirs is not None:
        done.came = _count(campaign, theirs, before)
    return done


def remote_of(campaign: Campaign) -> str:
    """The remote that the campaign's branch belongs to. Raises CampaignError when there is none."""
    branch = campaign.reference.removeprefix("refs/heads/")
    named = campaign.git.run("config", f"branch.{branch}.remote", fine=(0, 1)).text
    known = campaign.git.text("remote").split()
    if named in known:
        return named
    if "origin" in known:
        return "origin"
    if len(known) == 1:
        return known[0]
    raise CampaignError(
        str(campaign.folder),
        "has no remote to sync with; `git remote add origin ADDRESS` names one"
        if not known
        else f"has several remotes ({', '.join(known)}); `git branch --set-upstream-to` says which is its own",
    )


def _tracked(campaign: Campaign, remote: str, branch: str) -> pygit2.Oid | None:
    """The remote's commit as it was when last heard of."""
    there = f"refs/remotes/{remote}/{branch}"
    found = campaign.git.run("rev-parse", "--verify", "--quiet", there, fine=(0, 1))
    return pygit2.Oid(hex=found.text) if found.status == 0 else None


def _fetch(campaign: Campaign, remote: str, branch: str) -> pygit2.Oid | None:
    """Bring what is there; returns its commit, or None when it has no such branch yet."""
    wanted = (f"+refs/heads/{branch}:refs/remotes/{remote}/{branch}", f"{SNAPSHOTS}:{SNAPSHOTS}")
    try:
        campaign.git.run("fetch", "--quiet", "--no-tags", "--no-write-fetch-head", remote, *wanted)
    except GitError as error:
        if "couldn't find remote ref" in error.said:
            return None
        error.retriable = True
        raise
    return _tracked(campaign, remote, branch)


def _push(git: Git, remote: str, branch: str) -> str | None:
    """Push; None when it is through, what was said when somebody was faster.

    Raises:
        GitError: It is not wanted there, or the remote cannot be reached.
    """
    words = ["push", "--porcelain", "--quiet", remote, f"refs/heads/{branch}"]
    if git.text("for-each-ref", "--count=1", "--format=%(refname)", SNAPSHOTS[:-2]):
        words.append(f"{SNAPSHOTS}:{SNAPSHOTS}")
    done = git.run(*words, fine=(0, 1, 128))
    refused = [line for line in done.text.splitlines() if line.startswith("!")]
    if done.status == 0 and not refused:
        return None
    said = "; ".join([*(" ".join(line[1:].split()) for line in refused), done.stderr]).strip("; ")
    if refused and all(any(word in f"{line} {done.stderr}" for word in _LATE) for line in refused):
        return said
    raise GitError(f"git push {remote} {branch}", str(git.folder), said, done.status, retriable=not refused)


def _count(campaign: Campaign, to: pygit2.Oid, since: pygit2.Oid | None) -> int:
    words = [str(to)] if since is None else [str(to), f"^{since}"]
    return int(campaign.git.text("rev-list", "--count", *words))
