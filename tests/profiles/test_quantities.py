"""Durations and sizes, there and back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from liborch.errors import QuantityError
from liborch.quantities import (
    format_duration,
    format_gpus,
    format_size,
    parse_duration,
    parse_gpus,
    parse_size,
    shares_of,
)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 90),
        ("0", 0),
        ("1.5", 1.5),
        (" 90s ", 90),
        ("1h30m", 5400),
        ("1h 30m", 5400),
        ("1.5h", 5400),
        ("90min", 5400),
        ("2d", 172800),
        ("1w", 604800),
        ("250ms", 0.25),
        ("1d2h3m4s", 93784),
        ("30:00", 1800),
        ("90:00", 5400),
        ("01:30:00", 5400),
        ("100:00:00", 360000),
        ("1-12:00", 129600),
        ("2-00:00:30", 172830),
    ],
)
def test_durations_in_every_spelling(text, seconds):
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "h",
        "1x",
        "-1",
        "+1",
        "1e3",
        "1h1h",
        "30m1h",
        "1 2",
        "1h30",
        "1:2:3:4",
        "1:60",
        "00:99:00",
        "1-25:00",
        "1:",
        ":30",
        "nan",
        "inf",
        "1,5h",
        "²h",
        "٣h",
        "1d:30",
        "9" * 400 + "s",
        "1_000",
    ],
)
def test_what_is_no_duration_is_an_error_that_shows_how(text):
    with pytest.raises(QuantityError, match="write 90, 90s, 1h30m"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (0.04, "0s"),
        (0.25, "0.2s"),
        (1, "1s"),
        (9.94, "9.9s"),
        (9.96, "10s"),
        (59.6, "1m"),
        (5430, "1h30m30s"),
        (86400, "1d"),
        (3599.9, "1h"),
        (-5, "-5s"),
    ],
)
def test_durations_as_shown(seconds, text):
    assert format_duration(seconds) == text


@given(st.integers(10, 10**9))
def test_a_whole_duration_is_read_back_exactly(seconds):
    assert parse_duration(format_duration(seconds)) == seconds


@given(st.floats(0, 1e9, allow_nan=False))
def test_a_duration_is_read_back_as_shown(seconds):
    shown = format_duration(seconds)
    assert abs(parse_duration(shown) - seconds) <= (0.0501 if seconds < 9.95 else 0.501)
    assert format_duration(parse_duration(shown)) == shown


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("1024", 1024),
        ("12b", 12),
        ("4G", 4 << 30),
        ("4GB", 4 << 30),
        ("4GiB", 4 << 30),
        ("4 gib", 4 << 30),
        ("1.5g", 3 << 29),
        ("500M", 500 << 20),
        ("1k", 1024),
        ("2T", 2 << 40),
        ("1P", 1 << 50),
        ("1E", 1 << 60),
        ("9007199254740993", 9007199254740993),
    ],
)
def test_sizes_in_every_spelling(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text",
    [
        "",
        "G",
        "-1",
        "1e3",
        "4 i",
        "4i",
        "4ib",
        "1.G",
        ".5G",
        "4GG",
        "4G4",
        "nan",
        "1,5G",
        "٣G",
        "9" * 400,
        "1_000",
    ],
)
def test_what_is_no_size_is_an_error_that_shows_how(text):
    with pytest.raises(QuantityError, match="write 1024, 500M"):
        parse_size(text)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1 KiB"),
        (1536, "1.5 KiB"),
        (4 << 30, "4 GiB"),
        ((1 << 20) - 1, "1 MiB"),
        (5 << 50, "5 PiB"),
        (3 << 70, "3072 EiB"),
        (-2048, "-2 KiB"),
    ],
)
def test_sizes_as_shown(size, text):
    assert format_size(size) == text


@given(st.integers(0, 1 << 59))
def test_a_size_is_read_back_as_shown(size):
    shown = format_size(size)
    assert abs(parse_size(shown) - size) <= size * 0.05
    assert format_size(parse_size(shown)) == shown


@given(st.integers(0, 1023), st.sampled_from(["KiB", "MiB", "GiB", "TiB", "PiB"]))
def test_whole_units_are_exact(count, unit):
    if count:
        assert format_size(parse_size(f"{count} {unit}")) == f"{count} {unit}"


@given(st.text(max_size=20))
def test_any_text_is_a_quantity_or_a_quantity_error(text):
    for parse in (parse_duration, parse_size):
        try:
            value = parse(text)
        except QuantityError:
            continue
        assert value >= 0


@pytest.mark.parametrize(
    ("text", "gpus", "shown"),
    [
        ("0", 0, "0 GPUs"),
        ("1", 1, "1 GPU"),
        ("1.0", 1, "1 GPU"),
        ("8", 8, "8 GPUs"),
        ("0.5", 0.5, "0.5 GPU"),
        (" .25 ", 0.25, "0.25 GPU"),
        ("0.333333", 0.333, "0.333 GPU"),
        ("0.001", 0.001, "0.001 GPU"),
    ],
)
def test_gpus_are_whole_or_a_share_of_one_in_thousandths(text: str, gpus: float, shown: str) -> None:
    assert parse_gpus(text) == gpus
    assert type(parse_gpus(text)) is type(gpus)
    assert format_gpus(gpus) == shown


@pytest.mark.parametrize(
    "text", ["", "-1", "1.5", "2.25", "0.0001", "nan", "inf", "1e3", "1/2", "half", "1,5"]
)
def test_other_numbers_of_gpus_are_refused_in_words(text: str) -> None:
    with pytest.raises(QuantityError, match=r"GPU"):
        parse_gpus(text)


def test_as_many_shares_fit_as_people_mean() -> None:
    assert [shares_of(parse_gpus(str(1 / count))) for count in range(1, 31)] == list(range(1, 31))
    assert [shares_of(parse_gpus(text)) for text in ("0.34", "0.6", "0.33", "0.3")] == [2, 1, 3, 3]
