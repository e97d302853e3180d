"""Keys of rows that a user has, whatever they come as."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowdata.core.arrays import as_array, taken_at_once
from flowdata.table.columns import compact_texts

_WHAT = "keys are whole numbers of 64 bits or texts, one for each row"


def as_keys(keys: Any) -> Any:
    """Keys as an int64 array or Arrow texts: a copy, where the caller could change them.

    Raises:
        TypeError: for what is no sequence of keys.
        ValueError: naming the row, for one that is missing, is no text of UTF-8, or too large.
    """
    given = keys
    if isinstance(given, str | bytes | Mapping):
        raise TypeError(f"{_WHAT}: got one {type(keys).__name__}")
    if hasattr(given, "to_pylist"):
        return _of_arrow(given)
    if isinstance(given, Sequence) and not isinstance(given, list | tuple | range):
        given = taken_at_once(given)
    if isinstance(given, list | tuple):
        return _of_objects(given)
    if not isinstance(given, range) and not hasattr(given, "__array__"):
        raise TypeError(f"{_WHAT}: got {type(keys).__name__}")
    array = as_array(given)
    if array.ndim != 1:
        raise ValueError(f"{_WHAT}: got an array of shape {array.shape}")
    if array.dtype.kind in "iu":
        return _of_numbers(array)
    if array.dtype.kind in "OUT":
        return _of_objects(array.tolist())
    floats = " (whole numbers become floats where some are missing)" * (array.dtype.kind == "f")
    raise TypeError(f"{_WHAT}: got {array.dtype}{floats}")


def is_text(keys: Any) -> bool:
    """Whether keys that `as_keys` has made are texts."""
    return not isinstance(keys, np.ndarray)


def as_plain(keys: Any) -> list[int | str]:
    """Keys that `as_keys` has made, as Python has them."""
    plain: list[int | str] = keys.to_pylist() if is_text(keys) else keys.tolist()
    return plain


def _of_arrow(keys: Any) -> Any:
    import pyarrow as pa
    import pyarrow.types as types

    kind = keys.type.value_type if types.is_dictionary(keys.type) else keys.type
    if keys.null_count:
        missing = np.flatnonzero(keys.is_null().to_numpy(zero_copy_only=False))
        raise ValueError(f"row {missing[0]:,} has no key: {_WHAT}")
    if types.is_integer(kind):
        return _of_numbers(keys.cast(kind).to_numpy(zero_copy_only=False))
    if types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind):
        # Arrow texts need not be UTF-8, and no cast looks.
        keys.cast(kind).validate(full=True)
        return compact_texts(keys.cast(pa.large_string()))
    raise TypeError(f"{_WHAT}: got Arrow values of type {keys.type}")


def _of_objects(keys: Sequence[Any]) -> Any:
    kinds = set(map(type, keys))
    if all(issubclass(kind, str) for kind in kinds) and kinds:
        return _of_texts(keys)
    if all(_is_number(kind) for kind in kinds):
        try:
            return _frozen(np.array(keys, dtype=np.int64))
        except OverflowError:
            row = next(row for row, key in enumerate(keys) if not -(1 << 63) <= key < 1 << 63)
            raise ValueError(f"row {row:,} has the key {keys[row]}: {_WHAT}") from None
    number = any(_is_number(kind) for kind in kinds)
    for row, key in enumerate(keys):
        if not isinstance(key, str) and not _is_number(type(key)):
            raise TypeError(f"row {row:,} has the key {key!r:.100}: {_WHAT}")
        if number and isinstance(key, str):
            raise TypeError(f"row {row:,} has the text {key!r:.100}, others have numbers: {_WHAT}")
    raise AssertionError


def _is_number(kind: type) -> bool:
    return issubclass(kind, int | np.integer) and kind is not bool


def _of_texts(keys: Sequence[str]) -> Any:
    import pyarrow as pa

    try:
        return compact_texts(pa.array(keys, pa.large_string()))
    except UnicodeEncodeError:
        for row, key in enumerate(keys):
            if key != key.encode(errors="replace").decode():
                raise ValueError(
                    f"row {row:,} has the key {key!a:.100}, which UTF-8 cannot hold: {_WHAT}"
                ) from None
        raise


def _of_numbers(keys: NDArray[Any]) -> NDArray[np.int64]:
    if keys.dtype.kind == "u" and keys.size and keys.max() > np.iinfo(np.int64).max:
        raise ValueError(f"row {keys.argmax():,} has the key {keys.max()}: {_WHAT}")
    return _frozen(keys.astype(np.int64))


def _frozen(keys: NDArray[np.int64]) -> NDArray[np.int64]:
    keys.flags.writeable = False
    return keys
