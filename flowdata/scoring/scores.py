"""Scores: what the pass found out about some rows, in memory and as a part on disk."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowdata.files import replacing
from flowdata.losses import as_lists, offsets_of


@dataclass(frozen=True)
class Scores:
    """Losses of some rows, in any order.

    Attributes:
        rows: row numbers in the data set, int64, shape (m,).
        losses: float32, shape (m,); NaN where a row has no valid loss.
        n_tokens: response tokens of each row, int32, shape (m,), where the loss counts tokens.
        token_losses: losses of all response tokens, row after row, float32, if asked for.
        truncated: rows that were cut to the longest length allowed.
    """

    rows: NDArray[np.int64]
    losses: NDArray[np.float32]
    n_tokens: NDArray[np.int32] | None = None
    token_losses: NDArray[np.float32] | None = None
    truncated: int = 0

    def __len__(self) -> int:
        return self.rows.size

    def save(self, path: Path) -> None:
        """Write a part, atomically."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        columns: dict[str, Any] = {"row": self.rows, "loss": self.losses}
        if self.n_tokens is not None:
            columns["n_tokens"] = self.n_tokens
        if self.token_losses is not None:
            columns["token_losses"] = as_lists(self.token_losses, offsets_of(_set(self.n_tokens)))
        metadata = {"truncated": json.dumps(self.truncated)}
        with replacing(path) as temporary:
            table = pa.table(columns).replace_schema_metadata(metadata)
            pq.write_table(
                table,
                temporary,
                compression="none",
                use_dictionary=False,
                write_page_checksum=True,
            )

    @classmethod
    def load(cls, path: Path) -> "Scores":
        """Read a part."""
        import pyarrow.parquet as pq

        table = pq.read_table(path, page_checksum_verification=True)
        tokens = None
        if "token_losses" in table.column_names:
            tokens = table["token_losses"].combine_chunks().flatten().to_numpy()
        return cls(
            table["row"].to_numpy(),
            table["loss"].to_numpy(),
            table["n_tokens"].to_numpy() if "n_tokens" in table.column_names else None,
            tokens,
            json.loads(table.schema.metadata[b"truncated"]),
        )


def joined(parts: Sequence[Scores]) -> Scores:
    """All rows of several parts of one pass, in the order of the parts."""
    first = parts[0]
    return Scores(
        np.concatenate([part.rows for part in parts]),
        np.concatenate([part.losses for part in parts]),
        None if first.n_tokens is None else np.concatenate([_set(p.n_tokens) for p in parts]),
        None
        if first.token_losses is None
        else np.concatenate([_set(part.token_losses) for part in parts]),
        sum(part.truncated for part in parts),
    )


def in_order(scores: Scores) -> Scores:
    """The same scores by row number."""
    order = np.argsort(scores.rows, kind="stable")
    tokens = scores.token_losses
    if tokens is not None:
        counts = _set(scores.n_tokens)
        # How far the run of each row moves; then all tokens at once.
        shifts = offsets_of(counts)[order] - offsets_of(counts[order])[:-1]
        tokens = tokens[np.arange(tokens.size) + np.repeat(shifts, counts[order])]
    n_tokens = None if scores.n_tokens is None else scores.n_tokens[order]
    return Scores(scores.rows[order], scores.losses[order], n_tokens, tokens, scores.truncated)


def _set(array: NDArray[Any] | None) -> NDArray[Any]:
    assert array is not None
    return array
