"""Pieces: samples of one shard that a pool reads together, and the spans they lie in."""

import itertools
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from flowdata.errors import ShardError
from flowdata.transport.access import Buffer, Span
from flowdata.transport.pool import Order

Content: TypeAlias = memoryview | ShardError
Contents: TypeAlias = Sequence[Content]
"""The bytes of each of some samples, or why they cannot be had."""


class Spans(NamedTuple):
    """The bytes that are asked for at once, and the samples in them.

    Attributes:
        wanted: first byte and number of bytes of each span.
        samples: (first byte, end) of each sample in its span, span by span.
    """

    wanted: list[Span]
    samples: list[list[tuple[int, int]]]

    @classmethod
    def of_samples(
        cls, offsets: NDArray[np.int64], sizes: NDArray[np.int64], firsts: list[int]
    ) -> "Spans":
        """Those of samples, by the numbers of the ones that begin a span."""
        bounds = [*firsts, offsets.size]
        starts = offsets[firsts]
        begins = offsets - np.repeat(starts, np.diff(bounds))
        places = list(zip(begins.tolist(), (begins + sizes).tolist(), strict=True))
        samples = [places[low:high] for low, high in itertools.pairwise(bounds)]
        ends = [inside[-1][1] for inside in samples]
        return cls(list(zip(starts.tolist(), ends, strict=True)), samples)

    def views(self, number: int, content: Buffer) -> list[memoryview]:
        """The samples in the bytes of one span."""
        view = memoryview(content)
        return [view[begin:end] for begin, end in self.samples[number]]


@dataclass(eq=False)
class Piece:
    """Samples of one shard, ascending.

    Attributes:
        order: when they are read.
        offsets, sizes: of the samples.
        connections: that they can have, about.
        turns: when each sample is needed, if that is known.
        contents: of the samples; None for those that are not there yet.
        awaited: the place of the sample that is waited for; -1 for none.
        size: bytes that are read for it, at most; of the requests when they are planned.
        in_sequence: read them from the start of the shard on, as its server knows no ranges.
    """

    order: Order
    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]
    connections: float
    turns: NDArray[np.int64] | None = None
    contents: list[Content | None] = field(init=False)
    awaited: int = -1
    size: int = 0
    in_sequence: bool = False
    _is_there: bool = False

    def __post_init__(self) -> None:
        self.contents = [None] * self.sizes.size

    def is_there(self) -> bool:
        """Whether it has all contents."""
        return self._is_there

    def has(self, place: int) -> bool:
        """Whether it has that of one sample."""
        return self.contents[place] is not None

    def put(self, contents: Contents, first: int = 0) -> None:
        """Take those of some samples."""
        self.contents[first : first + len(contents)] = contents

    def end(self) -> None:
        """Nothing more will come."""
        self._is_there = True

    def __lt__(self, other: "Piece") -> bool:
        return self.order < other.order


class Parts:
    """What comes in answer to the requests of a piece; any thread may bring it.

    Args:
        piece: that is given what comes.
        spans: of the requests.
        firsts: of each the first of its samples.
    """

    def __init__(self, piece: Piece, spans: Spans, firsts: Sequence[int]) -> None:
        self._piece, self._spans, self._firsts = piece, spans, firsts
        self._left = len(spans.wanted)
        self._is_over = False
        self._end_requests: list[Callable[[], None]] = []
        self._lock = threading.Lock()

    def ended_by(self, end: Callable[[], None]) -> None:
        """Call this when the other parts are wanted no more."""
        with self._lock:
            if not self._is_over:
                self._end_requests.append(end)
                return
        end()

    def add(self, number: int, content: Buffer | ShardError) -> tuple[bool, bool]:
        """Take the bytes of a span, or why there are none.

        Returns:
            Whether it has the sample that is waited for, and whether it was the last one.
        """
        contents: Contents
        if isinstance(content, ShardError):
            contents = [content] * len(self._spans.samples[number])
        else:
            contents = self._spans.views(number, content)
        first = self._firsts[number]
        with self._lock:
            if self._is_over:
                return False, False
            self._piece.put(contents, first)
            self._left -= 1
            self._is_over = not self._left
        if self._is_over:
            self._end_requests.clear()
        return 0 <= self._piece.awaited - first < len(contents), self._is_over

    def end(self) -> bool:
        """End the requests; False where they have ended already."""
        with self._lock:
            was_over, self._is_over = self._is_over, True
            ends, self._end_requests = self._end_requests, []
        for end in ends:
            end()
        return not was_over
