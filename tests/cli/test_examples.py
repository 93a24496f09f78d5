"""The examples do what their READMEs say, run as a person would run them: as scripts, in a folder of their own."""

from __future__ import annotations

import csv
import importlib.util
import json
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import liborch
from tests.cli.person import Person

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
PI = EXAMPLES / "pi" / "pi.py"
TRAIN = EXAMPLES / "training" / "train.py"
EMBED = EXAMPLES / "embed" / "sweep.py"
ESTIMATE = EXAMPLES / "executor" / "estimate.py"

METRICS = ("metrics.json", "metrics.csv", "checkpoint.json")


def run(
    script: Path, folder: Path, *arguments: str, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a script in a folder, made when missing, and return what it said."""
    folder.mkdir(exist_ok=True)
    return subprocess.run(
        [sys.executable, str(script), *arguments],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )


def contents(folder: Path) -> dict[str, bytes]:
    """Return every file of a folder by name."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_pi_writes_a_result_within_what_chance_explains(tmp_path: Path) -> None:
    done = run(PI, tmp_path, "--samples", "20000", "--seed", "3")
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["samples"] == 20000
    assert result["seed"] == 3
    assert abs(result["estimate"] - math.pi) == pytest.approx(result["error"])
    assert result["error"] < 5 * result["standard_deviation"]
    assert f"{result['estimate']:.6f}" in done.stdout


def test_pi_writes_a_table_whose_last_row_is_the_result(tmp_path: Path) -> None:
    run(PI, tmp_path, "--samples", "1234")
    result = json.loads((tmp_path / "result.json").read_text())
    rows = list(csv.DictReader((tmp_path / "convergence.csv").open(newline="")))
    assert list(rows[0]) == ["samples", "estimate", "error"]
    assert [int(row["samples"]) for row in rows] == sorted({int(row["samples"]) for row in rows})
    assert int(rows[-1]["samples"]) == 1234
    assert float(rows[-1]["estimate"]) == pytest.approx(result["estimate"], abs=1e-6)


def test_pi_gives_the_same_bytes_for_a_seed_and_others_for_another(tmp_path: Path) -> None:
    for name, seed in (("one", "1"), ("again", "1"), ("other", "2")):
        run(PI, tmp_path / name, "--samples", "5000", "--seed", seed)
    assert contents(tmp_path / "one") == contents(tmp_path / "again")
    assert contents(tmp_path / "one") != contents(tmp_path / "other")


def test_pi_refuses_to_throw_nothing(tmp_path: Path) -> None:
    done = run(PI, tmp_path, "--samples", "0")
    assert done.returncode == 2
    assert "--samples must be at least 1" in done.stderr
    assert contents(tmp_path) == {}


def test_machines_keeps_a_folder_of_results_for_each_host(person: Person) -> None:
    folder = person.folder / "machines"
    shutil.copytree(EXAMPLES / "machines", folder)
    words = ("exec", "-S", "local", "machine.sh", "-o", "machines/$RUNAWAY_REMOTE", "--", "1000")
    for _ in range(2):
        done = person.run(*words, cwd=folder)
        assert done.returncode == 0, done.stderr
        assert (folder / "machines" / "local" / "machine.txt").read_bytes() == done.stdout
    plan = person.run(*words[:-2], "--dry-run", "--json", cwd=folder)
    assert [each["path"] for each in json.loads(plan.stdout)["files"]] == ["README.md", "machine.sh"]


def test_training_learns(tmp_path: Path) -> None:
    done = run(TRAIN, tmp_path, "--epochs", "40")
    assert done.returncode == 0, done.stderr
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    rows = list(csv.DictReader((tmp_path / "metrics.csv").open(newline="")))
    assert [int(row["epoch"]) for row in rows] == list(range(1, 41))
    assert float(rows[-1]["loss"]) == metrics["loss"] < float(rows[0]["loss"])
    assert metrics["test_accuracy"] > 0.9
    assert set(METRICS) == set(contents(tmp_path))


def test_training_continued_from_a_checkpoint_equals_training_in_one_go(tmp_path: Path) -> None:
    words = ("--lr", "0.05", "--width", "7", "--seed", "4")
    run(TRAIN, tmp_path / "whole", *words, "--epochs", "12")
    run(TRAIN, tmp_path / "parts", *words, "--epochs", "5")
    done = run(TRAIN, tmp_path / "parts", *words, "--epochs", "12", "--resume", "checkpoint.json")
    assert done.returncode == 0, done.stderr
    assert contents(tmp_path / "whole") == contents(tmp_path / "parts")


def test_training_goes_on_in_another_folder_from_a_checkpoint_elsewhere(tmp_path: Path) -> None:
    run(TRAIN, tmp_path / "first", "--epochs", "3")
    done = run(
        TRAIN, tmp_path / "second", "--epochs", "3", "--resume", str(tmp_path / "first" / "checkpoint.json")
    )
    assert done.returncode == 0, done.stderr
    for name in ("metrics.csv", "metrics.json"):
        assert (tmp_path / "second" / name).read_bytes() == (tmp_path / "first" / name).read_bytes()


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("--lr", "0.5", "--epochs", "4"), "made with --lr 0.02, not 0.5"),
        (("--epochs", "1"), "has 2 epochs already"),
    ],
)
def test_training_refuses_a_checkpoint_of_another_run(
    tmp_path: Path, words: tuple[str, ...], complaint: str
) -> None:
    run(TRAIN, tmp_path, "--epochs", "2")
    before = contents(tmp_path)
    done = run(TRAIN, tmp_path, *words, "--resume", "checkpoint.json")
    assert done.returncode == 1
    assert complaint in done.stderr
    assert "Traceback" not in done.stderr
    assert contents(tmp_path) == before


@pytest.mark.parametrize("text", ["", "{}", '{"format": 99}', '{"format": 1, "lr"'])
def test_training_refuses_what_is_no_checkpoint(tmp_path: Path, text: str) -> None:
    (tmp_path / "other.json").write_text(text)
    done = run(TRAIN, tmp_path, "--resume", "other.json")
    assert done.returncode == 1
    assert "other.json" in done.stderr
    assert "Traceback" not in done.stderr


def test_executor_example_says_what_its_readme_shows(person: Person) -> None:
    done = run(ESTIMATE, person.folder, environment=person.environment)
    assert done.returncode == 0, done.stderr
    assert f"```\n{done.stdout}```" in (ESTIMATE.parent / "README.md").read_text()


def test_executor_of_the_readme_runs_as_it_stands(person: Person) -> None:
    text = (EXAMPLES.parent / "README.md").read_text()
    code = re.search(
        r"^```python\n(import liborch\n\nwith liborch.Executor.*?)^```", text, re.DOTALL | re.MULTILINE
    )
    assert code is not None
    script = person.write("shown.py", code[1])
    done = run(script, person.folder, environment=person.environment)
    assert done.stdout.splitlines() == ["[0, 1, 2]", "[0, 1, 4, 9, 16, 25, 36, 49]"], done.stderr


@pytest.mark.skipif(not hasattr(liborch, "open_host"), reason="liborch.open_host is not there yet")
def test_embedding_example_runs_on_this_machine(tmp_path: Path) -> None:
    # A home of its own: whatever state the library keeps goes there, and away with the folder.
    environment = {**os.environ, "HOME": str(tmp_path)}
    for name in ("XDG_STATE_HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME"):
        environment.pop(name, None)
    done = run(EMBED, tmp_path, environment=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["system: Linux", "exit code: 3", "sum of squares: 140"]


@pytest.mark.parametrize("name", ["pi", "training"])
def test_readme_of_an_example_shows_what_really_comes_out(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    shutil.copytree(EXAMPLES / name, folder)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python3").symlink_to(sys.executable)
    environment = {**os.environ, "PATH": f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"}
    blocks = re.findall(r"```console\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    assert blocks
    for block in blocks:
        for step in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, _, expected = step.partition("\n")
            done = subprocess.run(
                ["sh", "-c", command],
                cwd=folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
            )
            assert done.stdout == expected, command
            assert done.returncode == 0, command


@pytest.mark.skipif(
    importlib.util.find_spec("runaway.__main__") is None, reason="the command `runaway` is not there yet"
)
def test_demo_runs_and_leaves_no_file_behind(tmp_path: Path) -> None:
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    done = subprocess.run(
        ["sh", str(EXAMPLES / "demo.sh"), str(Path(sys.executable).parent)],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "pi is about 3.1" in done.stdout
    assert '"epochs": 30' in done.stdout
    assert contents(tmp_path) == {}
