"""Where the rows of a JSONL file lie, and reading them in any order."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from flowdata.data_files.json_rows import Rows, read_rows
from flowdata.errors import DataFileError

# Rows and bytes that are held at a time.
_MOST_ROWS = 1 << 16
_MOST_BYTES = 1 << 26


class LineIndex:
    """The begin of each row, 8 bytes each, of an open file that stays as it is."""

    def __init__(self, file: BinaryIO, name: Path, see: Callable[[Rows], None]) -> None:
        """Read a file once; ``see`` is given all rows, some at a time."""
        self._file, self._name = file, name
        self._newline = b"\n"
        begins, place = [], 0
        for some in read_rows(file, name):
            see(some)
            if some.lines and place == 0 and some.lines[0].endswith(b"\r\n"):
                self._newline = b"\r\n"
            place += len(some.begins)
            lines = np.fromiter(map(len, some.lines), np.int64, len(some))
            blank = np.fromiter(map(len, some.blank), np.int64, len(some))
            ends = place + np.cumsum(lines + blank)
            begins.append(ends - lines)
            place = int(ends[-1]) if ends.size else place
        self._begins = np.concatenate([*begins, [place]])

    def __len__(self) -> int:
        return self._begins.size - 1

    def read(self, rows: NDArray[np.int64]) -> Iterator[bytes]:
        """The lines of any rows, in this order, each with its end."""
        sizes = self._begins[rows + 1] - self._begins[rows]
        for start, stop in _runs(sizes):
            # In the order of the file, each once: a disk reads ahead.
            wanted, places = np.unique(rows[start:stop], return_inverse=True)
            lines = list(self._lines(wanted))
            yield from (lines[place] for place in places.tolist())

    def _lines(self, rows: NDArray[np.int64]) -> Iterable[bytes]:
        file, newline = self._file, self._newline
        begins, ends = self._begins[rows].tolist(), self._begins[rows + 1].tolist()
        for begin, end in zip(begins, ends, strict=True):
            file.seek(begin)
            content = file.read(end - begin)
            if len(content) != end - begin:
                raise DataFileError(f"{self._name} became shorter while it was read")
            # Blank lines may follow.
            line = content[: content.find(b"\n") + 1] or content
            yield line if line.endswith(b"\n") else line + newline


def _runs(sizes: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Runs of rows that may be held at a time."""
    ends, start = np.cumsum(sizes), 0
    while start < sizes.size:
        held = int(ends[start - 1]) if start else 0
        fitting = int(np.searchsorted(ends, held + _MOST_BYTES, side="right"))
        stop = min(max(fitting, start + 1), start + _MOST_ROWS)
        yield start, stop
        start = stop
