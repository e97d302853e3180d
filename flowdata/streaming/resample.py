"""resample: a stage that drops and repeats raw samples in a WebDataset pipeline."""

import os
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from flowdata.core.plan import EpochSize, Scheme
from flowdata.core.shard_plan import ShardPlan
from flowdata.core.weights import FlowWeights, HasWeights
from flowdata.errors import MismatchError, warn
from flowdata.streaming.shared_epochs import SharedEpochs
from flowdata.streaming.tables import Table, index_and_weights
from flowdata.table.shard_index import plain_keys
from flowdata.tar.names import ShardNames
from flowdata.transport.urls import redact

# Shards whose samples come mixed, where the stage comes after a mix or a shuffle; of more than some
# only while they have few keys in all.
_MOST_SHARDS, _SHARDS, _MOST_KEYS = 64, 8, 1 << 16
# Keys of a shard that are held at once, where its samples come in their order.
_BLOCK = 1024


class resample:
    """A pipeline stage that lets each raw sample through as often as it is drawn.

    For pipelines that exist already; put it before ``.decode()``, so that nothing is decoded
    that is not used, and before ``.shuffle()``, which parts the copies of a sample:

        wds.WebDataset(urls, ...).compose(flowdata.resample(table, seed=0)).shuffle(1000).decode()

    How often a sample comes is a pure function of (seed, epoch, weights): it does not depend on
    the worker or rank that reads its shard. But ranks get different numbers of samples;
    `FlowShards` gives them equal ones, an exact length, and reads only what is drawn. Every pass
    is the next epoch, unless `set_epoch` names one: pipelines that share a stage take turns.
    Memory is some hundred bytes a shard and what the table and its weights take. Keys are looked up
    shard by shard: about a thousand are held of each shard whose samples have not come yet, all of
    them where they come in another order than the table's (after a shuffle).

    Args:
        table: a loss table of the shards, or their index, or the path of a loss table.
        weights: default those of the table; needed with an index.
        epoch_size, seed, scheme, alpha: see `EpochPlan`; `FlowShards` of the same draws as often.

    Raises:
        InvalidLossError: for weights that cannot be sampled.
        MismatchError: for weights of another length, and, in the pass, for a shard or a key that
            the table does not know.
        TypeError: for a table without an index of shards.
    """

    def __init__(
        self,
        table: Table,
        weights: FlowWeights | HasWeights | ArrayLike | None = None,
        *,
        epoch_size: EpochSize = "full",
        seed: int = 0,
        scheme: Scheme = "systematic",
        alpha: float = 1.0,
    ) -> None:
        index, weights = index_and_weights(table, weights)
        self._index, self._names = index, ShardNames(index.shards)
        self._plan = ShardPlan(
            weights, index.bounds(), epoch_size=epoch_size, seed=seed, scheme=scheme, alpha=alpha
        )
        self._epochs = SharedEpochs(self._plan.seed)
        # By process, as a worker that is forked is told of passes that it does not make.
        self._passes: Counter[int] = Counter()

    def set_epoch(self, epoch: int) -> None:
        """Make ``epoch`` that of the next pass, in worker processes too."""
        self._epochs.set_epoch(epoch)

    def __call__(self, samples: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """The samples that are drawn, each copy a dict of its own."""
        with self._alone():
            yield from self._drawn(samples)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Warn of a pass that begins while another one is under way in this process."""
        process = os.getpid()
        self._passes[process] += 1
        if self._passes[process] > 1:
            warn(
                "two pipelines, or two passes of one, use a resample stage at once, and so draw "
                "different epochs: give each pipeline a stage of its own, flowdata.resample(...)"
            )
        try:
            yield
        finally:
            self._passes[process] -= 1

    def _drawn(self, samples: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        plan = self._plan.at_epoch(self._epochs.begin())
        shards = _ShardsUnderWay(partial(self._open, plan))
        url = ""
        for sample in samples:
            if not isinstance(sample, dict):
                raise TypeError(
                    f"resample was given {type(sample).__name__}, not a raw sample of webdataset: "
                    "put it before the stages that make something else of samples, as .map()"
                )
            if sample["__url__"] != url:
                url = sample["__url__"]
                shard = shards.at(url)
            for _ in range(shard.times(sample["__key__"])):
                yield dict(sample)

    def _open(self, plan: ShardPlan, url: str) -> "_TimesInShard":
        import pyarrow as pa

        shard = self._names.number(url)
        # A copy: of a table in a file it is a part of what was read for many shards.
        keys = pa.concat_arrays([self._index.keys_of(shard)])
        return _TimesInShard(keys, plan.counts_of(shard), redact(url))


class _ShardsUnderWay:
    """Shards of which samples have come, and more are to come; those that came last.

    Args:
        open_shard: what looks up the keys of the shard of a URL.
    """

    def __init__(self, open_shard: Callable[[str], "_TimesInShard"]) -> None:
        self._open_shard = open_shard
        self._under_way: OrderedDict[str, _TimesInShard] = OrderedDict()
        self._last = ""

    def at(self, url: str) -> "_TimesInShard":
        """The shard of a URL."""
        if self._last in self._under_way and self._under_way[self._last].left <= 0:
            del self._under_way[self._last]
        if url not in self._under_way:
            self._make_room()
            self._under_way[url] = self._open_shard(url)
        self._under_way.move_to_end(url)
        self._last = url
        return self._under_way[url]

    def _make_room(self) -> None:
        held = sum(shard.held for shard in self._under_way.values())
        while len(self._under_way) >= (_MOST_SHARDS if held <= _MOST_KEYS else _SHARDS):
            held -= self._under_way.popitem(last=False)[1].held


class _TimesInShard:
    """How often each sample of a shard comes, looked up by key.

    Keys are read some at a time, as they lie; where one comes that is not among the next ones,
    all are.

    Attributes:
        left: samples that have not come yet.
    """

    def __init__(self, keys: Any, counts: NDArray[np.int64], name: str) -> None:
        self._keys, self._counts, self._name = keys, counts, name
        self._times: dict[str, int] = {}
        self._end = 0
        self.left = len(keys)

    @property
    def held(self) -> int:
        """Keys that are held to be looked up."""
        return len(self._times)

    def times(self, key: str) -> int:
        """How often the sample of a key comes.

        Raises:
            MismatchError: for a key that the table does not know.
        """
        self.left -= 1
        if (times := self._times.get(key)) is not None:
            return times
        if len(self._times) < len(self._keys):
            # From the first again, where the shard is read once more.
            start = self._end if self._end < len(self._keys) else 0
            self._read(start, start + _BLOCK)
            if key not in self._times:
                self._read(0, len(self._keys))
        if key not in self._times:
            raise MismatchError(
                f"the loss table has no sample {key!r} of {self._name}: score these shards, "
                "or restore the ones that were scored"
            )
        return self._times[key]

    def _read(self, start: int, stop: int) -> None:
        keys, counts = plain_keys(self._keys[start:stop]), self._counts[start:stop]
        self._times = dict(zip(keys, counts.tolist(), strict=True))
        self._end = start + len(keys)
