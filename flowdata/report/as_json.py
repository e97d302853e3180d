"""What `flowdata inspect` says, for programs."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from flowdata.core.groups import Groups
from flowdata.core.weight_summary import summary_of
from flowdata.core.weights import FlowWeights
from flowdata.report.summary import Comparison, epoch_summaries, extremes, quantiles_of
from flowdata.table.loss_table import LossTable


def json_report(
    losses: LossTable,
    weights: FlowWeights,
    *,
    groups: Groups | None = None,
    comparison: Comparison | None = None,
    number: int = 10,
) -> str:
    """A table and its weights as a JSON object.

    Args:
        losses: the table.
        weights: its weights.
        groups: of the rows; their figures are in ``weights``.
        comparison: how a second table compares.
        number: easiest and hardest rows that are named.
    """
    ends = zip(("easiest", "hardest"), extremes(losses.losses, number), strict=True)
    found = {
        "table": asdict(losses.provenance),
        "weights": asdict(summary_of(weights, groups)),
        "quantiles": {f"{place:g}": value for place, value in quantiles_of(losses).items()},
        "epochs": [asdict(epoch) for epoch in epoch_summaries(weights)],
        "compared": None if comparison is None else asdict(comparison),
        **{
            name: [{"row": row, "loss": float(losses.losses[row])} for row in rows]
            for name, rows in ends
        },
    }
    return json.dumps(_plain(found), ensure_ascii=False, indent=2, allow_nan=False)


def _plain(value: Any) -> Any:
    """Without numbers that JSON does not have."""
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
