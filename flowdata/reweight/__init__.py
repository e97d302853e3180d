"""Reweighting with an untouched loop: targets that carry their weight into the loss."""

import flowdata.reweight.libraries
import flowdata.reweight.onehot  # noqa: F401
from flowdata.reweight.fused import unfused_linear_cross_entropy
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
    "unfused_linear_cross_entropy",
    "weighable",
    "weighted_mean",
]
