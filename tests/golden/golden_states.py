"""Passes that were stopped, whose saved states are golden records with the rows that were left."""

import json
from functools import partial
from itertools import chain, islice
from typing import Any, NamedTuple

import torch
import webdataset as wds
from golden_inputs import (
    SHARD_ROWS,
    by_length,
    loader_over,
    packed,
    row_of,
    rows_in,
    strata,
    table_of,
    urls,
    weights_of,
)
from golden_lightning import Training
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader

from flowdata import DistributedFlowSampler, FlowDataset, FlowSampler, FlowShards

SEED, OTHER_SEED, ROWS, DRAWS, BATCH = 5, 99, 40, 48, 4


class Ranks:
    """Several doors that load one state, and together give their rows in turn."""

    def __init__(self, doors):
        self.doors = doors

    def load_state_dict(self, state):
        for door in self.doors:
            door.load_state_dict(state)

    def __iter__(self):
        return chain.from_iterable(zip(*map(list, self.doors), strict=True))


def sampler(_folder, seed, kind=FlowSampler, epoch=3, **options):
    made = kind(weights_of(ROWS), **{"seed": seed, "epoch_size": DRAWS} | options)
    made.set_epoch(epoch)
    return made, made


def stateful_sampler(folder, seed, workers=0, **options):
    loader = loader_over(
        range(ROWS), workers, BATCH, StatefulDataLoader, sampler=sampler(folder, seed, **options)[0]
    )
    return loader, loader


def dataset_of_draws(_folder, _seed, epoch=3):
    dataset = FlowDataset(range(ROWS), weights_of(ROWS), seed=SEED, epoch_size=DRAWS)
    if epoch is not None:
        dataset.set_epoch(epoch)
    return dataset, loader_over(dataset, 0, BATCH)


def stream(folder, seed, ranks=1, rank=0, **options):
    own = {"epoch_size": DRAWS, "window": 7, "shards_open": 2, "batch_size": BATCH}
    place = {"num_replicas": ranks, "rank": rank}
    made = FlowShards(urls(folder), table_of(folder), seed=seed, **own | place | options)
    return (made := made.map(row_of)), made


def stream_of_packs(folder, seed, ranks=1, rank=0):
    own = {"epoch_size": DRAWS, "shards_open": 2, "batch_size": BATCH}
    place = {"num_replicas": ranks, "rank": rank}
    made = packed(FlowShards(urls(folder), table_of(folder), seed=seed, **own | place))
    return made, made


def loaded_stream(folder, seed, workers, kind=DataLoader, **options):
    """Its loader has the state if that is torchdata's, otherwise it has it itself."""
    made, _ = stream(folder, seed, **options)
    loader = loader_over(made, workers, BATCH, kind)
    return (made if kind is DataLoader else loader), loader


def moved_stream(folder, seed):
    """One of two ranks that go on where one rank stopped."""
    alone, _ = stream(folder, seed)
    list(islice(alone, 2 * BATCH))
    moved, _ = stream(folder, seed, ranks=2)
    moved.load_state_dict(alone.state_dict())
    return moved, moved


def two_of_three(row):
    if row % 3 == 0:
        raise ValueError(row)
    return row


def dropping_stream(folder, seed):
    made, _ = stream(folder, seed, ranks=2, rank=1)
    return (made := made.map(two_of_three, handler=wds.ignore_and_continue)), made


def on_ranks(make, ranks, option, folder, seed):
    places = [{option: ranks, "rank": rank} for rank in range(ranks)]
    doors = Ranks([make(folder, seed, **place)[0] for place in places])
    return doors, doors


class Interruption(NamedTuple):
    """A pass that is stopped, and what goes on from its state.

    Attributes:
        make: (folder, seed) -> what has the state, and what is iterated over.
        given: items that were given out before; 0 for a state before the pass begins.
        position: as it is stated to ``state_dict``.
        goes_on: makes what loads the state; default ``make``.
        without: a key of the state that older versions did not write.
    """

    make: Any
    given: int
    position: int | None = None
    goes_on: Any = None
    without: str = ""

    def interrupted(self, folder):
        """The state, and the rows that were left of the pass."""
        torch.manual_seed(SEED)
        door, items = self.make(folder, SEED)
        running = iter(items) if self.given else ()
        list(islice(running, self.given))
        state = door.state_dict(**{} if self.position is None else {"position": self.position})
        state.pop(self.without, None)
        # Loaders keep some objects of their own in it.
        return json.loads(json.dumps(state)), rows_in(running)

    def resumed(self, folder, state):
        """Rows of the two passes that follow from a state, whatever the seed was before it."""
        door, items = (self.goes_on or self.make)(folder, OTHER_SEED)
        door.load_state_dict(state)
        return [rows_in(items) for _ in range(2)]


DISTRIBUTED = partial(sampler, kind=DistributedFlowSampler, num_replicas=2, rank=1)
ON_3_SAMPLERS = partial(on_ranks, sampler, 3, "num_replicas")
ON_3_STREAMS = partial(on_ranks, stream, 3, "ranks")
WITH_2_WORKERS = partial(loaded_stream, workers=2)
SAVED_BY_LOADER = partial(loaded_stream, kind=StatefulDataLoader)
ENDING = partial(SAVED_BY_LOADER, workers=2, epoch_size=46)


def sampled_rows(folder, seed):
    return range(ROWS), sampler(folder, seed, DistributedFlowSampler, num_replicas=1, rank=0)[0]


def streamed_rows(folder, seed):
    return stream(folder, seed)[0], None


STATES = {
    "sampler, fresh": Interruption(sampler, 0),
    "sampler, middle": Interruption(sampler, 17),
    "sampler, end": Interruption(sampler, DRAWS),
    "sampler, stated position": Interruption(sampler, 20, 12),
    "sampler, strata": Interruption(partial(sampler, strata=strata(ROWS)), 17),
    "sampler, by length": Interruption(partial(sampler, arrange=by_length(ROWS)), 17),
    "sampler, alpha 0.5": Interruption(partial(sampler, alpha=0.5), 17),
    "sampler, multinomial": Interruption(partial(sampler, scheme="multinomial"), 17),
    "sampler, older than strata": Interruption(sampler, 17, without="strata"),
    "sampler, on 3 ranks": Interruption(sampler, 12, goes_on=ON_3_SAMPLERS),
    "distributed sampler, fresh": Interruption(DISTRIBUTED, 0),
    "distributed sampler, middle": Interruption(DISTRIBUTED, 9),
    "distributed sampler, end": Interruption(DISTRIBUTED, DRAWS // 2),
    "StatefulDataLoader, sampler, fresh": Interruption(stateful_sampler, 0),
    "StatefulDataLoader, sampler, middle": Interruption(stateful_sampler, 5),
    "StatefulDataLoader, sampler, end": Interruption(stateful_sampler, DRAWS // BATCH + 1),
    "StatefulDataLoader, distributed sampler": Interruption(
        partial(stateful_sampler, kind=DistributedFlowSampler, num_replicas=2, rank=1), 3
    ),
    "StatefulDataLoader, 2 workers, sampler": Interruption(partial(stateful_sampler, workers=2), 5),
    "dataset": Interruption(dataset_of_draws, 0, goes_on=partial(dataset_of_draws, epoch=None)),
    "stream, fresh": Interruption(stream, 0),
    "stream, middle": Interruption(stream, 13),
    "stream, end": Interruption(stream, DRAWS + 1),
    "stream, stated position": Interruption(stream, 13, 12, ON_3_STREAMS),
    "stream, reweight": Interruption(partial(stream, mode="reweight"), 13),
    "stream, one of 3 ranks": Interruption(partial(stream, ranks=3, rank=2), 5),
    "stream, on 3 ranks": Interruption(stream, 12, goes_on=ON_3_STREAMS),
    "stream, moved": Interruption(moved_stream, 6, goes_on=partial(stream, ranks=2)),
    "stream, after drops": Interruption(dropping_stream, 9),
    "stream, packs": Interruption(stream_of_packs, 5),
    "stream, packs, one of 2 ranks": Interruption(partial(stream_of_packs, ranks=2, rank=1), 3),
    "stream, by length": Interruption(partial(stream, arrange=by_length(SHARD_ROWS, BATCH)), 13),
    "stream, 2 workers": Interruption(WITH_2_WORKERS, 3, 3 * BATCH),
    "stream, 2 workers, on 3 ranks": Interruption(WITH_2_WORKERS, 3, 3 * BATCH, ON_3_STREAMS),
    "StatefulDataLoader, stream": Interruption(partial(SAVED_BY_LOADER, workers=0), 3),
    "StatefulDataLoader, 2 workers, stream": Interruption(partial(SAVED_BY_LOADER, workers=2), 3),
    # The last batch is short: the worker that made it knows that it has ended.
    "StatefulDataLoader, 2 workers, stream, last batch": Interruption(ENDING, 12),
    "StatefulDataLoader, 2 workers, stream, end": Interruption(ENDING, 13),
    "Lightning, distributed sampler": Training(sampled_rows, (SEED, OTHER_SEED)),
    "Lightning, stream": Training(streamed_rows, (SEED, OTHER_SEED)),
}
