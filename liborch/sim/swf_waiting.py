"""Who waits behind the head of the queue, so that asking which of them may pass does not look at each.

They stand on a shelf for each number of processors asked for, in the order of the queue, in pages that know the shortest
requested time on them. A queue of ten thousand of which nobody fits is passed over in a few steps: sizes that are not free
are not looked at, and of the others only pages on which somebody is found.

Finds the one that `backfill.Reservation.lets_pass` would be true for first, were everyone asked in turn.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from typing import Final

from liborch.core.backfill import Reservation

#: How many stand on a page at most.
_PAGE: Final = 64


class Waiting:
    """Positions in the queue of all that wait, by what they ask for.

    Args:
        processors: How many each asks for, by its position in the queue.
        requests: For how long, in seconds.
    """

    def __init__(self, processors: list[int], requests: list[float]) -> None:
        self._processors = processors
        self._requests = requests
        self._shelves: dict[int, _Shelf] = {}
        #: The sizes of shelves with somebody on them, smallest first.
        self._sizes: list[int] = []

    @property
    def least(self) -> int:
        """The fewest processors that anybody asks for; 0 when nobody waits."""
        return self._sizes[0] if self._sizes else 0

    def add(self, position: int) -> None:
        """Somebody waits."""
        size = self._processors[position]
        shelf = self._shelves.get(size)
        if shelf is None:
            shelf = self._shelves[size] = _Shelf(self._requests)
        if not shelf.pages:
            insort(self._sizes, size)
        shelf.add(position)

    def remove(self, position: int) -> None:
        """Somebody who waited starts."""
        size = self._processors[position]
        shelf = self._shelves[size]
        shelf.remove(position)
        if not shelf.pages:
            del self._sizes[bisect_left(self._sizes, size)]

    def first(self, free: int, reservation: Reservation[int], now: float) -> int:
        """Return the first in the queue that fits and may pass, or -1."""
        found = -1
        begin, spare = reservation.begin, reservation.spare or 0
        for size in self._sizes:
            if size > free:
                break
            shelf = self._shelves[size]
            position = shelf.pages[0][0] if size <= spare else shelf.first_gone_by(begin, now)
            if position >= 0 and (found < 0 or position < found):
                found = position
        return found


class _Shelf:
    """Those who ask for the same number of processors."""

    __slots__ = ("_requests", "_shortest", "pages")

    def __init__(self, requests: list[float]) -> None:
        self._requests = requests
        #: Positions, in order; no page is empty.
        self.pages: list[list[int]] = []
        #: The shortest requested time on each page, in seconds.
        self._shortest: list[float] = []

    def add(self, position: int) -> None:
        pages, request = self.pages, self._requests[position]
        if not pages or (position > pages[-1][-1] and len(pages[-1]) >= _PAGE):
            pages.append([position])
            self._shortest.append(request)
            return
        at = min(bisect_left(pages, position, key=_last), len(pages) - 1)
        insort(pages[at], position)
        if request < self._shortest[at]:
            self._shortest[at] = request
        if len(pages[at]) > 2 * _PAGE:
            pages[at : at + 1] = [pages[at][:_PAGE], pages[at][_PAGE:]]
            self._shortest[at : at + 1] = [self._least(pages[at]), self._least(pages[at + 1])]

    def remove(self, position: int) -> None:
        pages = self.pages
        at = bisect_left(pages, position, key=_last)
        page = pages[at]
        del page[bisect_left(page, position)]
        if not page:
            del pages[at]
            del self._shortest[at]
        elif self._requests[position] == self._shortest[at]:
            self._shortest[at] = self._least(page)

    def first_gone_by(self, begin: float, now: float) -> int:
        """The first that, started now, is expected to have ended then; or -1."""
        # Added up as the rule does it, rather than compared with `begin - now`: that rounds otherwise.
        for page, shortest in zip(self.pages, self._shortest, strict=True):
            if now + shortest <= begin:
                requests = self._requests
                return next(position for position in page if now + requests[position] <= begin)
        return -1

    def _least(self, page: list[int]) -> float:
        return min(self._requests[position] for position in page)


def _last(page: list[int]) -> int:
    return page[-1]
