"""SampleReader: the samples of one worker's draws, with others in place of those dropped."""

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowdata.errors import ShardError, warn
from flowdata.streaming.windows import Content, WindowReader
from flowdata.streaming.worker_epoch import WorkerEpoch
from flowdata.table.shard_index import ShardIndex
from flowdata.tar.names import match_all
from flowdata.tar.samples import parse_sample
from flowdata.transport.access import Access
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
        loss_weights: of each row, for ``__weight__``; None for none.
    """

    def __init__(
        self,
        urls: Urls,
        index: ShardIndex,
        access: Access,
        handler: Callable[[Exception], bool],
        shards_open: int,
        loss_weights: NDArray[np.float64] | None,
    ) -> None:
        self._index = index
        self._urls = match_all(expand_braces(urls), index.shards, access.signed_by)
        self._names = [redact(url) for url in self._urls]
        self._access = access
        self._handler = handler
        self._loss_weights = loss_weights
        self._shards_open = shards_open
        self.bytes_read = 0

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
        # Not `run.done`, which later stages may let lag behind.
        yielded, read_at_last_yield = run.done, run.read
        while yielded < run.total:
            read_before = run.read
            samples = stages(self._raw_samples(run))
            for sample in itertools.islice(samples, run.total - yielded):
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
        if dropped := run.read - run.total:
            warn(
                f"{dropped:,} of {run.read:,} draws were dropped in epoch {run.epoch}, by the "
                "handler or a stage, and replaced by others"
            )

    def _raw_samples(self, run: WorkerEpoch) -> Iterator[dict[str, Any]]:
        reader = WindowReader(self._index, self._urls, self._access, shards_open=self._shards_open)
        try:
            for row, content in reader.draws(run.windows()):
                run.read += 1
                try:
                    sample = self._make_sample(row, content)
                except ShardError as error:
                    if self._handler(error):
                        continue
                    return
                yield sample
        finally:
            self.bytes_read += reader.bytes_read

    def _make_sample(self, row: int, content: Content) -> dict[str, Any]:
        key, url = self._index.key(row), self._names[self._index.shard[row]]
        if isinstance(content, ShardError):
            raise ShardError(f"the sample {key!r} of {url} cannot be read: {content}") from content
        sample = parse_sample(content, key, url)
        if self._loss_weights is not None:
            sample["__weight__"] = float(self._loss_weights[row])
        return sample
