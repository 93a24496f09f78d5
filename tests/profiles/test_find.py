"""From a name on the command line to a host: what is found where, and what is said when it is not."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from liborch.errors import ProfileError, SpecError, UnknownName
from liborch.names import nearest, resolve_prefix
from liborch.profiles.find import find_host, load_all, near_hosts
from liborch.profiles.names import known_hosts_names, skim_names, ssh_aliases
from liborch.profiles.targets import Target, parse_target
from liborch.specs import HostProfile
from tests.profiles.test_load import OF_2020, OURS


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    """Our folder and that of 2020, as a person who has both would have them."""
    ours, old = tmp_path / "orchestra" / "hosts", tmp_path / "runaway"
    ours.mkdir(parents=True)
    old.mkdir()
    (ours / "cluster.yaml").write_text(OURS)
    (old / "cluster.yml").write_text("name: cluster\nssh: never-seen\n")
    (old / "batch.yml").write_text(OF_2020)
    (ours / "notes.txt").write_text("ssh: not a profile")
    (ours / ".hidden.yaml").write_text("ssh: not a profile either")
    return [ours, tmp_path / "does not exist", old]


@pytest.fixture
def ssh_config(tmp_path: Path) -> Path:
    folder = tmp_path / ".ssh"
    (folder / "config.d").mkdir(parents=True)
    (folder / "config").write_text(
        "# Host commented\nInclude config.d/*.conf\nHost gate gate2 # remark\n  HostName 10.0.0.1\n"
        'host = "quoted" "no name" *.wild -o \x1b[31m !not ?x\nMatch host foo\n  User me\nHost gpu1\nInclude config missing\n'
    )
    (folder / "config.d" / "a.conf").write_text("Host desk1\n\tHostName desk1.lab\nInclude config.d/b.inc\n")
    (folder / "config.d" / "b.inc").write_text("HOST desk2\r\n")
    return folder / "config"


def test_local_is_built_in_whatever_files_say(folders):
    (folders[0] / "local.yaml").write_text("name: [broken")
    assert find_host("local", folders) == HostProfile(name="local", ssh="local")


def test_the_first_folder_that_has_the_name_wins(folders):
    assert find_host("cluster", folders).ssh == "cluster-frontend"
    assert find_host("cluster", folders[::-1]).ssh == "never-seen"


def test_a_profile_is_found_in_a_file_of_another_name(folders):
    assert find_host("desks", folders).source == str(folders[0] / "cluster.yaml")


def test_a_profile_of_2020_is_found_by_its_file_and_by_its_name(folders):
    assert find_host("batch", folders) == find_host("farm", folders)


def test_a_broken_profile_is_an_error_only_for_who_wants_it(folders):
    (folders[0] / "lab.yaml").write_text("name: lab\nssh: x\n---\nname: bench\nssh: [\n")
    assert find_host("cluster", folders).name == "cluster"
    assert find_host("elsewhere", folders).source == ""
    for name in ("lab", "bench"):
        with pytest.raises(ProfileError, match=r"lab\.yaml:"):
            find_host(name, folders)


def test_two_profiles_of_one_name_in_a_folder_are_an_error_that_names_both(folders):
    (folders[0] / "other.yaml").write_text("name: desks\nssh: x\n")
    with pytest.raises(ProfileError, match=r"cluster\.yaml.*other\.yaml"):
        find_host("desks", folders)
    (folders[0] / "cluster.yml").write_text("ssh: x\n")
    with pytest.raises(ProfileError, match=r"cluster\.yaml.*cluster\.yml"):
        find_host("cluster", folders)


@pytest.mark.parametrize(
    "name", ["gate", "me@gate", "me@gate.lab:2222", "ssh://me@gate:22", "[::1]:22", "::1", "10.0.0.1"]
)
def test_anything_else_that_ssh_would_accept_is_a_host(folders, name):
    assert find_host(name, folders) == HostProfile(name=name, ssh=name)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "-oProxyCommand=id",
        "a b",
        "a;b",
        "$(id)",
        "a\nb",
        "@x",
        "x:",
        "x:0",
        "x:ssh",
        "-l@x",
        "a/b",
        "../x",
        "u:p@x",
        "[x]:2",
        "é b",
    ],
)
def test_what_ssh_would_not_accept_is_an_error(folders, name):
    with pytest.raises(UnknownName):
        find_host(name, folders)
    with pytest.raises(SpecError):
        parse_target(name)


def test_a_name_leads_to_no_file_outside_the_folders(folders):
    (folders[0].parent / "secret.yaml").write_text("name: secret\nssh: x\n")
    with pytest.raises(UnknownName):
        find_host("../secret", folders)


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("gate", Target("gate")),
        ("me@gate", Target("gate", "me")),
        ("me@gate:2222", Target("gate", "me", 2222)),
        ("a@b@gate", Target("gate", "a@b")),
        ("ssh://me@gate:22/", Target("gate", "me", 22)),
        ("me@[fe80::1%eth0]:22", Target("fe80::1%eth0", "me", 22)),
        ("fe80::1", Target("fe80::1")),
    ],
)
def test_a_destination_taken_apart(text, target):
    assert parse_target(text) == target


@given(st.text(max_size=30))
def test_no_destination_can_be_an_option_or_shell_code(text):
    try:
        target = parse_target(text)
    except SpecError:
        return
    for part in (target.host, target.user or "x"):
        assert not part.startswith("-")
        assert not set(part) & set(" \t\n;|&<>$`'\"(){}\\")


def test_near_misses_are_named(folders, ssh_config):
    assert near_hosts("clutser", folders, ssh_config) == ["cluster"]
    assert "gate" in near_hosts("gaet", folders, ssh_config)
    with pytest.raises(UnknownName, match="did you mean cluster"):
        find_host("cluster;", folders, ssh_config)


def test_every_name_a_person_may_use_is_listed_once(folders, ssh_config):
    (folders[0] / "broken.yaml").write_text("ssh: [")
    assert known_hosts_names(folders, ssh_config) == [
        *["local", "broken", "cluster", "desks", "farm"],
        *["desk1", "desk2", "gate", "gate2", "quoted", "gpu1"],
    ]
    assert known_hosts_names([Path("/nonexistent")], Path("/nonexistent")) == ["local"]


def test_all_profiles_and_what_is_wrong_with_the_others(folders):
    (folders[0] / "broken.yaml").write_text("ssh: [")
    profiles, errors = load_all(folders)
    assert [profile.name for profile in profiles] == ["cluster", "desks", "farm"]
    assert [Path(error.file).name for error in errors] == ["broken.yaml"]


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("name: a # remark", ["a"]),
        ("name : a", ["a"]),
        ("'name': 'a b'", ["a b"]),
        ('"name": "a"', ["a"]),
        ("{name: a, ssh: b}", ["a"]),
        ("--- {name: a}\n---\nname: b\r\n", ["a", "b"]),
        ("ssh: x\nslots:\n  name: no", ["file"]),
        ("name:\nssh: x", ["file"]),
        ("", ["file"]),
    ],
)
def test_names_are_skimmed_without_parsing(tmp_path, text, names):
    path = tmp_path / "file.yaml"
    path.write_bytes(text.encode())
    assert skim_names(path) == names


def test_an_ssh_configuration_that_cannot_be_read_costs_only_its_names(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "config").write_bytes(
        b"Include fifo\nInclude .\nInclude config\nHost \xff\xfe ok\n" + b"\0" * 100 + b"\nHost last\n"
    )
    assert "last" in ssh_aliases(tmp_path / "config")


def test_listing_names_is_fast_and_imports_neither_yaml_nor_specs(tmp_path):
    for index in range(100):
        (tmp_path / f"h{index}.yaml").write_text(
            OURS.replace("cluster", f"c{index}").replace("desks", f"d{index}")
        )
    (tmp_path / "config").write_text(
        "".join(f"Host n{index}\n  HostName n{index}.lab\n" for index in range(1000))
    )
    names = known_hosts_names([tmp_path], tmp_path / "config")
    assert len(names) == 1201
    took_s = []
    for _ in range(5):
        begun = time.process_time()
        known_hosts_names([tmp_path], tmp_path / "config")
        took_s.append(time.process_time() - begun)
    assert min(took_s) < 0.05
    code = "import sys, liborch.profiles.names; print([m for m in ('yaml', 'msgspec', 'asyncio') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


IDS = ["a1b2", "a1c3", "b000", "last-one"]


def test_a_unique_prefix_is_enough():
    assert resolve_prefix("a1b", IDS) == "a1b2"
    assert resolve_prefix("b", IDS) == "b000"
    assert resolve_prefix("a1c3", IDS) == "a1c3"


def test_last_is_the_latest_unless_it_is_an_id():
    assert resolve_prefix("last", IDS[:3]) == "b000"
    assert resolve_prefix("last", [*IDS, "last", "z"]) == "last"


def test_a_whole_id_wins_over_one_that_begins_with_it():
    assert resolve_prefix("ab", ["ab", "abc"]) == "ab"


@pytest.mark.parametrize(
    ("text", "ids", "says"),
    [
        ("a1", IDS, "several begin so: a1b2, a1c3"),
        ("zzzz", IDS, "no execution 'zzzz'$"),
        ("a1b9", IDS, "did you mean a1b2"),
        ("", IDS, "no execution ''"),
        ("last", [], "there is no execution yet"),
        ("x", [f"x{n}" for n in range(9)], "x5, x6, x7, x8 and 5 more"),
    ],
)
def test_what_cannot_be_resolved_says_why(text, ids, says):
    with pytest.raises(UnknownName, match=says):
        resolve_prefix(text, ids)


def test_nearest_names_come_best_first_and_as_they_are_written():
    assert nearest("GPU1", ["gpu2", "Gpu1", "desk"])[0] == "Gpu1"
    assert nearest("qqqq", ["gpu2", "desk"]) == []


@given(st.lists(st.text("ab", min_size=1, max_size=6), min_size=1, unique=True), st.text("ab", max_size=6))
def test_a_prefix_resolves_to_an_id_that_has_it_or_to_none(ids, text):
    try:
        found = resolve_prefix(text, ids)
    except UnknownName:
        assert text not in ids
        assert sum(one.startswith(text) for one in ids) != 1 or not text
    else:
        assert found in ids
        assert found.startswith(text)
