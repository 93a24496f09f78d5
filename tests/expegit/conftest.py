"""Campaigns and experiments of a test's own, and who records in them."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from expegit import creating
from expegit.store import Campaign


@pytest.fixture(autouse=True)
def person(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Somebody with a name and a home of their own, whose git knows nothing else."""
    home = tmp_path / "home"
    home.mkdir()
    (home / ".gitconfig").write_text(
        "[user]\n\tname = Ada L\n\temail = ada@example.org\n[init]\n\tdefaultBranch = main\n"
    )
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    return home


def git(folder: Path, *words: str) -> str:
    """What git prints. Raises CalledProcessError."""
    done = subprocess.run(["git", *words], cwd=folder, check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.fixture
def experiment(tmp_path: Path) -> Path:
    """An experiment: a repository with a program `run` and two commits."""
    folder = tmp_path / "experiment"
    folder.mkdir()
    git(folder, "init", "-q", "-b", "main")
    (folder / "run").write_text('#!/bin/sh\necho ran "$@"\n')
    (folder / "run").chmod(0o755)
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "-m", "First")
    (folder / "README").write_text("An experiment.\n")
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "-m", "Second")
    return folder


@pytest.fixture
def campaign(tmp_path: Path) -> Campaign:
    """A campaign without an experiment."""
    return creating.init("", tmp_path / "campaign")


@pytest.fixture
def hub(tmp_path: Path, campaign: Campaign) -> Path:
    """A bare repository that the campaign was pushed to."""
    folder = tmp_path / "hub.git"
    git(tmp_path, "init", "-q", "--bare", str(folder))
    git(campaign.folder, "remote", "add", "origin", str(folder))
    git(campaign.folder, "push", "-q", "-u", "origin", "main")
    return folder
