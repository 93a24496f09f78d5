"""Recording in a campaign, and reading it again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from expegit.layout import folder_of
from expegit.records import Record, write_record
from expegit.store import PACKS_MOST, Campaign
from liborch.errors import CampaignError, GitError
from tests.expegit.conftest import git


def changes(*ids: str, state: str = "succeeded") -> list[tuple[str, bytes]]:
    found = []
    for x in ids:
        found.append((f"{folder_of(x)}/record.json", write_record(Record(id=x, state=state))))
        found.append((f"{folder_of(x)}/stdout", f"{x} was here\n".encode()))
    return found


def test_what_is_recorded_is_there_for_others_and_not_in_the_way_here(campaign: Campaign) -> None:
    campaign.commit(changes("aa01", "ab02"), "Two executions")
    assert sorted(campaign.ids()) == ["aa01", "ab02"]
    assert campaign.record("aa01").state == "succeeded"
    assert campaign.read(f"{folder_of('ab02')}/stdout") == b"ab02 was here\n"
    assert sorted(os.listdir(campaign.folder)) == [".git", "campaign.toml"]
    assert git(campaign.folder, "status", "--porcelain") == ""
    git(campaign.folder, "fsck", "--strict")
    assert (
        git(campaign.folder, "log", "-1", "--format=%an <%ae>: %s")
        == "Ada L <ada@example.org>: Two executions"
    )
    assert git(campaign.folder, "for-each-ref", "--format=%(refname)") == "refs/heads/main"


def test_many_small_groups_are_few_files(campaign: Campaign) -> None:
    for number in range(PACKS_MOST + 10):
        campaign.commit(changes(f"aa{number:02}"), "One more")
    inside = campaign.folder / ".git" / "objects"
    assert len(list((inside / "pack").glob("*.pack"))) <= PACKS_MOST
    assert len(list(inside.glob("??/*"))) < 10
    assert len(campaign.ids()) == PACKS_MOST + 10
    git(campaign.folder, "fsck", "--strict")


def test_names_of_any_bytes_come_back_as_they_went(campaign: Campaign) -> None:
    names = ['with "quotes"', "back\\slash", "two\nlines", "ünïcode", "latin\udce9", " blank ", "-dash"]
    folder = folder_of("aa01")
    campaign.commit(
        [(f"{folder}/data/{name}", name.encode("utf-8", "surrogateescape")) for name in names], "Odd"
    )
    for name in names:
        assert campaign.read(f"{folder}/data/{name}") == name.encode("utf-8", "surrogateescape")


def test_a_file_is_recorded_with_its_bytes_and_whether_it_can_be_run(
    campaign: Campaign, tmp_path: Path
) -> None:
    tool = tmp_path / "tool"
    tool.write_bytes(bytes(range(256)) * 10)
    tool.chmod(0o755)
    campaign.commit([(f"{folder_of('aa01')}/data/tool", tool)], "A tool")
    assert campaign.read(f"{folder_of('aa01')}/data/tool") == bytes(range(256)) * 10
    assert git(campaign.folder, "ls-tree", "HEAD", f"{folder_of('aa01')}/data/tool").startswith("100755")


def test_two_who_record_at_once_are_both_heard(campaign: Campaign) -> None:
    def record(mine: str) -> None:
        own = Campaign(campaign.folder)
        for number in range(5):
            own.commit(changes(f"{mine}{number:02}"), f"{mine} {number}")

    threads = [threading.Thread(target=record, args=(name,)) for name in ("aa", "bb", "cc")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(campaign.ids()) == [
        f"{name}{number:02}" for name in ("aa", "bb", "cc") for number in range(5)
    ]
    assert git(campaign.folder, "status", "--porcelain") == ""


def test_killed_at_any_instant_it_opens_again_and_holds_what_was_recorded(campaign: Campaign) -> None:
    program = (
        "import sys; from pathlib import Path; from expegit.store import PACKS_MOST, Campaign\n"
        "from tests.expegit.test_store import changes\n"
        "campaign = Campaign(Path(sys.argv[1]))\n"
        "for number in range(1000):\n"
        "    campaign.commit(changes(f'{sys.argv[2]}{number}'), 'one'); print(number, flush=True)\n"
    )
    said: set[str] = set()
    for turn in range(4):
        process = subprocess.Popen(
            [sys.executable, "-c", program, str(campaign.folder), f"turn{turn}-"],
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
            start_new_session=True,
        )
        assert process.stdout is not None
        for _ in range(3 + turn):
            said.add(f"turn{turn}-{process.stdout.readline().strip()}")
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()
    again = Campaign(campaign.folder)
    assert said <= set(again.ids())
    again.commit(changes("last"), "After all that")
    assert git(campaign.folder, "status", "--porcelain") == ""
    git(campaign.folder, "fsck", "--strict")


def test_a_persons_edit_stays_and_what_is_recorded_comes_beside_it(campaign: Campaign) -> None:
    (campaign.folder / "notes.txt").write_text("mine\n")
    (campaign.folder / "campaign.toml").write_text("layout = 1\nname = 'changed'\n")
    campaign.commit(changes("aa01"), "One")
    assert (campaign.folder / "notes.txt").read_text() == "mine\n"
    assert git(campaign.folder, "status", "--porcelain").split("\n") == ["M campaign.toml", "?? notes.txt"]


def test_a_file_that_was_only_touched_is_in_nobodys_way(campaign: Campaign) -> None:
    settings = campaign.read("campaign.toml")
    assert settings is not None
    os.utime(campaign.folder / "campaign.toml", (1, 1))
    campaign.commit([("campaign.toml", settings + b"# more\n")], "More")
    assert (campaign.folder / "campaign.toml").read_bytes() == settings + b"# more\n"


def test_an_edit_in_the_way_is_an_error_and_nothing_of_either_is_lost(campaign: Campaign) -> None:
    settings = campaign.read("campaign.toml")
    assert settings is not None
    (campaign.folder / "campaign.toml").write_text("mine\n")
    with pytest.raises(GitError, match=r"campaign\.toml"):
        campaign.commit([("campaign.toml", settings + b"# theirs\n")], "Theirs")
    assert (campaign.folder / "campaign.toml").read_text() == "mine\n"
    (campaign.folder / "campaign.toml").write_bytes(settings)
    campaign.commit(changes("aa01"), "One")
    assert (campaign.folder / "campaign.toml").read_bytes() == settings + b"# theirs\n"
    assert git(campaign.folder, "status", "--porcelain") == ""


def test_a_damaged_record_is_named_and_the_others_are_read(campaign: Campaign) -> None:
    campaign.commit(
        [*changes("aa01", "aa03"), (f"{folder_of('aa02')}/record.json", b'{"id": "aa02", "state"')], "Three"
    )
    told: list[tuple[str, str]] = []
    found = [record.id for record in campaign.records(lambda x, why: told.append((x, str(why))))]
    assert sorted(found) == ["aa01", "aa03"]
    assert told[0][0] == "aa02"
    assert "executions/aa/02/aa02/record.json" in told[0][1]


def test_it_is_found_from_any_folder_below_and_nowhere_else(campaign: Campaign, tmp_path: Path) -> None:
    below = campaign.folder / "some" / "where"
    below.mkdir(parents=True)
    assert Campaign.find(below).folder == campaign.folder
    with pytest.raises(CampaignError, match="expegit init"):
        Campaign.find(tmp_path)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("layout = 2\nname = 'x'\n", "install a newer"),
        ("name = 'x'\n", "layout"),
        ("layout = 1\nname = 3\n", "name should be a text"),
        ("layout = 1\nname = 'x'\n[data]\nlarge = 'cloud'\n", "data.large"),
        ("layout = \n", "no TOML"),
    ],
)
def test_a_campaign_file_that_cannot_be_is_refused_by_key(
    campaign: Campaign, text: str, expected: str
) -> None:
    campaign.commit([("campaign.toml", text.encode())], "Change")
    with pytest.raises(CampaignError, match=expected):
        Campaign(campaign.folder)


@pytest.mark.parametrize("x", ["", "abc", "../../etc", "A1", "a/b", ".git", "a" * 200])
def test_what_is_no_id_becomes_no_path(x: str) -> None:
    with pytest.raises(CampaignError, match="no id"):
        folder_of(x)
