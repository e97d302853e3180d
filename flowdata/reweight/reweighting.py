"""reweight: a data set and collate_fn whose batches have weighted targets."""

import uuid
from collections.abc import Callable
from typing import Any, Literal, TypeAlias

from numpy.typing import ArrayLike

from flowdata.core.made_weights import OnInvalid
from flowdata.core.temperature import Temperature
from flowdata.core.weight_functions import WeightFunction
from flowdata.core.weights import FlowWeights, HasWeights, as_weights
from flowdata.map_style.epoch_items import EpochItems
from flowdata.reweight.collate import Collate, Target
from flowdata.reweight.row_numbers import is_stream, refuse_counted_rows, require_rows
from flowdata.reweight.token_weights import NOT_SHIFTED, of_numbers, of_table
from flowdata.reweight.weighted_data import WeightedRows, WeightedStream, WeightedTokenRows
from flowdata.table.loss_table import LossTable

Level: TypeAlias = Literal["sample", "token"]
Weights: TypeAlias = FlowWeights | HasWeights | ArrayLike


def reweight(
    dataset: Any,
    weights: Weights | None = None,
    *,
    target: Target = None,
    normalize: Literal["mean", "max", "sum"] | None = "mean",
    level: Level = "sample",
    temperature: Temperature | None = None,
    function: WeightFunction | None = None,
    on_invalid: OnInvalid | None = None,
    alpha: float = 0.0,
    entry: str | None = None,
    collate_fn: Callable[[list[Any]], Any] | None = None,
) -> tuple[Any, Callable[[list[Any]], Any]]:
    """A data set and a ``collate_fn`` for any DataLoader, whose batches weight their own loss.

    The target of each batch is a `WeightedTarget`, which the losses of torch multiply by its
    weights; the loop stays as it is. Weights of mean 1 (the default) keep the learning rate;
    ``normalize=None`` is the paper's ``mean(w * loss)``.

    With ``alpha`` above 0 it only covers the part of the weight not covered by drawing rows by
    ``w ** alpha``. Draw them, or that part of the weight is lost: ``DataLoader(data,
    sampler=FlowSampler(weights, alpha=alpha), collate_fn=collate)``. Every ``alpha`` has the same
    expected gradient, that of ``mean(w * loss)`` over all rows, those of weight 0 included, with w
    as ``normalize`` says: 1 resamples only, 0 reweights only, in a pass over all rows
    (``shuffle=True``).

    Args:
        dataset: map-style data set of n samples; or an iterable one, whose samples are dicts with
            a ``"__weight__"``, or tuples of input, target and, at their end, the weight. Look it
            up by a key of the sample: a number that the stream counts is not the row's.
        weights: n weights; None for an iterable data set. For ``level="token"`` a LossTable with
            token losses, or weights of one's own: FlowWeights or an array of those of all tokens,
            row after row, or a column with a list of them for each row. They are one for each
            response token, for each label (`labels`), or for each label but the first of a row, as
            their number says; to find out, the labels of the data set are read once.
        target: where a batch has its target: a position, a key, or a function (batch,
            add_weights) -> batch that passes the target, or each of several, through
            ``add_weights``. By default the last of a tuple or list, and "labels", "label",
            "target" or "targets" of a dict.
        normalize: "mean", "max", "sum" or None: what the weights are divided by.
        level: "sample", or "token" for one weight for each response token of a causal language
            model, whose loss shifts the labels by one, or, of a table by `Seq2Seq` or
            `TokenLabels`, for each label.
        temperature, function, on_invalid: how weights are made of the losses of a LossTable, see
            `LossTable.weights` and `LossTable.token_weights`.
        alpha: what is left to weight where rows are drawn by ``w ** alpha``
            (`FlowWeights.residual`), by a sampler or `FlowDataset` of the same ``alpha``.
        entry: put the weights under this key of a dict batch (or at the end of a list or tuple),
            and leave the target plain: for loops that one may edit. Shape (B,), for tokens that
            of the labels.
        collate_fn: makes a batch of items; default torch's.

    Raises:
        MismatchError: for weights of another length than the data set, and, naming the row, for
            another number of weights of tokens.
        TypeError: for a data set of draws; for weights of a stream, or one that counts its rows;
            for no weights of a data set; in the loader, for a batch without such a target.
        UnweightedLossError: in the loader, for a ``collate_fn`` that mixes, moves or repeats rows.
        ValueError: for an unknown option, or one that a stream cannot have.

    >>> import torch
    >>> from torch.utils.data import DataLoader
    >>> data, collate = reweight([(0.1, 3), (0.2, 5)], [1.0, 3.0])
    >>> [(inputs, targets)] = DataLoader(data, batch_size=2, collate_fn=collate)
    >>> targets
    WeightedTarget(tensor([3, 5]), weights=tensor([0.5000, 1.5000]))
    """
    # It goes to the workers and comes back with their batches, so it is no object's id().
    shifted = not isinstance(weights, LossTable) or weights.provenance.loss not in NOT_SHIFTED
    collate = Collate(target, entry, collate_fn, reweight_id=uuid.uuid4().hex, shifted=shifted)
    if level not in ("sample", "token"):
        raise ValueError(f'level must be "sample" or "token", got {level!r}')
    if level == "token" and alpha != 0:
        raise ValueError("samples are drawn, not tokens: alpha needs level='sample'")
    given = {"temperature": temperature, "function": function, "on_invalid": on_invalid}
    options: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if weights is not None and not isinstance(dataset, EpochItems):
        require_rows(dataset)
    if is_stream(dataset):
        refuse_counted_rows(dataset)
        if options or (normalize, level, alpha) != ("mean", "sample", 0.0):
            raise ValueError(
                "normalize, level, alpha and what makes weights of losses are for weights of rows: "
                "the samples of a stream bring the weights they are to have (of FlowShards, by its "
                "alpha=)"
            )
        return WeightedStream(dataset), collate
    if isinstance(dataset, EpochItems):
        kind = type(dataset).__name__
        raise TypeError(
            f"the items of a {kind} are draws, whose weights change with the epoch: reweight "
            "its rows, data, collate = reweight(rows, weights, alpha=a), and draw from that, "
            f"{kind}(data, weights, alpha=a)"
        )
    if weights is None:
        raise TypeError("weights are needed: only an iterable data set has them in its samples")
    table = weights if isinstance(weights, LossTable) else None
    if options and table is None:
        raise ValueError(
            f"{', '.join(options)}: these make weights of the losses of a LossTable, and what is "
            f"given are weights already ({type(weights).__name__})"
        )
    if level == "token":
        of_tokens = (
            of_numbers(weights, dataset, target)
            if table is None
            else of_table(table, dataset, options)
        )
        return WeightedTokenRows(dataset, of_tokens, normalize), collate
    made = as_weights(weights) if table is None else table.weights(**options)
    return WeightedRows(dataset, made, normalize, alpha), collate
