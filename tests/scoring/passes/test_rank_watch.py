"""What ranks tell each other through their store; threads stand for ranks."""

import itertools
import threading

import pytest
import torch.distributed as dist

from flowdata import FlowDataError
from flowdata.scoring.passes.rank_watch import RankWatch

TIMEOUT = 2.0


@pytest.fixture
def watch():
    """Makes the watch of a rank."""
    store, made = dist.HashStore(), []

    def make(rank, size=2):
        made.append(RankWatch(store, "0", rank, size, TIMEOUT))
        return made[-1]

    yield make
    for each in made:
        each.stop()


def test_ranks_that_are_well_meet_as_often_as_they_like(watch):
    ranks = [watch(rank, 3) for rank in range(3)]
    met = []

    def run(rank):
        for number, item in enumerate(rank.watched(iter("abc"))):
            rank.meet()
            met.append((number, item))

    threads = [threading.Thread(target=run, args=(rank,)) for rank in ranks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert met == sorted(met)
    assert len(met) == 9


@pytest.mark.parametrize("error", [MemoryError("no room\nat all"), KeyboardInterrupt()])
def test_the_error_of_a_rank_that_others_wait_for_is_raised_there(watch, error):
    mine, other = watch(0), watch(1)
    thread = threading.Thread(target=other.report, args=(error,))
    thread.start()
    named = f"rank 1 stopped: {type(error).__name__}{': no room' if str(error) else ''}. What"
    with pytest.raises(FlowDataError, match=named):
        mine.meet()
    thread.join(30)
    with pytest.raises(FlowDataError, match=named):
        list(mine.watched(iter("ab")))


def test_a_rank_that_does_not_come_is_given_up(watch):
    with pytest.raises(FlowDataError, match="rank 1 has not called score within 2 s"):
        watch(0).meet()


def test_a_rank_that_is_gone_is_given_up(watch):
    mine, other = watch(0), watch(1)
    other.stop()
    items = (threading.Event().wait(0.01) for _ in itertools.count())
    with pytest.raises(FlowDataError, match="rank 1 stopped: no sign of life for 2 s"):
        any(mine.watched(items))


def test_a_rank_that_is_stuck_is_given_up(watch):
    mine, other, free = watch(0), watch(1), threading.Event()

    def items():
        yield 0
        free.wait(30)

    def run():
        for _ in other.watched(items()):
            pass

    thread = threading.Thread(target=run)
    thread.start()
    with pytest.raises(FlowDataError, match="rank 1 does not get on: no batch for 2 s"):
        mine.meet()
    free.set()
    thread.join(30)
