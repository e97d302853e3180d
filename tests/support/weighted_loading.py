"""A DataLoader over what `reweight` returns."""

import inspect

from torch.utils.data import DataLoader

from flowdata import FlowSampler
from flowdata.reweight import reweight

OF_REWEIGHT = inspect.signature(reweight).parameters


def weighted_loader(dataset, weights=None, **options):
    """options: of `reweight` and of the DataLoader."""
    ours = {name: options.pop(name) for name in OF_REWEIGHT if name in options}
    data, collate = reweight(dataset, weights, **ours)
    return DataLoader(data, collate_fn=collate, **options)


def drawing_loader(dataset, weights, alpha, draws=None, **options):
    """One that also draws, by a part of the weight; draws: options of the sampler."""
    sampler = FlowSampler(weights, alpha=alpha, **draws or {})
    return weighted_loader(dataset, weights, alpha=alpha, sampler=sampler, **options)
