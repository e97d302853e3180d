"""FLOW as a data-loading layer: fine-tune a pre-trained model without making it forget.

Score every sample once with the pre-trained model, then let any unmodified PyTorch training
loop draw samples in proportion to ``exp(-loss / temperature)`` through its DataLoader.
"""

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
from flowdata.sampler import DistributedFlowSampler, FlowSampler
from flowdata.scoring import CausalLM, linear_probe, score
from flowdata.shards import ShardRows
from flowdata.weights import FlowWeights, WeightSummary

__version__ = "0.1.0"

__all__ = [
    "CausalLM",
    "DistributedFlowSampler",
    "EpochPlan",
    "FlowDataError",
    "FlowDataWarning",
    "FlowDataset",
    "FlowSampler",
    "FlowWeights",
    "InvalidLossError",
    "LossTable",
    "MismatchError",
    "Provenance",
    "ShardError",
    "ShardRows",
    "TableFileError",
    "WeightSummary",
    "linear_probe",
    "score",
]
