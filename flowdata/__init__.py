"""FLOW as a data-loading layer: fine-tune a pre-trained model without making it forget.

Score every sample once with the pre-trained model, then let any unmodified PyTorch training
loop draw samples in proportion to ``exp(-loss / temperature)`` through its DataLoader.
"""

from typing import TYPE_CHECKING, Any

from flowdata.dataset import FlowDataset
from flowdata.errors import (
    FlowDataError,
    FlowDataWarning,
    InvalidLossError,
    MismatchError,
    ShardError,
    TableFileError,
)
from flowdata.losses import LossTable
from flowdata.plan import EpochPlan
from flowdata.provenance import Provenance
from flowdata.reweight import (
    UnweightedLossError,
    WeightedTarget,
    register_loss,
    reweighting_loader,
    weighted_mean,
)
from flowdata.sampler import DistributedFlowSampler, FlowSampler
from flowdata.scoring import CausalLM, linear_probe, score
from flowdata.shards import Access, ShardIndex, ShardRows
from flowdata.strata import Strata
from flowdata.weights import FlowWeights, WeightSummary

if TYPE_CHECKING:
    from flowdata.shards.resample import resample
    from flowdata.shards.stream import FlowShards

__version__ = "0.1.0"

__all__ = [
    "Access",
    "CausalLM",
    "DistributedFlowSampler",
    "EpochPlan",
    "FlowDataError",
    "FlowDataWarning",
    "FlowDataset",
    "FlowSampler",
    "FlowShards",
    "FlowWeights",
    "InvalidLossError",
    "LossTable",
    "MismatchError",
    "Provenance",
    "ShardError",
    "ShardIndex",
    "ShardRows",
    "Strata",
    "TableFileError",
    "UnweightedLossError",
    "WeightSummary",
    "WeightedTarget",
    "linear_probe",
    "register_loss",
    "resample",
    "reweighting_loader",
    "score",
    "weighted_mean",
]

# What needs webdataset, which takes longer to import than all the rest.
_LATE = {"FlowShards": "flowdata.shards.stream", "resample": "flowdata.shards.resample"}


def __getattr__(name: str) -> Any:
    if name not in _LATE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    globals()[name] = value = getattr(import_module(_LATE[name]), name)
    return value
