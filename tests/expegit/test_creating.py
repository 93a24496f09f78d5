"""Making campaigns, and bringing them from elsewhere."""

from __future__ import annotations

from pathlib import Path

import pytest

from expegit import creating
from expegit.layout import folder_of
from expegit.store import Campaign
from expegit.syncing import sync
from liborch.errors import CampaignError, GitError
from tests.expegit.conftest import git
from tests.expegit.test_store import changes


def test_a_repository_of_its_own_pins_the_experiment(experiment: Path, tmp_path: Path) -> None:
    campaign = creating.init(str(experiment), tmp_path / "mine")
    assert campaign.pin() == git(experiment, "rev-parse", "HEAD")
    assert campaign.settings.experiment_url == str(experiment)
    assert campaign.settings.name == "mine"
    assert (campaign.folder / "experiment" / "run").exists()
    assert git(campaign.folder, "status", "--porcelain") == ""


def test_a_branch_of_the_experiment_leaves_the_experiment_as_it_was(experiment: Path, tmp_path: Path) -> None:
    (experiment / "run").write_text("edited\n")
    before = git(experiment, "status", "--porcelain"), git(experiment, "rev-parse", "HEAD")
    campaign = creating.init_branch(experiment, tmp_path / "beside")
    assert campaign.pin() == before[1]
    assert (git(experiment, "status", "--porcelain"), git(experiment, "rev-parse", "HEAD")) == before
    assert git(experiment, "branch", "--show-current") == "main"
    campaign.commit(changes("aa01"), "One")
    assert Campaign.find(tmp_path / "beside").ids() == ["aa01"]
    assert git(campaign.folder, "status", "--porcelain") == ""
    with pytest.raises(CampaignError, match="has a branch campaign already"):
        creating.init_branch(experiment, tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_a_campaign_on_a_branch_is_found_by_who_clones_the_experiment(
    experiment: Path, tmp_path: Path
) -> None:
    hub = tmp_path / "hub.git"
    git(tmp_path, "clone", "-q", "--bare", str(experiment), str(hub))
    git(experiment, "remote", "add", "origin", str(hub))
    campaign = creating.init_branch(experiment, tmp_path / "beside")
    campaign.commit(changes("aa01"), "One")
    assert sync(campaign).went == 2
    other = creating.clone(str(hub), tmp_path / "other")
    assert other.ids() == ["aa01"]
    assert sorted(path.name for path in other.folder.iterdir()) == [
        ".git",
        ".gitmodules",
        "campaign.toml",
        "experiment",
    ]
    other.commit(changes("aa02"), "Two")
    assert sync(other).went == 1
    assert sync(campaign).came == 1


@pytest.mark.parametrize(
    "address", ["ext::sh -c 'touch hacked'", "--upload-pack=touch hacked", "-x", "fd::3", "a::b", ""]
)
def test_an_address_that_runs_something_is_none(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CampaignError, match="no address"):
        creating.clone(address, tmp_path / "clone")
    assert not (tmp_path / "hacked").exists()


@pytest.mark.parametrize(
    "address",
    [
        "https://example.org/x.git",
        "ssh://me@example.org:22/x",
        "me@example.org:x/y.git",
        "host:x",
        "/a/b",
        "../x",
        "x.git",
        "x y",
    ],
)
def test_addresses_as_people_write_them(address: str) -> None:
    assert creating.check_address(address, "a test") == address


def test_what_is_no_campaign_is_said_to_be_none_and_nothing_is_left(experiment: Path, tmp_path: Path) -> None:
    with pytest.raises(CampaignError, match=r"no campaign: there is no campaign\.toml on any"):
        creating.clone(str(experiment), tmp_path / "clone")
    assert not (tmp_path / "clone").exists()
    with pytest.raises(GitError):
        creating.clone(str(tmp_path / "nowhere"), tmp_path / "clone")
    with pytest.raises(GitError):
        creating.init(str(tmp_path / "nowhere"), tmp_path / "clone")
    assert not (tmp_path / "clone").exists()


def test_a_folder_in_use_is_left_alone(campaign: Campaign, tmp_path: Path) -> None:
    with pytest.raises(CampaignError, match="not empty"):
        creating.init("", campaign.folder)
    used = tmp_path / "used"
    used.mkdir()
    (used / "file").write_text("mine\n")
    with pytest.raises(CampaignError, match="not empty"):
        creating.clone(str(campaign.folder), used)
    assert (used / "file").read_text() == "mine\n"


def test_hooks_that_lie_in_a_campaign_are_not_run(campaign: Campaign, tmp_path: Path) -> None:
    for name in ("post-commit", "pre-push", "reference-transaction", "post-checkout", "post-merge"):
        hook = campaign.folder / ".git" / "hooks" / name
        hook.write_text(f"#!/bin/sh\ntouch {tmp_path}/hacked\n")
        hook.chmod(0o755)
    hub = tmp_path / "hub.git"
    git(tmp_path, "init", "-q", "--bare", str(hub))
    git(campaign.folder, "remote", "add", "origin", str(hub))
    campaign.commit([(f"{folder_of('aa01')}/stdout", b"x")], "One")
    sync(campaign)
    assert not (tmp_path / "hacked").exists()
