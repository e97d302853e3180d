"""Reweighting with an untouched loop: targets that carry their weight into the loss."""

from torch.serialization import add_safe_globals

from flowdata.reweight.fused import unfused_linear_cross_entropy
from flowdata.reweight.losses import weighted_mean
from flowdata.reweight.masked_tokens import mask_tokens
from flowdata.reweight.refusals import UnweightedLossError
from flowdata.reweight.registering import register_loss, weighable
from flowdata.reweight.reweighting import reweight
from flowdata.reweight.target import WeightedTarget, rebuild_target
from flowdata.reweight.target_data import plain

# With it torch.load(weights_only=True), its default, reads targets that torch.save has written.
add_safe_globals([rebuild_target])

__all__ = [
    "UnweightedLossError",
    "WeightedTarget",
    "mask_tokens",
    "plain",
    "register_loss",
    "reweight",
    "unfused_linear_cross_entropy",
    "weighable",
    "weighted_mean",
]
