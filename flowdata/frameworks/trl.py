"""TRL's SFTTrainer: draws from its own tokenized rows, and weighted losses."""

from typing import Any, Literal, overload

import datasets
import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from transformers.loss.loss_utils import ForCausalLMLoss

from flowdata.core.lengths import HasLengths, as_lengths, require_fitting
from flowdata.core.weights import FlowWeights, HasWeights, as_weights
from flowdata.errors import MismatchError, warn
from flowdata.frameworks.trl_packs import set_packs
from flowdata.map_style.dataset import FlowDataset
from flowdata.map_style.epoch_items import EpochItems
from flowdata.map_style.packs import FlowPacks

ROW = "flowdata_row"
"""The column by which the rows of a trainer are known."""

_NAMED = 5


def number_rows(dataset: Any) -> Any:
    """The data set with a column of its row numbers, by which `draw_from` follows the rows.

    Give it to the trainer in place of the data set, wherever rows may be dropped, sorted, shuffled
    or taken apart before training, by you or by TRL.

    Raises:
        TypeError: for what is no ``datasets.Dataset``, such as a stream or several splits.
        ValueError: when its rows are numbered already.
    """
    _require_table(dataset)
    if ROW in dataset.column_names:
        raise ValueError(f"the data set has a column {ROW} already: number its rows once, at first")
    return dataset.add_column(ROW, np.arange(len(dataset)))


@overload
def draw_from(
    trainer: Any,
    weights: FlowWeights | HasWeights | ArrayLike,
    *,
    packing: Literal[False] = False,
    **options: Any,
) -> FlowDataset[Any]: ...
@overload
def draw_from(
    trainer: Any,
    weights: FlowWeights | HasWeights | ArrayLike,
    *,
    packing: Literal[True],
    max_length: int | None = None,
    lengths: HasLengths | ArrayLike | None = None,
    **options: Any,
) -> FlowPacks: ...
def draw_from(
    trainer: Any,
    weights: FlowWeights | HasWeights | ArrayLike,
    *,
    packing: bool = False,
    max_length: int | None = None,
    lengths: HasLengths | ArrayLike | None = None,
    **options: Any,
) -> FlowDataset[Any] | FlowPacks:
    """Have a trainer of TRL draw from its rows by weight; call it before ``trainer.train()``.

    TRL tokenizes the data set it is given row by row, and takes none but its own kind; so this
    sets ``trainer.train_dataset`` to a `FlowDataset` of what it made. Of rows that TRL has dropped,
    as they do not fit its ``max_length``, the weights are dropped too.

    With ``packing`` it is a `FlowPacks`, and a batch of the SFTTrainer has that many packs, one
    after the other without padding: ``input_ids``, ``labels`` and ``position_ids``, and no
    ``attention_mask``. The number of packs is one that processes and steps divide. It sets the
    trainer's collator, ``args.remove_unused_columns`` and a `FlowCallback`; leave ``args.packing``
    out. Evaluation stays as it is.

    Args:
        trainer: an SFTTrainer, or another trainer of TRL with a map-style ``train_dataset``.
        weights: one for each row of the data set that the trainer was given, in that order; or
            that was given to `number_rows`.
        packing: put draws together into packs; for SFTTrainer on text.
        max_length: tokens that a pack has room for; default that of the trainer's arguments.
        lengths: tokens of each row as TRL tokenizes it, in the order of the weights; by default
            they are counted.
        options: of `FlowDataset` or `FlowPacks`: epoch_size, seed, scheme, alpha, arrange, ...

    Returns:
        The data set that is trained on.

    Raises:
        ContaminationError: for a model that lets the samples of a pack see each other.
        ValueError: where the trainer has put its rows in another order, or packed them.
        MismatchError: where it has dropped rows, and it cannot be told which.
        TypeError: for a stream, and for packs of what is no text for SFTTrainer.

    Warns:
        FlowDataWarning: which rows were dropped, if any of them has a weight above 0.
    """
    given = as_weights(weights)
    numbers = _rows_of(trainer, len(given))
    kept = _kept(given, numbers)
    if packing:
        if lengths is not None:
            lengths = as_lengths(lengths)
            require_fitting(lengths, given)
            lengths = lengths[numbers]
        return set_packs(trainer, kept, max_length, lengths, options)
    if max_length is not None or lengths is not None:
        raise ValueError("max_length and lengths are of packs: draw_from(..., packing=True)")
    rows = trainer.train_dataset
    if ROW in rows.column_names:
        rows = rows.remove_columns(ROW)
    drawn: FlowDataset[Any] = FlowDataset(rows, kept, **options)
    trainer.train_dataset = drawn
    return drawn


def kept_weights(trainer: Any, weights: FlowWeights | HasWeights | ArrayLike) -> FlowWeights:
    """The weights of those rows that a trainer of TRL has kept, in its order; see `draw_from`."""
    given = as_weights(weights)
    return _kept(given, _rows_of(trainer, len(given)))


def _kept(given: FlowWeights, rows: NDArray[np.int64]) -> FlowWeights:
    if np.array_equal(rows, np.arange(len(given))):
        return given
    _report_dropped(rows, given)
    return given.select(rows)


def _rows_of(trainer: Any, weights: int) -> NDArray[np.int64]:
    """For each row that is trained on, which of the weighted rows it was."""
    dataset, args = trainer.train_dataset, trainer.args
    if isinstance(dataset, EpochItems):
        kind = type(dataset).__name__
        raise ValueError(f"the trainer draws from a {kind} already: call draw_from once")
    _require_table(dataset)
    if getattr(args, "packing", False):
        raise ValueError(
            "packing=True makes other rows of the scored ones: leave it out of the trainer's "
            "arguments, and pack what is drawn: draw_from(trainer, weights, packing=True)"
        )
    if ROW in dataset.column_names:
        return _numbered_rows(dataset, weights)
    # The samplers of trainers that generate shuffle; the others shuffle the data set itself.
    if getattr(args, "shuffle_dataset", False) and not hasattr(args, "num_generations"):
        raise ValueError(
            "shuffle_dataset=True puts the rows into another order than that of the weights: leave "
            f"it out of the trainer's arguments, or {_ADVICE}"
        )
    if len(dataset) == weights:
        return np.arange(weights)
    # datasets 5.2, arrow_dataset.py: `filter` leaves the table as it was, and keeps the numbers of
    # the rows that pass as `_indices`. TRL 1.16 filters after it has mapped row by row.
    indices: Any = getattr(dataset, "_indices", None)
    if indices is None or dataset.data.num_rows != weights:
        raise MismatchError(
            f"the trainer has {len(dataset):,} rows, but there are {weights:,} weights: if they "
            "are of the data set that it was given, it has dropped or made rows, and it cannot be "
            f"told which: {_ADVICE}"
        )
    return np.asarray(indices.column(0), dtype=np.int64)


_ADVICE = "build the trainer with train_dataset=flowdata.frameworks.trl.number_rows(data)"


def _numbered_rows(dataset: Any, weights: int) -> NDArray[np.int64]:
    rows = np.asarray(dataset.with_format("numpy")[ROW][:])
    if rows.dtype.kind != "i" or (rows.size and not 0 <= rows.min() <= rows.max() < weights):
        raise MismatchError(
            f"the column {ROW} has numbers of other rows than the {weights:,} that weights are "
            "for: number the rows of the data set that was scored"
        )
    return rows.astype(np.int64)


def _report_dropped(rows: NDArray[np.int64], weights: FlowWeights) -> None:
    """Warn of rows that would have been drawn."""
    dropped = np.setdiff1d(np.arange(len(weights)), rows)
    drawn = dropped[weights.relative[dropped] > 0.0]
    if not drawn.size:
        return
    named = ", ".join(map(str, drawn[:_NAMED])) + (", ..." if drawn.size > _NAMED else "")
    share = weights.relative[drawn].sum() / weights.total
    warn(
        f"{drawn.size:,} of the {len(weights):,} rows are not among those that the trainer has "
        f"kept (rows {named}), because TRL drops rows of which nothing to learn is left within "
        f"max_length, or because you have left them out: they are not drawn, and with them "
        f"{share:.1%} of the weight"
    )


def _require_table(dataset: Any) -> None:
    if not isinstance(dataset, datasets.Dataset):
        raise TypeError(
            f"a datasets.Dataset is needed, got {type(dataset).__name__}: a stream has no rows by "
            "number (store it, Dataset.from_generator, from_parquet), and of several splits only "
            'one is trained on (data["train"])'
        )


def weighted_loss(
    outputs: Any, labels: Tensor, num_items_in_batch: Tensor | int | None = None
) -> Tensor:
    """The loss of a causal language model from its logits, in which `reweight` has a say.

    By itself SFTTrainer computes a fused loss of its own, which knows nothing of weights. Give it
    ``SFTTrainer(..., compute_loss_func=weighted_loss)``, and then the data set and collator of
    `flowdata.reweight.reweight`. TRL then runs the model twice a step, for its metrics.

    Args:
        outputs: of the model, with logits of shape (B, T, V).
        labels: shape (B, T).
        num_items_in_batch: what the sum is divided by; default the labels that count.
    """
    loss: Tensor = ForCausalLMLoss(
        outputs.logits,
        labels,
        vocab_size=outputs.logits.shape[-1],
        num_items_in_batch=num_items_in_batch,  # type: ignore[arg-type]
    )
    return loss
