"""score: one pass of the pre-trained model over the data set."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from os import PathLike
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from tqdm.auto import tqdm

from flowdata.errors import InvalidLossError, TableFileError, warn
from flowdata.fingerprint import reads_the_same_twice
from flowdata.losses import LossTable
from flowdata.provenance import Provenance
from flowdata.scoring.classification import LOSSES, FunctionPass, LossFunction
from flowdata.scoring.inference import (
    bare,
    count_rows,
    device_of,
    evaluating,
    read,
    without_adapters,
)
from flowdata.scoring.language import CausalLM, LanguagePass
from flowdata.scoring.parts import Parts, refuse_other, undone
from flowdata.scoring.ranks import Ranks
from flowdata.scoring.scores import Scores, in_order, joined
from flowdata.shards import ShardRows
from flowdata.weights import OnInvalid


class ScoringPass(Protocol):
    """What a kind of loss brings along: how rows are read, and scored a window at a time."""

    @property
    def window(self) -> int:
        """Rows that are read at a time."""
        ...

    @property
    def collate(self) -> Callable[[list[Any]], Any] | None:
        """Makes a window of its rows, in a loader worker if there are any."""
        ...

    def scores(self, rows: NDArray[np.int64], window: Any) -> Iterator[Scores]:
        """Scores of all rows of a window, in any order, in as many pieces as it likes."""
        ...


def score(
    model: nn.Module,
    dataset: Any,
    loss: str | LossFunction | CausalLM = "classification",
    *,
    output: str | PathLike[str] | None = None,
    batch_size: int = 64,
    collate_fn: Callable[[list[Any]], Any] | None = None,
    num_workers: int = 0,
    device: torch.device | str | None = None,
    on_invalid: OnInvalid = "raise",
    adapters: bool = False,
    model_name: str | None = None,
    save_every: float = 30.0,
    progress: bool = True,
) -> LossTable:
    """The loss of every sample under the model as it is: FLOW's f_i(theta*), in one pass.

    The model runs in evaluation mode, without gradients, and gets its modes back. Give the data set
    without training augmentation: a loss under a random crop makes the weight a draw of noise.
    A task-specific head that is new gives meaningless losses: train it first, `linear_probe`.

    With ``output`` nothing is lost: what was scored is kept in a folder beside it, and the same
    call goes on after a crash or a kill. Where torch.distributed is initialised each rank scores
    its own part, no sample twice; all ranks get the whole table, and any number of ranks can
    finish what others began.

    Args:
        model: the pre-trained model, on the device where it shall run.
        dataset: map-style data set of n samples.
        loss: "classification" (by the type of the target), "cross_entropy", "bce", "mse",
            "causal_lm" or a `CausalLM` with options, or a function (model, batch) -> losses of
            shape (batch size,).
        output: where the table is saved; on several ranks a path that all of them see.
        batch_size: samples per forward pass; a language model goes by tokens, see `CausalLM`.
        collate_fn: makes a batch of samples; default torch's.
        num_workers: DataLoader workers.
        device: where batches go; default the device of the model's parameters.
        on_invalid: "raise" stops at the first NaN, infinite or negative loss; "drop" keeps it in
            the table as NaN, to be given weight 0 by ``table.weights(on_invalid="drop")``.
        adapters: score a PEFT model with its adapters on; by default it is the base model, the
            pre-trained one, that is scored.
        model_name: kept as provenance.
        save_every: seconds after which scored samples are written to disk.
        progress: show a progress bar with samples per second and remaining time.

    Returns:
        A LossTable of n rows in the order of the data set.

    Raises:
        InvalidLossError: naming the rows of invalid losses.
        MismatchError: when ``output`` holds, finished or not, another pass.
        TableFileError: when ``output`` cannot be written, or another process is writing it.
        TypeError: for a loader, a stream, or a batch the loss does not understand.
        ValueError: for empty data, an unknown loss, or losses of the wrong shape.
    """
    if on_invalid not in ("raise", "drop"):
        raise ValueError(f'on_invalid must be "raise" or "drop", got {on_invalid!r}')
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    rows = count_rows(dataset)
    model = bare(model)
    name, options = _named(loss)
    with Ranks() as ranks, ExitStack() as stack:
        bar = stack.enter_context(
            tqdm(desc="scoring", unit="samples", disable=not progress or ranks.rank > 0)
        )
        stack.enter_context(evaluating(model))
        if not adapters:
            stack.enter_context(without_adapters(model))
        work = _pass(loss, model, device_of(model, device), batch_size, collate_fn)

        def run(left: NDArray[np.int64]) -> Iterator[Scores]:
            """Score this rank's share of the rows that are left."""
            mine = left[ranks.rank :: ranks.size]
            done = (rows - left.size) // ranks.size
            bar.reset(total=done + mine.size)
            bar.initial = bar.n = done
            bar.refresh()
            return _checked(_scored(work, dataset, mine, num_workers, bar), on_invalid)

        provenance = Provenance.now(
            rows,
            dataset=dataset,
            model=model,
            adapters=adapters,
            model_name=model_name or type(model).__name__,
            loss=name,
            options=options,
            dtype=_dtype_of(model),
        )
        if output is None:
            own = list(run(np.arange(rows)))
            everyone = [part for parts in ranks.gathered(own) for part in parts]
            table = _as_table(joined(everyone), provenance, dataset)
        else:
            table = _resumable(Path(output), provenance, dataset, ranks, run, save_every)
    _warn(table, dataset)
    return table


def _resumable(
    output: Path,
    provenance: Provenance,
    dataset: Any,
    ranks: Ranks,
    run: Callable[[NDArray[np.int64]], Iterator[Scores]],
    save_every: float,
) -> LossTable:
    """Go on where parts on disk end, and merge them into the table when all rows are there."""
    parts = Parts(output)
    with ExitStack() as lock:

        def begin() -> NDArray[np.int64]:
            if output.exists():
                existing = LossTable.load(output).provenance
                refuse_other(provenance.identity(), existing.identity(), f"the table {output}")
                return np.zeros(0, dtype=np.int64)
            lock.enter_context(parts.locked())
            parts.claim(provenance.identity())
            return undone(provenance.rows, parts.load())

        def merge() -> None:
            if not output.exists():
                everything = parts.load()
                if left := undone(provenance.rows, everything).size:
                    raise TableFileError(
                        f"{left:,} rows are missing in {parts.folder}; call score again to go on"
                    )
                _as_table(joined(everything), provenance, dataset).save(output)
            parts.remove()

        left = ranks.on_first(begin)
        if left.size:
            _save_regularly(run(left), parts, save_every)
        ranks.gathered(None)
        ranks.on_first(merge)
    return LossTable.load(output, tokens=True)


def _save_regularly(scores: Iterator[Scores], parts: Parts, save_every: float) -> None:
    unsaved: list[Scores] = []
    saved = time.monotonic()
    try:
        for some in scores:
            unsaved.append(some)
            if time.monotonic() - saved >= save_every:
                parts.add(joined(unsaved))
                unsaved, saved = [], time.monotonic()
    finally:
        if unsaved:
            parts.add(joined(unsaved))


def _scored(
    work: ScoringPass,
    dataset: Any,
    rows: NDArray[np.int64],
    num_workers: int,
    bar: "tqdm[Any]",
) -> Iterator[Scores]:
    tokens, started = 0, time.monotonic()
    for window_rows, window in read(
        dataset, rows, size=work.window, collate_fn=work.collate, num_workers=num_workers
    ):
        for scores in work.scores(window_rows, window):
            if scores.n_tokens is not None:
                tokens += int(scores.n_tokens.sum())
                rate = tokens / (time.monotonic() - started)
                bar.set_postfix_str(f"{rate:,.0f} response tokens/s", refresh=False)
            bar.update(len(scores))
            yield scores


def _checked(scores: Iterator[Scores], on_invalid: OnInvalid) -> Iterator[Scores]:
    """Pass valid losses on; stop at invalid ones, or replace them with NaN."""
    for some in scores:
        losses = some.losses
        invalid = ~(np.isfinite(losses) & (losses >= 0))
        if invalid.any() and on_invalid == "raise":
            raise InvalidLossError(_describe(some, invalid))
        losses[invalid] = np.nan
        yield some


def _describe(scores: Scores, invalid: NDArray[np.bool_]) -> str:
    order = np.argsort(scores.rows[invalid])
    rows, losses = scores.rows[invalid][order], scores.losses[invalid][order]
    more = " and more" if rows.size > 5 else ""
    advice = 'look at these samples, or pass on_invalid="drop" to give them weight 0'
    if scores.n_tokens is not None and not scores.n_tokens[invalid].any():
        return f"no response token to score in rows {rows[:5].tolist()}{more}; {advice}"
    return (
        f"NaN, infinite or negative losses {losses[:5].tolist()} at rows {rows[:5].tolist()}"
        f"{more}; {advice}"
    )


def _as_table(scores: Scores, provenance: Provenance, dataset: Any) -> LossTable:
    scores = in_order(scores)
    return LossTable(
        scores.losses,
        provenance.with_truncated(scores.truncated),
        n_tokens=scores.n_tokens,
        token_losses=scores.token_losses,
        index=dataset.index if isinstance(dataset, ShardRows) else None,
    )


def _warn(table: LossTable, dataset: Any) -> None:
    if table.provenance.truncated:
        warn(
            f"{table.provenance.truncated:,} of {len(table):,} samples were longer than "
            "max_length and were cut",
        )
    if not reads_the_same_twice(dataset):
        warn(
            "row 0 reads differently each time, so its loss is a draw of noise: score the data "
            "set without random augmentation",
        )


def _named(loss: str | LossFunction | CausalLM) -> tuple[str, str | None]:
    """Name and options of a loss, for the provenance."""
    if isinstance(loss, CausalLM):
        return "causal_lm", json.dumps(loss.identity(), sort_keys=True)
    if loss == "causal_lm":
        return _named(CausalLM())
    if isinstance(loss, str):
        if loss not in LOSSES:
            raise ValueError(
                f"loss must be one of {[*sorted(LOSSES), 'causal_lm']}, a CausalLM, or a function "
                f"(model, batch) -> losses, got {loss!r}"
            )
        return loss, None
    return getattr(loss, "__name__", type(loss).__name__), None


def _pass(
    loss: str | LossFunction | CausalLM,
    model: nn.Module,
    device: torch.device,
    batch_size: int,
    collate_fn: Callable[[list[Any]], Any] | None,
) -> ScoringPass:
    if loss == "causal_lm":
        loss = CausalLM()
    if isinstance(loss, CausalLM):
        return LanguagePass(loss, model, device)
    function = LOSSES[loss] if isinstance(loss, str) else loss
    return FunctionPass(function, model, device, batch_size, collate_fn)


def _dtype_of(model: nn.Module) -> str | None:
    first = next(model.parameters(), None)
    return None if first is None else str(first.dtype).removeprefix("torch.")
