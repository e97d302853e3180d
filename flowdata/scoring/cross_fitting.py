"""score_probe: each row is scored by a new head that has not seen it."""

import json
from collections.abc import Callable
from dataclasses import replace
from os import PathLike
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from flowdata.core.permutation import KeyedPermutation, Purpose
from flowdata.core.states import require_same
from flowdata.files import place_of
from flowdata.scoring.fitted_rows import HashingCollate, remember
from flowdata.scoring.inference import count_rows, device_of, read_batches, unwrap_model
from flowdata.scoring.probe import (
    Features,
    compute_features,
    find_head,
    fit_head,
    head_losses,
    probing_bar,
    require_classes,
    require_options,
)
from flowdata.scoring.ranks import RANK_TIMEOUT, Ranks
from flowdata.scoring.reliability import warn_if_unreliable
from flowdata.table.digest import Digest
from flowdata.table.fingerprint import model_fingerprint
from flowdata.table.loss_table import LossTable
from flowdata.table.provenance import Provenance


def score_probe(
    model: nn.Module,
    dataset: Any,
    *,
    head: str,
    folds: int = 5,
    seed: int = 0,
    weight_decay: float = 1e-4,
    max_iter: int = 200,
    output: str | PathLike[str] | None = None,
    batch_size: int = 64,
    collate_fn: Callable[[list[Any]], Any] | None = None,
    num_workers: int = 0,
    device: torch.device | str | None = None,
    model_name: str | None = None,
    rank_timeout: float = RANK_TIMEOUT,
    progress: bool = True,
) -> LossTable:
    """The loss of every sample under a new linear head that was fitted without it.

    The first step of FLOW for a head that is new (arXiv 2502.02797, vision experiments), without
    its trap: a probe that is scored on the rows it was fitted on has learned their wrong labels.
    Features are computed once; the rows are split into folds, alike in their classes, and each
    fold is scored by a head that was fitted on the others. The model is left with the head of all
    rows, that of `linear_probe`, to be fine-tuned.

    Where torch.distributed is initialised each rank runs the model over its own part, and all get
    one table and one head.

    Args:
        model: backbone and head.
        dataset: map-style data set of (input, class index), or dicts with "labels".
        head: name of the ``nn.Linear`` to fit, as in ``model.named_modules()``.
        folds: parts of the rows, 2 at least.
        seed: of the split.
        weight_decay, max_iter: see `linear_probe`.
        output: where the table is saved; what is there must be a table of the same call.
        batch_size, collate_fn, num_workers, device, model_name, rank_timeout, progress: see
            `score`.

    Returns:
        A LossTable of n rows in the order of the data set.

    Raises:
        FlowDataError: when another rank stopped.
        MismatchError: when ``output`` holds another table.
        TableFileError: when ``output`` cannot be written.
        TypeError, ValueError: see `linear_probe`; also for fewer rows than folds, and for a class
            of one row, of which a head that has not seen it knows nothing.
    """
    require_options(batch_size, weight_decay)
    model = unwrap_model(model)
    layer = find_head(model, head)
    rows = count_rows(dataset)
    if not 2 <= folds <= rows:
        raise ValueError(f"folds must be from 2 to the number of rows, {rows:,}, got {folds}")
    path = None if output is None else place_of(output, "loss table")
    provenance = Provenance.now(
        rows,
        dataset=dataset,
        model_name=model_name or type(model).__name__,
        loss="cross_entropy",
        options=_options(
            head, model, folds=folds, seed=seed, weight_decay=weight_decay, max_iter=max_iter
        ),
        dtype=str(layer.weight.dtype).removeprefix("torch."),
    )
    with Ranks(rank_timeout) as ranks:
        if path is not None and path.is_file():
            ranks.run_on_first(lambda: _require_same_call(path, provenance))
        mine = np.arange(rows)[ranks.rank :: ranks.size]
        batches = read_batches(
            dataset,
            mine,
            size=batch_size,
            collate_fn=HashingCollate(collate_fn),
            num_workers=num_workers,
        )
        found = compute_features(
            model,
            layer,
            ranks.watched(iter(batches)),
            device_of(model, device),
            probing_bar(mine.size, progress and ranks.rank == 0),
        )
        found = _of_all_rows(found, mine, ranks, layer.weight.device)
        # Fitted once: heads that differ in their last bits would draw different rows.
        losses, parameters = ranks.run_on_first(
            lambda: _cross_fit(layer, found, folds, seed, weight_decay, max_iter)
        )
        with torch.no_grad():
            for parameter, values in zip(layer.parameters(), parameters, strict=True):
                parameter.copy_(values)
        remember(layer, found.hashes)
        hashed = model_fingerprint(model, adapters=True)
        adapters = hasattr(model, "peft_config")
        table = LossTable(losses, replace(provenance, model_hash=hashed, adapters=adapters))
        if path is not None:
            ranks.run_on_first(lambda: table.save(path))
    warn_if_unreliable(table, dataset)
    return table


def assign_folds(classes: NDArray[np.int64], folds: int, seed: int) -> NDArray[np.int64]:
    """The fold of each row: folds differ by one row at most, in all and in each class.

    Raises:
        ValueError: naming the rows that are the only ones of their class.
    """
    _, first, counts = np.unique(classes, return_index=True, return_counts=True)
    if (alone := first[counts == 1]).size:
        known = ", ".join(f"row {row} (class {classes[row]})" for row in sorted(alone.tolist())[:5])
        raise ValueError(
            f"{alone.size:,} classes have one row alone: {known}{', ...' if alone.size > 5 else ''}"
            ". A head that has not seen it does not know its class: leave such rows out, or give "
            "their classes more"
        )
    size = classes.size
    order = KeyedPermutation(size, seed=seed, epoch=0, purpose=Purpose.FOLDS)(np.arange(size))
    # Class by class, in a random order inside: every `folds`-th row is of the same fold.
    laid = order[np.argsort(classes[order], kind="stable")]
    found = np.empty(size, dtype=np.int64)
    found[laid] = np.arange(size) % folds
    return found


def _cross_fit(
    layer: nn.Linear, found: Features, folds: int, seed: int, weight_decay: float, max_iter: int
) -> tuple[NDArray[np.float32], list[Tensor]]:
    """Losses out of fold, and the parameters of the head of all rows."""
    require_classes(found, layer)
    features, targets = found.features, found.targets.long()
    fold_of = torch.from_numpy(assign_folds(targets.cpu().numpy(), folds, seed)).to(targets.device)
    losses = torch.empty(len(targets), dtype=torch.float32, device=features.device)
    for fold in range(folds):
        held_out = fold_of == fold
        # From zero: the head of the model may have seen the rows, as that of `linear_probe`.
        fitted = fit_head(
            layer,
            *(features[~held_out], targets[~held_out], weight_decay, max_iter),
            from_zero=True,
        )
        losses[held_out] = head_losses(fitted, features[held_out], targets[held_out])
    whole = fit_head(layer, features, targets, weight_decay, max_iter)
    return losses.cpu().numpy(), [parameter.detach().cpu() for parameter in whole.parameters()]


def _of_all_rows(
    found: Features, mine: NDArray[np.int64], ranks: Ranks, device: torch.device
) -> Features:
    """What all ranks found, in the order of the rows."""
    if ranks.size == 1:
        return found
    parts = ranks.gather((mine, found.features.cpu(), found.targets.cpu(), found.hashes))
    # A rank that has no rows has no targets whose type would count.
    parts = [part for part in parts if part[0].size]
    order = torch.from_numpy(np.argsort(np.concatenate([rows for rows, *_ in parts])))
    return Features(
        torch.cat([features for _, features, _, _ in parts])[order].to(device),
        torch.cat([targets for _, _, targets, _ in parts])[order].to(device),
        np.concatenate([hashes for *_, hashes in parts]),
    )


def _options(head: str, model: nn.Module, **known: Any) -> str:
    """What decides on the losses, as JSON: also the backbone, as the head will be another one."""
    digest = Digest()
    for name, value in sorted(model.state_dict().items()):
        if isinstance(value, Tensor) and not name.startswith(f"{head}."):
            digest.mark(name)
            digest.feed(value)
    options = {"head": head, "backbone": digest.hexdigest()} | known
    return json.dumps({"cross_fitted": options}, sort_keys=True)


def _require_same_call(path: Any, provenance: Provenance) -> None:
    """Refuse to write over a table of something else."""
    # The hash of the model is that of the head that is not fitted yet.
    ours, found = (
        {**known.identity(), "model_hash": None, "adapters": None}
        for known in (provenance, LossTable.load(path).provenance)
    )
    require_same(
        ours,
        found,
        what=f"the table {path}",
        advice="Call with the same model, data and options, choose another output, or delete it",
    )
