"""docs/arguments.md tells the truth: every row of its tables is tried."""

from __future__ import annotations

import re

import pytest

from runaway.batches.grids import parse_grid
from runaway.batches.sources import make_plan
from runaway.batches.templates import parse
from runaway.batches.words import split_words
from tests.architecture.reading import ROOT

PAGE = (ROOT / "docs" / "arguments.md").read_text(encoding="utf-8")
READERS = {
    "template": lambda text: list(parse(text)),
    "string": split_words,
    "`--grid`": lambda text: list(parse_grid(text)),
}


def rows():
    """Each row: (what its table is of, the text, what comes out)."""
    found = []
    kind = ""
    for line in PAGE.splitlines():
        cells = re.fullmatch(r"\| (.*?) \| (.*) \|", line)
        if not cells:
            continue
        text, out = cells.groups()
        if text in READERS:
            kind = text
        else:
            found.append((kind, text.strip("`"), [cell.strip().strip("`") for cell in out.split("┃")]))
    return found


@pytest.mark.parametrize(("kind", "text", "out"), rows())
def test_a_row_of_the_page_is_true(kind, text, out):
    assert [found.strip() for found in READERS[kind](text)] == out


def test_the_page_has_rows_of_each_kind():
    assert {kind for kind, _, _ in rows()} == set(READERS)
    assert len(rows()) > 20


def test_the_examples_in_its_text_are_true():
    assert make_plan(grids=["lr=0.1,0.01", "seed=0..9"]).count == 20
    plan = make_plan(["--name", "a b", "--lr", "{0.1;0.01}"])
    assert [p.arguments[1] for p in plan] == ["a b", "a b"]
    assert make_plan(["train --rate {lr}"], grids=["lr=0.1,0.01"]).at(0).arguments == (
        "train",
        "--rate",
        "0.1",
    )
