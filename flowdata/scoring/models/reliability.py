"""What makes the losses of a table of little use, said once, when they are made."""

from typing import Any

import numpy as np

from flowdata.errors import warn
from flowdata.table.fingerprint import reads_the_same_twice
from flowdata.table.loss_table import LossTable

# Cross-entropy is log(1 + x) where a sample is certain, and float32 has no numbers between 1 and
# 1 + 2^-23: losses near 0 are multiples of that step.
_STEP = 2.0**-23
# Below ten steps the rounding of one loss changes its weight, exp(-loss / median), by 5 percent.
_LEAST_STEPS = 10
_PRECISE = ("mse", "bce")
_ROUNDED = ("causal_lm", "cross_entropy", "seq2seq", "token_labels")


def warn_if_unreliable(table: LossTable, dataset: Any) -> None:
    """Warn of samples that were cut, rows that read differently, and losses that are rounding."""
    if table.provenance.truncated:
        warn(
            f"{table.provenance.truncated:,} of {len(table):,} samples were longer than "
            "max_length and were cut",
        )
    if not reads_the_same_twice(dataset):
        warn(
            "row 0 reads differently each time, so its loss is random: score the data set "
            "without random augmentation",
        )
    _warn_if_rounding(table)


def _warn_if_rounding(table: LossTable) -> None:
    losses = table.losses[np.isfinite(table.losses)].astype(np.float64)
    median = float(np.median(losses)) if losses.size else np.inf
    if median >= _LEAST_STEPS * _STEP or table.provenance.loss in _PRECISE:
        return
    # Of a loss that is not known here: squared errors may be small and exact.
    steps = losses[losses < _LEAST_STEPS * _STEP] / _STEP
    whole = (steps == 0) | ((np.abs(steps - np.rint(steps)) < 0.01) & (steps > 0.5))
    if table.provenance.loss in _ROUNDED or whole.all():
        warn(
            f"the median loss, {median:.3g}, is no more than float32 rounds a cross-entropy to, so "
            "that weights at this temperature are noise. Was the model fitted on these rows? A "
            "new head is scored by score_probe; else pass a temperature of your own"
        )
