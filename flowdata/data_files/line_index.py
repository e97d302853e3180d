"""Where the rows of JSONL files lie, and reading them in any order."""

from collections.abc import Callable, Iterable, Iterator, Sequence
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
    """The begin of each row, 8 bytes each, of open files that stay as they are, in a row."""

    def __init__(
        self, files: Sequence[tuple[BinaryIO, Path]], see: Callable[[Path, Rows], None]
    ) -> None:
        """Read each file once; ``see`` is given all rows, some at a time."""
        self._files = files
        self._newlines: list[bytes] = []
        begins: list[NDArray[np.int64]] = []
        firsts, rows = [], 0
        for file, name in files:
            firsts.append(rows)
            found = self._read_all(file, name, see)
            begins.append(found)
            rows += found.size - 1
        # Of each file one more than it has rows: its end.
        self._begins = np.concatenate(begins)
        self._firsts = np.array(firsts)

    def _read_all(
        self, file: BinaryIO, name: Path, see: Callable[[Path, Rows], None]
    ) -> NDArray[np.int64]:
        begins, place, newline = [], 0, b"\n"
        for some in read_rows(file, name):
            see(name, some)
            if some.lines and place == 0 and some.lines[0].endswith(b"\r\n"):
                newline = b"\r\n"
            place += len(some.begins)
            lines = np.fromiter(map(len, some.lines), np.int64, len(some))
            blank = np.fromiter(map(len, some.blank), np.int64, len(some))
            ends = place + np.cumsum(lines + blank)
            begins.append(ends - lines)
            place = int(ends[-1]) if ends.size else place
        self._newlines.append(newline)
        return np.concatenate([*begins, [place]])

    def __len__(self) -> int:
        return self._begins.size - len(self._files)

    def read(self, rows: NDArray[np.int64]) -> Iterator[bytes]:
        """The lines of any rows, in this order, each with its end."""
        places = rows + self._files_of(rows)
        sizes = self._begins[places + 1] - self._begins[places]
        for start, stop in _runs(sizes):
            # In the order of the file, each once: a disk reads ahead.
            wanted, places = np.unique(rows[start:stop], return_inverse=True)
            lines = list(self._lines(wanted))
            yield from (lines[place] for place in places.tolist())

    def _lines(self, rows: NDArray[np.int64]) -> Iterable[bytes]:
        numbers = self._files_of(rows)
        places = rows + numbers
        begins, ends = self._begins[places].tolist(), self._begins[places + 1].tolist()
        for number, begin, end in zip(numbers.tolist(), begins, ends, strict=True):
            (file, name), newline = self._files[number], self._newlines[number]
            file.seek(begin)
            content = file.read(end - begin)
            if len(content) != end - begin:
                raise DataFileError(f"{name} became shorter while it was read")
            # Blank lines may follow.
            line = content[: content.find(b"\n") + 1] or content
            yield line if line.endswith(b"\n") else line + newline

    def _files_of(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        return self._firsts.searchsorted(rows, side="right") - 1


def _runs(sizes: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Runs of rows that may be held at a time."""
    ends, start = np.cumsum(sizes), 0
    while start < sizes.size:
        held = int(ends[start - 1]) if start else 0
        fitting = int(np.searchsorted(ends, held + _MOST_BYTES, side="right"))
        stop = min(max(fitting, start + 1), start + _MOST_ROWS)
        yield start, stop
        start = stop
