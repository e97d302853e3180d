"""Ways to take the losses of a language model on prompts and responses, and the limit of all."""

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from measure import Figures, peak_memory, settle_memory
from torch.nn import functional as F

from flowdata import CausalLM, score
from flowdata.scoring.language.causal_lm import token_budget
from flowdata.scoring.layouts.token_rows import IGNORED, Tokens

BARE, LIMIT, TEXTS, TOKENS, WORKERS, PADDED, PUBLISHED = (
    "bare", "limit", "texts", "tokens", "workers", "padded", "published"
)  # fmt: skip
LABELS = {
    BARE: "limit, model without its head",
    LIMIT: "limit",
    TEXTS: "flowdata.score, texts",
    WORKERS: "flowdata.score, texts, 2 workers",
    TOKENS: "flowdata.score, tokens",
    PADDED: "padded loop",
    PUBLISHED: "two padded passes",
}
PADDED_BATCH = 16


@dataclass(frozen=True)
class Data:
    """Rows to score, and their tokens."""

    rows: Sequence[Any]
    loss: CausalLM
    tokens: Sequence[Tokens]

    @property
    def size(self) -> int:
        """Real tokens."""
        return sum(sample.ids.size for sample in self.tokens)

    @property
    def scored(self) -> int:
        """Tokens that have a loss."""
        return sum(int((sample.labels[1:] >= 0).sum()) for sample in self.tokens)


def run(method: str, model: Any, data: Data) -> tuple[Figures, list[float]]:
    """Seconds of wall and processor, and peak memory above the model; and losses, if it has any."""
    device = next(model.parameters()).device
    work = _work(method, model, data, device)
    before = _settle(device)
    started, used = time.perf_counter(), time.process_time()
    losses = work()
    _synchronize(device)
    wall, processor = time.perf_counter() - started, time.process_time() - used
    # One of its two passes is like the other.
    passes = 2 if method == PUBLISHED else 1
    return {
        "seconds": [wall * passes],
        "pass_s": [wall],
        "processor_s": [processor * passes],
        "peak_bytes": [float(_peak(device) - before)],
        "tokens": [float(data.size)],
    }, losses


def _work(method: str, model: Any, data: Data, device: torch.device) -> Callable[[], list[float]]:
    if method in (BARE, LIMIT):
        return lambda: _full_batches(model, data, device, head=method == LIMIT)
    if method in (PADDED, PUBLISHED):
        return lambda: _padded_pass(model, data, device, whole=method == PUBLISHED)
    if method == TOKENS:
        rows = [{"input_ids": each.ids, "labels": each.labels} for each in data.tokens]
        return lambda: _score(model, rows, CausalLM())
    return lambda: _score(model, data.rows, data.loss, workers=2 if method == WORKERS else 0)


def _score(model: Any, rows: Any, loss: CausalLM, workers: int = 0) -> list[float]:
    table = score(model, rows, loss, num_workers=workers, progress=False)
    found: list[float] = table.losses.tolist()
    return found


def _full_batches(model: Any, data: Data, device: torch.device, *, head: bool) -> list[float]:
    """A forward pass over the same tokens, one text after another, in rows of one length.

    No batch is padded or has a mask, and none but the last is not full. The head sees as many
    positions as are scored, and nothing is done with what it gives.
    """
    budget = token_budget(model, device)
    stream = np.concatenate([sample.ids for sample in data.tokens])
    rows = max(round(budget * len(data.tokens) / data.size), 1)
    length = budget // rows
    batches = np.split(stream, range(rows * length, stream.size, rows * length))
    share = data.scored / data.size
    with torch.no_grad():
        for batch in batches:
            width = min(length, batch.size)
            ids = torch.from_numpy(batch[: batch.size // width * width].reshape(-1, width))
            hidden = model.base_model(input_ids=ids.to(device), use_cache=False)[0]
            if head:
                model.get_output_embeddings()(hidden.flatten(0, 1)[: round(share * ids.numel())])
    return []


def _padded_pass(model: Any, data: Data, device: torch.device, *, whole: bool) -> list[float]:
    """Mean losses over response tokens, in batches as they come."""
    losses = []
    with torch.inference_mode():
        for start in range(0, len(data.tokens), PADDED_BATCH):
            ids, mask, labels = _padded(data.tokens[start : start + PADDED_BATCH], device)
            logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
            # The label of position t is token t + 1, so that logits need not be sliced.
            targets = F.pad(labels[:, 1:], (0, 1), value=IGNORED)
            if whole:
                logits = logits.to(torch.float32, copy=True)
            each = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
            counted = (targets != IGNORED).sum(dim=1)
            losses.append((each.view(targets.shape).sum(dim=1) / counted).float().cpu())
    return list(itertools.chain.from_iterable(part.tolist() for part in losses))


def _padded(samples: Sequence[Tokens], device: torch.device) -> tuple[torch.Tensor, ...]:
    width = max(sample.ids.size for sample in samples)
    ids = torch.zeros(len(samples), width, dtype=torch.long)
    labels, mask = torch.full_like(ids, IGNORED), torch.zeros_like(ids)
    for row, sample in enumerate(samples):
        size = sample.ids.size
        ids[row, :size] = torch.from_numpy(sample.ids)
        labels[row, :size] = torch.from_numpy(sample.labels)
        mask[row, :size] = 1
    return ids.to(device), mask.to(device), labels.to(device)


def warm_up(model: Any, data: Data) -> float:
    """Pay for what a process pays once, as for compiling; seconds."""
    started = time.perf_counter()
    for method in (LIMIT, TOKENS):
        run(method, model, data)
    return time.perf_counter() - started


def compile_body(model: Any) -> None:
    """Compile all of a model but its head, for batches of any shape."""
    model.base_model.compile(dynamic=True)


def _settle(device: torch.device) -> int:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    return settle_memory(1 << 20)


def _peak(device: torch.device) -> int:
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak_memory()


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
