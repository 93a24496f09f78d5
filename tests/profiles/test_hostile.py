"""Broken and hostile profiles: an error with file and line, soon, and in little memory. Never anything else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from liborch.errors import ProfileError
from liborch.profiles import nodes
from liborch.profiles.load import load_bytes, load_file
from liborch.specs import HostProfile
from tests.profiles.hostile import CORPUS, file_name
from tests.profiles.test_load import OF_2020, OURS

SMALL = {name: raw for name, raw in CORPUS.items() if len(raw) < nodes.MAX_BYTES}


def test_every_file_of_the_corpus_is_an_error_with_its_line_soon_and_in_little_memory(tmp_path: Path):
    for index, raw in enumerate(CORPUS.values()):
        (tmp_path / file_name(index)).write_bytes(raw)
    command = [sys.executable, "-m", "tests.profiles.hostile", str(tmp_path)]
    done = subprocess.run(
        command, capture_output=True, check=True, cwd=Path(__file__).parents[2], timeout=120
    )
    report = json.loads(done.stdout)
    assert len(report["files"]) == len(CORPUS) >= 60
    for name, entry in zip(CORPUS, report["files"], strict=True):
        assert entry["error"], f"{name}: was accepted"
        assert entry["error"].startswith(f"{tmp_path / entry['file']}:{entry['line']}: "), (
            f"{name}: {entry['error'][:200]}"
        )
        assert entry["line"] >= 1, name
        assert len(entry["error"]) < 1000, name
        assert entry["took_s"] <= 2, f"{name}: took {entry['took_s']:.1f} s"
    assert report["peak_kib"] <= 200 * 1024


@pytest.mark.parametrize("name", SMALL)
def test_the_reader_without_libyaml_refuses_the_same(name, monkeypatch):
    monkeypatch.setattr(nodes, "_LOADER", yaml.SafeLoader)
    with pytest.raises(ProfileError) as caught:
        load_bytes("f.yaml", SMALL[name][:20_000])
    assert caught.value.line is not None


@pytest.mark.parametrize(
    ("name", "line", "says"),
    [
        ("empty", 1, "the file is empty"),
        ("a word", 1, "found 'hello'; expected a mapping"),
        ("a list", 1, "found a list; expected a mapping"),
        ("NUL", 2, "binary file"),
        ("UTF-16", 1, "UTF-16"),
        ("Latin-1", 1, "byte 0xe9 is not UTF-8"),
        ("control characters", 1, "U+0001"),
        ("tab indent", 3, "indented with a tab"),
        ("two colons", 1, "mapping values are not allowed"),
        ("conflict markers", 2, "is not YAML"),
        ("python object", 1, "the tag '!!python/object/apply:os.system' is not allowed"),
        ("own tag", 1, "the tag '!secret' is not allowed"),
        ("alias bomb", 5, "more than 100,000 values once aliases are followed"),
        ("alias inside its anchor", 1, "the alias *a is inside its own anchor"),
        ("alias of nothing", 1, "the alias *missing has no anchor"),
        ("alias across documents", 5, "the alias *x has no anchor"),
        ("merge key", 3, "`<<` (merging mappings) is not supported"),
        ("duplicate key", 3, "the key 'ssh' is there twice (first in line 2)"),
        ("a list as a key", 1, "a key is a list"),
        ("deep lists", 1, "nested more than 32 deep"),
        ("NaN", 2, "slots.cpus: found '.nan'"),
        ("012 for a number", 2, "leading zero"),
    ],
)
def test_what_is_said(name, line, says):
    with pytest.raises(ProfileError) as caught:
        load_bytes("f.yaml", CORPUS[name])
    assert caught.value.line == line
    assert says in str(caught.value)


def test_no_tag_runs_anything(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, raw in SMALL.items():
        if b"python" in raw:
            with pytest.raises(ProfileError):
                load_bytes(name, raw)
    assert list(tmp_path.iterdir()) == []


def test_aliases_within_reason_are_followed():
    (profile,) = load_bytes("f.yaml", b"name: a\nnodes: [{ssh: x, slots: &s {cpus: 2}}, {ssh: y, slots: *s}]")
    assert profile.nodes[0].slots == profile.nodes[1].slots


def test_marks_line_ends_and_documents_that_editors_leave_are_fine():
    assert load_bytes("f.yaml", b"\xef\xbb\xbfname: a\r\nssh: b\r\n---\r\n")[0].ssh == "b"


@pytest.mark.parametrize(
    "make", ["missing", "folder", "fifo", "socket", "loop", "under a file", "unreadable"]
)
def test_what_is_no_readable_file_is_an_error_at_once(tmp_path, make, request):
    path = tmp_path / "x.yaml"
    match make:
        case "folder":
            path.mkdir()
        case "fifo":
            os.mkfifo(path)
        case "socket":
            os.mknod(path, 0o600 | 0o140000)
        case "loop":
            path.symlink_to(path)
        case "under a file":
            path.write_text("x")
            path = path / "y.yaml"
        case "unreadable":
            path.write_text("ssh: x")
            path.chmod(0)
            if os.geteuid() == 0:
                # Nothing is unreadable to root: be somebody else for a moment.
                request.addfinalizer(lambda: os.seteuid(0))
                os.seteuid(65534)
        case _:
            pass
    with pytest.raises(ProfileError, match="expected"):
        load_file(path)


def test_names_that_are_no_file_names_are_an_error():
    with pytest.raises(ProfileError):
        load_file("a\0b")


_SEEDS = [OURS, OF_2020, *(raw[:2000].decode("utf-8", "replace") for raw in SMALL.values())]
_SNIPPETS = [
    "\t",
    ":",
    ": ",
    "- ",
    "[",
    "]",
    "{",
    "}",
    "&a ",
    "*a",
    "!!x ",
    "'",
    '"',
    "|",
    ">",
    "#",
    "---\n",
    "\n",
    "  ",
    "<<: ",
    "~",
    "? ",
    "%",
    "\\u0000",
    "\x00",
    "\ud800",
    "é",
    "on",
    "1e3",
    "null",
]


def _loaded(raw: bytes) -> tuple[list[HostProfile], ProfileError | None]:
    try:
        return load_bytes("f.yaml", raw), None
    except ProfileError as error:
        return [], error


def _mutated(seed: str, cuts: list[tuple[int, int, str]]) -> bytes:
    for at, length, text in cuts:
        at %= len(seed) + 1
        seed = seed[:at] + text + seed[at + length :]
    return seed.encode("utf-8", "surrogatepass")


@settings(max_examples=400, deadline=2000)
@given(
    seed=st.sampled_from(_SEEDS),
    cuts=st.lists(
        st.tuples(st.integers(0, 5000), st.integers(0, 30), st.sampled_from(_SNIPPETS) | st.text(max_size=5)),
        max_size=6,
    ),
)
def test_mutated_text_gives_profiles_or_a_profile_error_and_nothing_else(seed, cuts):
    profiles, error = _loaded(_mutated(seed, cuts))
    assert (error is None) == bool(profiles)
    assert error is None or (error.line or 0) >= 1
    assert all(profile.name and profile.ssh for profile in profiles)


@settings(max_examples=200, deadline=2000)
@given(raw=st.binary(max_size=300))
@example(raw=b"\xef\xbb\xbf")
def test_bytes_of_any_kind_give_profiles_or_a_profile_error(raw):
    profiles, error = _loaded(raw)
    assert (error is None) == bool(profiles)
    assert error is None or (error.line or 0) >= 1


def test_a_usual_profile_loads_quickly():
    begun = time.perf_counter()
    for _ in range(20):
        load_bytes("f.yaml", OURS.encode())
    assert time.perf_counter() - begun < 1
