"""CausalLM: how the samples of a causal language model are read, batched and scored."""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from flowdata.scoring.language.head import TokenLosses, text_config
from flowdata.scoring.language.model_inputs import (
    ANY,
    ModelInputs,
    accepted_names,
    pad_tokens,
    require_known,
)
from flowdata.scoring.language.probe_rows import ProbeRows
from flowdata.scoring.layouts.chat import warn_if_dated
from flowdata.scoring.layouts.token_batches import make_batches, require_budget
from flowdata.scoring.layouts.token_rows import Tokens
from flowdata.scoring.layouts.tokenizer_identity import tokenizer_hash, value_hash
from flowdata.scoring.layouts.tokens import OneLayout, TokenReader, UnreadableRow
from flowdata.scoring.layouts.turns import Which
from flowdata.scoring.models.batch_dependence import on_one_side, rotary_limit
from flowdata.scoring.models.inference import Arriving, move, one_behind, out_of_memory
from flowdata.scoring.parts.row_blocks import ChooseBatches
from flowdata.table.scored_rows import ScoredRows

# Tokens of float32, twice as many of half its size: measured, more in a batch make a pass slower on
# a CPU (caches), and fewer do too (all parameters are read for each batch).
_TOKENS_ON_CPU = 512
# Larger batches are no faster, and lose more work on failure.
_MOST_TOKENS_ON_GPU = 32_768
ROWS_PER_READ = 1_024
"""Among so many rows there are enough of similar length for batches with little padding."""


@dataclass(frozen=True)
class CausalLM:
    """The loss of a causal language model: mean cross-entropy over the response tokens.

    Rows are dicts: with ``input_ids`` and ``labels`` (-100, or any number below 0, where a token
    is not scored) and whatever else the model's forward takes, or with text or turns in the columns
    named here. The response, and the end-of-sequence token after a text, is scored; of a chat,
    what the assistant says. A row with None in a column has no response token. Batches are made of
    rows of similar length, and logits are made for response tokens only.

    Args:
        tokenizer: fast tokenizer of the model, for rows of text.
        prompt, response: columns of text, tokenized as one, or of turns; the response may be a
            side of a preference pair, ``"chosen"`` or ``"rejected"``, whose prompt, if it has no
            column, is what both sides begin with.
        messages: column of a chat, rendered by the tokenizer's chat template.
        text: column of plain text, all of it scored.
        max_length: longer samples are cut on the right, counted and reported; without it a
            sample longer than the model's context is an error.
        max_tokens: most tokens of a batch, padding included. By default on a CPU about 512, or
            1,024 of half precision, where others are slower, and on a GPU what half of its free
            memory should hold, 32,768 at most; it is halved whenever memory runs out.
        token_losses: keep the loss of each response token, for token weights.
        turns: which turns of a chat are scored: ``"assistant"``, all that the assistant says, as by
            default of ``messages``; ``"last"``, the last of it; ``"all"``, the whole text, prompts
            too. By default of ``prompt`` and ``response``, whatever follows the prompt.

    Raises:
        ValueError: for columns without a tokenizer, or of more than one layout.
    """

    name: ClassVar[str] = "causal_lm"

    tokenizer: Any = None
    prompt: str | None = None
    response: str | None = None
    messages: str | None = None
    text: str | None = None
    max_length: int | None = None
    max_tokens: int | None = None
    token_losses: bool = False
    turns: Which | None = None

    def __post_init__(self) -> None:
        require_budget(self.max_tokens)
        self.reader()

    def reader(self, accepted: frozenset[str] = frozenset()) -> TokenReader:
        """What turns rows into tokens, with what else of a row the model takes, by name."""
        columns = (self.prompt, self.response, self.messages, self.text)
        return TokenReader(self.tokenizer, *columns, self.max_length, accepted, self.turns)

    def identity(self) -> dict[str, Any]:
        """The options that change losses, JSON-able."""
        options = {
            field.name: getattr(self, field.name)
            for field in fields(self)
            if field.name not in ("tokenizer", "max_tokens", "turns")
        }
        # What earlier versions did not know, or read otherwise, is named only where it is used.
        if self.turns and (self.turns, self.response) != ("assistant", None):
            options["turns"] = self.turns
        if self.text == "chosen" or (self.response == "rejected" and self.prompt is None):
            options["pair"] = self.response is not None
        if self.tokenizer is not None:
            options["tokenizer"] = tokenizer_hash(self.tokenizer)
            # Turns may stand in a column of responses too.
            if self.messages is not None or (self.response and self.tokenizer.chat_template):
                options["chat_template"] = value_hash(self.tokenizer.chat_template)
        return options


class LanguagePass:
    """Scores rows in batches of similar length under a budget of tokens."""

    rows_per_read = ROWS_PER_READ
    losses_of: ClassVar[Any] = TokenLosses
    probed: ClassVar[int] = 8
    """Rows of the data set by which all who share a pass decide alike."""

    def __init__(
        self,
        options: Any,
        model: nn.Module,
        device: torch.device,
        probe: ProbeRows | None = None,
    ) -> None:
        self._probe = probe
        self.collate = options.reader(accepted_names(model)).read_each
        self._options = options
        self._device = device
        self._losses = self.losses_of(model)
        self._inputs = ModelInputs(dtype_of(model), device)
        self._placeholders = _placeholders(model)
        self._layout, self._begun = OneLayout(), False
        self._context = _context_length(model)
        self._dated = False
        self._rotary_limit = rotary_limit(model)
        self._budget = options.max_tokens or token_budget(model, device)
        # On a CPU it is chosen for speed.
        self._is_limit = options.max_tokens is not None or device.type != "cpu"
        if device.type == "cuda":
            # Its batches have many rows, and are the fuller the more there are to choose from:
            # measured, 35 % of padding among 1,024 rows of text, 6 % among these.
            self.rows_per_read = 8 * ROWS_PER_READ
        _check_tokenizer(options.tokenizer, self._losses.vocabulary)

    def score_rows(
        self, rows: NDArray[np.int64], read: Sequence[Tokens | UnreadableRow]
    ) -> Iterator[ScoredRows]:
        """Losses of rows that were read together, batch by batch.

        Raises:
            TypeError, ValueError: naming the row, for rows that cannot be read, token ids the
                model does not have, or samples it cannot take.
            MemoryError: when a single sample does not fit.
        """
        return self.score_chosen(rows, read, list)

    def score_chosen(
        self,
        rows: NDArray[np.int64],
        read: Sequence[Tokens | UnreadableRow],
        choose: ChooseBatches,
    ) -> Iterator[ScoredRows]:
        """The same, of some of the batches of these rows."""
        probe: Sequence[Any] = []
        if not self._begun:
            of_probe, probe = rows, read
            if self._probe is not None:
                of_probe, probe = self._probe.read(self.probed, rows, read, self.collate)
            self._layout.begin_with(of_probe, probe)
        samples = self._layout.check(rows, read)
        if not self._dated and any(sample.layout == "turns" for sample in samples):
            self._dated = True
            warn_if_dated(self._options.tokenizer)
        lengths = np.array([sample.length for sample in samples])
        self._check_lengths(rows, samples)
        self._check_tokens(rows, samples)
        if not self._begun:
            self._begun = True
            self._begin_with([some for some in probe if not isinstance(some, UnreadableRow)])
        begun = self._begin_batches(rows, samples, lengths, choose)
        if self._device.type == "cuda":
            begun = one_behind(begun)
        for batch, losses, counts in begun:
            of_batch = [samples[place] for place in batch]
            yield self._to_scored_rows(rows[batch], losses.numpy(), counts, of_batch)

    def _begin_with(self, samples: Sequence[Tokens]) -> None:
        """Decide what is decided once, by rows of all parts of the data set that can be read."""

    def _begin_batches(
        self,
        rows: NDArray[np.int64],
        samples: Sequence[Tokens],
        lengths: NDArray[Any],
        choose: ChooseBatches,
    ) -> Iterator[tuple[NDArray[np.int64], Arriving, NDArray[Any]]]:
        """Places of the samples of each batch, its losses, and how many each row has."""
        batches = deque(choose([*self._make_batches(np.arange(rows.size), samples)]))
        while batches:
            batch = batches.popleft()
            try:
                losses, counts = self._begin_batch([samples[place] for place in batch])
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
                if len(batch) == 1:
                    raise MemoryError(
                        f"row {rows[batch[0]]} with {lengths[batch[0]]:,} tokens does not fit "
                        "into memory; pass max_length= to cut such samples"
                    ) from error
                self._budget, self._is_limit = int(lengths[batch[0]] * len(batch)) // 2, True
                left = np.concatenate([batch, *batches])
                batches = deque(self._make_batches(left, samples))
                continue
            except ValueError as error:
                if len(batch) == 1:
                    raise ValueError(f"row {rows[batch[0]]}: {error}") from error
                # One by one, to find out which.
                batches.extendleft(batch[:, None])
                continue
            yield batch, losses, counts

    def _make_batches(
        self, places: NDArray[np.int64], samples: Sequence[Tokens]
    ) -> Iterator[NDArray[np.int64]]:
        lengths = np.array([sample.ids.size for sample in samples])
        for some in on_one_side(places, lengths, self._rotary_limit):
            yield from make_batches(some, samples, self._budget, is_limit=self._is_limit)

    def _begin_batch(self, samples: Sequence[Tokens]) -> tuple[Arriving, NDArray[Any]]:
        """Losses of all response tokens, row by row, and how many each row has."""
        ids, labels = pad_tokens(samples)
        counts = (labels[:, 1:] >= 0).sum(axis=1)
        if not counts.any():
            return Arriving(torch.zeros(0)), counts
        sizes = np.array([sample.ids.size for sample in samples])
        try:
            lengths = self._to_device(sizes) if samples[0].masked else None
            batch = (self._to_device(ids), lengths, torch.from_numpy(labels))
            return Arriving(self._inputs.call(samples, partial(self._losses, *batch))), counts
        except (RuntimeError, MemoryError):
            if self._device.type == "cuda":
                torch.cuda.empty_cache()
            raise

    def _to_device(self, array: NDArray[Any]) -> Tensor:
        return move(torch.from_numpy(array), self._device)

    def _to_scored_rows(
        self,
        rows: NDArray[np.int64],
        losses: NDArray[np.float32],
        counts: NDArray[Any],
        samples: Sequence[Tokens],
    ) -> ScoredRows:
        # A mean in float64: the sum of many token losses must not depend on their order.
        owners = np.repeat(np.arange(rows.size), counts)
        sums = np.bincount(owners, weights=losses, minlength=rows.size)
        with np.errstate(invalid="ignore"):
            means = (sums / counts).astype(np.float32)
        return ScoredRows(
            rows,
            means,
            counts.astype(np.int32),
            losses if self._options.token_losses else None,
            np.array([sample.truncated for sample in samples]),
            np.array([sample.length for sample in samples], dtype=np.int32),
        )

    def _check_lengths(self, rows: NDArray[np.int64], samples: Sequence[Tokens]) -> None:
        lengths = np.array([sample.ids.size for sample in samples])
        if self._context is not None and lengths.max() > self._context:
            longest = int(lengths.argmax())
            raise ValueError(
                f"row {rows[longest]} has {lengths[longest]:,} tokens, the model's context is "
                f"{self._context:,}; pass max_length={self._context} to cut longer samples"
            )

    def _check_tokens(self, rows: NDArray[np.int64], samples: Sequence[Tokens]) -> None:
        if self._placeholders:
            self._require_media(rows, samples)
        require_known(rows, [sample.ids for sample in samples], self._losses.vocabulary)
        self._check_labels(rows, [sample.labels for sample in samples])

    def _check_labels(self, rows: NDArray[np.int64], labels: Sequence[NDArray[np.int64]]) -> None:
        require_known(rows, labels, self._losses.vocabulary, least=ANY)

    def _require_media(self, rows: NDArray[np.int64], samples: Sequence[Tokens]) -> None:
        """Refuse a token that stands for an image where the row has none."""
        for row, sample in zip(rows, samples, strict=True):
            if not sample.has_media and (found := self._placeholders & set(sample.ids.tolist())):
                raise ValueError(
                    f"row {row} has token {min(found)}, which stands for an image, a video or a "
                    "sound, and has none: give it as pixel_values or what else forward takes"
                )


def _check_tokenizer(tokenizer: Any, vocabulary: int | None) -> None:
    """Refuse a tokenizer of another model.

    Tokens that were added to it do not count: a row may well have none, as of text for one of
    Gemma 3, whose tokenizers all know the token of an image.
    """
    if tokenizer is None or vocabulary is None:
        return
    own = set(tokenizer.get_vocab().values()) - set(tokenizer.added_tokens_decoder)
    if (largest := max(own, default=0)) >= vocabulary:
        raise ValueError(
            f"the tokenizer has tokens up to {largest}, the model knows tokens 0 to "
            f"{vocabulary - 1}: the tokenizer is not that of the model"
        )


def token_budget(model: Any, device: torch.device) -> int:
    """Tokens of a batch to begin with."""
    itemsize = dtype_of(model).itemsize
    if device.type == "cpu":
        return _TOKENS_ON_CPU * 4 // itemsize
    if device.type != "cuda":
        return _MOST_TOKENS_ON_GPU
    free, _ = torch.cuda.mem_get_info(device)
    return tokens_that_fit(free, text_config(model), itemsize)


def tokens_that_fit(free: int, config: Any, itemsize: int) -> int:
    """Tokens whose forward pass should fit into half of ``free`` bytes.

    Without gradients the activations of one layer live at a time: about eight vectors of the
    hidden size a token (residual, norm, query, key, value, output, copies) and three of the
    intermediate one. Attention is taken to need no memory that grows with the square of the
    length. `LanguagePass` halves the number when this was too much.
    """
    hidden = getattr(config, "hidden_size", None)
    if not isinstance(hidden, int):
        return _MOST_TOKENS_ON_GPU
    intermediate = getattr(config, "intermediate_size", None)
    wide = intermediate if isinstance(intermediate, int) else 4 * hidden
    fit = free // 2 // (itemsize * (8 * hidden + 3 * wide))
    return max(min(fit, _MOST_TOKENS_ON_GPU), 1)


def _context_length(model: Any) -> int | None:
    # XLNet and others write -1 for "no limit".
    found = getattr(text_config(model), "max_position_embeddings", None)
    return found if isinstance(found, int) and found > 0 else None


def _placeholders(model: Any) -> set[int]:
    """Tokens that stand for what is no text."""
    config = getattr(model, "config", None)
    names = ("image_token_id", "video_token_id", "audio_token_id")
    found = (getattr(config, name, None) for name in names)
    return {token for token in found if isinstance(token, int)}


def dtype_of(model: nn.Module) -> torch.dtype:
    """The type of the first floats of a model."""
    floats = (p.dtype for p in model.parameters() if p.is_floating_point())
    return next(floats, torch.float32)
