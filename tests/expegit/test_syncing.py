"""Several people, one remote: everything arrives everywhere, nothing is forced, and what is refused says why."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from expegit import creating
from expegit.layout import folder_of
from expegit.records import Record, read_record, write_record
from expegit.store import Campaign
from expegit.syncing import sync
from liborch.errors import CampaignError, GitError
from tests.expegit.conftest import git
from tests.expegit.test_store import changes


def clone(hub: Path, folder: Path) -> Campaign:
    return creating.clone(str(hub), folder)


def test_two_clones_record_in_turn_and_both_histories_hold_both(
    campaign: Campaign, hub: Path, tmp_path: Path
) -> None:
    other = clone(hub, tmp_path / "other")
    campaign.commit(changes("aa01"), "Mine")
    other.commit(changes("aa02"), "Theirs")
    assert sync(campaign).went == 1
    done = sync(other)
    assert (done.came, done.went) == (1, 2)
    assert sync(campaign).came == 2
    for each in (campaign, other):
        assert sorted(each.ids()) == ["aa01", "aa02"]
        assert git(each.folder, "status", "--porcelain") == ""
        git(each.folder, "fsck", "--strict")
    assert campaign.head == other.head
    assert (sync(campaign).came, sync(other).went) == (0, 0)


def test_many_at_once_are_through_in_the_end(campaign: Campaign, hub: Path, tmp_path: Path) -> None:
    def work(number: int) -> None:
        own = clone(hub, tmp_path / f"clone{number}")
        for turn in range(3):
            own.commit(changes(f"clone{number}-{turn}"), f"{number} {turn}")
            sync(own)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    sync(campaign)
    assert len(campaign.ids()) == 12
    git(hub, "fsck", "--strict")


def test_a_record_changed_on_both_sides_is_merged_field_by_field(
    campaign: Campaign, hub: Path, tmp_path: Path
) -> None:
    path = f"{folder_of('aa01')}/record.json"
    campaign.commit([(path, write_record(Record(id="aa01", tags=("old",), metrics={"loss": 1})))], "Begin")
    sync(campaign)
    other = clone(hub, tmp_path / "other")
    campaign.commit(
        [(path, write_record(Record(id="aa01", tags=("mine", "old"), metrics={"loss": 1, "a": 2})))], "Mine"
    )
    other.commit(
        [
            (
                path,
                write_record(
                    Record(id="aa01", state="failed", tags=("theirs",), metrics={"loss": 1, "b": 3})
                ),
            )
        ],
        "Theirs",
    )
    sync(campaign)
    sync(other)
    sync(campaign)
    for each in (campaign, other):
        record = each.record("aa01")
        assert record.state == "failed"
        assert record.tags == ("mine", "theirs")
        assert record.metrics == {"loss": 1, "a": 2, "b": 3}


def test_a_field_changed_on_both_sides_is_kept_twice(campaign: Campaign, hub: Path, tmp_path: Path) -> None:
    folder = folder_of("aa01")
    campaign.commit([(f"{folder}/record.json", write_record(Record(id="aa01")))], "Begin")
    sync(campaign)
    other = clone(hub, tmp_path / "other")
    for each, state in ((campaign, "succeeded"), (other, "failed")):
        each.commit([(f"{folder}/record.json", write_record(Record(id="aa01", state=state)))], state)
        sync(each)
    sync(campaign)
    assert campaign.head == other.head
    names = [
        name.rpartition("/")[2]
        for name in git(campaign.folder, "ls-tree", "-r", "--name-only", "HEAD", folder).split()
    ]
    assert len(names) == 2
    states = {read_record(campaign.read(f"{folder}/{name}") or b"", name).state for name in names}
    assert states == {"succeeded", "failed"}


def test_removed_here_and_changed_there_stays(campaign: Campaign, hub: Path, tmp_path: Path) -> None:
    path = f"{folder_of('aa01')}/record.json"
    campaign.commit(changes("aa01"), "Begin")
    sync(campaign)
    other = clone(hub, tmp_path / "other")
    campaign.commit([(folder_of("aa01"), None)], "Remove")
    other.commit([(path, write_record(Record(id="aa01", tags=("keep",))))], "Tag")
    sync(campaign)
    sync(other)
    assert other.record("aa01").tags == ("keep",)


def test_the_remotes_rules_are_heard_and_not_argued_with(campaign: Campaign, hub: Path) -> None:
    hook = hub / "hooks" / "pre-receive"
    hook.write_text("#!/bin/sh\necho no campaigns here >&2\nexit 1\n")
    hook.chmod(0o755)
    campaign.commit(changes("aa01"), "One")
    with pytest.raises(GitError, match="no campaigns here") as raised:
        sync(campaign)
    assert not raised.value.retriable
    hook.unlink()
    assert sync(campaign).went == 1


def test_what_is_recorded_while_the_remote_is_gone_waits(campaign: Campaign, hub: Path) -> None:
    campaign.commit(changes("aa01"), "One")
    hub.rename(hub.with_name("away"))
    with pytest.raises(GitError, match="does not appear to be a git repository") as raised:
        sync(campaign)
    assert raised.value.retriable
    hub.with_name("away").rename(hub)
    assert sync(campaign).went == 1


def test_without_a_remote_it_says_how_to_name_one(campaign: Campaign) -> None:
    with pytest.raises(CampaignError, match="git remote add"):
        sync(campaign)


def test_only_pushing_does_not_take_over_what_came_in_between(
    campaign: Campaign, hub: Path, tmp_path: Path
) -> None:
    other = clone(hub, tmp_path / "other")
    other.commit(changes("aa02"), "Theirs")
    sync(other)
    campaign.commit(changes("aa01"), "Mine")
    with pytest.raises(GitError):
        sync(campaign, pull=False)
    assert campaign.ids() == ["aa01"]
    assert sync(campaign, push=False).came == 1
    assert sync(campaign, pull=False).went == 2
