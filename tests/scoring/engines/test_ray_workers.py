"""Which worker of a Ray cluster scores what next, with a cluster that does as it is told."""

import numpy as np
import pytest

import flowdata
from flowdata.scoring.engines import ray_workers
from flowdata.scoring.engines.ray_workers import RayWorkers, Sizes, open_dataset
from flowdata.table.scored_rows import ScoredRows, concatenate_parts

IDENTITY = {"model_hash": "a"}


class TaskError(Exception):
    def __init__(self, cause):
        self.cause = cause


class DiedError(Exception):
    pass


class Errors:
    RayTaskError = TaskError
    RayError = DiedError


class Method:
    def __init__(self, ray, worker, name):
        self.ray, self.worker, self.name = ray, worker, name

    def remote(self, *arguments):
        self.ray.asked.append((self.worker, self.name, arguments))
        return len(self.ray.asked) - 1


class Cluster:
    """Ray, whose workers finish what they were asked in the order that ``choose`` says."""

    exceptions = Errors

    def __init__(self, choose):
        self.asked, self.finished, self.killed = [], [], []
        self.choose, self.workers = choose, 0
        self.error = None

    def put(self, value):
        return value

    def remote(self, kind):
        assert callable(kind.score)
        return self

    def options(self, **options):
        assert options == {"max_restarts": -1, "max_task_retries": 3, "num_cpus": 1}
        # A worker is what `remote` of a class gives.
        return type("Kind", (), {"remote": self._start})

    def _start(self):
        self.workers += 1
        number = self.workers - 1
        methods = {name: Method(self, number, name) for name in ("begin", "score")}
        return type("Handle", (), methods)()

    def wait(self, references, timeout=None):
        place = self.choose(self, references)
        return ([], references) if place is None else ([references[place]], [])

    def available_resources(self):
        return {"CPU": 0.0}

    def get(self, reference):
        self.finished.append(reference)
        worker, name, arguments = self.asked[reference]
        if name == "begin":
            return f"provenance of {worker}", Sizes(4, whole=True)
        if self.error is not None:
            raise self.error
        given, identity, blocks = arguments
        assert (given, identity) == (["options", "data"], IDENTITY)
        return concatenate_parts(
            [ScoredRows(some.rows_left, frozen(some.rows_left)) for some in blocks]
        )

    def kill(self, worker):
        self.killed.append(worker)

    def scored_by(self, worker):
        return [n for n, (by, name, _) in enumerate(self.asked) if (by, name) == (worker, "score")]


def frozen(rows):
    losses = rows.astype(np.float32)
    losses.flags.writeable = False
    return losses


def first(cluster, references):
    return 0


def start(choose, workers=2):
    cluster = Cluster(choose)
    return cluster, RayWorkers(cluster, workers, {"num_cpus": 1}, ["options", "data"])


def score(pool, left, rows=None):
    rows = np.arange(40) if rows is None else rows
    return concatenate_parts([*pool.score(left, rows, Sizes(4, whole=True), IDENTITY)])


@pytest.fixture(autouse=True)
def _one_block_a_task(monkeypatch):
    monkeypatch.setattr(ray_workers, "_ROWS_PER_TASK", 4)


def test_a_worker_that_never_begins_is_not_waited_for_and_stopped_at_the_end():
    def all_but_the_begin_of_1(cluster, references):
        names = [(cluster.asked[n][0], cluster.asked[n][1]) for n in references]
        return next(place for place, name in enumerate(names) if name != (1, "begin"))

    cluster, pool = start(all_but_the_begin_of_1)
    assert pool.begin() == ("provenance of 0", Sizes(4, whole=True))
    scored = score(pool, np.arange(40))
    assert sorted(scored.rows) == [*range(40)]
    assert len(cluster.scored_by(0)) == 10
    assert cluster.scored_by(1) == []
    pool.end()
    assert len(cluster.killed) == 2


def test_a_worker_has_two_tasks_and_one_that_joins_later_gets_its_part():
    def begins_late(cluster, references):
        done = len(cluster.finished)
        late = [n for n in references if cluster.asked[n][:2] == (1, "begin")]
        return references.index(late[0]) if late and done == 4 else 0

    cluster, pool = start(begins_late)
    pool.begin()
    assert sorted(score(pool, np.arange(40)).rows) == [*range(40)]
    assert [cluster.asked[n][0] for n in range(2, 4)] == [0, 0]
    assert cluster.scored_by(1)[:2] == [7, 8]


def test_at_the_end_another_worker_does_what_one_has_not_finished_and_rows_come_once():
    def worker_0_hangs(cluster, references):
        by = [cluster.asked[n] for n in references]
        return next(p for p, (worker, name, _) in enumerate(by) if worker or name == "begin")

    cluster, pool = start(worker_0_hangs)
    pool.begin()
    scored = score(pool, np.arange(40))
    assert sorted(scored.rows) == [*range(40)]
    # Of worker 0 two tasks hang: they are given away once each.
    assert len(cluster.scored_by(0)) == 2
    assert len(cluster.scored_by(1)) == 10


@pytest.mark.parametrize("seed", range(20))
def test_whatever_ends_first_every_row_that_is_left_comes_once_in_its_block(seed):
    random = np.random.default_rng(seed)
    left = np.flatnonzero(random.random(40) < 0.6)
    known = np.flatnonzero(random.random(40) < 0.2)
    left, rows = np.setdiff1d(left, known), np.setdiff1d(np.arange(40), known)
    cluster, pool = start(lambda _, references: random.integers(len(references)), workers=3)
    pool.begin()
    scored = score(pool, left, rows)
    assert sorted(scored.rows) == left.tolist()
    # Ray's arrays cannot be changed, and invalid losses are.
    scored.losses[0] = np.nan
    blocks = [*np.split(rows, range(4, rows.size, 4))]
    for *_, arguments in cluster.asked[3:]:
        if len(arguments) == 3:
            [block] = arguments[2]
            assert any(np.array_equal(block.rows, some) for some in blocks)


def test_errors_of_workers_are_told_as_what_they_are():
    cluster, pool = start(first)
    pool.begin()
    cluster.error = TaskError(ValueError("row 7 is no good"))
    with pytest.raises(ValueError, match=r"^row 7 is no good$"):
        score(pool, np.arange(40))
    cluster.error = DiedError("out of memory")
    with pytest.raises(flowdata.FlowDataError, match="again over rows 0 to 3: out of memory"):
        score(pool, np.arange(40))


def test_a_cluster_without_room_is_named_after_a_minute():
    waits = [None, 0]
    _, pool = start(lambda *_: waits.pop(0))
    with pytest.warns(flowdata.FlowDataWarning, match=r"A worker takes .* free are now \{'CPU': 0"):
        pool.begin()


def test_data_is_opened_by_a_function_and_streams_are_refused():
    rows = [1, 2]
    assert open_dataset(rows) is rows
    assert open_dataset(lambda: rows) is rows
    with pytest.raises(ValueError, match="rows by number, and a list_iterator has none"):
        flowdata.score_on_ray(list, iter(rows), "mse", workers=1)
    with pytest.raises(ValueError, match="workers must be at least 1"):
        flowdata.score_on_ray(list, rows, "mse", workers=0)
