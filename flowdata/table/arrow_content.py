"""A hash of the columns of a ``datasets.Dataset``, whatever pieces Arrow holds them in."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

_PIECE = 1 << 23
_MOST_ROWS = 1 << 18


def hash_of_columns(dataset: Any, most_bytes: int) -> str | None:
    """A hash of the values of all columns but those of files, in the order of the rows.

    None where there is no such column, for more bytes than that, and for types of Arrow that
    ``datasets`` makes nothing of.
    """
    import pyarrow as pa

    names = sorted(n for n, feature in dataset.features.items() if not _is_of_files(feature))
    rows = len(dataset)
    if not names or not rows:
        return None
    # Rows that were selected are found as it goes: the table has all there were.
    plain = dataset.with_format("arrow").select_columns(names)
    size = max(1, plain.data.nbytes // max(1, plain.data.num_rows))
    if size * rows > most_bytes:
        return None
    columns = {name: _Values() for name in names}
    step = min(_MOST_ROWS, max(1, _PIECE // size))
    try:
        for start in range(0, rows, step):
            # Rows that were selected come in a piece each.
            piece = plain[start : start + step].combine_chunks()
            for name, values in columns.items():
                for chunk in piece.column(name).chunks:
                    values.add(chunk)
    except (_UnknownTypeError, pa.ArrowException):
        return None
    return _hash_of(columns)


def _is_of_files(feature: Any) -> bool:
    """Whether values may be paths of files, or their bytes: saving a data set makes these."""
    if isinstance(feature, Mapping):
        return any(map(_is_of_files, feature.values()))
    if isinstance(feature, list | tuple):
        return any(map(_is_of_files, feature))
    inner = getattr(feature, "feature", None)
    return hasattr(feature, "embed_storage") or (inner is not None and _is_of_files(inner))


class _UnknownTypeError(Exception):
    pass


class _Values:
    """Hashes of an array that comes in pieces: of what is there, and of where nothing is.

    Widths of numbers and of offsets make no difference, and neither does the type of a column in
    which there is nothing.
    """

    def __init__(self) -> None:
        self._rows = 0
        self._kind = ""
        self._nulls = xxhash.xxh3_128()
        self._lengths = xxhash.xxh3_128()
        self._content = xxhash.xxh3_128()
        self._inner: dict[str, _Values] = {}

    def add(self, array: Any) -> None:
        """Add the next piece, an Arrow array."""
        import pyarrow as pa

        rows = len(array)
        if isinstance(array, pa.ExtensionArray):
            array = array.storage
        if isinstance(array, pa.DictionaryArray):
            array = array.dictionary_decode()
        if array.null_count:
            nothing = array.is_null().to_numpy(zero_copy_only=False)
            self._nulls.update((np.flatnonzero(nothing) + self._rows).astype(np.int64).data)
            array = array.drop_null()
        self._rows += rows
        if len(array):
            self._add_values(array)

    def hexdigest(self) -> str:
        """The hash of all that was added."""
        own = [self._rows, self._kind, *(s.hexdigest() for s in self._streams())]
        return xxhash.xxh3_128_hexdigest(f"{own} {_hash_of(self._inner)}".encode())

    def _streams(self) -> Sequence[Any]:
        return self._nulls, self._lengths, self._content

    def _add_values(self, array: Any) -> None:
        """Add values, none of which is null."""
        import pyarrow as pa
        from pyarrow import types

        kind = array.type
        if types.is_timestamp(kind) and kind.unit in ("s", "ms"):
            # Parquet has no seconds.
            array = array.cast(kind := pa.timestamp("us", kind.tz))
        if types.is_boolean(kind):
            self._add_numbers("bool", array.cast(pa.uint8()), np.uint8)
        elif types.is_unsigned_integer(kind) and kind.bit_width == 64:
            self._add_numbers("int", array, np.uint64)
        elif types.is_integer(kind):
            self._add_numbers("int", array, np.int64)
        elif types.is_floating(kind):
            self._add_numbers("float", array, np.float64)
        elif types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind):
            self._add_texts("text", array.cast(pa.large_string()))
        elif types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind):
            self._add_texts("bytes", array.cast(pa.large_binary()))
        elif types.is_struct(kind):
            self._kind = "mapping"
            for field, values in zip(kind, array.flatten(), strict=True):
                self._add_inner(field.name, values)
        elif types.is_map(kind) or types.is_list(kind) or types.is_large_list(kind):
            self._add_lists(np.diff(array.offsets.to_numpy()), array.flatten())
        elif types.is_fixed_size_list(kind):
            self._add_lists(np.full(len(array), kind.list_size), array.flatten())
        elif types.is_temporal(kind) or types.is_decimal(kind) or types.is_fixed_size_binary(kind):
            width = kind.bit_width // 8
            values = memoryview(array.buffers()[1])[array.offset * width :][: len(array) * width]
            self._kind = str(kind)
            self._content.update(values)
        else:
            raise _UnknownTypeError

    def _add_numbers(self, kind: str, array: Any, dtype: type) -> None:
        self._kind = kind
        numbers = array.to_numpy(zero_copy_only=False)
        self._content.update(np.ascontiguousarray(numbers, dtype=dtype).data)

    def _add_texts(self, kind: str, array: Any) -> None:
        """Add arrays of bytes with int64 offsets."""
        self._kind = kind
        _, offsets, content = array.buffers()
        bounds = np.frombuffer(offsets, dtype=np.int64)[array.offset :][: len(array) + 1]
        self._lengths.update(np.diff(bounds).data)
        if content is not None:
            self._content.update(memoryview(content)[bounds[0] : bounds[-1]])

    def _add_lists(self, lengths: NDArray[Any], values: Any) -> None:
        self._kind = "list"
        self._lengths.update(lengths.astype(np.int64).data)
        self._add_inner("", values)

    def _add_inner(self, name: str, values: Any) -> None:
        self._inner.setdefault(name, _Values()).add(values)


def _hash_of(named: Mapping[str, _Values]) -> str:
    """Of values by name, in whatever order these are."""
    of_each = ascii([(name, named[name].hexdigest()) for name in sorted(named)])
    return xxhash.xxh3_128_hexdigest(of_each.encode())
