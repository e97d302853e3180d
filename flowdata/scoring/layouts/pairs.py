"""Rows of a source and a target, for models that read the one and write the other."""

from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flowdata.scoring.layouts.columns import TOKEN_COLUMNS, as_text
from flowdata.scoring.layouts.token_rows import (
    IGNORED,
    MEDIA,
    Tokens,
    as_tensor,
    read_inputs,
    read_integers,
    read_padding,
    refuse_media,
    refuse_weights,
)
from flowdata.scoring.layouts.tokens import UnreadableRow


class Pair(Tokens):
    """A source, of which there are ids or something else, and the labels of its target."""

    @property
    def length(self) -> int:
        """Tokens of source and target; an image or a sound has none."""
        return self.ids.size + self.labels.size

    @property
    def sides(self) -> tuple[int, ...]:
        """Source and target are padded apart."""
        media = (max(value.shape) for name, value in self.inputs.items() if self.is_whole(name))
        return self.ids.size + max(media, default=0), self.labels.size

    @property
    def kind(self) -> Hashable:
        """What belongs to no token has one shape in a batch."""
        return frozenset(
            (name, value.shape if self.is_whole(name) else None)
            for name, value in self.inputs.items()
        )

    def is_whole(self, name: str) -> bool:
        """Whether an input belongs to the sample, not to each token of its source or target."""
        return not (self.is_of_target(name) or self.is_of_source(name))

    def is_of_source(self, name: str) -> bool:
        """Whether there is one for each id of the source."""
        alike = self.inputs[name].shape == self.ids.shape and self.ids.size > 0
        return alike and not name.startswith(MEDIA)

    def is_of_target(self, name: str) -> bool:
        """Whether there is one for each label of the target."""
        return name.startswith("decoder_") and self.inputs[name].shape == self.labels.shape


class PairColumns(NamedTuple):
    """Names of the columns of source and target."""

    source: str | None
    target: str | None

    @property
    def names(self) -> tuple[str, ...]:
        """The columns that are read."""
        return tuple(name for name in self if name) or TOKEN_COLUMNS

    def require_target(self) -> None:
        """Make sure that there is a target of each source.

        Raises:
            ValueError: where there is none.
        """
        if self.source and not self.target:
            raise ValueError(f"source={self.source!r} needs target=, the column of what is scored")

    def check(self, found: Iterable[str]) -> None:
        """Make sure that all are among the columns that were found.

        Raises:
            ValueError: saying which are missing, and which there are; for a source alone.
        """
        self.require_target()
        found = set(map(str, found))
        # A sound or an image may stand in place of input_ids.
        needed = self.names if self.target else ("labels",)
        if missing := [name for name in needed if name not in found]:
            raise ValueError(
                f"there is no column {missing}, the columns are {sorted(found)}; rows need "
                "labels beside input_ids or what else the encoder reads, or name columns of text: "
                "source and target, with a tokenizer"
            )


_NOTHING = np.zeros(0, dtype=np.int64)
_NO_PAIR = Pair(_NOTHING, _NOTHING, layout="")


@dataclass(frozen=True)
class PairReader:
    """Makes a Pair of each row. See `flowdata.Seq2Seq` for the fields."""

    tokenizer: Any = None
    source: str | None = None
    target: str | None = None
    max_source_length: int | None = None
    max_target_length: int | None = None
    accepted: frozenset[str] | None = None
    """What the forward of the model takes, by name; None without a model."""

    def __post_init__(self) -> None:
        for name in ("max_source_length", "max_target_length"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{name} must be at least 1 token, got {value}")
        self.columns.require_target()
        if self.target and self.tokenizer is None:
            raise ValueError(f"columns of text {list(self.columns.names)}: pass tokenizer=")
        # transformers 5.23, MBartTokenizer._switch_to_target_mode: without one it takes that of
        # the source.
        if self.target and getattr(self.tokenizer, "tgt_lang", "") is None:
            raise ValueError(
                f"{type(self.tokenizer).__name__} does not know the language of the target: set "
                "tokenizer.src_lang and tokenizer.tgt_lang"
            )

    @cached_property
    def columns(self) -> PairColumns:
        """The columns that are read."""
        return PairColumns(self.source, self.target)

    def read_each(self, rows: Sequence[Any]) -> list[Tokens | UnreadableRow]:
        """A pair of each row, or why there is none; a row with None in a column has no token."""
        read = [self._try_to_read(row) for row in rows]
        texts = [found for found in read if isinstance(found, _Texts)]
        pairs = iter(self._tokenize_pairs(texts))
        return [next(pairs) if isinstance(found, _Texts) else found for found in read]

    def _try_to_read(self, row: Any) -> "Pair | _Texts | UnreadableRow":
        try:
            if not isinstance(row, Mapping):
                raise TypeError(
                    "a model of source and target is scored on rows that are dicts, with "
                    f"{list(self.columns.names)}; got {type(row).__name__}"
                )
            self.columns.check(row)
            if any(row.get(name) is None and name in row for name in self.columns.names):
                return _NO_PAIR
            if self.target is None:
                return self._cut(read_pair(row, self.accepted))
            return self._read_texts(row, self.target)
        except (TypeError, ValueError) as error:
            return UnreadableRow(type(error), str(error))

    def _read_texts(self, row: Mapping[str, Any], target: str) -> "_Texts":
        refuse_weights(row)
        text = as_text(row[target], target)
        if self.source is not None:
            refuse_media(row, self.accepted or frozenset())
            return _Texts(as_text(row[self.source], self.source), text, {})
        rest = {name: value for name, value in row.items() if name not in TOKEN_COLUMNS}
        pair = read_pair({**rest, "labels": []}, self.accepted)
        return _Texts(None, text, pair.inputs)

    def _tokenize_pairs(self, texts: "Sequence[_Texts]") -> Iterator[Pair]:
        sources = [text.source for text in texts if text.source is not None]
        ids = iter(self._tokenize(sources, self.max_source_length, "text"))
        labels = self._tokenize(
            [text.target for text in texts], self.max_target_length, "text_target"
        )
        for text, (of_target, target_cut) in zip(texts, labels, strict=True):
            of_source, source_cut = (_NOTHING, False) if text.source is None else next(ids)
            if text.source is not None and not of_source.size:
                yield _NO_PAIR
                continue
            yield Pair(of_source, of_target, source_cut or target_cut, text.inputs, layout="text")

    def _tokenize(
        self, texts: list[str], most: int | None, side: str
    ) -> list[tuple[NDArray[np.int64], bool]]:
        """Ids of each text, special tokens included, and whether it was cut."""
        if not texts:
            return []
        found = self.tokenizer(**{side: texts}, verbose=False)["input_ids"]
        long = [n for n, ids in enumerate(found) if most is not None and len(ids) > most]
        if long:
            # By the tokenizer, which keeps the token at the end.
            some = [texts[place] for place in long]
            cut = self.tokenizer(**{side: some}, truncation=True, max_length=most, verbose=False)
            for place, ids in zip(long, cut["input_ids"], strict=True):
                found[place] = ids
        longer = set(long)
        return [(np.array(ids, dtype=np.int64), n in longer) for n, ids in enumerate(found)]

    def _cut(self, pair: Pair) -> Pair:
        """A pair of given tokens, cut on the right."""
        source, target = self.max_source_length, self.max_target_length
        ids, labels = pair.ids[:source], pair.labels[:target]
        if ids.size == pair.ids.size and labels.size == pair.labels.size:
            return pair
        inputs = {
            name: value[: ids.size]
            if pair.is_of_source(name)
            else value[: labels.size]
            if pair.is_of_target(name)
            else value
            for name, value in pair.inputs.items()
        }
        return pair._replace(ids=ids, labels=labels, truncated=True, inputs=inputs)


class _Texts(NamedTuple):
    source: str | None
    target: str
    inputs: Mapping[str, Tensor]


def read_pair(row: Mapping[str, Any], accepted: frozenset[str] | None) -> Pair:
    """The source and the labels of a row, without padding.

    Args:
        row: with labels, and input_ids or what else the encoder reads.
        accepted: names of what the forward of the model takes; None reads the tokens alone.

    Raises:
        TypeError, ValueError: for shapes that do not fit, or what the model cannot be given.
    """
    ids = read_integers(row, "input_ids") if row.get("input_ids") is not None else _NOTHING
    labels = read_integers(row, "labels")
    if ids.ndim != 1 or labels.ndim != 1:
        raise ValueError(
            f"input_ids and labels of a row must have the shape (length,), got {ids.shape} and "
            f"{labels.shape}"
        )
    media = [name for name in row if str(name).startswith(MEDIA) and row[name] is not None]
    if accepted is None:
        inputs = {}
    else:
        media = [name for name in media if name in accepted]
        inputs = read_inputs(row, ids.size, accepted)
    mask = row.get("attention_mask")
    if not ids.size and not media:
        raise ValueError("the source of the row has no token, and nothing else for the encoder")
    if mask is not None and not ids.size and accepted is not None:
        # One for each frame of a sound.
        inputs["attention_mask"] = as_tensor("attention_mask", mask)
    # All below 0 are left out, as of a causal model; models know -100.
    pair = Pair(ids, np.where(labels < 0, IGNORED, labels), inputs=inputs)
    if wrong := [name for name in inputs if name.startswith("decoder_") and pair.is_whole(name)]:
        raise ValueError(
            f"{wrong[0]} must be one number for each of the {labels.size} labels, got the shape "
            f"{tuple(inputs[wrong[0]].shape)}"
        )
    return _without_padding(pair, None if mask is None or not ids.size else read_padding(mask, ids))


def _without_padding(pair: Pair, kept: NDArray[np.bool_] | None) -> Pair:
    """A pair without what the mask of its source, and -100 at the end of its labels, leave out."""
    if kept is None:
        kept = np.ones(pair.ids.size, dtype=np.bool_)
    elif not kept.any():
        raise ValueError("attention_mask is 0 at all tokens of the source")
    scored = np.flatnonzero(pair.labels >= 0)
    end = int(scored[-1]) + 1 if scored.size else 0
    inputs = {
        name: value[torch.from_numpy(kept)]
        if pair.is_of_source(name)
        else value[:end]
        if pair.is_of_target(name)
        else value
        for name, value in pair.inputs.items()
    }
    return pair._replace(ids=pair.ids[kept], labels=pair.labels[:end], inputs=inputs)
