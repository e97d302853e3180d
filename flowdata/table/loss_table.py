"""LossTable: the pre-trained loss of every sample, with where it came from, in Parquet."""

import functools
from collections.abc import Iterable, Sequence
from dataclasses import replace
from os import PathLike
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import nn

from flowdata.core.arrays import numbers_of
from flowdata.core.groups import Groups
from flowdata.core.made_weights import OnInvalid
from flowdata.core.shares import By, Shares
from flowdata.core.sorted_losses import warn_if_sorted
from flowdata.core.temperature import Temperature
from flowdata.core.weight_functions import WeightFunction
from flowdata.core.weights import FlowWeights, Normalization
from flowdata.errors import InvalidLossError, TableFileError
from flowdata.files import reason_of
from flowdata.objects import without_secrets
from flowdata.table.checks import check_dataset, check_length, check_model
from flowdata.table.frames import to_frame
from flowdata.table.given_lengths import lengths_of
from flowdata.table.joining import join
from flowdata.table.merging import merge_parts
from flowdata.table.provenance import Provenance
from flowdata.table.row_keys import RowKeys, found_rows
from flowdata.table.selection import select_rows
from flowdata.table.shard_index import ShardIndex
from flowdata.table.stored_table import read_table, write_table
from flowdata.table.table_columns import HeldColumns, TableColumns
from flowdata.table.token_runs import offsets_of, valid_token_losses


class LossTable(HeldColumns):
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

    @functools.cached_property
    def _weights(self) -> dict[tuple[Temperature, Normalization, OnInvalid], FlowWeights]:
        return {}

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
        return self._with(lengths=lengths_of(lengths, len(self)))

    def with_keys(self, keys: Any) -> "LossTable":
        """This table, with keys by which its rows are known, see `from_losses`.

        Raises:
            MismatchError, TypeError, ValueError: as there.
        """
        provenance = replace(self.provenance, key=None)
        return self._with(provenance=provenance, keys=RowKeys.given(keys, len(self)))

    def _with(self, **changes: Any) -> "LossTable":
        return LossTable(**vars(replace(self.columns(), **changes)))

    def select(self, rows: slice | ArrayLike) -> "LossTable":
        """The table of some rows: numbers in any order, a slice, or a mask of all rows.

        It knows that it is a selection, and of what. Which data it belongs to is known of tables
        that are whole in it (see `concat`), and of rows otherwise by their number alone. Keys go
        along; the index of shards too, where the rows are in its order.

        >>> table = LossTable.from_losses([0.5, 2.0, 1.0], keys=["a", "b", "c"])
        >>> table.select([2, 0]).keys.tolist(), table.select(table.losses < 2).losses.tolist()
        (['c', 'a'], [0.5, 1.0])

        Raises:
            IndexError: for numbers of no row.
            MismatchError: for a row that has a key and is selected twice.
            TypeError, ValueError: for what selects no rows.
        """
        return LossTable(**vars(select_rows(self.columns(), rows)))

    @classmethod
    def concat(cls, tables: Iterable["LossTable"], *, mixed: bool = False) -> "LossTable":
        """The table of several data sets in a row, as `torch.utils.data.ConcatDataset` has them.

        It knows of which parts it is made, and each of them by its data.

        Args:
            tables: in the order of the data sets.
            mixed: allow losses of several models or kinds, whose weights are comparable within
                groups alone (see `weights`), and leave out columns that not all tables have.

        Raises:
            MismatchError: for what is only allowed if ``mixed``, for shards of one name, and,
                naming them, for keys that two rows have.
            TypeError, ValueError: for what is no tables, and for none.
        """
        return cls(**vars(join(list(map(_columns_of, tables)), mixed=mixed)))

    @classmethod
    def merge(cls, parts: str | PathLike[str] | Iterable[str | PathLike[str]]) -> "LossTable":
        """The table of a pass whose parts were written by any number of jobs, see `score`.

        Neither model nor data is needed. Nothing is deleted.

        Args:
            parts: folders ``<output>.parts`` of jobs, or the folder or folders that these are in,
                or outputs of jobs, or single parts; also URLs that fsspec opens.

        Raises:
            MismatchError: for parts of different passes, saying what differs.
            TableFileError: naming the rows, and the jobs, that are missing; and for what is no
                part, or cannot be read.
            ValueError: for no parts.
        """
        return cls(**vars(merge_parts(parts)))

    def to_pandas(self, dataset: Any = None, columns: Sequence[str] = ()) -> Any:
        """A pandas frame of all rows: the columns of a saved table, and some of the data set.

        Args:
            dataset: the data set the table belongs to, which is checked.
            columns: names of its columns.

        Raises:
            ImportError: where pandas is not installed.
            MismatchError: when the table belongs to other data.
            ValueError: for a column that there is not, or that both have.
        """
        self.check(dataset=dataset)
        return to_frame(self.columns(), dataset, columns)

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

        Args:
            path: a file, or a URL that fsspec opens, as ``s3://bucket/losses.parquet``.

        Raises:
            TableFileError: when the directory is missing or cannot be written.
        """
        try:
            write_table(path, self.columns())
        except OSError as error:
            raise TableFileError(
                f"cannot write the loss table {without_secrets(str(path))}: {reason_of(error)}; "
                "the table is still in memory, save it to an existing, writable directory with "
                "free space"
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
        for: `weights` goes through the column of losses, and ``losses``, ``n_tokens``, ``lengths``,
        ``keys`` and what ``index`` has of each row are read when they are asked for. The file must
        stay as it is.

        Args:
            path: the file; or a URL that fsspec opens, whose table is held in memory, whatever its
                size.
            dataset: the data set it shall belong to.
            model: the model that shall have scored it.
            tokens: read token losses too, where the table has them.

        Raises:
            TableFileError: for a file that is missing, truncated, or no loss table.
            MismatchError: when the table belongs to other data or another model.
        """
        table = cls(**vars(read_table(path, tokens=tokens)))
        table.check(dataset=dataset, model=model)
        return table

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
        try:
            return FlowWeights.from_kept_losses(
                losses,
                temperature=temperature,
                normalize=normalize,
                on_invalid=on_invalid,
                function=function,
            )
        except InvalidLossError as error:
            raise type(error)(f"of response tokens, which are the rows here: {error}") from error

    def check(self, *, dataset: Any = None, model: nn.Module | None = None) -> None:
        """Make sure that the table belongs to this data set and this model.

        The data set is recognised by its length and the content of 16 rows spread over it; a
        ``datasets.Dataset`` or a list of up to 16 GiB by all rows, but for columns of files, where
        the table was made for one of its kind. The model is by the hash of its parameters. What
        the provenance does not hold is not checked; a data set that cannot be recognised because
        its samples differ from read to read is named in a warning.

        Raises:
            MismatchError: saying which of the two differs.
        """
        if dataset is not None:
            check_dataset(self.provenance, dataset)
        if model is not None:
            check_model(self.provenance, model)


def _columns_of(table: Any) -> TableColumns:
    if not isinstance(table, LossTable):
        raise TypeError(
            f"tables are needed, LossTable.concat([first, second]), got {type(table).__name__}"
        )
    return table.columns()
