"""Workers of a Ray cluster: a model in each, and which of them scores what next."""

import platform
from collections import Counter, deque
from collections.abc import Collection, Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from flowdata.errors import FlowDataError, warn
from flowdata.scoring.engines.worker import EngineWorker
from flowdata.scoring.parts.row_blocks import Block, Worker, blocks_of_worker
from flowdata.scoring.passes.scoring_pass import BatchingPass
from flowdata.table.checks import require_same_pass
from flowdata.table.provenance import Provenance
from flowdata.table.scored_rows import ScoredRows

_ROWS_PER_TASK = 1024
_TASKS_AHEAD = 2
"""So that a worker has the next rows when it is done with some."""

_PATIENCE = 60
_TRIES = 3
"""Times that rows are given to a worker again which has died of them, or beside them."""


def open_dataset(dataset: Any) -> Any:
    """A data set, or what a function that opens it gives."""
    makes_it = callable(dataset) and not hasattr(dataset, "__getitem__")
    return dataset() if makes_it else dataset


class Sizes(NamedTuple):
    """How rows are read: so many at a time, which are one batch if they are taken as a whole."""

    rows: int
    whole: bool


class _RayWorker:
    """What runs in a worker process."""

    def __init__(self) -> None:
        self._opened: tuple[Any, EngineWorker, Provenance] | None = None

    def _open(self, given: list[Any]) -> tuple[Any, EngineWorker, Provenance]:
        # Not in __init__, whose errors Ray tells as the death of the worker.
        if self._opened is None:
            import ray

            options, dataset = ray.get(given)
            data = open_dataset(dataset)
            worker = EngineWorker(options, data)
            self._opened = data, worker, worker.provenance(len(data), data, once=lambda _: None)
        return self._opened

    def begin(self, given: list[Any]) -> tuple[Provenance, Sizes]:
        """The provenance of what is scored here, and how rows are read."""
        _, worker, provenance = self._open(given)
        scoring_pass = worker.scoring_pass
        whole = not isinstance(scoring_pass, BatchingPass)
        return provenance, Sizes(scoring_pass.rows_per_read, whole)

    def score(self, given: list[Any], identity: dict[str, Any], blocks: list[Block]) -> ScoredRows:
        """Losses of what is left of some blocks.

        Raises:
            MismatchError: where model or data are not those of the pass.
        """
        data, worker, provenance = self._open(given)
        require_same_pass(
            identity,
            provenance.identity(),
            what=f"what a worker on {platform.node()} has opened",
            advice="Let all workers open the same model and data",
        )
        return worker.score_blocks(data, blocks)


class RayWorkers:
    """Workers, of which each is given rows as soon as it is there, and when it has few left."""

    def __init__(
        self, ray: Any, workers: int, reserved: dict[str, float], given: list[Any]
    ) -> None:
        self._ray, self._reserved = ray, reserved
        # Put once, not once a worker; told with each task, as one that was started again knows
        # nothing.
        self._given = [ray.put(value) for value in given]
        kind = ray.remote(_RayWorker).options(max_restarts=-1, max_task_retries=_TRIES, **reserved)
        self._workers = [kind.remote() for _ in range(workers)]
        self._starting = {worker.begin.remote(self._given): worker for worker in self._workers}
        self._ready: list[Any] = []

    def begin(self) -> tuple[Provenance, Sizes]:
        """What the first worker that is there says of the pass."""
        starting = [*self._starting]
        first, _ = self._ray.wait(starting, timeout=_PATIENCE)
        if not first:
            warn(
                f"no worker has begun for {_PATIENCE} seconds: its model takes long to load, or "
                f"the cluster has no room for it. A worker takes {self._reserved}, free are now "
                f"{self._ray.available_resources()!s:.500}"
            )
            first, _ = self._ray.wait(starting)
        return self._welcome(first[0])

    def _welcome(self, begun: Any) -> tuple[Provenance, Sizes]:
        self._ready.append(self._starting.pop(begun))
        found: tuple[Provenance, Sizes] = self._result(begun, "as it began")
        return found

    def score(
        self,
        left: NDArray[np.int64],
        rows: NDArray[np.int64],
        sizes: Sizes,
        identity: dict[str, Any],
    ) -> Iterator[ScoredRows]:
        """Losses of the rows that are left of some, in the order in which workers have them."""
        tasks = dict(enumerate(_tasks(left, rows, sizes)))
        waiting = deque(tasks)
        running: dict[Any, tuple[int, Any]] = {}
        while tasks:
            for worker in self._ready:
                while (task := _next_task(worker, waiting, running, tasks)) is not None:
                    running[worker.score.remote(self._given, identity, tasks[task])] = (
                        task,
                        worker,
                    )
            [done], _ = self._ray.wait([*running, *self._starting])
            if done in self._starting:
                self._welcome(done)
                continue
            task, _ = running.pop(done)
            # Another worker may have been faster.
            if task in tasks:
                first, last = tasks[task][0].rows[0], tasks[task][-1].rows[-1]
                scores = self._result(done, f"over rows {first:,} to {last:,}")
                del tasks[task]
                yield _own(scores)

    def _result(self, done: Any, when: str) -> Any:
        errors = self._ray.exceptions
        try:
            return self._ray.get(done)
        except errors.RayTaskError as error:
            # The error itself, which Ray has wrapped in one that has the worker's traceback.
            raise error.cause from error
        except errors.RayError as error:
            raise FlowDataError(
                f"a worker died again and again {when}: {str(error).strip()[:1000]}"
            ) from error

    def end(self) -> None:
        """Stop all workers, also those that never began."""
        for worker in self._workers:
            self._ray.kill(worker)


def _own(scores: ScoredRows) -> ScoredRows:
    """A copy: arrays that Ray gives lie in its store, and cannot be changed."""
    columns = {name: values for name, values in vars(scores).items() if values is not None}
    return ScoredRows(**{name: values.copy() for name, values in columns.items()})


def _next_task(
    worker: Any,
    waiting: "deque[int]",
    running: dict[Any, tuple[int, Any]],
    unfinished: Collection[int],
) -> int | None:
    """What a worker shall do next, in order; at last what another one has not finished yet."""
    own = [task for task, by in running.values() if by is worker]
    if waiting:
        return waiting.popleft() if len(own) < _TASKS_AHEAD else None
    if own:
        return None
    # One on a machine that is gone, or slow, holds up the pass: two do it at most.
    others = Counter(task for task, _ in running.values() if task in unfinished)
    return next((task for task, times in others.items() if times == 1), None)


def _tasks(left: NDArray[np.int64], rows: NDArray[np.int64], sizes: Sizes) -> list[list[Block]]:
    """What is left of some rows: blocks as a pass on one machine reads them, some for a task."""
    is_left = np.isin(rows, left)
    alone = Worker(0, 1)
    blocks = blocks_of_worker(
        rows, is_left, sizes.rows, job=alone, rank=alone, in_order=True, whole=sizes.whole
    )
    step = max(_ROWS_PER_TASK // sizes.rows, 1)
    return [blocks[start : start + step] for start in range(0, len(blocks), step)]
