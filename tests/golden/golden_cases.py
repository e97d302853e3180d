"""Draws, weights and orders of which there are golden records.

A case is a function of the folder of the shards that returns what is kept as JSON: short lists of
numbers as they are, longer ones as their SHA-256.
"""

from functools import partial
from itertools import chain

import numpy as np
import torch
import webdataset as wds
from golden_inputs import (
    SHARD_ROWS,
    by_length,
    lengths_of,
    loader_over,
    losses,
    packed,
    recorded,
    row_of,
    rows_in,
    strata,
    table_of,
    urls,
    weights_of,
)
from torch.utils.data import DataLoader

from flowdata import (
    ByLength,
    EpochPlan,
    FlowDataset,
    FlowSampler,
    FlowShards,
    FlowWeights,
    PackPlan,
    resample,
)
from flowdata.core.shard_packs import ShardPacks
from flowdata.core.shard_plan import ShardPlan
from flowdata.reweight import reweight

SEEDS, EPOCHS = (0, 7_000_000_007), (0, 1)
PLANNED = [(seed, epoch) for seed in SEEDS for epoch in EPOCHS]


def weight_values(rows, temperature, _folder):
    weights = FlowWeights.from_losses(losses(rows), temperature=temperature)
    lifted = FlowWeights.from_losses(losses(rows) + 0.5, temperature=temperature)
    record = {"temperature": weights.temperature, "fingerprint": weights.fingerprint}
    record |= {"largest": round(lifted.max, 12), "effective size": round(lifted.ess, 6)}
    for normalize in (None, "mean", "max", "sum"):
        made = FlowWeights.from_losses(losses(rows), temperature=temperature, normalize=normalize)
        record[f"normalize={normalize}"] = recorded(made.values)
    for alpha in (0.0, 0.25, 0.5):
        record[f"power {alpha}"] = recorded(weights.power(alpha).values)
        record[f"residual {alpha}"] = recorded(weights.residual(alpha))
    return record


def weights_without_invalid_rows(_folder):
    damaged = losses(1000).astype(np.float32)
    damaged[[3, 500, 999]] = np.nan, np.inf, -1.0
    weights = FlowWeights.from_losses(damaged, on_invalid="drop")
    drawn = EpochPlan(weights, alpha=0.5)[:]
    return [weights.temperature, weights.fingerprint, recorded(weights.values), recorded(drawn)]


def plan_options(rows, kind):
    """Options by name. Powers of weights that were given depend on the processor."""
    options = {
        "full": {},
        "ess": {"epoch_size": "ess"},
        "distinct": {"epoch_size": "distinct"},
        "123 draws": {"epoch_size": 123},
        "70,001 draws": {"epoch_size": 70_001},
        "0.37 of the rows": {"epoch_size": 0.37},
        "multinomial": {"scheme": "multinomial"},
        "multinomial, 123 draws": {"scheme": "multinomial", "epoch_size": 123},
        "strata": {"strata": strata(rows)},
        "strata, 1.7 of the rows": {"strata": strata(rows), "epoch_size": 1.7},
        "alpha 0": {"alpha": 0.0},
        "alpha 0.5": {"alpha": 0.5},
        "alpha 0.5, multinomial": {"alpha": 0.5, "scheme": "multinomial"},
    }
    fixed = {name for name in options if name.startswith("alpha 0.5")}
    return {name: options[name] for name in options if kind == "from losses" or name not in fixed}


def plan_draws(rows, kind, option, _folder):
    weights, options = weights_of(rows, kind), plan_options(rows, kind)[option]
    plans = [EpochPlan(weights, seed=seed, epoch=epoch, **options) for seed, epoch in PLANNED]
    return [recorded(plan[:]) for plan in plans]


def plan_by_length(rows, _folder):
    drawn = []
    for scheme in ("systematic", "multinomial"):
        plan = EpochPlan(weights_of(rows), scheme=scheme, arrange=by_length(rows))
        drawn += [recorded(plan.at_epoch(epoch, seed=seed)[:]) for seed, epoch in PLANNED]
    return drawn


def packed_draws(rows, options, _folder):
    """The number of packs; their sizes and rows."""
    made = {name: of(rows) if callable(of) else of for name, of in options.items()}
    plan = EpochPlan(weights_of(rows), **made)
    packs = PackPlan(plan, lengths_of(rows), 512, batch_size=3)
    epochs = [packs.at_epoch(epoch, seed=seed) for seed, epoch in PLANNED]
    drawn = [
        [recorded(np.array([pack.size for pack in made[:]])), recorded(made.plan[:])]
        for made in epochs
    ]
    return [len(packs), *drawn]


def packed_shards(rows, _folder):
    """The number of packs of shards; their sizes and rows."""
    plan = ShardPlan(weights_of(rows), np.linspace(0, rows, 14).astype(np.int64))
    packs, drawn = ShardPacks(plan, lengths_of(rows), 512, batch_size=3), []
    for seed, epoch in PLANNED:
        made = packs.at_epoch(epoch, seed=seed).of(np.arange(len(packs)))
        drawn.append([recorded([pack.size for pack in made]), recorded(np.concatenate(made))])
    return [len(packs), *drawn]


def sampler_orders(rows, ranks, drop_last, options, _folder):
    """By rank: two passes, and a named epoch."""
    orders = []
    for rank in range(ranks):
        place = {"num_replicas": ranks, "rank": rank, "drop_last": drop_last}
        sampler = FlowSampler(weights_of(rows), seed=SEEDS[1], **place, **options)
        passes = [list(sampler) for _ in EPOCHS]
        sampler.set_epoch(300)
        orders.append([recorded(drawn) for drawn in [*passes, list(sampler)]])
    return orders


def dataset_rows(workers, options, _folder):
    """Two whole passes, and one of a named epoch."""
    dataset = FlowDataset(range(1001), weights_of(1001), seed=SEEDS[1], **options)
    loader = loader_over(dataset, workers, 16)
    passes = [rows_in(loader) for _ in EPOCHS]
    dataset.set_epoch(300)
    return [recorded(rows) for rows in [*passes, rows_in(loader)]]


def reweighted_batches(alpha, _folder):
    dataset = [{"row": row, "target": float(row)} for row in range(1001)]
    weights = weights_of(1001)
    data, collate = reweight(dataset, weights, alpha=alpha, entry="weight")
    sampler = FlowSampler(weights, alpha=alpha, seed=7) if alpha else None
    loader = DataLoader(data, batch_size=16, sampler=sampler, collate_fn=collate)
    return [
        [recorded(torch.cat([batch[name] for batch in batches]).numpy()) for name in batches[0]]
        for batches in (list(loader) for _ in EPOCHS)
    ]


def weighted_row_of(sample):
    return int(sample["txt"]), sample.get("__weight__", 1.0)


def recorded_pass(items):
    rows, weights = zip(*rows_in(items), strict=True)
    return [recorded(rows), recorded(weights)]


def stream_orders(ranks, workers, options, folder, table=None):
    """By rank: rows, and their weights, of two passes."""
    orders = []
    for rank in range(ranks):
        place = {"num_replicas": ranks, "rank": rank}
        given = {"window": 20, "shards_open": 2} | place | options
        stream = FlowShards(urls(folder), table or table_of(folder), **given).map(weighted_row_of)
        kept = {"persistent_workers": True} if workers else {}
        loader = loader_over(stream, workers, 8, **kept)
        orders.append([recorded_pass(loader) for _ in EPOCHS])
    return orders


def packed_streams(ranks, workers, folder):
    """By rank: the sizes of packs, and their rows, of two passes."""
    orders = []
    for rank in range(ranks):
        place = {"num_replicas": ranks, "rank": rank, "batch_size": 2}
        loader = loader_over(
            packed(FlowShards(urls(folder), table_of(folder), **place)), workers, 2
        )
        passes = [[pack for batch in loader for pack in batch] for _ in EPOCHS]
        orders.append(
            [[recorded(list(map(len, own))), recorded(list(chain(*own)))] for own in passes]
        )
    return orders


def stage_rows(options, folder, table=None):
    """Rows that the stage lets through, in two passes."""
    stage = resample(table or table_of(folder), **options)
    dataset = wds.WebDataset(urls(folder), shardshuffle=False).compose(stage).map(row_of)
    return [recorded(list(dataset)) for _ in EPOCHS]


def cases():
    for rows in (3, 1000):
        for tau in ("median", "mean", "quantile:0.4", 1.5):
            yield f"weights, {rows} rows, temperature {tau}", partial(weight_values, rows, tau)
    yield "weights, invalid rows dropped", weights_without_invalid_rows
    for rows in (3, 1000, 200_000):
        for kind in ("from losses", "given"):
            for option in plan_options(rows, kind):
                name = f"plan, {rows} rows, weights {kind}, {option}"
                yield name, partial(plan_draws, rows, kind, option)
    packings = {
        "": {},
        ", strata": {"arrange": strata},
        ", multinomial": {"scheme": "multinomial"},
        ", distinct": {"epoch_size": "distinct"},
    }
    for rows in (1001, 40_000):
        yield f"plan, {rows} rows, by length", partial(plan_by_length, rows)
        yield f"packs of shards, {rows} rows", partial(packed_shards, rows)
        for kind, options in packings.items():
            yield f"packs, {rows} rows{kind}", partial(packed_draws, rows, options)
    for rows in (1001, 40_000):
        kinds = {"": {}, ", strata": {"strata": strata(rows)}, ", 0.3": {"epoch_size": 0.3}}
        for ranks, drop_last in ((1, False), (3, False), (3, True), (8, True)):
            for kind, options in kinds.items():
                name = f"sampler, {rows} rows, {ranks} ranks, drop_last={drop_last}{kind}"
                yield name, partial(sampler_orders, rows, ranks, drop_last, options)
    for workers in (0, 2):
        yield f"dataset, {workers} workers", partial(dataset_rows, workers, {})
        options = {"epoch_size": "distinct", "alpha": 0.5}
        yield f"dataset, {workers} workers, distinct", partial(dataset_rows, workers, options)
    for alpha in (0.0, 0.5):
        yield f"reweighting loader, alpha {alpha}", partial(reweighted_batches, alpha)
    streams = {
        "": {},
        ", by batches": {"batch_size": 8},
        ", by batches, another seed": {"batch_size": 8, "seed": SEEDS[1]},
        ", drop_last": {"drop_last": True, "epoch_size": 200},
        ", one window": {"window": 1000, "shards_open": 8},
        ", alpha 0.5, by batches": {"alpha": 0.5, "batch_size": 8},
        ", multinomial": {"scheme": "multinomial"},
    }
    for mode in ("resample", "reweight"):
        for ranks, workers in ((1, 0), (3, 0), (1, 2), (2, 2)):
            for kind, options in streams.items():
                if workers == 0 or "by batches" in kind or (kind == "" and ranks == 1):
                    name = f"stream, {mode}, {ranks} ranks, {workers} workers{kind}"
                    yield name, partial(stream_orders, ranks, workers, {"mode": mode} | options)
    for ranks, workers in ((1, 0), (3, 0), (2, 2)):
        name = f"stream, packs, {ranks} ranks, {workers} workers"
        yield name, partial(packed_streams, ranks, workers)
        options = {"arrange": ByLength(lengths_of(SHARD_ROWS), batch_size=8 * ranks)}
        name = f"stream, by length, {ranks} ranks, {workers} workers"
        yield name, partial(stream_orders, ranks, workers, options | {"batch_size": 8})
    for seed in SEEDS:
        yield f"stage, seed {seed}", partial(stage_rows, {"seed": seed})
    yield "stage, multinomial", partial(stage_rows, {"scheme": "multinomial", "epoch_size": 400})


CASES = dict(cases())
