"""What a loss table is made of, wherever it comes from."""

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowdata.core.column import Column, Source
from flowdata.table.provenance import LENGTHS, Provenance
from flowdata.table.row_keys import RowKeys
from flowdata.table.shard_index import ShardIndex

_READ = ("losses", "n_tokens", "lengths")


@dataclass(frozen=True)
class TableColumns:
    """What a loss table knows of its rows, see `LossTable`: in memory, or in a file."""

    provenance: Provenance
    losses: Source
    n_tokens: Source | None = None
    lengths: Source | None = None
    token_losses: NDArray[np.float32] | None = None
    index: ShardIndex | None = None
    keys: RowKeys | None = None


class HeldColumns:
    """The columns of a loss table, each of which is held from when it is asked for."""

    def __init__(
        self,
        losses: NDArray[np.float32] | Column,
        provenance: Provenance,
        *,
        n_tokens: NDArray[np.int32] | Column | None = None,
        lengths: NDArray[np.int32] | Column | None = None,
        token_losses: NDArray[np.float32] | None = None,
        index: ShardIndex | None = None,
        keys: RowKeys | None = None,
    ) -> None:
        if len(losses) != provenance.rows:
            raise ValueError(f"{len(losses)} losses for provenance of {provenance.rows} rows")
        if lengths is not None and len(lengths) != provenance.rows:
            raise ValueError(f"{len(lengths)} lengths for provenance of {provenance.rows} rows")
        if keys is not None and len(keys) != provenance.rows:
            raise ValueError(f"{len(keys)} keys for provenance of {provenance.rows} rows")
        # Weights, plans and fingerprints are made of them once: they must not change under those.
        if isinstance(losses, np.ndarray):
            if losses.flags.writeable and losses.base is not None:
                losses = losses.copy()
            losses.flags.writeable = False
        self.provenance = provenance
        self.token_losses = token_losses
        self.index = index
        self.keys = keys
        self._losses = losses
        self._n_tokens = n_tokens
        self._lengths = lengths

    def __getstate__(self) -> dict[str, Any]:
        # Columns that were read from a file are read by another process if it wants them.
        return {name: value for name, value in vars(self).items() if name not in _READ}

    @functools.cached_property
    def losses(self) -> NDArray[np.float32]:
        """The loss of each row, float32, shape (n,); held from now on, if it was not."""
        return self._losses[:]

    @functools.cached_property
    def n_tokens(self) -> NDArray[np.int32] | None:
        """Response tokens of each row, int32, shape (n,); held from now on, if it was not."""
        return None if self._n_tokens is None else self._n_tokens[:]

    @functools.cached_property
    def lengths(self) -> NDArray[np.int32] | None:
        """Tokens of each row, as it is given to the model, after truncation, int32, shape (n,).

        Held from now on, if it was not. None where they are not known: `flowdata.lengths` counts
        them, without a model.
        """
        return None if self._lengths is None else self._lengths[:]

    @property
    def has_losses(self) -> bool:
        """Whether rows have losses; what `flowdata.lengths` writes has lengths alone."""
        return self.provenance.loss != LENGTHS

    def __len__(self) -> int:
        return self.provenance.rows

    def columns(self) -> TableColumns:
        """All of them, as they are: those in a file stay there."""
        return TableColumns(
            self.provenance,
            self._losses,
            self._n_tokens,
            self._lengths,
            self.token_losses,
            self.index,
            self.keys,
        )
