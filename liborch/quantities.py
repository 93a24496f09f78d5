"""Durations and sizes as people write them: "1h30m" <-> seconds, "4GiB" <-> bytes."""

from __future__ import annotations

import re

from liborch.errors import QuantityError

_UNITS_S = {"d": 86400.0, "h": 3600.0, "m": 60.0, "min": 60.0, "s": 1.0, "ms": 0.001}
_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|min|d|h|m|s)")
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgtp]?)(i?b?)", re.IGNORECASE)
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4, "p": 5}


def parse_duration(text: str) -> float:
    """Return seconds. Accepts `90` (seconds), `1h30m`, `1.5h`, `MM:SS`, `HH:MM:SS`, `D-HH:MM:SS` (as Slurm writes it).

    Raises:
        QuantityError: Anything else.
    """
    stripped = text.strip()
    if re.fullmatch(r"\d+(\.\d+)?", stripped):
        return float(stripped)
    clock = re.fullmatch(r"(?:(\d+)-)?(\d+):(\d{1,2})(?::(\d{1,2}))?", stripped)
    if clock:
        days, first, second, third = clock.groups()
        if third is None and days is None:
            return int(first) * 60.0 + int(second)
        return int(days or 0) * 86400.0 + int(first) * 3600.0 + int(second) * 60.0 + int(third or 0)
    parts = _PART.findall(stripped)
    if parts and "".join(number + unit for number, unit in parts) == stripped.replace(" ", ""):
        return sum(float(number) * _UNITS_S[unit] for number, unit in parts)
    raise QuantityError(f"{text!r} is no duration; write 90, 90s, 1h30m, 2d or 01:30:00")


def format_duration(seconds: float) -> str:
    """`5430` -> `1h30m30s`; under ten seconds with one decimal; the smallest unit shown is a second."""
    if seconds < 0:
        return "-" + format_duration(-seconds)
    if seconds < 10:
        return f"{seconds:.1f}".rstrip("0").rstrip(".") + "s"
    whole = round(seconds)
    out = ""
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        count, whole = divmod(whole, size)
        if count:
            out += f"{count}{unit}"
    return out or "0s"


def parse_size(text: str) -> int:
    """Return bytes. Accepts `1024`, `4G`, `4GB`, `4GiB`, `1.5g`; every unit is a power of 1024, as sbatch has it.

    Raises:
        QuantityError: Anything else.
    """
    found = _SIZE.fullmatch(text.strip())
    if not found:
        raise QuantityError(f"{text!r} is no size; write 1024, 500M, 4G or 4GiB")
    number, prefix, _suffix = found.groups()
    return round(float(number) * 1024 ** _POWERS[prefix.lower()])


def format_size(size_bytes: int) -> str:
    """`4294967296` -> `4 GiB`."""
    value = float(size_bytes)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if value < 1024 or unit == "TiB":
            return f"{int(value)} {unit}" if unit == "B" or value == int(value) else f"{value:.1f} {unit}"
        value /= 1024
    raise AssertionError("unreachable")
