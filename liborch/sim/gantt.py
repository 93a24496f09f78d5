"""Pictures of an `Outcome`: rows of text that fit a terminal, and a drawing (SVG) that needs nothing else. Pure.

One row per node, or per slot while they are few; neighbours share a row when there are more nodes than rows. Time goes to the right.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

from liborch.quantities import format_duration
from liborch.sim.plan import Outcome

#: Rows of text, at most; and up to so many, each slot has its own.
ROWS = 40
#: Bars that are drawn one by one; beyond, what runs is drawn as how full a row is.
BARS_MOST = 20_000
_SHADES = " ░▒▓█"
_PLAIN_SHADES = " .:=#"
_CELLS = 240

_STYLE = """
svg { font: 12px system-ui, sans-serif; background: #fff; color: #222 }
text { fill: currentColor } .time { text-anchor: middle } .name { text-anchor: end }
.grid { stroke: #8884 } .ours { fill: #8882 } .ran { fill: #2a78b8 } .cut { fill: #c4502e }
rect.ran:hover, rect.cut:hover { opacity: .7 }
@media (prefers-color-scheme: dark) {
  svg { background: #16181c; color: #ddd } .ran { fill: #5aa9e6 } .cut { fill: #ef8a62 }
}
"""


class Bar(NamedTuple):
    """Something that took place on a row."""

    row: int
    begin_s: float
    end_s: float
    is_cut: bool
    #: How much of the row it fills, where several run side by side.
    share: float


class Rows(NamedTuple):
    """What is drawn: names, bars, and when each row was ours."""

    names: list[str]
    bars: list[Bar]
    ours: list[tuple[int, float, float, str]]


def arrange(outcome: Outcome, most: int = ROWS, cpus: Sequence[int] = ()) -> Rows:
    """Say what is on which row. `cpus`: cores of each machine, in order; as many as ran at once where it is not told."""
    bars = outcome.bars
    slots = _slots(outcome)
    by_slot = sum(slots) <= most and len(bars.machine) <= BARS_MOST
    names: list[str] = []
    if by_slot:
        first = [sum(slots[:number]) for number in range(len(slots))]
        for machine, count in zip(outcome.machines, slots, strict=True):
            names += [machine if count == 1 else f"{machine}.{slot}" for slot in range(count)]
        found = _by_slot(outcome, first)
        row_of = [list(range(at, at + count)) for at, count in zip(first, slots, strict=True)]
    else:
        together = -(-len(outcome.machines) // most)
        for at in range(0, len(outcome.machines), together):
            group = outcome.machines[at : at + together]
            names.append(group[0] if len(group) == 1 else f"{group[0]}-{group[-1]}")
        room = [0.0] * len(names)
        for number, count in enumerate(slots):
            room[number // together] += cpus[number] if cpus else count * max(bars.cpus, default=1)
        found = [
            Bar(machine // together, begin, end, bool(cut), used / max(room[machine // together], 1.0))
            for machine, begin, end, used, cut in zip(
                bars.machine, bars.begin_s, bars.end_s, bars.cpus, bars.cut, strict=True
            )
        ]
        row_of = [[number // together] for number in range(len(outcome.machines))]
    numbers = {machine: number for number, machine in enumerate(outcome.machines)}
    ours = [
        (row, each.begin_s, each.end_s, f"allocation {each.id}, {each.how}")
        for each in outcome.allocations
        for machine in each.machines
        for row in row_of[numbers[machine]]
    ]
    return Rows(names, found, ours)


def _slots(outcome: Outcome) -> list[int]:
    """How many ran on each machine at once, at most."""
    most, now = [0] * len(outcome.machines), [0] * len(outcome.machines)
    bars = outcome.bars
    moments = [(begin, 1, machine) for begin, machine in zip(bars.begin_s, bars.machine, strict=True)]
    moments += [(end, -1, machine) for end, machine in zip(bars.end_s, bars.machine, strict=True)]
    for _at, step, machine in sorted(moments):
        now[machine] += step
        most[machine] = max(most[machine], now[machine])
    return [max(1, count) for count in most]


def _by_slot(outcome: Outcome, first: Sequence[int]) -> list[Bar]:
    """Each attempt on the first slot of its machine that is free."""
    bars = outcome.bars
    order = sorted(range(len(bars.machine)), key=lambda at: (bars.begin_s[at], bars.end_s[at]))
    running: list[list[tuple[float, int]]] = [[] for _ in outcome.machines]
    free: list[list[int]] = [[] for _ in outcome.machines]
    taken = [0] * len(outcome.machines)
    found = []
    for at in order:
        machine, begin = bars.machine[at], bars.begin_s[at]
        while running[machine] and running[machine][0][0] <= begin:
            heapq.heappush(free[machine], heapq.heappop(running[machine])[1])
        if free[machine]:
            slot = heapq.heappop(free[machine])
        else:
            slot, taken[machine] = taken[machine], taken[machine] + 1
        heapq.heappush(running[machine], (bars.end_s[at], slot))
        found.append(Bar(first[machine] + slot, begin, bars.end_s[at], bool(bars.cut[at]), 1.0))
    return found


def _fill(rows: Rows, span_s: float, cells: int) -> list[list[float]]:
    """How full each cell of each row is, 0 to 1."""
    full = [[0.0] * cells for _ in rows.names]
    width = span_s / cells
    for bar in rows.bars:
        row = full[bar.row]
        at = min(cells - 1, int(bar.begin_s / width))
        last = min(cells - 1, int(bar.end_s / width))
        for cell in range(at, last + 1):
            within = min(bar.end_s, (cell + 1) * width) - max(bar.begin_s, cell * width)
            row[cell] += bar.share * max(0.0, within) / width
    return full


def _span_s(outcome: Outcome) -> float:
    return max([outcome.makespan_s, *(each.end_s for each in outcome.allocations), 1e-9])


def text(outcome: Outcome, width: int = 80, cpus: Sequence[int] = (), *, plain: bool = False) -> list[str]:
    """Lines no wider than `width`; `plain`: of ASCII alone."""
    rows = arrange(outcome, cpus=cpus)
    names = max((len(name) for name in rows.names), default=0)
    names = min(names, max(4, width // 3))
    cells = max(10, width - names - 3)
    span_s = _span_s(outcome)
    full = _fill(rows, span_s, cells)
    ours = [[outcome.allocations == []] * cells for _ in rows.names]
    for row, begin, end, _how in rows.ours:
        for cell in range(int(begin / span_s * cells), min(cells, int(end / span_s * cells) + 1)):
            ours[row][cell] = True
    cut = {(bar.row, min(cells - 1, int(bar.end_s / span_s * cells))) for bar in rows.bars if bar.is_cut}
    shades, idle = (_PLAIN_SHADES, "-") if plain else (_SHADES, "·")
    lines = []
    for number, name in enumerate(rows.names):
        line = ""
        for cell in range(cells):
            share = full[number][cell]
            if (number, cell) in cut:
                line += "x"
            elif share > 0.02:
                line += shades[min(4, 1 + int(share * 3.999))]
            else:
                line += idle if ours[number][cell] else " "
        lines.append(f"{name[:names]:>{names}} |{line}|")
    lines.append(f"{'':>{names}}  0{format_duration(span_s):>{cells - 1}}")
    return lines


def svg(outcome: Outcome, title: str, cpus: Sequence[int] = ()) -> str:
    """A drawing, as one text: light or dark as its reader prefers, with a title on each bar."""
    rows = arrange(outcome, cpus=cpus)
    span_s = _span_s(outcome)
    left, top, width = 120.0, 40.0, 960.0
    height = 16.0 if len(rows.names) > 12 else 24.0
    scale = width / span_s
    bottom = top + height * len(rows.names)
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {left + width + 40:.0f} {bottom + 40:.0f}" role="img">',
        f"<title>{escape(title)}</title><style>{_STYLE}</style>",
        f'<text x="{left:.0f}" y="20">{escape(title)}</text>',
    ]
    for number, name in enumerate(rows.names):
        y = top + height * number
        out.append(f'<text class="name" x="{left - 8:.0f}" y="{y + height * 0.7:.1f}">{escape(name)}</text>')
    for row, begin, end, how in rows.ours:
        out.append(
            _rect("ours", row, begin, end, 1.0, f"{how}: {_times(begin, end)}", left, top, height, scale)
        )
    if len(rows.bars) <= BARS_MOST:
        for bar in rows.bars:
            kind, what = ("cut", "cut off") if bar.is_cut else ("ran", "execution")
            says = f"{what} on {rows.names[bar.row]}: {_times(bar.begin_s, bar.end_s)}"
            share = bar.share if bar.share < 1.0 else 1.0
            out.append(_rect(kind, bar.row, bar.begin_s, bar.end_s, share, says, left, top, height, scale))
    else:
        cell_s = span_s / _CELLS
        for row, shares in enumerate(_fill(rows, span_s, _CELLS)):
            for cell, share in enumerate(shares):
                if share > 0.0:
                    begin = cell * cell_s
                    says = f"{rows.names[row]}, {_times(begin, begin + cell_s)}: {share:.0%} full"
                    out.append(
                        _rect(
                            "ran", row, begin, begin + cell_s, min(1.0, share), says, left, top, height, scale
                        )
                    )
    for tick in range(9):
        x = left + width * tick / 8
        out.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{top:.0f}" y2="{bottom:.0f}"/>')
        label = format_duration(span_s * tick / 8)
        out.append(f'<text class="time" x="{x:.1f}" y="{bottom + 18:.0f}">{label}</text>')
    out.append("</svg>")
    return "\n".join(out) + "\n"


def _times(begin: float, end: float) -> str:
    return f"{format_duration(begin)} to {format_duration(end)}"


def _rect(
    kind: str, row: int, begin: float, end: float, share: float, says: str,
    left: float, top: float, height: float, scale: float,
) -> str:  # fmt: skip
    tall = (height - 3) * share
    y = top + height * (row + 1) - 1.5 - tall
    return (
        f'<rect class="{kind}" x="{left + begin * scale:.2f}" y="{y:.2f}" width="{max(0.5, (end - begin) * scale):.2f}" '
        f'height="{tall:.2f}"><title>{escape(says)}</title></rect>'
    )
