"""Source: raw samples of one worker's draws, and others in place of those that are lost."""

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowdata.errors import ShardError, warn
from flowdata.streaming.progress import Progress, WorkerEpoch
from flowdata.streaming.windows import Content, WindowReader
from flowdata.table.shard_index import ShardIndex
from flowdata.tar.names import match_all
from flowdata.tar.samples import parse_sample
from flowdata.transport.access import Access
from flowdata.transport.urls import Urls, expand_braces, redact

Stages = Callable[[Iterator[dict[str, Any]]], Iterator[Any]]


class Source:
    """Makes the samples of a run from shards."""

    def __init__(
        self,
        urls: Urls,
        index: ShardIndex,
        access: Access,
        handler: Callable[[Exception], bool],
        progress: Progress,
        loss_weights: NDArray[np.float64] | None,
    ) -> None:
        self._index = index
        self._urls = match_all(expand_braces(urls), index.shards)
        self._names = [redact(url) for url in self._urls]
        self._access = access
        self._handler = handler
        self._loss_weights = loss_weights
        self.progress = progress
        self.bytes_read = 0

    def samples(self, run: WorkerEpoch, stages: Stages) -> Iterator[Any]:
        """As many samples that came through the stages as the run still owes.

        Where some are dropped, the draws of this worker go round once more, from the first.

        Raises:
            ShardError: when nothing at all comes through.
            ValueError: for a stage that makes several samples of one.
        """
        given, fruitful = run.done, run.read
        while given < run.owed:
            begun = run.read
            samples = stages(self._raw(run))
            for sample in itertools.islice(samples, run.owed - given):
                given, fruitful = given + 1, run.read
                if given > run.read:
                    raise ValueError(
                        "a stage makes several samples of one: so many draws would never be made. "
                        "Give what it makes as one sample, a list, and part it in the loop"
                    )
                yield sample
            if run.read == begun or run.read - fruitful >= run.owed:
                raise ShardError(
                    f"none of the {run.owed:,} samples that are drawn in epoch {run.epoch} came "
                    "through: every one is dropped by the handler or a stage"
                )
        if dropped := run.read - run.owed:
            warn(
                f"{dropped:,} of {run.read:,} draws were dropped in epoch {run.epoch}, by the "
                "handler or a stage, and replaced by others"
            )

    def _raw(self, run: WorkerEpoch) -> Iterator[dict[str, Any]]:
        reader = WindowReader(
            self._index, self._urls, self._access, shards_open=self.progress.shards_open
        )
        try:
            for row, content in reader.draws(run.windows()):
                run.read += 1
                try:
                    sample = self._sample(row, content)
                except ShardError as error:
                    if self._handler(error):
                        continue
                    return
                yield sample
        finally:
            self.bytes_read += reader.bytes_read

    def _sample(self, row: int, content: Content) -> dict[str, Any]:
        key, url = self._index.key(row), self._names[self._index.shard[row]]
        if isinstance(content, ShardError):
            raise ShardError(f"the sample {key!r} of {url} cannot be read: {content}") from content
        sample = parse_sample(content, key, url)
        if self._loss_weights is not None:
            sample["__weight__"] = float(self._loss_weights[row])
        return sample
