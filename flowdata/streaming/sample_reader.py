"""SampleReader: the samples of one worker's draws, with others in place of those dropped."""

import itertools
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowdata.core.weights import FlowWeights
from flowdata.errors import ShardError, warn
from flowdata.streaming.stats import PassStats, SharedStats, StreamStats
from flowdata.streaming.windows import Content, WindowReader
from flowdata.streaming.worker_epoch import WorkerEpoch
from flowdata.table.shard_index import ShardIndex
from flowdata.tar.names import match_all
from flowdata.tar.samples import parse_sample
from flowdata.transport.access import Access
from flowdata.transport.remote import import_clients
from flowdata.transport.speeds import hosts_of
from flowdata.transport.urls import Urls, expand_braces, redact

Stages = Callable[[Iterator[dict[str, Any]]], Iterator[Any]]


class SampleReader:
    """Reads the samples of a run from shards.

    Args:
        urls: of the shards.
        index: where the samples lie in them.
        access: how remote shards are reached.
        handler: what becomes of samples that cannot be read, as in webdataset.
        shards_open: shards that are read at once.
        reweighted: the weights, and the alpha that is drawn by, to give each sample what is left
            of its weight as ``__weight__``; None for none.
        name: of the process, for the log.
    """

    def __init__(
        self,
        urls: Urls,
        index: ShardIndex,
        access: Access,
        handler: Callable[[Exception], bool],
        shards_open: int,
        reweighted: tuple[FlowWeights, float] | None,
        *,
        name: str = "",
    ) -> None:
        self._index, self._bounds = index, index.bounds()
        self._urls = match_all(expand_braces(urls), index.shards, access.signed_by)
        import_clients(self._urls)
        self._access = access
        self._handler = handler
        self._weights: FlowWeights | None = None
        if reweighted is not None:
            weights, alpha = reweighted
            # See `FlowWeights.residual_of_draws`, of which only a shard's are made at a time.
            self._weights = weights.power(1.0 - alpha)
            self._scale = weights.power(alpha).total / weights.total
        self._name = name
        self._shards_open = shards_open
        self._stats = SharedStats(hosts_of(self._urls))
        self.bytes_read = 0

    def stats(self) -> StreamStats:
        """What reading the epoch took that began last, in all workers."""
        return self._stats.of_last_pass()

    def samples(self, run: WorkerEpoch, stages: Stages) -> Iterator[Any]:
        """As many samples that came through the stages as the run has to give yet.

        Where some are dropped, the draws of this worker go round once more, from the first. Dropped
        draws are counted in two ways: here by ``run.read``, all that were read, for the warning at
        the end; and in `Progress.count_given` by ``run.drawn``, those up to the sample given out
        last, for a state that is saved on the way.

        Raises:
            ShardError: when nothing at all comes through.
            ValueError: for a stage that makes several samples of one.
        """
        taken = self._stats.begin(run.epoch)
        try:
            yield from self._replacing(run, stages, taken)
        finally:
            taken.show()
        if dropped := run.read - run.total:
            warn(
                f"{dropped:,} of {run.read:,} draws were dropped in epoch {run.epoch}, by the "
                "handler or a stage, and replaced by others"
            )
        taken.log(self._name)

    def _replacing(self, run: WorkerEpoch, stages: Stages, taken: PassStats) -> Iterator[Any]:
        # Not `run.done`, which later stages may let lag behind.
        yielded, read_at_last_yield = run.done, run.read
        while yielded < run.total:
            read_before = run.read
            samples = stages(self._raw_samples(run, taken))
            for sample in itertools.islice(samples, run.total - yielded):
                taken.samples += 1
                taken.dropped += run.read - read_at_last_yield - 1
                yielded, read_at_last_yield = yielded + 1, run.read
                if yielded > run.read:
                    raise ValueError(
                        "a stage gives samples that it was not given: several of one, or old ones "
                        "(a cache). Then some draws would never be used. Return several samples of "
                        "one as a list, and unpack it in the loop"
                    )
                yield sample
            # Where no draw was read, or all of an epoch were dropped, it would go round for ever.
            if run.read == read_before or run.read - read_at_last_yield >= run.total:
                raise ShardError(
                    f"none of the {run.total:,} samples that are drawn in epoch {run.epoch} came "
                    "through: every one is dropped by the handler or a stage"
                )

    def _raw_samples(self, run: WorkerEpoch, taken: PassStats) -> Iterator[dict[str, Any]]:
        reader = WindowReader(self._index, self._urls, self._access)
        taken.read.append(reader.reading)
        shards = lru_cache(2 * self._shards_open)(self._open_shard)
        try:
            for row, shard, key, content in reader.draws(taken.shown_at_each(run.windows())):
                run.read += 1
                url, first, weights = shards(shard)
                try:
                    sample = _make_sample(content, key, url)
                except ShardError as error:
                    if self._handler(error):
                        continue
                    return
                if weights is not None:
                    sample["__weight__"] = float(weights[row - first])
                yield sample
        finally:
            self.bytes_read += reader.bytes_read

    def _open_shard(self, number: int) -> tuple[str, int, NDArray[np.float64] | None]:
        """The URL of a shard as it may be shown, its first row, and weights of its rows."""
        first, end = self._bounds[number : number + 2].tolist()
        if self._weights is None:
            return redact(self._urls[number]), first, None
        return redact(self._urls[number]), first, self._weights.part(first, end) * self._scale


def _make_sample(content: Content, key: str, url: str) -> dict[str, Any]:
    if isinstance(content, ShardError):
        raise ShardError(f"the sample {key!r} of {url} cannot be read: {content}") from content
    return parse_sample(content, key, url)
