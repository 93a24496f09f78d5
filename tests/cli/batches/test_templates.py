"""Template strings: what they stand for, what they leave alone, and how they complain."""

from __future__ import annotations

from math import prod

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from liborch.errors import SpecError, TemplateError
from runaway.batches.templates import MARK, parse, quote

NO_NUL = st.text(st.characters(exclude_characters="\0"))
#: Characters that mean something, often.
SHARP = st.text(st.sampled_from("{};+'\"a1 \n\\$=:[,"), max_size=30)


@pytest.mark.parametrize(
    ("text", "strings"),
    [
        ("", [""]),
        ("abc", ["abc"]),
        (" --lr=0.1", ["--lr=0.1"]),
        ("--a;--b", ["--a", "--b"]),
        ("{'--a';'--b'}", ["--a", "--b"]),
        ("{'a';'b'}+{' c';' d'}", ["a c", "a d", "b c", "b d"]),
        ("{a;b}+{c;d;e}", ["ac", "ad", "ae", "bc", "bd", "be"]),
        ("'--x '+{1;2}+' --y '+{3;4}", ["--x 1 --y 3", "--x 1 --y 4", "--x 2 --y 3", "--x 2 --y 4"]),
        ("{''; '--flag'}", ["", "--flag"]),
        ("x;", ["x", ""]),
        ("--epochs={1;2}", ["--epochs=1", "--epochs=2"]),
        ("--x {1;2} --y {3;4}", ["--x 1 --y 3", "--x 1 --y 4", "--x 2 --y 3", "--x 2 --y 4"]),
        ("{ a ; b } + { c ; d }", ["ac", "ad", "bc", "bd"]),
        ("{a;{b;c}+{1;2}}", ["a", "b1", "b2", "c1", "c2"]),
        ("{'it's';'b'}", ["it's", "b"]),
        ("'a;b+{c;d}'", ["a;b+{c;d}"]),
        ('{{"k":1};{"k":2}}', ['{"k":1}', '{"k":2}']),
        ('{"k": {1;2}}', ['{"k": 1}', '{"k": 2}']),
        ("out/${NAME}/{a;b}", ["out/${NAME}/a", "out/${NAME}/b"]),
        ("a;\nb", ["a", "b"]),
    ],
)
def test_a_template_stands_for(text, strings):
    template = parse(text)
    assert list(template) == strings
    assert template.count == len(strings)


@pytest.mark.parametrize(
    "text",
    [
        *("it's", "--lr=1e+3", "a+b", '{"k":1}', "{}", "{'k': 1}", "{a}", "a}b{", "'tis", "it+'s", '5"x6"'),
        *(
            '{"k":"a;b"}',
            '--name "a;b"',
            "--name 'a;b'",
            r"\d+\s{2}",
            "${HOME}",
            "x + y",
            "--offset=+5",
            '"{a;b}"',
        ),
    ],
)
def test_what_only_looks_like_a_template_is_untouched(text):
    assert list(parse(text)) == [text]


@pytest.mark.parametrize(
    ("text", "line", "column", "says"),
    [
        ("x {a;b", 1, 3, "never closed"),
        ("a;b}", 1, 4, "closes nothing"),
        ("a;\n b}", 2, 3, "closes nothing"),
        ("{a}+{b;c}", 1, 1, "one alternative"),
        ("{}+{b;c}", 1, 1, "one alternative"),
        ("{'a'}", 1, 1, "one alternative"),
        ("a+b+{c;d}", 1, 2, "text or join"),
        ("'--x ' {1;2}", 1, 8, r"\+ between the two"),
        ("''\n x", 2, 2, r"\+ between the two"),
        ("{1;2}'x'", 1, 6, r"\+ between the two"),
        ("{'k': 1; 'j': 2}", 1, 5, "quoted part"),
        ("+{a;b}", 1, 1, "nothing on one side"),
        ("{a;b}+", 1, 6, "nothing on one side"),
        ("{a;b}++{c;d}", 1, 6, "nothing on one side"),
        ("'tis;b", 1, 1, "never closed"),
        ('a;"b', 1, 3, "never closed"),
        ("a\0b", 1, 2, "NUL"),
    ],
)
def test_what_could_mean_two_things_is_an_error_that_says_where(text, line, column, says):
    with pytest.raises(TemplateError, match=says) as caught:
        parse(text, where="sweep.txt")
    assert (caught.value.where, caught.value.line, caught.value.column) == ("sweep.txt", line, column)
    assert "As plain text, write '" in str(caught.value)


@given(NO_NUL | SHARP)
def test_quoted_text_is_that_text(text):
    assert list(parse(quote(text))) == [text]


@given(st.lists(NO_NUL | SHARP, min_size=2, max_size=4), st.lists(NO_NUL | SHARP, min_size=2, max_size=3))
def test_quoted_texts_multiply(left, right):
    text = "{" + ";".join(map(quote, left)) + "} + {" + ";".join(map(quote, right)) + "}"
    assert list(parse(text)) == [one + two for one in left for two in right]


def attempt(text):
    try:
        return parse(text), None
    except TemplateError as error:
        return None, error


@settings(max_examples=500)
@given(SHARP)
def test_any_text_is_a_template_or_an_error_in_its_place(text):
    template, error = attempt(text)
    if template:
        assert len(list(template)) == template.count >= 1
        assert template.count == 1 or ";" in text
    else:
        assert 1 <= error.column <= len(text.split("\n")[error.line - 1])


@given(SHARP.filter(lambda text: ";" not in text and "'" not in text))
def test_without_semicolons_and_quotes_nothing_is_ever_altered(text):
    template, error = attempt(text)
    assert error.literal if error else list(template) == [text.strip(" \t\r\n")]


@given(st.lists(st.integers(2, 9), min_size=1, max_size=6))
def test_the_count_of_a_product_is_the_product_of_the_counts(sizes):
    text = "+".join("{" + ";".join(map(str, range(size))) + "}" for size in sizes)
    assert parse(text).count == prod(sizes)


def test_ten_million_are_counted_before_any_is_made():
    template = parse("+".join(["{0;1;2;3;4;5;6;7;8;9}"] * 7))
    assert template.count == 10**7
    assert template.at(1234567) == "1234567"
    huge = parse(" ".join(["{0;1}"] * 300))
    assert huge.count == 2**300
    assert next(iter(huge)).split() == ["0"] * 300


def test_the_count_of_many_alternatives_is_not_limited_by_their_nesting():
    assert parse("{a;" * 40 + "b" + "}" * 40).count == 41
    with pytest.raises(TemplateError, match="more than 50"):
        parse("{a;" * 1000 + "b" + "}" * 1000)
    assert parse("{" * 100_000).count == 1


@pytest.mark.parametrize(
    ("text", "string"),
    [
        ("--lr {lr}", "--lr <lr>"),
        ("'--lr '+{lr}", "--lr <lr>"),
        ('{"lr": {lr}, "of": "{seed}"}', '{"lr": <lr>, "of": "<seed>"}'),
        ("'{lr}'", "{lr}"),
        ("${lr}", "${lr}"),
        ('"{other}"', '"{other}"'),
    ],
)
def test_a_parameter_in_braces_is_a_placeholder(text, string):
    template = parse(text, ("lr", "seed"))
    assert (
        template.at(0).replace(MARK + "lr" + MARK, "<lr>").replace(MARK + "seed" + MARK, "<seed>") == string
    )
    assert template.names == {name for name in ("lr", "seed") if f"<{name}>" in string}


def test_a_placeholder_of_no_parameter_is_an_error_that_names_those_there_are():
    with pytest.raises(TemplateError, match=r"'lrr'.*lr, seed.*write '\{lrr\}'"):
        parse("--lr {lrr}", ("lr", "seed"))
    assert issubclass(TemplateError, SpecError)
