"""The keyed permutation: a bijection of [0, size) as a pure function of (seed, epoch, purpose)."""

import enum
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Arrays of this many elements stay inside the L2 cache and below the size from which
# malloc asks the kernel for fresh pages on every call.
CHUNK = 16_384

_TABLE_SIZE = 1 << 16
# With four, positions one row of the rectangle apart are measurably dependent: the row is then
# shifted twice only, by tables of few entries.
_ROUNDS = 6
# Sorted keys have at least so many random bits.
_LEAST_CHANCE_BITS = 20


class Purpose(enum.IntEnum):
    """What a sequence of random numbers is for; those of different purposes are independent."""

    ROW_ORDER = 0
    BLOCK_ORDER = 1
    DRAW_ORDER = 2
    MULTINOMIAL = 3
    SHARD_ORDER = 4
    WINDOW_ORDER = 5
    STRATA = 6
    FOLDS = 7
    ROWS_OF_SHARD = 8
    BY_LENGTH = 9
    PACKED_ROWS = 10
    PACK_ORDER = 11
    SAMPLE = 12


def random_bits(seed: int, epoch: int, purpose: Purpose, *part: int) -> np.random.Philox:
    """The bit generator of (seed, epoch, purpose), and of a part of the epoch if it has some.

    Only its raw 64-bit outputs are used in this package: those are the same on every machine
    and in every numpy release, while the methods of ``np.random.Generator`` may change.
    """
    return np.random.Philox(np.random.SeedSequence(seed, spawn_key=(epoch, int(purpose), *part)))


def shuffled(size: int, bits: np.random.Philox) -> NDArray[np.int64]:
    """A random order of ``range(size)``, for ``size`` up to 65,536: every order equally likely.

    The upper 48 bits of each key are random and the lower 16 hold the index, so a plain sort
    (about three times faster than an argsort) orders the indices, and keys never tie.
    """
    keys = bits.random_raw(size)
    keys &= np.uint64(~0xFFFF & (1 << 64) - 1)
    keys |= np.arange(size, dtype=np.uint64)
    keys.sort()
    keys &= np.uint64(0xFFFF)
    return keys.view(np.int64)


def sorted_at_random(codes: NDArray[Any], bits: np.random.Philox) -> NDArray[np.int64]:
    """The order that sorts codes >= 0, those of equal code at random.

    As `shuffled`, for any size: each key is a code, a random number and an index, and a plain
    sort of such keys is many times faster than an argsort.
    """
    of_index = max(codes.size - 1, 1).bit_length()
    of_code = int(codes.max(initial=1)).bit_length()
    if 64 - of_index - of_code < _LEAST_CHANCE_BITS:
        codes = np.unique(codes, return_inverse=True)[1]
        of_code = max(int(codes.max()), 1).bit_length()
    chance = bits.random_raw(codes.size)
    if 64 - of_index - of_code < _LEAST_CHANCE_BITS:
        return np.lexsort((chance, codes))
    chance >>= np.uint64(of_code + of_index)
    chance <<= np.uint64(of_index)
    chance |= np.arange(codes.size, dtype=np.uint64)
    high = codes.astype(np.uint64)
    high <<= np.uint64(64 - of_code)
    chance |= high
    del high
    chance.sort()
    chance &= np.uint64((1 << of_index) - 1)
    return chance.view(np.int64)


class KeyedPermutation:
    """A pseudo-random bijection of ``[0, size)``, computed where it is asked for.

    Up to 65,536 elements it is a stored table, uniform over all orders. Above, it is a
    Feistel network on a rectangle of about sqrt(size) x sqrt(size) cells, so the rare value
    outside ``[0, size)`` is walked on along its cycle. Its round functions are tables of random
    numbers: memory is O(sqrt(size)). The rounds are those of Luby and Rackoff (1988), who
    need four for pseudo-random functions; the rectangle and the walk those of Black and
    Rogaway, "Ciphers with Arbitrary Finite Domains", 2002.

    >>> order = KeyedPermutation(10, seed=0, epoch=0, purpose=Purpose.DRAW_ORDER)
    >>> sorted(order(np.arange(10)).tolist())
    [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
    """

    def __init__(
        self, size: int, *, seed: int, epoch: int, purpose: Purpose, part: tuple[int, ...] = ()
    ) -> None:
        self.size = size
        bits = random_bits(seed, epoch, purpose, *part)
        if size <= _TABLE_SIZE:
            self._table = shuffled(size, bits)
        else:
            self._make_rounds(bits)

    def _make_rounds(self, bits: np.random.Philox) -> None:
        rows = math.isqrt(self.size - 1) + 1
        columns = -(-self.size // rows)
        self._dtype: Any = np.uint32 if rows * columns < 1 << 32 else np.uint64
        self._rows, self._columns = self._dtype(rows), self._dtype(columns)
        # An even round shifts the row by a function of the column, an odd one the reverse.
        self._rounds: list[NDArray[np.unsignedinteger[Any]]] = []
        for number in range(_ROUNDS):
            domain, image = (columns, rows) if number % 2 == 0 else (rows, columns)
            shifts = bits.random_raw(domain) % np.uint64(image)
            self._rounds.append(shifts.astype(self._dtype))

    def __len__(self) -> int:
        return self.size

    def __call__(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Map positions, an int64 array with values in [0, size), element-wise."""
        if self.size <= _TABLE_SIZE:
            return self._table.take(positions)
        cells = self._shift_all(positions.astype(self._dtype))
        # Cycle walking: a cell outside [0, size) goes on along its cycle until it is inside.
        while (outside := cells >= self.size).any():
            cells[outside] = self._shift_all(cells[outside])
        return cells.astype(np.int64)

    def _shift_all(
        self, cells: NDArray[np.unsignedinteger[Any]]
    ) -> NDArray[np.unsignedinteger[Any]]:
        row = cells // self._columns
        column = cells - row * self._columns
        for number, shifts in enumerate(self._rounds):
            if number % 2 == 0:
                row += shifts.take(self._as_indices(column))
                # Unsigned, row - rows wraps to a huge number wherever row < rows.
                np.minimum(row, row - self._rows, out=row)
            else:
                column += shifts.take(self._as_indices(row))
                np.minimum(column, column - self._columns, out=column)
        row *= self._columns
        row += column
        return row

    def _as_indices(self, cells: NDArray[np.unsignedinteger[Any]]) -> NDArray[Any]:
        # numpy 1.26 takes no unsigned 64-bit integers for indices; the bits are the same.
        return cells.view(np.int64) if self._dtype is np.uint64 else cells
