"""Streams of packs of token shards, as the tests make them."""

import json
from collections import Counter
from itertools import islice

import numpy as np
from token_shards import (
    MAX_LENGTH,
    as_tokens,
    rows_in,
)
from torch.utils.data import DataLoader

from flowdata import (
    FlowShards,
)

SIZES = (90, 3, 160, 1, 77)
BATCH = 2


def make(urls, table, *, state=None, lengths=None, packed=None, **options):
    options = {"seed": 3, "shards_open": 2, "batch_size": BATCH} | options
    stream = FlowShards(urls, table, **options).map(as_tokens)
    stream = stream.packed(MAX_LENGTH, lengths, **packed or {})
    if state is not None:
        stream.load_state_dict(json.loads(json.dumps(state)))
    return stream


def ranks_of(urls, table, ranks, **options):
    return [make(urls, table, num_replicas=ranks, rank=rank, **options) for rank in range(ranks)]


def packs_of(stream, workers=0, steps=None):
    loader = DataLoader(stream, BATCH, num_workers=workers, collate_fn=list)
    return [rows_in(pack) for batch in islice(loader, steps) for pack in batch]


def planned(packs):
    """The packs of an epoch, each with its rows in any order."""
    return Counter(tuple(sorted(pack.tolist())) for pack in packs.of(np.arange(len(packs))))


def counted(packs):
    return Counter(tuple(sorted(pack)) for pack in packs)
