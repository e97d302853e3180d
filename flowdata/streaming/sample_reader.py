"""SampleReader: the samples of one worker's draws, with others in place of those dropped."""

import itertools
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowdata.core.weights import FlowWeights
from flowdata.errors import ShardError, warn
from flowdata.streaming.order import Window
from flowdata.streaming.pack_stage import PackStage
from flowdata.streaming.stats import PassStats, SharedStats, StreamStats
from flowdata.streaming.windows import WindowReader
from flowdata.streaming.worker_epoch import WorkerEpoch
from flowdata.table.shard_index import ShardIndex
from flowdata.tar.names import match_all
from flowdata.tar.pieces import Content
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

    @property
    def gives_weights(self) -> bool:
        """Whether samples have weights of their losses."""
        return self._weights is not None

    def stats(self) -> StreamStats:
        """What reading the epoch took that began last, in all workers."""
        return self._stats.of_last_pass()

    def samples(
        self, run: WorkerEpoch, stages: Stages, packing: PackStage | None = None
    ) -> Iterator[Any]:
        """As many samples, or packs, that came through the stages as the run has to give yet.

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
            yield from self._replacing(run, stages, taken, packing)
        finally:
            taken.show()
        if dropped := run.read - run.total:
            what = "draws" if packing is None else "packs"
            warn(
                f"{dropped:,} of {run.read:,} {what} were dropped in epoch {run.epoch}, by the "
                "handler or a stage, and replaced by others"
            )
        if run.lost:
            warn(
                f"{run.lost:,} draws were dropped in epoch {run.epoch}, by the handler or a stage: "
                "their packs are shorter by these"
            )
        taken.log(self._name)

    def _replacing(
        self, run: WorkerEpoch, stages: Stages, taken: PassStats, packing: PackStage | None
    ) -> Iterator[Any]:
        # Not `run.done`, which later stages may let lag behind.
        yielded, read_at_last_yield = run.done, run.read
        while yielded < run.total:
            read_before = run.read
            if packing is None:
                samples = stages(self._raw_samples(run, taken))
            else:
                samples = stages(self._packs(run, taken, packing))
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
        with closing(self._read(run.windows(), taken)) as read:
            for _, sample, goes_on in read:
                run.read += 1
                if sample is not None:
                    yield sample
                elif not goes_on:
                    return

    def _packs(self, run: WorkerEpoch, taken: PassStats, stage: PackStage) -> Iterator[Any]:
        """The packs that a stage makes; none where all samples of one are dropped."""
        sizes = deque[int]()
        with closing(self._read(_note_packs(run.windows(), sizes), taken)) as read:
            for first in read:
                run.read += 1
                drawn = [first, *itertools.islice(read, sizes.popleft() - 1)]
                kept = [(row, sample) for row, sample, _ in drawn if sample is not None]
                pack, samples = stage.join(kept)
                # A pack is counted as one sample elsewhere.
                taken.samples += max(samples - 1, 0)
                taken.dropped += len(drawn) - max(samples, 1)
                if pack is not None:
                    run.lost += len(drawn) - samples
                    yield pack

    def _read(
        self, windows: Iterable[tuple[Window, int]], taken: PassStats
    ) -> Generator[tuple[int, dict[str, Any] | None, bool], None, None]:
        """Row and sample of each draw; None for what cannot be read, and if the handler goes on."""
        reader = WindowReader(self._index, self._urls, self._access)
        taken.read.append(reader.reading)
        shards = lru_cache(2 * self._shards_open)(self._open_shard)
        try:
            for row, shard, key, content in reader.draws(taken.shown_at_each(windows)):
                url, first, weights = shards(shard)
                try:
                    sample = _make_sample(content, key, url)
                except ShardError as error:
                    yield row, None, self._handler(error)
                    continue
                finally:
                    # It would keep what its whole request gave until the next window is there.
                    del content
                if weights is not None:
                    sample["__weight__"] = float(weights[row - first])
                yield row, sample, True
        finally:
            self.bytes_read += reader.bytes_read

    def _open_shard(self, number: int) -> tuple[str, int, NDArray[np.float64] | None]:
        """The URL of a shard as it may be shown, its first row, and weights of its rows."""
        first, end = self._bounds[number : number + 2].tolist()
        if self._weights is None:
            return redact(self._urls[number]), first, None
        return redact(self._urls[number]), first, self._weights.part(first, end) * self._scale


def _note_packs(
    windows: Iterable[tuple[Window, int]], sizes: deque[int]
) -> Iterator[tuple[Window, int]]:
    """The windows; of each the packs that are to come are put into a queue, by their draws."""
    for window, done in windows:
        assert window.packs is not None
        ends = itertools.accumulate(window.packs)
        sizes += [size for size, end in zip(window.packs, ends, strict=True) if end > done]
        yield window, done


def _make_sample(content: Content, key: str, url: str) -> dict[str, Any]:
    if isinstance(content, ShardError):
        raise ShardError(f"the sample {key!r} of {url} cannot be read: {content}") from content
    return parse_sample(content, key, url)
