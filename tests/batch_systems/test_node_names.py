"""Lists of nodes as Slurm writes them. Against scontrol itself: tests/lab/test_slurm.py."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from liborch.batch_systems.node_names import MOST_NAMES, expand


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("", []),
        ("n1", ["n1"]),
        ("n[1-4,7],gpu-a[01-03]", ["n1", "n2", "n3", "n4", "n7", "gpu-a01", "gpu-a02", "gpu-a03"]),
        ("n[8-11]", ["n8", "n9", "n10", "n11"]),
        ("n[098-101]", ["n098", "n099", "n100", "n101"]),
        ("rack[1-2]n[3,5]-ib", ["rack1n3-ib", "rack1n5-ib", "rack2n3-ib", "rack2n5-ib"]),
        ("login.example.org,c[1]", ["login.example.org", "c1"]),
        ("n[1-2],n2,n[2-3]", ["n1", "n2", "n3"]),
        ("[1-2]", ["1", "2"]),
    ],
)
def test_a_list_stands_for_its_names_in_order(text: str, names: list[str]) -> None:
    assert list(expand(text)) == names


@pytest.mark.parametrize(
    "text",
    [
        *(",", "n1,", ",n1", "n1,,n2", "n[1-4", "n1-4]", "n[]", "n[1-]", "n[-3]", "n[4-1]", "n[1--3]", "n[1,]", "n[a-c]"),
        *("n[1-2", "n[[1-2]]", "n[1-2],", "n 1", "n1 n2", "n1;reboot", "-x", "n$(id)", "n/1", "../n1", "n1\n", "é1", "n*"),
        *(f"n[1-{MOST_NAMES + 1}]", "n[0-999999]x[0-999999]", "n[1-99999999999999999999]", "a" * 300, "(null)", "None assigned"),
    ],
)  # fmt: skip
def test_what_is_no_list_of_names_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"no |more than"):
        expand(text)


@given(st.text(max_size=40), st.text(alphabet="n[]-,0123456789", max_size=30))
def test_any_text_is_names_that_may_be_part_of_a_command_or_an_error(text: str, likely: str) -> None:
    for each in (text, likely):
        try:
            names = expand(each)
        except ValueError:
            continue
        assert len(names) <= MOST_NAMES
        assert all(name[0] != "-" and not set(name) & set(" ;$|&\n'\"`/") for name in names)


@given(st.lists(st.tuples(st.integers(0, 10**6), st.integers(1, 50)), min_size=1, max_size=5))
def test_every_number_of_a_range_is_there_once(ranges: list[tuple[int, int]]) -> None:
    text = ",".join(f"{first:07d}-{first + count - 1:07d}" for first, count in ranges)
    expected = [number for first, count in ranges for number in range(first, first + count)]
    assert expand(f"n[{text}]") == tuple(dict.fromkeys(f"n{number:07d}" for number in expected))
