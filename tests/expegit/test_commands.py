"""`expegit` as it is typed: from a batch to a campaign that others have, too."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cli.person import RUNAWAY, Person
from tests.expegit.conftest import git

EXPEGIT = str(Path(RUNAWAY).with_name("expegit"))


class Campaigner(Person):
    """Types `expegit` as well."""

    def expegit(self, *words: str, cwd: Path | None = None, status: int = 0) -> str:
        """Type a command; returns what it prints on both streams. Fails unless it ends with `status`."""
        done = subprocess.run(
            [EXPEGIT, *words],
            cwd=cwd or self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=60,
            check=False,
        )
        text = done.stdout.decode()
        assert done.returncode == status, text
        return text

    def said(self, *words: str, cwd: Path | None = None) -> Any:
        """What a command says with --json."""
        return json.loads(self.expegit(*words, "--json", cwd=cwd))


@pytest.fixture
def person(tmp_path: Path) -> Iterator[Campaigner]:
    somebody = Campaigner(tmp_path / "person")
    (somebody.home / ".gitconfig").write_text("[user]\n\tname = Ada L\n\temail = ada@example.org\n")
    yield somebody
    somebody.close()


def test_what_a_batch_left_is_recorded_shared_and_shown(person: Campaigner, tmp_path: Path) -> None:
    hub = tmp_path / "hub.git"
    git(tmp_path, "init", "-q", "--bare", str(hub))
    person.write(
        "work.sh",
        "#!/bin/sh\n"
        'echo "$@"; echo odd >&2\n'
        'echo "{\\"loss\\": $1}" > metrics.json\n'
        "mkdir -p deep; printf 'a\\000b' > deep/data.bin; ln -s data.bin deep/link\n"
        '[ "$1" != 3 ]\n',
    ).chmod(0o755)
    person.run("batch", "local", "work.sh", "--", "{1;2;3} 'two words'")
    for output in (person.folder / "batch").iterdir():
        (output / "out").symlink_to("/etc/passwd")
    assert "without an experiment" in person.expegit("init", "", str(person.folder / "c"))
    campaign = person.folder / "c"
    done = person.said("import", "last", cwd=campaign)
    assert len(done["recorded"]) == 3
    assert [Path(path).name for path, _why in done["left_out"]] == ["out"] * 3
    assert person.said("import", "last", cwd=campaign)["known"] == 3

    git(campaign, "remote", "add", "origin", str(hub))
    assert "not pushed anywhere" in person.expegit("status", cwd=campaign)
    assert person.said("sync", cwd=campaign)["went"] == 2
    assert person.said("status", cwd=campaign)["executions"] == {"succeeded": 2, "failed": 1}
    assert "3 executions" in person.expegit("clone", str(hub), "other")

    other = person.folder / "other"
    rows = [json.loads(line) for line in person.expegit("exec", "list", "--json", cwd=other).splitlines()]
    failed = next(row for row in rows if row["state"] == "failed")
    assert failed["arguments"] == ["3", "two words"]
    assert (failed["exit_code"], failed["metrics"], failed["who"]) == (
        1,
        {"loss": 3},
        "Ada L <ada@example.org>",
    )
    x = failed["id"]
    assert person.expegit("exec", "params", x[:6], cwd=other) == "3\ntwo words\n"
    shown = person.expegit("exec", "show", x, cwd=other)
    assert "data/deep/data.bin\t3" in shown
    folder = f"HEAD:executions/{x[:2]}/{x[2:4]}/{x}"
    assert git(other, "show", f"{folder}/stdout") == "3 two words"
    assert git(other, "show", f"{folder}/stderr") == "odd"
    assert git(other, "show", f"{folder}/data/deep/link") == "data.bin"

    person.expegit("exec", "tag", x[:6], "--add", "bad", "--push", cwd=other)
    person.expegit("pull", cwd=campaign)
    assert json.loads(git(campaign, "show", f"{folder}/record.json"))["tags"] == ["bad"]
    person.expegit("exec", "remove", x, "--push", cwd=campaign)
    person.expegit("sync", cwd=other)
    assert person.said("status", cwd=other)["executions"] == {"succeeded": 2}


def test_a_result_that_is_too_large_is_named_and_nothing_of_its_group_is_recorded(person: Campaigner) -> None:
    person.write("work.sh", "#!/bin/sh\nhead -c 2000000 /dev/zero > large\n").chmod(0o755)
    person.run("batch", "local", "work.sh", "-x", "2")
    person.expegit("init", "", "c")
    campaign = person.folder / "c"
    assert "large: has 1.9 MiB" in person.expegit("import", "last", cwd=campaign, status=2)
    assert person.said("status", cwd=campaign)["executions"] == {}
    settings = (campaign / "campaign.toml").read_text().replace('large = "lfs"', 'large = "git"')
    (campaign / "campaign.toml").write_text(settings)
    git_environment = {**person.environment}
    subprocess.run(["git", "commit", "-qam", "Keep it"], cwd=campaign, env=git_environment, check=True)
    assert len(person.said("import", "last", cwd=campaign)["recorded"]) == 2


def test_wrong_words_say_what_was_expected(person: Campaigner, experiment: Path) -> None:
    assert "expegit init" in person.expegit("status", status=2)
    assert "did you mean" in person.expegit("statsu", status=2)
    person.expegit("init", "", "c")
    campaign = person.folder / "c"
    assert "there is no execution yet" in person.expegit("exec", "show", "ab", cwd=campaign, status=2)
    assert "no address" in person.expegit("clone", "ext::sh -c true", "x", status=2)
    assert "not empty" in person.expegit("init", "", "c", status=2)
    answer = json.loads(person.expegit("clone", str(experiment), "y", "--json", status=2).splitlines()[0])
    assert answer["error"]["type"] == "CampaignError"


def test_two_commands_make_a_campaign_beside_an_experiment(person: Campaigner, experiment: Path) -> None:
    said = person.said("init", "--branch", cwd=experiment)
    assert said["experiment"] == git(experiment, "rev-parse", "HEAD")
    assert said["folder"] == str(experiment.parent / "experiment-campaign")
    assert "0 executions" in person.expegit("status", cwd=experiment.parent / "experiment-campaign")
    person.expegit("init", cwd=experiment, status=2)
    assert "experiment at" in person.expegit("init", str(experiment), "mine")


def test_three_commands_from_an_experiment_to_its_first_recorded_execution(
    person: Campaigner, experiment: Path
) -> None:
    commit = git(experiment, "rev-parse", "HEAD")
    person.expegit("init", "--branch", cwd=experiment)
    campaign = experiment.parent / "experiment-campaign"
    (experiment / "run").write_text("#!/bin/sh\necho edited since\n")
    said = person.expegit("run", "local", "--", "--lr {0.1;0.2}", cwd=campaign)
    assert "2 executions recorded" in said
    rows = [json.loads(line) for line in person.expegit("exec", "list", "--json", cwd=campaign).splitlines()]
    assert sorted(row["arguments"][1] for row in rows) == ["0.1", "0.2"]
    for row in rows:
        assert (row["state"], row["code"]) == ("succeeded", {"commit": commit, "script": "run"})
        folder = f"HEAD:executions/{row['id'][:2]}/{row['id'][2:4]}/{row['id']}"
        assert git(campaign, "show", f"{folder}/stdout") == f"ran --lr {row['arguments'][1]}"
    assert (
        list((Path(git(campaign, "rev-parse", "--absolute-git-dir")) / "orchestra-outputs").iterdir()) == []
    )
    assert git(campaign, "status", "--porcelain") == ""
    # The same again, of an older commit, and what is not there.
    first = git(experiment, "rev-parse", "HEAD~1")
    person.expegit("run", "local", "--commit", first[:10], "--", "x", cwd=campaign)
    last = json.loads(person.expegit("exec", "list", "--json", cwd=campaign).splitlines()[-1])
    assert person.expegit("exec", "params", "last", cwd=campaign) == "x\n"
    assert last["code"]["commit"] == first
    assert "no commit 'mian'; did you mean main?" in person.expegit(
        "run", "local", "--commit", "mian", cwd=campaign, status=2
    )
    assert "no script 'train.py'" in person.expegit(
        "run", "local", "--script", "train.py", cwd=campaign, status=2
    )


def test_a_campaign_of_its_own_runs_the_pinned_commit_also_for_who_cloned_it(
    person: Campaigner, experiment: Path
) -> None:
    person.expegit("init", str(experiment), "mine")
    person.expegit("clone", str(person.folder / "mine"), "other")
    other = person.folder / "other"
    person.expegit("run", "local", "--", "a", cwd=other)
    assert person.said("status", cwd=other)["executions"] == {"succeeded": 1}
