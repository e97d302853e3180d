"""BatchScorer: a function of a batch of columns, for the engines that people have."""

import json
import os
import re
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from threading import Lock
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from flowdata.core.weights import OnInvalid
from flowdata.errors import FlowDataError
from flowdata.scoring.engines.batches import EngineBatch, as_objects, open_batch, rows_of
from flowdata.scoring.engines.worker import EngineOptions, EngineWorker
from flowdata.scoring.language.named_losses import LanguageLoss, language_loss
from flowdata.scoring.models.classification import LossFunction
from flowdata.scoring.models.loss_formulas import IGNORED
from flowdata.scoring.passes.scoring_pass import refuse_or_drop_invalid
from flowdata.table.scored_rows import ScoredRows
from flowdata.table.stored_table import LENGTH, LOSS, N_TOKENS, TOKEN_LOSSES
from flowdata.table.token_runs import offsets_of

SCORED_BY = "scored_by"
"""The column that says of each row by which model and loss it was scored, as JSON."""

_SAID = ("loss", "model", "model_hash", "adapters", "dtype", "options", "flowdata")
_ROW = re.compile(r"\brow (\d+(?:,\d{3})*)|\brows \[(\d+)")
_MOST_HELD = 2


class BatchScorer:
    """Losses of batches of columns: for Ray Data, Spark, ``datasets.map`` and the like.

    Called with a batch (a dict of columns, a pandas frame, an Arrow table) it gives the same
    batch with the columns ``loss`` (float32), of language ``n_tokens`` and ``length`` (int32) and,
    if asked for, ``token_losses`` (lists of float32), and ``scored_by``, a text that says by what.
    The numbers are those of `score` for these rows. `read_scored` makes a `LossTable` of them.

    It goes to other processes: the model is made there, when the first batch comes, once in each
    process, and on the device that the engine has given it.

    Args:
        make_model: a function without arguments that makes the model.
        loss: as for `score`, but for "classification", which is decided by the first rows of a
            data set, and workers do not see these.
        key: column of the batch that identifies a row: errors name it, and `read_scored` finds
            rows by it.
        keep: columns that are given back beside the key and the losses; by default all, or, where
            the engine keeps them itself (``datasets.map``), none.
        batch_size, collate_fn, ignore_index, adapters, model_name: as for `score`.
        device: where the model runs; default where ``make_model`` has put it, if that is no CPU,
            else the device that the engine has given the process, else a GPU, if there is one.
        on_invalid: "raise" stops at the first NaN, infinite or negative loss, "drop" makes it NaN.

    Raises:
        TypeError: for a model in place of a function that makes one.
        ValueError: for an unknown loss, or options that do not go together.
    """

    def __init__(
        self,
        make_model: Callable[[], nn.Module],
        loss: str | LossFunction | LanguageLoss,
        *,
        key: str | None = None,
        keep: Sequence[str] | None = None,
        batch_size: int = 64,
        collate_fn: Callable[[list[Any]], Any] | None = None,
        device: torch.device | str | None = None,
        on_invalid: OnInvalid = "raise",
        ignore_index: int = IGNORED,
        adapters: bool = False,
        model_name: str | None = None,
    ) -> None:
        if on_invalid not in ("raise", "drop"):
            raise ValueError(f'on_invalid must be "raise" or "drop", got {on_invalid!r}')
        if isinstance(keep, str):
            raise TypeError(f"keep= is a list of columns, got the text {keep!r}: [{keep!r}]")
        if isinstance(loss, str) and loss == "classification":
            raise ValueError(
                'loss="classification" is decided by the first rows of a data set, and each worker '
                'sees other ones first: name the loss, "model", "cross_entropy", "bce" or "mse"; '
                "score_on_ray(make_model, dataset) decides by the first rows, as score does"
            )
        self._options = EngineOptions(
            *(make_model, loss, batch_size, collate_fn),
            device=device,
            ignore_index=ignore_index,
            adapters=adapters,
            model_name=model_name,
            key=key,
        )
        self._key, self._keep = key, None if keep is None else tuple(keep)
        self._on_invalid = on_invalid
        # By which a process that gets another copy of it finds the model that it has made.
        self._id = uuid.uuid4().hex

    def __call__(self, batch: Any, rank: int | None = None) -> Any:
        """The batch, with its losses.

        Args:
            batch: some rows, column by column.
            rank: number of this process, as ``datasets.map(with_rank=True)`` gives it.

        Raises:
            InvalidLossError, TypeError, ValueError: naming the row, and its key if there is one.
        """
        if rank is not None and not isinstance(rank, int):
            raise TypeError(
                f"a BatchScorer takes a batch and the rank of its process, got a "
                f"{type(rank).__name__} beside the batch: leave with_indices=True out"
            )
        given = open_batch(batch)
        new = self._columns_of(given, rank)
        return given.with_columns(self._kept(given, [*new]), new)

    def each(self, batches: Iterable[Any]) -> Iterator[Any]:
        """Batches with their losses, one after another: for ``mapInPandas`` and ``mapInArrow``."""
        return map(self, batches)

    def _columns_of(self, batch: EngineBatch, rank: int | None) -> dict[str, Any]:
        if self._key is not None and self._key not in batch.names:
            raise ValueError(f"there is no column {self._key!r}, there is {batch.names!s:.300}")
        rows = rows_of(batch)
        if not rows:
            return _no_rows(self._options.loss)
        opened = _opened(self._id, self._options, rows, rank)
        try:
            [scores] = refuse_or_drop_invalid(iter([opened.worker.score(rows)]), self._on_invalid)
        except (FlowDataError, TypeError, ValueError, MemoryError) as error:
            keys = None if self._key is None else [row[self._key] for row in rows]
            raise _naming(error, self._key, keys) from error
        return _new_columns(scores) | {SCORED_BY: as_objects([opened.scored_by] * len(rows))}

    def _kept(self, batch: EngineBatch, new: list[str]) -> list[str]:
        if self._keep is None:
            kept = [] if batch.merges else batch.names
        else:
            if missing := [name for name in self._keep if name not in batch.names]:
                raise ValueError(f"there are no columns {missing}, there is {batch.names!s:.300}")
            own = () if self._key is None else (self._key,)
            kept = list(dict.fromkeys((*own, *self._keep)))
        # What an engine keeps by itself would be written over as well.
        taken = [name for name in (batch.names if batch.merges else kept) if name in new]
        if taken:
            raise ValueError(
                f"the batch has {taken} already, and the losses would be called so: give those "
                "columns other names, or leave them out (keep= says which columns are given back)"
            )
        return kept


class _Opened(NamedTuple):
    worker: EngineWorker
    scored_by: str


_OPENED: dict[tuple[int, str], _Opened] = {}
_OPENING = Lock()


def _opened(name: str, options: EngineOptions, rows: list[Any], rank: int | None) -> _Opened:
    """The worker of this process for a scorer: made when its first rows come.

    A process that is used again and again, as Spark's, is given a new copy of the scorer each
    time, and other scorers after it.
    """
    with _OPENING:
        # A process that is forked from one with a model has to make its own.
        own = (os.getpid(), name)
        found = _OPENED.pop(own, None)
        if found is None:
            while len(_OPENED) >= _MOST_HELD:
                del _OPENED[next(iter(_OPENED))]
            worker = EngineWorker(options, rows, rank)
            known = asdict(worker.provenance(0))
            found = _Opened(worker, json.dumps({field: known[field] for field in _SAID}))
        # The one that was used last is the last to go.
        _OPENED[own] = found
        return found


def _new_columns(scores: ScoredRows) -> dict[str, Any]:
    columns: dict[str, Any] = {LOSS: scores.losses}
    if scores.n_tokens is not None:
        columns[N_TOKENS] = scores.n_tokens
    if scores.lengths is not None:
        columns[LENGTH] = scores.lengths
    if scores.token_losses is not None and scores.n_tokens is not None:
        edges = offsets_of(scores.n_tokens)[1:-1]
        columns[TOKEN_LOSSES] = np.split(scores.token_losses, edges)
    return columns


def _no_rows(loss: Any) -> dict[str, Any]:
    """Columns of a batch without rows, as an engine makes it to see what there will be."""
    floats, counts = np.zeros(0, dtype=np.float32), np.zeros(0, dtype=np.int32)
    columns: dict[str, Any] = {LOSS: floats}
    if (language := language_loss(loss)) is not None:
        columns |= {N_TOKENS: counts, LENGTH: counts}
        if language.token_losses:
            columns[TOKEN_LOSSES] = []
    return columns | {SCORED_BY: np.zeros(0, dtype=object)}


def _naming(error: Exception, key: str | None, keys: list[Any] | None) -> Exception:
    """An error of a batch, which says of which row it is, wherever the batch is from."""
    text, where = str(error), "in a batch of rows"
    if keys:
        found = _ROW.search(text)
        place = 0 if found is None else int((found[1] or found[2]).replace(",", ""))
        of = "" if found else "the batch that begins with "
        where = f"{of}{key} {_plain_key(keys[place])!r:.100}, {where}"
    kinds = (TypeError, MemoryError, ValueError)
    # Other libraries' kinds of ValueError are made of more than a text.
    kind = next((k for k in kinds if isinstance(error, k)), ValueError)
    return (type(error) if isinstance(error, FlowDataError) else kind)(f"{where}: {text}")


def _plain_key(key: Any) -> Any:
    return key.item() if isinstance(key, np.generic) else key
