"""score_probe: each row is scored by a new head that has not seen it."""

import copy
import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from os import PathLike
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm.auto import tqdm

from flowdata.scoring.models.classification import LossFunction
from flowdata.scoring.models.fitted_rows import HashingCollate, remember
from flowdata.scoring.models.inference import (
    count_rows,
    device_of,
    evaluating,
    read_these,
    unwrap_model,
)
from flowdata.scoring.models.reliability import warn_if_unreliable
from flowdata.scoring.parts.array_jobs import job_of
from flowdata.scoring.parts.row_blocks import Worker, blocks_of_worker
from flowdata.scoring.passes.ranks import RANK_TIMEOUT, Ranks
from flowdata.scoring.probe.features import (
    CLASSES,
    Features,
    concatenate_features,
    features_of_batches,
    hashing_collate,
    read_first_rows,
    sort_features,
)
from flowdata.scoring.probe.folds import folds_of
from flowdata.scoring.probe.head_fits import (
    FitFunction,
    HeadFit,
    is_state_of,
    shapes_of,
    state_of,
    write_head,
)
from flowdata.scoring.probe.linear_probe import (
    find_head,
    probing_bar,
    require_linear,
    require_options,
)
from flowdata.scoring.probe.output import FittedHead, ProbeOutput
from flowdata.scoring.scorer import describe_loss
from flowdata.table.digest import Digest
from flowdata.table.fingerprint import code_fingerprint, model_fingerprint
from flowdata.table.loss_table import LossTable
from flowdata.table.provenance import Provenance
from flowdata.table.scored_rows import table_of_some
from flowdata.tar.rows import ShardRows


def score_probe(
    model: nn.Module,
    dataset: Any,
    *,
    head: str,
    loss: str | LossFunction = CLASSES,
    fit: FitFunction | None = None,
    folds: int = 5,
    seed: int = 0,
    weight_decay: float = 1e-4,
    max_iter: int = 200,
    output: str | PathLike[str] | None = None,
    shard: tuple[int, int] | None = None,
    batch_size: int = 64,
    collate_fn: Callable[[list[Any]], Any] | None = None,
    num_workers: int = 0,
    device: torch.device | str | None = None,
    model_name: str | None = None,
    save_every: float = 30.0,
    rank_timeout: float = RANK_TIMEOUT,
    progress: bool = True,
) -> LossTable:
    """The loss of every sample under a new head that was fitted without it.

    The first step of FLOW for a head that is new (arXiv 2502.02797, vision experiments), without
    its trap: a probe that is scored on the rows it was fitted on has learned their wrong labels.
    Features are computed once; the rows are split into folds, alike in their classes, and each
    fold is scored by a head that was fitted on the others. The model is left with the head of all
    rows, that of `linear_probe`, to be fine-tuned.

    With ``output`` nothing is lost: features (float32, of d numbers a row) lie in a folder beside
    it until the table is there, and the same call goes on after a kill; heads are fitted from that
    disk, where a linear one needs memory for 256 MiB of them at a time. Else features are in
    memory. Where torch.distributed is initialised each rank runs the model over its own part; all
    get one table and one head, fitted by the first.

    Args:
        model: backbone and head.
        dataset: map-style data set of (input, target), or dicts with "labels".
        head: name of the module to fit, as in ``model.named_modules()``: an ``nn.Linear``, or, with
            ``fit``, any that takes one vector a row.
        loss: "cross_entropy" of class indices, "bce" of several labels a row, "mse" of numbers, or
            a function (head, (features, targets)) -> losses of shape (rows,).
        fit: function (features, targets) -> module, for heads that are not linear. It makes a head
            with the layers that the model's has and fits it to all rows it is given, tensors of
            shape (m, d) and (m, ...) on the head's device. Random numbers of torch that it draws
            are those of ``seed`` and the fold. Default: L-BFGS on the linear head.
        folds: parts of the rows, 2 at least.
        seed: of the split.
        weight_decay, max_iter: of L-BFGS, see `linear_probe`.
        output: where the table is saved, a file or a URL that fsspec opens; what is there must be a
            table of the same call, of which the head is read.
        shard: (i, n), for job i of an array: it computes features of its share of the rows, and
            leaves them beside ``output``. When all are done the same call without ``shard`` fits.
        save_every: seconds after which features are written.
        batch_size, collate_fn, num_workers, device, model_name, rank_timeout, progress: see
            `score`.

    Returns:
        A LossTable of n rows in the order of the data set; with ``shard``, of none.

    Raises:
        FlowDataError: when another rank stopped.
        InvalidLossError: naming the rows of losses that are NaN, infinite or negative.
        MismatchError: when ``output`` holds another table, or what there is of one.
        TableFileError: when ``output`` cannot be written.
        TypeError, ValueError: see `linear_probe`; also for fewer rows than folds, for a class
            of one row, of which a head that has not seen it knows nothing, and for a ``fit`` whose
            head is not like that of the model.
    """
    require_options(batch_size, weight_decay, loss)
    job = job_of(shard)
    if job is not None and output is None:
        raise ValueError("shard= needs output=, beside which a job leaves features")
    model = unwrap_model(model)
    layer = find_head(model, head)
    if fit is None:
        require_linear(layer, head)
    elif not callable(fit):
        raise TypeError(f"fit must be a function (features, targets) -> module, got {fit!r}")
    rows = count_rows(dataset)
    if not 2 <= folds <= rows:
        raise ValueError(f"folds must be from 2 to the number of rows, {rows:,}, got {folds}")
    how = HeadFit(layer, loss, fit, weight_decay, max_iter, seed)
    with Ranks(rank_timeout) as ranks, ExitStack() as stack:
        provenance = Provenance.now(
            rows,
            dataset=dataset,
            model_name=model_name or type(model).__name__,
            loss=describe_loss(loss)[0],
            options=_options(head, model, how, folds),
            dtype=_dtype_of(layer),
            once=ranks.run_on_first,
        )
        kept = None if output is None else ProbeOutput(output, provenance, collate_fn)
        done = None if kept is None else ranks.run_on_first(kept.finished)
        if done is not None and (table := _as_before(model, layer, *done)) is not None:
            return table
        there = np.zeros(rows, dtype=np.bool_)
        if kept is not None:
            alone = ranks.size == 1 and job is None
            there = ranks.run_on_first(lambda: kept.begin(stack, job, alone=alone))
        share = _Share(
            *(dataset, batch_size, hashing_collate(model, collate_fn), num_workers),
            *(job or Worker(0, 1), ranks, progress),
        )
        with evaluating(model):
            found = share.features(there, model, how, device_of(model, device))
            all_features = _collected(found, ranks, kept, save_every)
        if job is not None:
            return LossTable(**vars(table_of_some([], provenance, None, None)))
        # Fitted once: heads that differ in their last bits would draw different rows.
        losses, fitted = ranks.run_on_first(
            lambda: _cross_fit(how, all_features, folds, kept, progress)
        )
        write_head(layer, fitted.state)
        remember(layer, fitted.hashes)
        table = LossTable(losses, replace(provenance, **_known_of(model)))
        if kept is not None:
            ranks.run_on_first(lambda: kept.finish(table, fitted))
    warn_if_unreliable(table, dataset)
    return table


@dataclass(frozen=True)
class _Share:
    """Runs the model over the rows of this rank that have no features yet."""

    dataset: Any
    batch_size: int
    collate: HashingCollate
    num_workers: int
    job: Worker
    ranks: Ranks
    progress: bool

    def features(
        self, there: NDArray[np.bool_], model: nn.Module, how: HeadFit, device: torch.device
    ) -> Iterator[Features]:
        """Features of batches that are made of the same rows, whoever has them."""
        blocks = blocks_of_worker(
            np.arange(there.size),
            ~there,
            self.batch_size,
            job=self.job,
            rank=Worker(self.ranks.rank, self.ranks.size),
            in_order=isinstance(self.dataset, ShardRows),
            whole=True,
        )
        batches = [block.rows_left for block in blocks]
        read = read_these(
            self.dataset, batches, collate_fn=self.collate, num_workers=self.num_workers
        )
        found = features_of_batches(
            *(model, how.head, zip(batches, read, strict=True), device, how.loss),
            partial(read_first_rows, self.dataset, self.batch_size, self.collate),
        )
        size = sum(batch.size for batch in batches)
        with probing_bar(size, self.progress and self.ranks.rank == 0) as bar:
            for some in self.ranks.watched(found):
                yield some
                bar.update(len(some))


OpenFeatures: TypeAlias = Callable[[], AbstractContextManager[Features]]
"""Opens the features of all rows, in their order, on the first rank."""


def _collected(
    found: Iterator[Features], ranks: Ranks, kept: ProbeOutput | None, save_every: float
) -> OpenFeatures:
    """What all ranks find, on disk or in the memory of the first one."""
    if kept is not None:
        kept.save_features(found, save_every)
        # The features of all ranks are on disk when all have come here.
        ranks.gather(None)
        return kept.all_features
    own = [*found]
    of_each = ranks.gather_on_first(concatenate_features(own) if own else None)
    # Not to have them twice for as long as heads are fitted.
    own.clear()
    return partial(_in_memory, [some for some in of_each if some is not None])


@contextmanager
def _in_memory(of_ranks: list[Features]) -> Iterator[Features]:
    yield sort_features(concatenate_features(of_ranks) if len(of_ranks) > 1 else of_ranks[0])


def _as_before(
    model: nn.Module, layer: nn.Module, table: LossTable, head: FittedHead | None
) -> LossTable | None:
    """The table of a call that has ended, with its head put into the model; None without one."""
    if head is None or not is_state_of(layer, head.state):
        return None
    before = copy.deepcopy(state_of(layer))
    write_head(layer, head.state)
    if _known_of(model)["model_hash"] != table.provenance.model_hash:
        write_head(layer, before)
        return None
    remember(layer, head.hashes)
    return table


def _cross_fit(
    how: HeadFit,
    all_features: OpenFeatures,
    folds: int,
    kept: ProbeOutput | None,
    progress: bool,
) -> tuple[NDArray[np.float32], FittedHead]:
    """Losses out of fold, and the head of all rows."""
    with (
        all_features() as found,
        tqdm(total=folds + 1, desc="fitting", unit="heads", disable=not progress) as bar,
    ):
        fold_of = folds_of(found.targets, how.loss, folds, how.seed)
        losses = np.full(len(found), np.nan, np.float32) if kept is None else kept.losses()
        for fold in range(folds):
            held_out = np.flatnonzero(fold_of == fold)
            if np.isnan(losses[held_out]).any():
                # From zero: the head of the model may have seen the rows, as that of
                # `linear_probe`.
                fitted = how.fitted(
                    found, np.flatnonzero(fold_of != fold), from_zero=True, number=fold + 1
                )
                whose = f"the head fitted without fold {fold}"
                losses[held_out] = how.losses(fitted, found, held_out, whose)
                if kept is not None:
                    kept.add_losses(held_out, losses[held_out])
            bar.update()
        whole = how.fitted(found, np.arange(len(found)))
        how.losses(whole, found, np.arange(len(found)), "the head fitted to all rows")
        bar.update()
        return losses, FittedHead(state_of(whole), found.hashes)


def _options(head: str, model: nn.Module, how: HeadFit, folds: int) -> str:
    """What decides on the losses, as JSON: also the backbone, as the head will be another one."""
    digest = Digest()
    # A compiled model has another name for it.
    inside = tuple(f"{name}." for name, module in model.named_modules() if module is how.head)
    for name, value in sorted(model.state_dict().items()):
        if isinstance(value, Tensor) and not name.startswith(inside):
            digest.mark(name)
            digest.feed(value)
    options: dict[str, Any] = {"head": head, "backbone": digest.hexdigest()}
    options |= {"folds": folds, "seed": how.seed}
    if how.fit is None:
        options |= {"weight_decay": how.weight_decay, "max_iter": how.max_iter}
    else:
        options["fit_code"] = code_fingerprint(how.fit)
        # Random numbers are those of the seed, of whatever layers the function makes.
        options["layers"] = shapes_of(how.head)
    if callable(how.loss):
        options["loss_code"] = code_fingerprint(how.loss)
    return json.dumps({"cross_fitted": options}, sort_keys=True)


def _known_of(model: nn.Module) -> dict[str, Any]:
    """What a table knows of a model whose head is fitted."""
    return {
        "model_hash": model_fingerprint(model, adapters=True),
        "adapters": hasattr(model, "peft_config"),
    }


def _dtype_of(head: nn.Module) -> str:
    return str(next(head.parameters()).dtype).removeprefix("torch.")
