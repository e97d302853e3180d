"""Mixes: several data sets in a row, each with its share of what is drawn."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike

from flowdata.core.column import Source
from flowdata.core.groups import Groups
from flowdata.core.made_weights import of_logarithms
from flowdata.core.shares import By, Shares, resolve_shares, share_out, wants_tokens
from flowdata.core.weights import FlowWeights, HasWeights, Normalization, as_weights
from flowdata.errors import InvalidLossError


def mix(
    data_sets: Mapping[str, FlowWeights | HasWeights | ArrayLike],
    *,
    shares: Shares | None = None,
    by: By = "rows",
    normalize: Normalization = None,
) -> FlowWeights:
    """Weights of the rows of several data sets, one after the other, in the order given.

    That is their order in ``torch.utils.data.ConcatDataset`` and
    ``datasets.concatenate_datasets``. Each data set has a temperature of its own, so that one
    which the model finds harder does not get less for it.

    Args:
        data_sets: by name, a LossTable (at its median temperature), or weights of one:
            ``table.weights(0.5, on_invalid="drop")``.
        shares: what each gets of all draws: "rows", its share of the rows (default); "equal";
            "flow", what its weights give; "tokens", its share of the tokens; or a number for each
            name, in proportion.
        by: what shares are of: "rows" that are drawn, or their "tokens".
        normalize: scale of the weights, see `FlowWeights.from_losses`.

    Raises:
        InvalidLossError: for a data set that has a share, but no row that can be drawn.
        ValueError: for no data set, an unknown option, a name without a number, and shares of
            tokens where a table does not know them.

    16 to 28 bytes a row are held, losses and lengths of all tables among them.

    >>> weights = mix({"maths": [1.0, 1.0], "chat": [3.0, 1.0]}, shares={"maths": 3, "chat": 1})
    >>> (weights.relative / weights.total).round(4).tolist()
    [0.375, 0.375, 0.1875, 0.0625]
    """
    if not isinstance(data_sets, Mapping) or not data_sets:
        raise ValueError(
            'a mix is of data sets by name, flowdata.mix({"maths": table, ...}), '
            f"got {data_sets!r}"
        )
    parts = [_weights_of(name, each) for name, each in data_sets.items()]
    groups = Groups.of_runs(tuple(data_sets), [len(part) for part in parts])
    lengths = _joined([part.made.lengths for part in parts])
    if lengths is None and wants_tokens(shares, by):
        names = [
            name for name, part in zip(data_sets, parts, strict=True) if part.made.lengths is None
        ]
        raise ValueError(
            f"shares of tokens need to know how many each row has, but {names} do not: give their "
            "tables lengths by with_lengths, counted by flowdata.lengths"
        )
    found = resolve_shares(shares, by, groups, lengths)
    if len(parts) == 1:
        made = parts[0].made
        return FlowWeights(
            made if made.groups else replace(made, groups=groups), normalize=normalize
        )
    logarithms = np.concatenate([part.made.relative.logarithms() for part in parts])
    largest = np.array([part.log_max for part in parts])
    log_max = share_out(logarithms, largest, groups, found, lengths if by == "tokens" else None)
    made = replace(
        of_logarithms(logarithms, log_max, f"one for each of {len(parts):,} data sets"),
        groups=groups,
        shared=found is not None,
        losses=_joined([part.made.losses for part in parts]),
        lengths=lengths,
    )
    return FlowWeights(made, normalize=normalize)


def _weights_of(name: str, given: FlowWeights | HasWeights | ArrayLike) -> FlowWeights:
    try:
        return as_weights(given)
    except InvalidLossError as error:
        raise InvalidLossError(f"in the data set {name!r}: {error}") from error


def _joined(columns: list[Source | None]) -> Source | None:
    """The columns of all data sets, if all have one."""
    known = [column[:] for column in columns if column is not None]
    return np.concatenate(known) if len(known) == len(columns) else None
