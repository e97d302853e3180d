"""LossTable: the pre-trained loss of every sample, with where it came from, in Parquet."""

import functools
from dataclasses import replace
from os import PathLike
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import nn

from flowdata.core.arrays import numbers_of
from flowdata.core.column import Column
from flowdata.core.groups import Groups
from flowdata.core.made_weights import OnInvalid
from flowdata.core.shares import By, Shares
from flowdata.core.sorted_losses import warn_if_sorted
from flowdata.core.temperature import Temperature
from flowdata.core.weight_functions import WeightFunction
from flowdata.core.weights import FlowWeights, Normalization
from flowdata.errors import InvalidLossError, TableFileError
from flowdata.files import reason_of
from flowdata.table.checks import check_dataset, check_length, check_model
from flowdata.table.given_lengths import lengths_of
from flowdata.table.provenance import LENGTHS, Provenance
from flowdata.table.row_keys import RowKeys, found_rows
from flowdata.table.shard_index import ShardIndex
from flowdata.table.stored_table import METADATA_KEY, read_table, stored_columns
from flowdata.table.token_runs import offsets_of, valid_token_losses
from flowdata.table.writing import write_parquet

_READ = ("losses", "n_tokens", "lengths")


class LossTable:
    """One loss per row of a data set, in its order, float32, with provenance.

    A table of a language model also knows ``n_tokens``, the response tokens of each row,
    ``lengths``, all its tokens, and, if asked for, ``token_losses``: the losses of all response
    tokens, row after row, float32. A table of tar shards has an ``index``: the shard, key and
    place of each row. A table may have ``keys``, by which rows are found whatever their order, see
    `rows_of`. A large table stays in its file, see `load`.

    >>> table = LossTable.from_losses([0.5, 2.0, 1.0])
    >>> len(table), table.weights().temperature
    (3, 1.0)
    """

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
        self._weights: dict[tuple[Temperature, Normalization, OnInvalid], FlowWeights] = {}

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

    @classmethod
    def from_losses(
        cls,
        losses: ArrayLike,
        *,
        dataset: Any = None,
        model: nn.Module | None = None,
        loss: str | None = None,
        model_name: str | None = None,
        dtype: str | None = None,
        lengths: ArrayLike | None = None,
        index: ShardIndex | None = None,
        keys: Any = None,
    ) -> "LossTable":
        """A table of losses computed in any way: shape (n,), in the order of the data set.

        NaN, infinite and negative losses are kept: `weights` decides what becomes of them.

        Args:
            losses: numbers of shape (n,), stored as float32.
            dataset: the map-style data set they belong to; its fingerprint is stored.
            model: the model that scored it; a hash of its parameters is stored.
            loss, model_name, dtype: kept as provenance.
            lengths: tokens of each row, see `with_lengths`.
            index: the samples of tar shards that the losses belong to, in its order.
            keys: whole numbers or texts by which the rows are known, as a column ``id``; none
                may be there twice.

        Raises:
            InvalidLossError: for no losses at all.
            MismatchError: when ``dataset``, ``lengths``, ``index`` or ``keys`` has another length,
                and, naming them, for keys that are there more than once.
            TypeError: for keys that are none.
            ValueError: for a shape other than (n,), or lengths or keys that are none.
        """
        array = np.array(numbers_of(losses, "losses"), dtype=np.float32)
        if array.ndim != 1:
            raise ValueError(f"losses must have shape (n,), got shape {array.shape}")
        if array.size == 0:
            raise InvalidLossError("losses are empty: at least one row is needed")
        check_length(dataset, array.size)
        check_length(index, array.size)
        warn_if_sorted(array)
        provenance = Provenance.now(
            array.size, dataset=dataset, model=model, loss=loss, model_name=model_name, dtype=dtype
        )
        known = None if lengths is None else lengths_of(lengths, array.size)
        known_as = None if keys is None else RowKeys.given(keys, array.size)
        return cls(array, provenance, lengths=known, index=index, keys=known_as)

    def with_lengths(self, lengths: "LossTable | ArrayLike") -> "LossTable":
        """This table, with the tokens of each row: those of the rows that are trained on.

        Args:
            lengths: whole numbers of shape (n,), as of `flowdata.lengths`, or a table that has
                them; 0 is allowed where the row has weight 0.

        Raises:
            MismatchError: for another number of them.
            ValueError: for what is no length, and for a table of lengths alone.
        """
        if not self.has_losses:
            raise ValueError(
                "this table has lengths and no losses, and says how they were counted: make a new "
                "one by flowdata.lengths(..., output=path)"
            )
        return LossTable(
            self._losses,
            self.provenance,
            n_tokens=self._n_tokens,
            lengths=lengths_of(lengths, len(self)),
            token_losses=self.token_losses,
            index=self.index,
            keys=self.keys,
        )

    def with_keys(self, keys: Any) -> "LossTable":
        """This table, with keys by which its rows are known, see `from_losses`.

        Raises:
            MismatchError, TypeError, ValueError: as there.
        """
        return LossTable(
            self._losses,
            replace(self.provenance, key=None),
            n_tokens=self._n_tokens,
            lengths=self._lengths,
            token_losses=self.token_losses,
            index=self.index,
            keys=RowKeys.given(keys, len(self)),
        )

    def rows_of(self, keys: Any) -> NDArray[np.int64]:
        """The row of each key, int64, shape (m,): of many in one call, as each takes a search.

        The first call reads the keys of a table that stays in its file, and sorts them. Where some
        may be missing use ``table.keys.find``, which gives -1 for them.

        Raises:
            MismatchError: naming them, for keys that no row has; for a table without keys; and for
                texts where the rows have whole numbers for keys, or numbers where they have texts.
            TypeError, ValueError: for what is no keys.
        """
        return found_rows(self.keys, keys)

    def save(self, path: str | PathLike[str]) -> None:
        """Write the table as Parquet, atomically: a reader never sees half a file.

        Raises:
            TableFileError: when the directory is missing or cannot be written.
        """
        metadata, block = {METADATA_KEY: self.provenance.to_json().encode()}, b""
        columns = stored_columns(
            self._losses, self._n_tokens, self._lengths, self.token_losses, self.keys
        )
        if self.index is not None:
            columns |= self.index.columns()
            of_shards, block = self.index.lists().stored()
            metadata |= of_shards
        try:
            write_parquet(path, "loss table", len(self), columns, metadata, block)
        except OSError as error:
            raise TableFileError(
                f"cannot write the loss table {path}: {reason_of(error)}; the table is "
                "still in memory, save it to an existing, writable directory with free space"
            ) from error

    @classmethod
    def load(
        cls,
        path: str | PathLike[str],
        *,
        dataset: Any = None,
        model: nn.Module | None = None,
        tokens: bool = False,
    ) -> "LossTable":
        """Read a table, and `check` it if a data set or a model is given.

        One of more than `MOST_ROWS_HELD` rows stays in its file, if token losses are not asked
        for: `weights` goes through the column of losses, and ``losses``, ``n_tokens``, ``lengths``
        and what ``index`` has of each row are read when they are asked for. The file must stay as
        it is.

        Args:
            path: the file.
            dataset: the data set it shall belong to.
            model: the model that shall have scored it.
            tokens: read token losses too, where the table has them.

        Raises:
            TableFileError: for a file that is missing, truncated, or no loss table.
            MismatchError: when the table belongs to other data or another model.
        """
        stored = read_table(path, tokens=tokens)
        table = cls(
            stored.losses,
            stored.provenance,
            n_tokens=stored.n_tokens,
            lengths=stored.lengths,
            token_losses=stored.token_losses,
            index=stored.index,
            keys=stored.keys,
        )
        table.check(dataset=dataset, model=model)
        return table

    def __len__(self) -> int:
        return self.provenance.rows

    def __repr__(self) -> str:
        return f"LossTable(rows={len(self):,}, loss={self.provenance.loss!r})"

    def weights(
        self,
        temperature: Temperature = "median",
        *,
        normalize: Normalization = None,
        on_invalid: OnInvalid = "raise",
        function: WeightFunction | None = None,
        groups: ArrayLike | None = None,
        shares: Shares | None = None,
        by: By = "rows",
    ) -> FlowWeights:
        """Weights ``exp(-loss / temperature)`` of all rows, see `FlowWeights.from_losses`.

        Args:
            temperature, normalize, on_invalid, function, groups, shares: as there. Of ``shares``
                there is "tokens" too, each group's share of all tokens.
            by: what shares are of: "rows" that are drawn, or their "tokens", by ``lengths`` of this
                table or else by ``n_tokens``.

        Raises:
            InvalidLossError: for invalid losses, and for a table of lengths alone.
            ValueError: for shares of tokens in a table that does not know them.
        """
        if not self.has_losses:
            raise InvalidLossError(
                "this table has the lengths of rows and no losses: give these to a table of "
                "losses, table.with_lengths(this)"
            )
        asked = (temperature, normalize, on_invalid)
        # Numbers of other types may have no hash, and True is none, but has that of 1.0.
        known = all(isinstance(option, str | float | None) for option in asked)
        known &= function is None and groups is None and shares is None and by == "rows"
        if known and asked in self._weights:
            return self._weights[asked]
        weights = FlowWeights.from_kept_losses(
            self._losses,
            temperature=temperature,
            normalize=normalize,
            on_invalid=on_invalid,
            function=function,
            groups=None if groups is None else Groups.of(groups, len(self)),
            shares=shares,
            by=by,
            lengths=self._n_tokens if self._lengths is None else self._lengths,
        )
        if known and not isinstance(self._losses, np.ndarray):
            # They are made by going through the file: once.
            self._weights[asked] = weights
        return weights

    @property
    def token_offsets(self) -> NDArray[np.int64]:
        """Where the tokens of each row begin in `token_losses`, shape (n + 1,).

        Raises:
            ValueError: for a table without tokens.
        """
        if self.n_tokens is None:
            raise ValueError("this table knows nothing of tokens: it was not made by CausalLM")
        return offsets_of(self.n_tokens)

    def token_weights(
        self,
        temperature: Temperature = "median",
        *,
        normalize: Normalization = None,
        on_invalid: OnInvalid = "raise",
        function: WeightFunction | None = None,
    ) -> FlowWeights:
        """Weights of all response tokens, in the order of `token_losses`.

        The temperature is taken over all of them, so "median" is the median token loss. With
        ``on_invalid="drop"`` all tokens of a row without a valid loss have weight 0. ``function``
        is given the valid token losses, see `FlowWeights.from_losses`.

        Raises:
            InvalidLossError: naming the rows, for invalid losses of rows or tokens.
            ValueError: for a table without token losses.
        """
        if self.token_losses is None:
            raise ValueError(
                "this table has no token losses: score with CausalLM(token_losses=True) and load "
                "with tokens=True"
            )
        losses = valid_token_losses(self.token_losses, self.losses, self.token_offsets, on_invalid)
        return FlowWeights.from_kept_losses(
            losses,
            temperature=temperature,
            normalize=normalize,
            on_invalid=on_invalid,
            function=function,
        )

    def check(self, *, dataset: Any = None, model: nn.Module | None = None) -> None:
        """Make sure that the table belongs to this data set and this model.

        The data set is recognised by its length and the content of 16 rows spread over it, the
        model by the hash of its parameters. What the provenance does not hold is not checked; a
        data set that cannot be recognised because its samples differ from read to read is named
        in a warning.

        Raises:
            MismatchError: saying which of the two differs.
        """
        if dataset is not None:
            check_dataset(self.provenance, dataset)
        if model is not None:
            check_model(self.provenance, model)
