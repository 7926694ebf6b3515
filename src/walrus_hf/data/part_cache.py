"""Parts in memory and on their way: what nobody is known to want goes first, what fits stays for the next pass."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Container, Iterator

from .fetching import PartFetch, Runs


@dataclasses.dataclass(frozen=True)
class Part:
    """Frames of a trajectory that are fetched together."""

    source: int
    file: int
    trajectory: int
    runs: Runs

    def covers(self, other: Part) -> bool:
        """Whether this part holds the other one's frames; both of one trajectory."""
        return all(any(a <= first and stop <= b for a, b in self.runs) for first, stop in other.runs)


class PartCache:
    """Fetches by part. Not for several threads at the same time: whoever uses it holds a lock.

    Args:
        limit: bytes that are kept; `nbytes` goes beyond it only while one batch needs more.
    """

    def __init__(self, limit: int) -> None:
        self.limit, self.nbytes = limit, 0
        self._fetches: collections.OrderedDict[Part, PartFetch] = collections.OrderedDict()  # longest unused first
        self._idle: dict[Part, None] = {}  # read to their end; longest ago first
        self._idle_bytes = 0  # counted along: there may be thousands, and every batch asks
        self._places: dict[tuple[int, int, int], dict[Part, None]] = collections.defaultdict(dict)

    def __contains__(self, part: Part) -> bool:
        return part in self._fetches

    def __iter__(self) -> Iterator[Part]:
        return iter(list(self._fetches))

    def get(self, part: Part) -> PartFetch | None:
        return self._fetches.get(part)

    def covering(self, part: Part) -> Part:
        """The part itself, or one in memory that holds its frames: blocks at the ends of a pass are parts of others."""
        if part in self._fetches:
            return part
        others = self._places.get((part.source, part.file, part.trajectory), ())
        return next((p for p in others if p.covers(part) and not self._fetches[p].failed), part)

    def put(self, part: Part, fetch: PartFetch) -> None:
        self.drop(part)
        self._fetches[part] = fetch
        self._places[part.source, part.file, part.trajectory][part] = None
        self.nbytes += fetch.nbytes

    def want(self, part: Part) -> None:
        """The part is needed, now or soon."""
        self._wake(part)
        self._fetches.move_to_end(part)

    def release(self, part: Part) -> None:
        """Nobody is known to need the part; it stays while there is room."""
        if part in self._fetches:
            self._wake(part)
            self._idle[part] = None
            self._idle_bytes += self._fetches[part].nbytes

    def _wake(self, part: Part) -> None:
        if part in self._idle:
            del self._idle[part]
            self._idle_bytes -= self._fetches[part].nbytes

    def drop(self, part: Part) -> None:
        """Let go of the part, whatever state it is in."""
        if part not in self._fetches:
            return
        self._wake(part)
        fetch = self._fetches.pop(part)
        place = (part.source, part.file, part.trajectory)
        del self._places[place][part]
        if not self._places[place]:
            del self._places[place]
        self.nbytes -= fetch.nbytes
        fetch.cancel()

    def make_room(self, nbytes: int) -> bool:
        """Drop idle parts until that many bytes more are within the limit; False where all of them are not enough."""
        if self.nbytes - self._idle_bytes + nbytes > self.limit:
            return False
        while self.nbytes + nbytes > self.limit:
            self.drop(next(iter(self._idle)))
        return True

    def shrink(self, needed: Container[Part]) -> None:
        """Back within the limit: idle parts go first, then those used longest ago, never those that are needed."""
        if self.nbytes <= self.limit:
            return
        for part in [*self._idle, *self._fetches]:
            if self.nbytes <= self.limit:
                break
            if part not in needed:
                self.drop(part)
