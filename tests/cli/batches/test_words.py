"""A string of arguments becomes words."""

from __future__ import annotations

import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runaway.batches.words import split_words

NO_NUL = st.text(st.characters(exclude_characters="\0"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", []),
        ("  \t ", []),
        ("--x 1 --y 3", ["--x", "1", "--y", "3"]),
        ('--name "a b" c', ["--name", "a b", "c"]),
        ("--name='a b'", ["--name=a b"]),
        ('""', [""]),
        (r'"say \"x\" \\ \n"', [r'say "x" \ \n']),
        ("it's bob's", ["it's", "bob's"]),
        ("'it's here'", ["it's here"]),
        ("'tis 5\" wide", ["'tis", '5"', "wide"]),
        (r"\d+ C:\dir", [r"\d+", r"C:\dir"]),
        ('{"k": 1, "s": "} x"}', ['{"k": 1, "s": "} x"}']),
        ("--config={'k': [1, 2]} z", ["--config={'k': [1, 2]}", "z"]),
        ("layers=[64, 64] [1 {2", ["layers=[64, 64]", "[1", "{2"]),
        ("a\u00a0b", ["a\u00a0b"]),
    ],
)
def test_words_of(text, words):
    assert split_words(text) == words


@given(st.lists(NO_NUL | st.text(st.sampled_from("'\"\\ a=[]{}$\n"))))
def test_what_a_shell_would_read_back_is_read_back(words):
    assert split_words(shlex.join(words)) == words


@given(st.text(st.sampled_from("'\"\\ a=[]{}")))
def test_splitting_never_fails_and_loses_no_letter(text):
    assert "".join(split_words(text)).count("a") == text.count("a")


@pytest.mark.parametrize("char", ["{", "[", "'", '"', "='", '="', '["'])
def test_a_long_row_of_openings_takes_no_long_time(char):
    text = char * 50_000
    assert sum(map(len, split_words(text))) <= len(text)
