"""resample: a stage that drops and repeats raw samples in a WebDataset pipeline."""

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache, partial
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from flowdata.core.plan import EpochPlan, EpochSize, Scheme
from flowdata.core.weights import FlowWeights, HasWeights
from flowdata.errors import MismatchError, warn
from flowdata.streaming.shared_epochs import SharedEpochs
from flowdata.streaming.tables import Table, index_and_weights
from flowdata.table.shard_index import plain_keys
from flowdata.tar.names import ShardNames
from flowdata.transport.urls import redact

# Shards whose samples come mixed, where the stage comes after a shuffle.
_SHARDS_KNOWN = 8


class resample:
    """A pipeline stage that lets each raw sample through as often as it is drawn.

    For pipelines that exist already; put it before ``.decode()``, so that nothing is decoded
    that is not used, and before ``.shuffle()``, which parts the copies of a sample:

        wds.WebDataset(urls, ...).compose(flowdata.resample(table, seed=0)).shuffle(1000).decode()

    How often a sample comes is a pure function of (seed, epoch, weights): it does not depend on
    the worker or rank that reads its shard. But ranks get different numbers of samples;
    `FlowShards` gives them equal ones, an exact length, and reads only what is drawn. Every pass
    is the next epoch, unless `set_epoch` names one: pipelines that share a stage take turns.
    Memory is 8 bytes a row, and the keys of the 8 shards that came last.

    Args:
        table: a loss table of the shards, or their index, or the path of a loss table.
        weights: default those of the table; needed with an index.
        epoch_size, seed, scheme, alpha: see `EpochPlan`.

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
        # Not the offsets and sizes, which take as much memory again.
        self._names = ShardNames(index.shards)
        self._keys, self._bounds = index.keys, index.bounds()
        self._plan = EpochPlan(
            weights, epoch_size=epoch_size, seed=seed, scheme=scheme, alpha=alpha
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
        epoch = self._epochs.begin()
        self._plan = self._plan.at_epoch(epoch)
        counts = self._plan.counts().astype(np.int32)
        # Let go of this epoch's draws, of which the counts are all that is needed.
        self._plan = self._plan.at_epoch(epoch + 1)
        times_in = lru_cache(_SHARDS_KNOWN)(partial(self._count_by_key, counts))
        url, times = "", {}
        for sample in samples:
            if sample["__url__"] != url:
                url = sample["__url__"]
                times = times_in(url)
            key = sample["__key__"]
            if (count := times.get(key)) is None:
                raise MismatchError(
                    f"the loss table has no sample {key!r} of {redact(url)}: score these shards, "
                    "or restore the ones that were scored"
                )
            for _ in range(count):
                yield dict(sample)

    def _count_by_key(self, counts: NDArray[np.int32], url: str) -> dict[str, int]:
        """How often each key of a shard comes."""
        shard = self._names.number(url)
        first, last = self._bounds[shard], self._bounds[shard + 1]
        keys = plain_keys(self._keys[first:last])
        return dict(zip(keys, counts[first:last].tolist(), strict=True))
