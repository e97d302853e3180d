"""A part on disk: some scored rows, the identity of their pass, and a checksum of both."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import xxhash

from flowdata.files import Place, replacing
from flowdata.table.parquet import Kind, ParquetColumns, open_parquet
from flowdata.table.scored_rows import ScoredRows
from flowdata.table.stored_table import read_counts, read_tokens
from flowdata.table.token_runs import offsets_of, to_list_array

_METADATA_KEY = b"flowdata.part"
_IDENTITY = "identity"
_CHECKSUM = "checksum"
_NEEDED = {"row": Kind.INT64, "loss": Kind.FLOAT32}
_OPTIONAL = {
    "n_tokens": Kind.INT32,
    "token_losses": Kind.FLOAT32_LISTS,
    "truncated": Kind.BOOL,
    "length": Kind.INT32,
}


@dataclass(frozen=True)
class Part:
    """What a part holds.

    Attributes:
        path: its file.
        scores: its rows.
        identity: of the pass that wrote it, `Provenance.identity`; None in parts of earlier
            versions, which did not carry it.
        about: what else its writer said of it, see `merging.notes`.
    """

    path: Place
    scores: ScoredRows
    identity: dict[str, Any] | None
    about: dict[str, Any] = field(default_factory=dict)

    @property
    def job(self) -> tuple[int, int] | None:
        """Number and count of the job of an array that wrote it, if one did."""
        job = self.about.get("job")
        return None if job is None else (job[0], job[1])


def write_part(
    path: Place,
    scores: ScoredRows,
    identity: Mapping[str, Any],
    about: Mapping[str, Any] | None = None,
) -> None:
    """Write a part, atomically.

    Raises:
        OSError: when it cannot be written.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns: dict[str, Any] = {"row": scores.rows, "loss": scores.losses}
    if scores.n_tokens is not None:
        columns["n_tokens"] = scores.n_tokens
        if scores.token_losses is not None:
            columns["token_losses"] = to_list_array(
                scores.token_losses, offsets_of(scores.n_tokens)
            )
    if scores.truncated is not None:
        columns["truncated"] = scores.truncated
    if scores.lengths is not None:
        columns["length"] = scores.lengths
    known = {**(about or {}), _IDENTITY: identity, _CHECKSUM: _checksum(scores, identity)}
    table = pa.table(columns).replace_schema_metadata({_METADATA_KEY: json.dumps(known)})
    # Losses hardly compress, and no two are alike, so a dictionary would only cost.
    with replacing(path) as temporary:
        pq.write_table(
            table, temporary, compression="none", use_dictionary=False, write_page_checksum=True
        )


def read_part(path: Place) -> Part:
    """Read a part.

    Raises:
        DamagedFileError: for a file that is no Parquet, or does not hold what was written.
        TableFileError: for one that cannot be read now.
    """
    with open_parquet(path, what="part", remedy="its rows have to be scored again") as file:
        known = file.json(_METADATA_KEY)
        kinds = _NEEDED | {name: _OPTIONAL[name] for name in _OPTIONAL if name in file.names}
        columns = file.read(kinds)
        n_tokens, token_losses = read_tokens(file, columns)
        truncated = columns.get("truncated")
        scores = ScoredRows(
            columns["row"].to_numpy(),
            columns["loss"].to_numpy(),
            n_tokens,
            token_losses,
            None if truncated is None else truncated.to_numpy(),
            read_counts(file, columns, "length"),
        )
        _check_rows(file, scores)
        identity = known.get(_IDENTITY)
        if known and not (
            isinstance(identity, dict) and known.get(_CHECKSUM) == _checksum(scores, identity)
        ):
            raise file.damaged("its checksum is not that of its content")
        about = {name: known[name] for name in known if name not in (_IDENTITY, _CHECKSUM)}
        return Part(path, scores, identity, about)


def _check_rows(file: ParquetColumns, scores: ScoredRows) -> None:
    rows, times = np.unique(scores.rows, return_counts=True)
    if rows.size and rows[0] < 0:
        raise file.damaged(f"it has scores of a row {rows[0]}")
    if rows.size < len(scores):
        raise file.damaged(f"it has row {rows[times > 1][0]:,} more than once")


def _checksum(scores: ScoredRows, identity: Mapping[str, Any]) -> str:
    found = xxhash.xxh3_128(json.dumps(identity, sort_keys=True).encode())
    for name, values in vars(scores).items():
        if values is not None:
            found.update(f"{name} {values.dtype} {values.size} ".encode())
            found.update(np.ascontiguousarray(values).data)
    return found.hexdigest()
