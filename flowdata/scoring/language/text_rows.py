"""Rows with input_ids for a model that gives a sample, or each token, a class: padded batches."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flowdata.scoring.language.model_inputs import pad_right
from flowdata.scoring.language.own_token_loss import agree
from flowdata.scoring.language.padded_pass import padded_places
from flowdata.scoring.layouts.token_rows import (
    MEDIA,
    read_integers,
    refuse_other_media,
    refuse_weights,
)
from flowdata.scoring.models.classification import FunctionPass
from flowdata.scoring.models.inference import UnreadableBatch
from flowdata.scoring.models.row_batches import collate_by_shape
from flowdata.table.scored_rows import ScoredRows

# transformers 5.23, DataCollatorWithPadding: other names of a row's labels.
_LABELS = ("labels", "label", "label_ids")


class TextBatch(dict[str, Any]):
    """What forward takes of some rows, and their labels; padded on the right."""

    sizes: NDArray[np.int32]
    """Tokens of each row, without what was padded here."""
    lengths: NDArray[np.int32]
    """The same without padding that a row has itself, by its mask."""
    of_tokens: frozenset[str] = frozenset()
    """What was padded; nothing where the rows are of one length."""

    def alike(self) -> Iterator[tuple[list[int], dict[str, Any]]]:
        """Places of rows of the same length, and a batch of these without padding."""
        for size in np.unique(self.sizes).tolist():
            places = np.flatnonzero(self.sizes == size).tolist()
            yield places, self.cut(places)

    def cut(self, places: list[int]) -> dict[str, Any]:
        """Some rows of one size, without padding."""
        size = int(self.sizes[places[0]])
        return {
            name: value[places, :size] if name in self.of_tokens else value[places]
            for name, value in self.items()
        }


@dataclass(frozen=True)
class CollateText:
    """Makes batches of rows: of rows with input_ids, tensors that are padded; of others torch's.

    As the Trainer of transformers does, columns that forward does not take are left out.
    """

    accepted: frozenset[str]
    pad: int
    ignored: int
    vocabulary: int | None = None
    """Tokens that the model knows."""
    key: str | None = None
    """A column that is no input, whatever forward takes."""

    def __call__(self, rows: list[Any]) -> Any:
        """A `TextBatch`, or what `collate_by_shape` makes of rows without input_ids.

        `UnreadableBatch` for a row that cannot be read.
        """
        if self.key is not None:
            rows = [_without(row, self.key) for row in rows]
        if "input_ids" not in self.accepted or not all(map(_is_text, rows)):
            return collate_by_shape([self._with_labels(row) for row in rows])
        read: list[dict[str, Any]] = []
        for place, row in enumerate(rows):
            try:
                read.append(self._read(row))
            except (TypeError, ValueError) as error:
                return UnreadableBatch(place, type(error), str(error))
        labelled = ["labels" in row for row in read]
        if any(labelled) and not all(labelled):
            place = labelled.index(False)
            reason = f"{sorted(map(str, rows[place]))} are no labels, and others have them"
            return UnreadableBatch(place, ValueError, f"{reason}: leave it out")
        sizes = [len(row["input_ids"]) for row in read]
        of_tokens: frozenset[str] = frozenset()
        if len(set(sizes)) > 1 and "attention_mask" in self.accepted:
            for row in read:
                row.setdefault("attention_mask", torch.ones_like(row["input_ids"]))
            of_tokens = self._names_of_tokens(read, sizes)
            read = self._padded(read, of_tokens)
        batch = collate_by_shape(read)
        if not isinstance(batch, dict):
            return batch
        found = TextBatch(batch)
        found.of_tokens = of_tokens
        found.sizes = found.lengths = np.array(sizes, dtype=np.int32)
        if "attention_mask" in found:
            found.lengths = found["attention_mask"].sum(dim=1).numpy().astype(np.int32)
        return found

    def _with_labels(self, row: Any) -> Any:
        """A row whose labels have the name that forward takes, as the Trainer gives them."""
        if not isinstance(row, Mapping) or "labels" in row or "labels" not in self.accepted:
            return row
        return {
            "labels" if name in _LABELS and name not in self.accepted else name: value
            for name, value in row.items()
        }

    def _read(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """What a row has for the model, in tensors."""
        refuse_weights({k: v for k, v in row.items() if k not in self.accepted})
        labels = next((row[name] for name in _LABELS if name in row), None)
        refuse_other_media(row, self.accepted)
        read = {name: _as_tensor(value) for name, value in row.items() if name in self.accepted}
        for name in _LABELS:
            read.pop(name, None)
        # Tables write None where a row does not have what others have.
        read = {name: value for name, value in read.items() if value is not None}
        self._check_tokens(read)
        return read if labels is None else {**read, "labels": _as_tensor(labels)}

    def _check_tokens(self, row: Mapping[str, Any]) -> None:
        ids, mask = read_integers(row, "input_ids"), row.get("attention_mask")
        if not ids.size:
            raise ValueError("it has no token in input_ids: leave it out")
        if self.vocabulary is not None and (ids.min() < 0 or ids.max() >= self.vocabulary):
            raise ValueError(
                f"it has tokens {ids.min()} to {ids.max()}, the model knows 0 to "
                f"{self.vocabulary - 1}: the tokenizer is not that of the model"
            )
        if mask is not None and np.shape(mask)[:1] != ids.shape:
            raise ValueError(
                f"attention_mask must be one 0 or 1 for each of the {ids.size} input_ids, got the "
                f"shape {tuple(np.shape(mask))}"
            )

    def _names_of_tokens(self, rows: Sequence[dict[str, Any]], sizes: list[int]) -> frozenset[str]:
        """Columns of which each row has as many values as tokens."""
        return frozenset(
            name
            for name in rows[0]
            if not name.startswith(MEDIA)
            and all(
                isinstance(row.get(name), Tensor) and row[name].shape[:1] == (size,)
                for row, size in zip(rows, sizes, strict=True)
            )
        )

    def _padded(
        self, rows: Sequence[dict[str, Any]], of_tokens: frozenset[str]
    ) -> list[dict[str, Any]]:
        values = {"input_ids": self.pad, "labels": self.ignored}
        padded = {
            name: pad_right([row[name] for row in rows], values.get(name, 0)) for name in of_tokens
        }
        return [
            {name: padded[name][n] if name in of_tokens else value for name, value in row.items()}
            for n, row in enumerate(rows)
        ]


@dataclass(frozen=True)
class TextPass(FunctionPass):
    """Scores rows by a named loss, in padded batches where padding does not move it.

    Some of the first rows of the data set are compared with what they are alone; where that
    differs, as in a model that takes the last token, batches are made of rows of one length. First
    rows of one length say nothing, and each batch is tried: who shares a pass decides alike.
    """

    found: list[bool | None] = field(default_factory=list)
    """Whether padding may be there, once that is known; None where each batch is tried."""

    def score_rows(self, rows: NDArray[np.int64], batch: Any) -> Iterator[ScoredRows]:
        """Losses of one batch, see `FunctionPass`."""
        if not isinstance(batch, TextBatch):
            yield from super().score_rows(rows, batch)
        elif not batch.of_tokens:
            for scored in super().score_rows(rows, batch):
                yield replace(scored, lengths=batch.lengths)
        else:
            yield from self._score_padded(rows, batch)

    def _score_padded(self, rows: NDArray[np.int64], batch: TextBatch) -> Iterator[ScoredRows]:
        if not self.found:
            self.found.append(self._pads_first(rows, batch))
        (pads,) = self.found
        if pads is not False:
            (scored,) = super().score_rows(rows, batch)
            if pads or self._is_alike(rows, batch, scored):
                yield replace(scored, lengths=batch.lengths)
                return
        for places, part in batch.alike():
            for scored in super().score_rows(rows[places], part):
                yield replace(scored, lengths=batch.lengths[places])

    def _pads_first(self, rows: NDArray[np.int64], batch: TextBatch) -> bool | None:
        """Whether padding may be there, by the first batch; None where that says nothing."""
        first: Any = batch
        if self.read_first is not None and not np.array_equal(rows, np.arange(rows.size)):
            first = self.read_first(self.rows_per_read)
        if not isinstance(first, TextBatch) or not first.of_tokens:
            return None
        numbers = np.arange(first.sizes.size)
        # What is wrong with these rows is said by who scores them.
        with contextlib.suppress(TypeError, ValueError):
            (scored,) = super().score_rows(numbers, first)
            return self._is_alike(numbers, first, scored)
        return None

    def _is_alike(self, rows: NDArray[np.int64], batch: TextBatch, scored: ScoredRows) -> bool:
        valid = np.isfinite(scored.losses)
        for place in padded_places(np.where(valid, batch.sizes.max() - batch.sizes, -1)):
            alone = batch.cut([place])
            (single,) = super().score_rows(rows[[place]], alone)
            first, second = (torch.tensor(x) for x in (scored.losses[place], single.losses[0]))
            if not agree(first, second):
                return False
        return True


def _without(row: Any, key: str) -> Any:
    if not isinstance(row, Mapping):
        return row
    return {name: value for name, value in row.items() if name != key}


def _is_text(row: Any) -> bool:
    if not isinstance(row, Mapping) or row.get("input_ids") is None:
        return False
    ids = row["input_ids"]
    if isinstance(ids, list) and any(isinstance(part, list | str) for part in ids):
        return False
    return np.ndim(ids) == 1 if isinstance(ids, list) else getattr(ids, "ndim", 0) == 1


def _as_tensor(value: Any) -> Any:
    """Lists of numbers, as data sets of transformers have them, as a tensor."""
    if isinstance(value, Tensor | str):
        return value
    found = np.asarray(value)
    if found.dtype.kind not in "buif":
        return value
    # A table keeps floats in double precision, which a model does not compute in.
    return torch.as_tensor(found, dtype=torch.float32 if found.dtype == np.float64 else None)
