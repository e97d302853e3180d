"""FLOW as a data-loading layer: fine-tune a pre-trained model without making it forget.

Score every sample once with the pre-trained model, then let any unmodified PyTorch training
loop draw samples in proportion to ``exp(-loss / temperature)`` through its DataLoader.
"""

from importlib import import_module
from threading import RLock
from typing import TYPE_CHECKING

from flowdata.version import __version__ as __version__

if TYPE_CHECKING:
    from flowdata import commands as commands
    from flowdata import core as core
    from flowdata import data_files as data_files
    from flowdata import demo as demo
    from flowdata import errors as errors
    from flowdata import frameworks as frameworks
    from flowdata import guards as guards
    from flowdata import map_style as map_style
    from flowdata import monitoring as monitoring
    from flowdata import report as report
    from flowdata import reweight as reweight
    from flowdata import rows as rows
    from flowdata import scoring as scoring
    from flowdata import streaming as streaming
    from flowdata import table as table
    from flowdata import tar as tar
    from flowdata import transport as transport
    from flowdata.core.by_length import ByLength as ByLength
    from flowdata.core.mixes import mix as mix
    from flowdata.core.pack_plan import PackPlan as PackPlan
    from flowdata.core.plan import EpochPlan as EpochPlan
    from flowdata.core.strata import Strata as Strata
    from flowdata.core.weight_summary import WeightSummary as WeightSummary
    from flowdata.core.weights import FlowWeights as FlowWeights
    from flowdata.errors import FlowDataError as FlowDataError
    from flowdata.errors import FlowDataWarning as FlowDataWarning
    from flowdata.errors import InvalidLossError as InvalidLossError
    from flowdata.errors import MismatchError as MismatchError
    from flowdata.errors import ShardError as ShardError
    from flowdata.errors import TableFileError as TableFileError
    from flowdata.map_style.dataset import FlowDataset as FlowDataset
    from flowdata.map_style.distributed import DistributedFlowSampler as DistributedFlowSampler
    from flowdata.map_style.pack_collator import PackCollator as PackCollator
    from flowdata.map_style.pack_collator import pack_rows as pack_rows
    from flowdata.map_style.pack_sampler import FlowPackSampler as FlowPackSampler
    from flowdata.map_style.packs import FlowPacks as FlowPacks
    from flowdata.map_style.sampler import FlowSampler as FlowSampler
    from flowdata.monitoring.monitor import Monitor as Monitor
    from flowdata.reweight import UnweightedLossError as UnweightedLossError
    from flowdata.reweight import WeightedTarget as WeightedTarget
    from flowdata.reweight import mask_tokens as mask_tokens
    from flowdata.reweight import register_loss as register_loss
    from flowdata.reweight import weighted_mean as weighted_mean
    from flowdata.rows.attaching import attach as attach
    from flowdata.rows.resampling import resample_rows as resample_rows
    from flowdata.scoring import BatchScorer as BatchScorer
    from flowdata.scoring import CausalLM as CausalLM
    from flowdata.scoring import Seq2Seq as Seq2Seq
    from flowdata.scoring import TokenLabels as TokenLabels
    from flowdata.scoring import lengths as lengths
    from flowdata.scoring import linear_probe as linear_probe
    from flowdata.scoring import read_scored as read_scored
    from flowdata.scoring import score as score
    from flowdata.scoring import score_on_ray as score_on_ray
    from flowdata.scoring import score_probe as score_probe
    from flowdata.scoring import score_proxy as score_proxy
    from flowdata.streaming.resample import resample as resample
    from flowdata.streaming.stream import FlowShards as FlowShards
    from flowdata.table.loss_table import LossTable as LossTable
    from flowdata.table.provenance import Provenance as Provenance
    from flowdata.table.saved_weights import load_weights as load_weights
    from flowdata.table.saved_weights import save_weights as save_weights
    from flowdata.table.shard_index import ShardIndex as ShardIndex
    from flowdata.tar.indexing import index_shards as index_shards
    from flowdata.tar.rows import ShardRows as ShardRows
    from flowdata.transport.access import Access as Access

# Where each name is. A module is imported when one of its names is first used: importing
# flowdata costs nothing, and its core works where torch is not installed.
_MODULES = {
    "core.by_length": ("ByLength",),
    "core.mixes": ("mix",),
    "core.pack_plan": ("PackPlan",),
    "core.plan": ("EpochPlan",),
    "core.strata": ("Strata",),
    "core.weight_summary": ("WeightSummary",),
    "core.weights": ("FlowWeights",),
    "errors": (
        "FlowDataError",
        "FlowDataWarning",
        "InvalidLossError",
        "MismatchError",
        "ShardError",
        "TableFileError",
    ),
    "map_style.dataset": ("FlowDataset",),
    "map_style.distributed": ("DistributedFlowSampler",),
    "map_style.pack_collator": ("PackCollator", "pack_rows"),
    "map_style.pack_sampler": ("FlowPackSampler",),
    "map_style.packs": ("FlowPacks",),
    "map_style.sampler": ("FlowSampler",),
    "monitoring.monitor": ("Monitor",),
    "reweight": (
        "UnweightedLossError",
        "WeightedTarget",
        "mask_tokens",
        "register_loss",
        "weighted_mean",
    ),
    "rows.attaching": ("attach",),
    "rows.resampling": ("resample_rows",),
    "scoring": (
        "BatchScorer",
        "CausalLM",
        "Seq2Seq",
        "TokenLabels",
        "lengths",
        "linear_probe",
        "read_scored",
        "score",
        "score_on_ray",
        "score_probe",
        "score_proxy",
    ),
    "streaming.resample": ("resample",),
    "streaming.stream": ("FlowShards",),
    "table.loss_table": ("LossTable",),
    "table.provenance": ("Provenance",),
    "table.saved_weights": ("load_weights", "save_weights"),
    "table.shard_index": ("ShardIndex",),
    "tar.indexing": ("index_shards",),
    "tar.rows": ("ShardRows",),
    "transport.access": ("Access",),
}
_SUBMODULES = frozenset(
    {
        "commands",
        "core",
        "data_files",
        "demo",
        "errors",
        "frameworks",
        "guards",
        "map_style",
        "monitoring",
        "report",
        "reweight",
        "rows",
        "scoring",
        "streaming",
        "table",
        "tar",
        "transport",
    }
)
_PLACES = {name: module for module, names in _MODULES.items() for name in names}

__all__ = sorted(_PLACES)


# Threads that use names for the first time would import torch at once, which it does not survive.
_IMPORTING = RLock()

# Type checkers know the names above, and that there are no others.
if not TYPE_CHECKING:

    def __getattr__(name):
        """The object of a public name, whose module is imported now."""
        if name in _SUBMODULES:
            with _IMPORTING:
                return import_module(f"{__name__}.{name}")
        if name not in _PLACES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        with _IMPORTING:
            value = getattr(import_module(f"{__name__}.{_PLACES[name]}"), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_SUBMODULES})
