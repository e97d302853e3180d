"""CausalLM: how the samples of a causal language model are read, batched and scored."""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
import xxhash
from numpy.typing import NDArray
from torch import Tensor, nn

from flowdata.scoring.head import TokenLosses
from flowdata.scoring.scores import Scores
from flowdata.scoring.tokens import IGNORED, TokenReader, Tokens

# More tokens in a batch make a pass slower on a CPU (caches) and no faster on a GPU.
_TOKENS_ON_CPU = 512
_TOKENS_ON_GPU = 32_768
_WINDOW = 1_024


@dataclass(frozen=True)
class CausalLM:
    """The loss of a causal language model: mean cross-entropy over the response tokens.

    Rows are dicts: with ``input_ids`` and ``labels`` (-100 where a token is not scored), or with
    text in the columns named here. The response, and the end-of-sequence token after it, is
    scored; of a chat, what the assistant says. Batches are made of rows of similar length, and
    logits are made for response tokens only.

    Args:
        tokenizer: fast tokenizer of the model, for rows of text.
        prompt, response: columns of text; prompt and response are tokenized as one text.
        messages: column of a chat, rendered by the tokenizer's chat template.
        text: column of plain text, all of it scored.
        max_length: longer samples are cut on the right, counted and reported; without it a
            sample longer than the model's context is an error.
        max_tokens: tokens of a batch, padding included. By default what keeps the device busy;
            it is halved whenever memory runs out.
        token_losses: keep the loss of each response token, for token weights.

    Raises:
        ValueError: for columns without a tokenizer, or of more than one layout.
    """

    tokenizer: Any = None
    prompt: str | None = None
    response: str | None = None
    messages: str | None = None
    text: str | None = None
    max_length: int | None = None
    max_tokens: int | None = None
    token_losses: bool = False

    def __post_init__(self) -> None:
        if self.max_tokens is not None and self.max_tokens < 1:
            raise ValueError(f"max_tokens must be at least 1, got {self.max_tokens}")
        self.reader()

    def reader(self) -> TokenReader:
        """What turns rows into tokens."""
        return TokenReader(
            self.tokenizer, self.prompt, self.response, self.messages, self.text, self.max_length
        )

    def identity(self) -> dict[str, Any]:
        """The options that change losses, JSON-able."""
        options = {
            field.name: getattr(self, field.name)
            for field in fields(self)
            if field.name not in ("tokenizer", "max_tokens")
        }
        if self.tokenizer is not None:
            vocabulary = sorted(self.tokenizer.get_vocab().items())
            options["tokenizer"] = xxhash.xxh3_128(repr(vocabulary).encode()).hexdigest()
            if self.messages is not None:
                options["chat_template"] = self.tokenizer.chat_template
        return options


class LanguagePass:
    """Scores windows of rows, in batches of similar length under a budget of tokens."""

    window = _WINDOW

    def __init__(self, options: CausalLM, model: nn.Module, device: torch.device) -> None:
        self.collate = options.reader()
        self._options = options
        self._device = device
        self._losses = TokenLosses(model)
        self._context = _context_length(model)
        default = _TOKENS_ON_CPU if device.type == "cpu" else _TOKENS_ON_GPU
        self._budget = options.max_tokens or default

    def scores(self, rows: NDArray[np.int64], samples: Sequence[Tokens]) -> Iterator[Scores]:
        """Scores of a window of rows, batch by batch.

        Raises:
            ValueError: for token ids the model does not have, or samples it cannot take.
            MemoryError: when a single sample does not fit.
        """
        lengths = np.array([sample.ids.size for sample in samples])
        self._check(rows, samples, lengths)
        # Longest first: what runs out of memory does so at once, and what fits goes on fitting.
        order = np.argsort(-lengths, kind="stable")
        batches = deque(_packed(order, lengths, self._budget))
        while batches:
            batch = batches.popleft()
            try:
                losses, counts = self._batch_losses([samples[place] for place in batch])
            except (RuntimeError, MemoryError) as error:
                if not _out_of_memory(error):
                    raise
                if len(batch) == 1:
                    raise MemoryError(
                        f"row {rows[batch[0]]} with {lengths[batch[0]]:,} tokens does not fit "
                        "into memory; pass max_length= to cut such samples"
                    ) from error
                self._budget = int(lengths[batch[0]] * len(batch)) // 2
                left = np.concatenate([batch, *batches])
                batches = deque(_packed(left, lengths, self._budget))
                continue
            yield self._as_scores(rows[batch], losses, counts, [samples[p] for p in batch])

    def _batch_losses(self, samples: Sequence[Tokens]) -> tuple[NDArray[np.float32], NDArray[Any]]:
        """Losses of all response tokens, row by row, and how many each row has."""
        width = max(max(sample.ids.size for sample in samples), 1)
        ids = np.zeros((len(samples), width), dtype=np.int64)
        labels = np.full((len(samples), width), IGNORED, dtype=np.int64)
        for number, sample in enumerate(samples):
            ids[number, : sample.ids.size] = sample.ids
            labels[number, : sample.labels.size] = sample.labels
        lengths = np.array([sample.ids.size for sample in samples])
        counts = (labels[:, 1:] >= 0).sum(axis=1)
        if not counts.any():
            return np.zeros(0, dtype=np.float32), counts
        try:
            losses = self._losses(*(self._to_device(array) for array in (ids, lengths, labels)))
        except (RuntimeError, MemoryError):
            if self._device.type == "cuda":
                torch.cuda.empty_cache()
            raise
        return losses.cpu().numpy(), counts

    def _to_device(self, array: NDArray[np.int64]) -> Tensor:
        return torch.from_numpy(array).to(self._device, non_blocking=True)

    def _as_scores(
        self,
        rows: NDArray[np.int64],
        losses: NDArray[np.float32],
        counts: NDArray[Any],
        samples: Sequence[Tokens],
    ) -> Scores:
        # A mean in float64: the sum of many token losses must not depend on their order.
        owners = np.repeat(np.arange(rows.size), counts)
        sums = np.bincount(owners, weights=losses, minlength=rows.size)
        with np.errstate(invalid="ignore"):
            means = (sums / counts).astype(np.float32)
        return Scores(
            rows,
            means,
            counts.astype(np.int32),
            losses if self._options.token_losses else None,
            sum(sample.truncated for sample in samples),
        )

    def _check(
        self, rows: NDArray[np.int64], samples: Sequence[Tokens], lengths: NDArray[Any]
    ) -> None:
        if self._context is not None and lengths.max() > self._context:
            longest = int(lengths.argmax())
            raise ValueError(
                f"row {rows[longest]} has {lengths[longest]:,} tokens, the model's context is "
                f"{self._context:,}; pass max_length={self._context} to cut longer samples"
            )
        limit = self._losses.vocabulary
        for row, sample in zip(rows, samples, strict=True):
            largest = max(sample.ids.max(initial=0), sample.labels.max(initial=0))
            smallest = sample.ids.min(initial=0)
            if smallest < 0 or (limit is not None and largest >= limit):
                raise ValueError(
                    f"row {row} has token {largest if smallest >= 0 else smallest}, the model "
                    f"knows tokens 0 to {(limit or 0) - 1}: the tokenizer is not that of the model"
                )


def _packed(
    order: NDArray[np.int64], lengths: NDArray[Any], budget: int
) -> Iterator[NDArray[np.int64]]:
    """Cut an order of falling lengths into batches of at most ``budget`` tokens with padding."""
    start = 0
    while start < order.size:
        rows = max(budget // max(int(lengths[order[start]]), 1), 1)
        yield order[start : start + rows]
        start += rows


def _context_length(model: Any) -> int | None:
    config = getattr(model, "config", None)
    found = getattr(config, "max_position_embeddings", None)
    return found if isinstance(found, int) and found > 0 else None


def _out_of_memory(error: BaseException) -> bool:
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        "can't allocate memory" in str(error) or "out of memory" in str(error)
    )
