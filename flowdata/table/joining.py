"""Loss tables in a row, as one table."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowdata.errors import MismatchError
from flowdata.table.columns import compact_texts
from flowdata.table.origins import joined_provenance
from flowdata.table.row_keys import joined_keys
from flowdata.table.shard_index import ShardIndex
from flowdata.table.table_columns import TableColumns


def join(tables: Sequence[TableColumns], *, mixed: bool) -> TableColumns:
    """The columns of tables in a row, see `LossTable.concat`."""
    if not tables:
        raise ValueError("no tables: at least one is needed")
    if len(tables) == 1:
        return tables[0]
    provenance = joined_provenance([table.provenance for table in tables], mixed=mixed)

    def joined(name: str, join_all: Callable[[list[Any]], Any]) -> Any:
        found = [getattr(table, name) for table in tables]
        known = [values for values in found if values is not None]
        if len(known) == len(found):
            return join_all(known)
        if known and not mixed:
            has = next(number for number, values in enumerate(found) if values is not None)
            lacks = next(number for number, values in enumerate(found) if values is None)
            raise MismatchError(
                f"table {has} has {name}, table {lacks} has none: give it some, or leave out what "
                "not all have, mixed=True"
            )
        return None

    return TableColumns(
        provenance,
        joined("losses", _numbers),
        joined("n_tokens", _numbers),
        joined("lengths", _numbers),
        joined("token_losses", _numbers),
        joined("index", _indexes),
        joined("keys", joined_keys),
    )


def _numbers(columns: list[Any]) -> NDArray[Any]:
    return np.concatenate([column[:] for column in columns])


def _indexes(indexes: list[ShardIndex]) -> ShardIndex:
    import pyarrow as pa

    names = [name for index in indexes for name in index.shards]
    if len(set(names)) < len(names):
        twice = next(name for place, name in enumerate(names) if name in names[:place])
        raise MismatchError(
            f"two of the tables have a shard {twice}: names are those in a folder that all shards "
            "share, so score or index the shards of all tables in one call, from there"
        )
    versions: tuple[str, ...] = ()
    if any(index.versions for index in indexes):
        versions = tuple(
            version
            for index in indexes
            for version in (index.versions or ("",) * len(index.shards))
        )
    keys = [index.keys.cast(pa.large_string()) for index in indexes]
    return ShardIndex(
        tuple(names),
        None,
        compact_texts(pa.chunked_array(keys)),
        np.concatenate([index.offsets for index in indexes]),
        np.concatenate([index.sizes for index in indexes]),
        np.concatenate([index.lengths for index in indexes]),
        np.concatenate([index.compressed for index in indexes]),
        versions,
        rows=np.concatenate([np.diff(index.bounds()) for index in indexes]),
    )
