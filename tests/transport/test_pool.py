"""The pool that reads side by side: what it does first, what it asks for again, how it ends."""

import threading

import pytest

from flowdata import Access, ShardError
from flowdata.transport.access import AbandonedError
from flowdata.transport.counts import Counts
from flowdata.transport.fetching import Fetch
from flowdata.transport.pool import ReadingPool
from flowdata.transport.speeds import Speeds

ACCESS = Access(retries=0)


class Impatient(Speeds):
    """Everything takes longer than it should."""

    def is_overdue(self, size, seconds, **_):
        return True


class Source:
    """Fetches whose attempts do what a test says, in turn, and the last of these from then on."""

    def __init__(self, *manners):
        self.manners, self.fetches, self.lock = manners, [], threading.Lock()

    def __call__(self):
        with self.lock:
            manner = self.manners[min(len(self.fetches), len(self.manners) - 1)]
            self.fetches.append(Fetch(manner, "http://h/a.tar", ACCESS))
            return self.fetches[-1]


def stall(fetch):
    """Stand still until somebody abandons it."""
    ended = threading.Event()
    fetch.holds(ended.set)
    assert ended.wait(30)
    raise OSError("the connection was closed")


def answer(fetch):
    return b"content"


def fail(fetch):
    raise OSError("broken")


@pytest.fixture
def counts():
    return Counts()


@pytest.fixture
def pool(counts):
    pool = ReadingPool(4, counts)
    yield pool
    pool.close()
    assert not alive()


def alive():
    return [thread for thread in threading.enumerate() if thread.name.startswith("flowdata-")]


def read(pool, source, speeds=None, wait=True):
    outcomes = []

    def done(outcome):
        outcomes.append(outcome)
        pool.tell()

    pool.fetch((0, 0), source, 7, speeds or Speeds(), done)
    if wait:
        pool.wait(lambda: outcomes)
    return outcomes


def test_what_is_first_in_order_is_done_first(counts):
    pool, began, done = ReadingPool(1, counts), threading.Event(), []
    pool.submit((0, 0), began.wait)
    for order in ((3, 1), (1, 2), (2, 0), (1, 1)):
        pool.submit(order, lambda order=order: done.append(order))
    pool.submit((9, 9), pool.tell)
    began.set()
    pool.wait(lambda: len(done) == 4)
    pool.close()
    assert done == sorted(done)


def test_a_request_that_stands_still_is_made_again_and_the_first_answer_counts(pool, counts):
    source = Source(stall, answer)
    assert read(pool, source, Impatient()) == [b"content"]
    assert len(source.fetches) == 2
    assert source.fetches[0].abandoned
    assert counts.hedged == 1


def test_a_repetition_that_stands_still_is_repeated_too(pool):
    source = Source(stall, stall, answer)
    assert read(pool, source, Impatient()) == [b"content"]
    assert [fetch.abandoned for fetch in source.fetches] == [True, True, False]


def test_the_request_of_a_job_is_made_again_as_well(pool):
    found, source = [], Source(stall, answer)

    def job():
        found.append(pool.run(source, 7, Impatient()))
        pool.tell()

    pool.submit((0, 0), job)
    pool.wait(lambda: found)
    assert found == [b"content"]


def test_all_connections_may_stand_still(pool):
    sources = [Source(stall, answer) for _ in range(4)]
    found = [read(pool, source, Impatient(), wait=False) for source in sources]
    pool.wait(lambda: all(found))
    assert found == [[b"content"]] * 4


def test_where_everything_is_slow_few_requests_are_repeated(pool, counts):
    def slow(fetch):
        threading.Event().wait(0.04)
        return b"content"

    found = [read(pool, Source(slow), Impatient(), wait=False) for _ in range(64)]
    pool.wait(lambda: all(found))
    assert found == [[b"content"]] * 64
    assert 0 < counts.hedged <= 4 + 64 // 8


def test_a_failure_is_none_while_there_may_be_an_answer(pool):
    began = threading.Event()

    def fail_later(fetch):
        assert began.wait(30)
        raise OSError("broken")

    def answer_after(fetch):
        began.set()
        threading.Event().wait(0.1)
        return b"content"

    assert read(pool, Source(fail_later, answer_after), Impatient()) == [b"content"]


def test_a_failure_is_what_comes(pool):
    [error] = read(pool, Source(fail))
    assert isinstance(error, ShardError)
    assert "broken" in str(error)


def test_an_error_of_the_pool_itself_is_raised_where_it_is_waited_for(pool):
    def job():
        raise RuntimeError("a mistake")

    pool.submit((0, 0), job)
    with pytest.raises(RuntimeError, match="a mistake"):
        pool.wait(lambda: False)


def test_what_nobody_wants_ends_and_is_not_told(pool):
    source, other = Source(stall), Source(answer)
    outcomes = []
    end = pool.fetch((0, 0), source, 7, Speeds(), outcomes.append)
    while not source.fetches:
        threading.Event().wait(0.001)
    end()
    assert read(pool, other) == [b"content"]
    assert outcomes == []
    assert source.fetches[0].abandoned


def test_threads_are_as_many_as_there_is_work_and_not_more_than_allowed(pool, counts):
    assert read(pool, Source(answer)) == [b"content"]
    assert len(alive()) == 1
    release = threading.Event()

    def wait(fetch):
        assert release.wait(30)
        return b"content"

    found = [read(pool, Source(wait), wait=False) for _ in range(40)]
    while len(alive()) < 4:
        threading.Event().wait(0.001)
    assert len(alive()) == 4
    release.set()
    pool.wait(lambda: all(found))
    assert len(alive()) <= 4 + 1


def test_a_thread_of_the_pool_may_close_it(counts):
    """As where the garbage that it collects has a pass in it that was left."""
    pool, errors, done = ReadingPool(2, counts), [], threading.Event()

    def job():
        try:
            pool.close()
        except RuntimeError as error:
            errors.append(error)
        done.set()

    pool.submit((0, 0), job)
    assert done.wait(30)
    assert errors == []


def test_a_closed_pool_leaves_no_thread_that_can_be_stopped(counts):
    pool = ReadingPool(4, counts)
    sources = [Source(stall) for _ in range(9)]
    outcomes = [read(pool, source, wait=False) for source in sources]
    errors = []

    def job():
        try:
            pool.run(Source(stall), 7, Speeds())
        except AbandonedError as error:
            errors.append(error)

    pool.submit((-1, 0), job)
    while sum(len(source.fetches) for source in sources) < 3:
        threading.Event().wait(0.001)
    pool.close()
    assert not alive()
    assert outcomes == [[]] * 9
