"""Durations, sizes and GPUs as people write them: "1h30m" <-> seconds, "4GiB" <-> bytes, "0.5" <-> half a GPU. Pure."""

from __future__ import annotations

import re
from typing import Final

from liborch.errors import QuantityError

#: A GPU that several executions share is dealt out in so many parts.
GPU_PARTS: Final = 1000

_UNITS_S = {"w": 604800.0, "d": 86400.0, "h": 3600.0, "m": 60.0, "min": 60.0, "s": 1.0, "ms": 0.001}
_NUMBER = r"[0-9]{1,18}(?:\.[0-9]{1,18})?"
_PART = re.compile(rf"({_NUMBER})(ms|min|w|d|h|m|s)")
_DURATION = re.compile(rf"(?:{_NUMBER}(?:ms|min|w|d|h|m|s)\s*)+")
_CLOCK = re.compile(r"(?:([0-9]{1,9})-)?([0-9]{1,9}):([0-9]{1,2})(?::([0-9]{1,2}))?")
_SIZE = re.compile(rf"({_NUMBER})\s*(?:([kmgtpe])(?:i?b)?|b)?", re.IGNORECASE)
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4, "p": 5, "e": 6}


def parse_duration(text: str) -> float:
    """Return seconds. Accepts `90` (seconds), `1h30m`, `1.5h`, `MM:SS`, `HH:MM:SS`, `D-HH:MM`, `D-HH:MM:SS` (as Slurm has it).

    Units are w, d, h, m (or min), s, ms; largest first, each once. Behind a larger unit of a clock go two digits below 60
    (below 24 behind days); the first number is free: `90:00` is an hour and a half.

    Raises:
        QuantityError: Anything else.
    """
    stripped = text.strip()
    if re.fullmatch(_NUMBER, stripped):
        return float(stripped)
    clock = _CLOCK.fullmatch(stripped)
    if clock:
        return _clock_s(text, *clock.groups())
    if _DURATION.fullmatch(stripped):
        parts = [(float(number), _UNITS_S[unit]) for number, unit in _PART.findall(stripped)]
        units = [unit for _, unit in parts]
        if units == sorted(set(units), reverse=True):
            return sum(number * unit for number, unit in parts)
    raise _no_duration(text)


def format_duration(seconds: float) -> str:
    """`5430` -> `1h30m30s`; under ten seconds with one decimal; the smallest unit shown is a second.

    Reading it back with `parse_duration` gives the seconds it shows.
    """
    if seconds < 0:
        return "-" + format_duration(-seconds)
    if seconds < 9.95:
        return f"{seconds:.1f}".removesuffix(".0") + "s"
    whole = round(seconds)
    out = ""
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        count, whole = divmod(whole, size)
        if count:
            out += f"{count}{unit}"
    return out


def parse_size(text: str) -> int:
    """Return bytes. Accepts `1024`, `4G`, `4GB`, `4GiB`, `1.5g`; every unit is a power of 1024, as sbatch has it.

    A bare number is bytes (sbatch's `--mem` takes it for megabytes: write `4000M`). Parts of a byte are rounded.

    Raises:
        QuantityError: Anything else.
    """
    found = _SIZE.fullmatch(text.strip())
    if not found:
        raise QuantityError(f"{text[:40]!r} is no size; write 1024, 500M, 4G or 4GiB")
    number, prefix = found.groups()
    unit = 1 << 10 * _POWERS[(prefix or "").lower()]
    # Whole numbers stay exact beyond the 53 bits of a float.
    return round(float(number) * unit) if "." in number else int(number) * unit


def format_size(size_bytes: int) -> str:
    """`4294967296` -> `4 GiB`, `1536` -> `1.5 KiB`; one decimal at most. Never four digits before a unit but the largest."""
    if size_bytes < 0:
        return "-" + format_size(-size_bytes)
    if size_bytes < 1024:
        return f"{size_bytes} B"
    value = float(size_bytes)
    for unit in ("KiB", "MiB", "GiB", "TiB", "PiB", "EiB"):
        value /= 1024
        # 1023.96 would be shown as 1024.0.
        if value < 1023.95 or unit == "EiB":
            return f"{value:.1f}".removesuffix(".0") + f" {unit}"
    raise AssertionError("unreachable")


def parse_gpus(text: str) -> float:
    """Return how many GPUs: `2`, or a share of one, `0.5`. Whole numbers are `int`.

    Raises:
        QuantityError: Anything else.
    """
    if not re.fullmatch(r"[0-9]{1,6}(?:\.[0-9]{1,18})?|\.[0-9]{1,18}", text.strip()):
        raise QuantityError(f"{text[:40]!r} is no number of GPUs; write 2, or 0.5 for half of one")
    return checked_gpus(float(text))


def checked_gpus(gpus: float) -> float:
    """Return it as it is counted: whole, as `int`, or a share of one in thousandths, so that three have room at 1 / 3 each.

    Raises:
        QuantityError: It is less than none, more than one and not whole, or too small a share.
    """
    if gpus >= 0 and gpus % 1 == 0:
        return int(gpus)
    if not 0 < gpus < 1:
        raise QuantityError(
            f"{gpus:g} GPUs cannot be given: whole ones (1, 2) or a share of one (0.5), which is on one GPU"
        )
    parts = int(gpus * GPU_PARTS + 1e-6)
    if parts == 0:
        raise QuantityError(f"{gpus:g} of a GPU is too little; the least is {1 / GPU_PARTS:g}")
    # The float nearest to so many thousandths, so that equal shares are equal numbers.
    return parts / GPU_PARTS


def shares_of(gpus: float) -> int:
    """How many shares of this size one GPU has."""
    return GPU_PARTS // round(gpus * GPU_PARTS)


def format_gpus(gpus: float) -> str:
    """`2 GPUs`, `1 GPU`, `0.5 GPU`."""
    return f"{gpus:g} GPU{'s' if gpus > 1 or not gpus else ''}"


def _clock_s(text: str, days: str | None, first: str, second: str, third: str | None) -> float:
    if days is None and third is None:
        hours, minutes, seconds = 0, int(first), int(second)
    else:
        hours, minutes, seconds = int(first), int(second), int(third or 0)
        if minutes >= 60 or (days is not None and hours >= 24):
            raise _no_duration(text)
    if seconds >= 60:
        raise _no_duration(text)
    return int(days or 0) * 86400.0 + hours * 3600.0 + minutes * 60.0 + seconds


def _no_duration(text: str) -> QuantityError:
    return QuantityError(f"{text[:40]!r} is no duration; write 90, 90s, 1h30m, 2d or 01:30:00")
