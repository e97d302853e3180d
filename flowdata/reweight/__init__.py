"""Reweighting with an untouched loop: targets that carry their weight into the loss."""

import flowdata.reweight.libraries
import flowdata.reweight.operations  # noqa: F401
from flowdata.reweight.loader import reweight, reweighting_loader
from flowdata.reweight.losses import register_loss, weighable, weighted_mean
from flowdata.reweight.target import UnweightedLossError, WeightedTarget, plain

__all__ = [
    "UnweightedLossError",
    "WeightedTarget",
    "plain",
    "register_loss",
    "reweight",
    "reweighting_loader",
    "weighable",
    "weighted_mean",
]
