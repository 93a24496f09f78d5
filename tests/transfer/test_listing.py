"""What goes out is what git says, and what the send rules let; each other entry stays for a reason."""

from __future__ import annotations

import os
import socket
import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from liborch.errors import SpecError
from liborch.transfer.listing import list_folder
from liborch.transfer.rules import Rules
from tests.transfer.trees import grow


def git(folder: Path, *words: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    return subprocess.run(
        ["git", *identity, *words], cwd=folder, check=True, capture_output=True, text=True
    ).stdout


def names(folder: Path, send_ignore: Path | None = None) -> set[str]:
    return {os.fsdecode(each.path) for each in list_folder(folder, send_ignore=send_ignore).found}


def reasons(folder: Path) -> dict[str, str]:
    return {each.path: each.reason for each in list_folder(folder, explain=True).left_out}


@pytest.fixture(params=["plain", "git"])
def tree(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    folder = grow(tmp_path / "tree", {"1": b"1", "3": b"3", "folder/2": b"2"})
    if request.param == "git":
        git(folder, "init", "-q")
    return folder


def test_without_rules_everything_goes(tree: Path) -> None:
    assert names(tree) == {"1", "3", "folder/2"}


def test_folder_content_is_hidden_and_one_brought_back(tree: Path) -> None:
    (tree / ".sendignore").write_text("folder/*\n")
    assert names(tree) == {"1", "3"}
    (tree / ".sendignore").write_text("folder/*\n!folder/2\n")
    assert names(tree) == {"1", "3", "folder/2"}
    (tree / ".sendignore").write_text("folder/\n!folder/2\n")
    assert names(tree) == {"1", "3"}


def test_grammar(tree: Path) -> None:
    grow(
        tree,
        {
            "a/b.gz": b"",
            "data/x/y": b"",
            "data.txt": b"",
            "sub/keep": b"",
            "sub/drop": b"",
            "#not": b"",
            "\\": b"",
        },
    )
    (tree / ".sendignore").write_text("# 1\n\n*.gz\ndata/\n\\#not\n")
    (tree / "sub/.sendignore").write_text("/drop\n!x\n")
    assert names(tree) == {"1", "3", "folder/2", "data.txt", "sub/keep", "\\"}


def test_another_file_counts_in_place_of_sendignore(tree: Path) -> None:
    (tree / ".sendignore").write_text("1\n")
    (tree / "other").write_text("3\n")
    assert names(tree, tree / "other") == {"1", "folder/2"}
    with pytest.raises(SpecError, match="missing"):
        names(tree, tree / "missing")


def test_our_files_and_git_never_go(tree: Path) -> None:
    grow(
        tree,
        {
            ".git/config.x": b"",
            "sub/.git/x": b"",
            ".fetchignore": b"",
            ".sendignore": b"",
            ".orchestra/x": b"",
        },
    )
    assert {name for name in names(tree) if "." in name} == set()


def test_special_entries_are_named_or_kept(tree: Path) -> None:
    os.mkfifo(tree / "pipe")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tree / "socket"))
        grow(
            tree,
            {
                "empty": None,
                "zero": b"",
                "dangling": ("l", b"x"),
                "out": ("l", b"../.."),
                "to": ("l", b"folder"),
            },
        )
        listing = list_folder(tree)
    kinds = {os.fsdecode(each.path): each.kind for each in listing.found}
    assert kinds == {
        "1": "file", "3": "file", "folder/2": "file", "zero": "file",
        "dangling": "link", "out": "link", "to": "link", "empty": "folder",
    }  # fmt: skip
    assert {each.path for each in listing.left_out} == {"pipe", "socket"}


def test_tracked_edited_untracked_and_deleted(tmp_path: Path) -> None:
    tree = grow(
        tmp_path / "tree", {"tracked": b"1", "gone": b"", "forced.log": b"", ".gitignore": b"*.log\nbuild/\n"}
    )
    git(tree, "init", "-q")
    git(tree, "add", "-f", ".")
    git(tree, "commit", "-qm", "x")
    (tree / "gone").unlink()
    grow(
        tree,
        {"new": b"", "run.log": b"", "build/x": b"", ".hidden": b"", "build2/none": None, "a/__/n": None},
    )
    (tree / "tracked").write_text("edited")
    assert names(tree) == {"tracked", "forced.log", ".gitignore", "new", ".hidden", "build2/none", "a/__/n"}
    assert reasons(tree) == {"run.log": ".gitignore:1: *.log", "build/": ".gitignore:2: build/"}


def test_ignored_empty_folder_stays(tmp_path: Path) -> None:
    tree = grow(tmp_path / "tree", {"cache": None, "kept": None, "x": b"", ".gitignore": b"cache/\n"})
    git(tree, "init", "-q")
    assert names(tree) == {"kept", "x", ".gitignore"}


def test_send_rules_do_not_bring_back_what_git_hides(tree: Path) -> None:
    (tree / ".gitignore").write_text("1\n")
    (tree / ".sendignore").write_text("!1\n3\n")
    assert names(tree) == {"folder/2", ".gitignore"}
    assert reasons(tree) == {
        "1": ".gitignore:1: 1",
        "3": ".sendignore:2: 3",
        ".sendignore": "ours: never sent",
    }


def test_folder_of_a_repository_and_a_repository_in_it(tmp_path: Path) -> None:
    tree = grow(
        tmp_path / "tree",
        {".gitignore": b"*.o\n", "sub/a": b"", "sub/b.o": b"", "sub/inner/c": b"", "sub/inner/d": b""},
    )
    git(tree, "init", "-q")
    git(tree / "sub/inner", "init", "-q")
    (tree / "sub/inner/.gitignore").write_text("d\n")
    assert names(tree / "sub") == {"a", "inner/c", "inner/.gitignore"}
    assert names(tree) == {".gitignore", "sub/a", "sub/inner/c", "sub/inner/.gitignore"}


def test_ignored_folder_that_is_named_itself_is_sent(tmp_path: Path) -> None:
    tree = grow(tmp_path / "tree", {".gitignore": b"build\n", "build/x": b"", "build/y": b""})
    git(tree, "init", "-q")
    assert names(tree / "build") == {"x", "y"}


def test_folder_replaced_by_a_link_is_not_entered(tmp_path: Path) -> None:
    tree = grow(tmp_path / "tree", {"d/x": b"tracked"})
    git(tree, "init", "-q")
    git(tree, "add", ".")
    (tree / "d/x").unlink()
    (tree / "d").rmdir()
    grow(tmp_path / "elsewhere", {"x": b"secret"})
    (tree / "d").symlink_to(tmp_path / "elsewhere")
    assert names(tree) == {"d"}


def test_variables_of_a_git_hook_do_not_mislead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = grow(tmp_path / "tree", {"a": b"", "b.o": b"", ".gitignore": b"*.o\n"})
    git(tree, "init", "-q")
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "elsewhere"))
    assert names(tree) == {"a", ".gitignore"}


def test_missing_folder_is_the_persons_mistake(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="expected a folder"):
        list_folder(tmp_path / "no")


PATHS = [
    "a",
    "b",
    "a.gz",
    "dir/a",
    "dir/b.gz",
    "dir/sub/a",
    "dir/sub/c d",
    "other/dir/a",
    "other/x.log",
    "#x",
    "!y",
    "[z]",
]
_word = st.sampled_from(
    [
        "a",
        "b",
        "*",
        "**",
        "?",
        "dir",
        "sub",
        "other",
        "*.gz",
        "*.log",
        "[ab]",
        "[!a]",
        "c d",
        "\\#x",
        "!y",
        "\\!y",
        "\\[z]",
        "x*",
    ]
)
_line = st.builds(
    lambda bang, lead, words, tail: bang + lead + "/".join(words) + tail,
    st.sampled_from(["", "", "!"]),
    st.sampled_from(["", "", "/"]),
    st.lists(_word, min_size=1, max_size=3),
    st.sampled_from(["", "", "/", "/*", "/**", " ", "\\ "]),
)
_text = st.lists(_line, max_size=4).map("\n".join)


def test_rules_decide_as_git_does(tmp_path: Path) -> None:
    """Random rules, at the root and nested, judged by git's own listing of the same files as .gitignore."""
    tree = grow(tmp_path / "tree", dict.fromkeys(PATHS, b""))
    git(tree, "init", "-q")

    @settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
    @given(_text, _text)
    def story(top: str, nested: str) -> None:
        (tree / ".gitignore").write_text(top)
        (tree / "dir/.gitignore").write_text(nested)
        listed = git(tree, "ls-files", "-z", "-o", "--exclude-standard").split("\0")
        expected = {name for name in listed if name and ".gitignore" not in name}
        rules = Rules(tree, ".gitignore")
        ours = {name for name in PATHS if not ((verdict := rules.decide(name.encode())) and verdict.ignored)}
        assert ours == expected, (top, nested)

    story()
