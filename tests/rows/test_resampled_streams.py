"""Whatever reads a stream, its rows come as often as the plan draws them, also after a resume."""

import functools
from collections import Counter

import datasets
import pytest
from keyed_streams import (
    ROWS,
    SEED,
    ids_of,
    loader_of,
    make_table,
    open_stream,
    planned,
    rank_of,
    rows_of,
    write_files,
)
from long_run import LONG, some

import flowdata

SHUFFLES = {
    "as they are": lambda stream, resample: resample(stream),
    "shuffled before": lambda stream, resample: resample(stream.shuffle(seed=7, buffer_size=50)),
    "shuffled after": lambda stream, resample: resample(stream).shuffle(seed=7, buffer_size=50),
}
CASES = {
    f"{kind}-{shards} shards-{workers} workers-{ranks} ranks-{shuffle}": (
        kind,
        shards,
        workers,
        ranks,
        shuffle,
    )
    for kind in ("parquet", "json")
    for shards in (1, 4)
    for workers in (0, 1, 4)
    for ranks in (1, 2)
    for shuffle in SHUFFLES
}
ORDINARY = [
    "parquet-4 shards-0 workers-2 ranks-as they are",
    "parquet-4 shards-4 workers-1 ranks-shuffled after",
    "json-1 shards-0 workers-2 ranks-shuffled before",
    "json-4 shards-0 workers-1 ranks-shuffled after",
    "json-4 shards-4 workers-2 ranks-as they are",
]


@pytest.fixture(scope="module")
def table():
    return make_table()


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rows")
    files = {
        (kind, n): write_files(folder, kind, n) for kind in ("parquet", "json") for n in (1, 4)
    }
    cache = functools.cache(lambda *case: open_stream(files[case], str(folder / "cache")))
    with pytest.MonkeyPatch.context() as patch:
        # Seconds for which each worker waits for threads of pyarrow, when it has shuffled.
        patch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0.1, raising=False)
        yield cache


@pytest.mark.parametrize("case", some(CASES, *ORDINARY))
@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_the_counts_are_the_plans_over_workers_and_ranks_in_each_epoch(opened, table, case):
    kind, shards, workers, ranks, shuffle = CASES[case]
    streams = [
        SHUFFLES[shuffle](
            rank_of(opened(kind, shards), rank, ranks),
            lambda stream: flowdata.resample_rows(stream, table, key="id", seed=SEED),
        )
        for rank in range(ranks)
    ]
    for epoch in range(3):
        found = Counter()
        for stream in streams:
            stream.set_epoch(epoch)
            found.update(ids_of(rows_of(stream, workers)))
        assert found == planned(table, epoch)


@pytest.mark.parametrize("case", some(CASES, *ORDINARY[1::2]))
@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_each_row_has_its_own_weight(opened, table, case):
    kind, shards, workers, ranks, shuffle = CASES[case]
    weights = dict(zip(table.keys, table.weights().values.tolist(), strict=True))
    found = []
    for rank in range(ranks):
        stream = SHUFFLES[shuffle](
            opened(kind, shards), lambda stream: flowdata.attach(stream, table, key="id")
        )
        stream = rank_of(stream, rank, ranks)
        stream.set_epoch(1)
        found += rows_of(stream, workers)
    assert {row["id"]: row["weight"] for row in found} == weights
    assert len(found) == ROWS


# A shuffle buffer of datasets loses what it holds: after it there is nothing to hope for.
RESUMED = [case for case in CASES if "shuffled after" not in case]


@pytest.mark.parametrize(
    "case",
    some(
        RESUMED,
        "parquet-4 shards-0 workers-2 ranks-as they are",
        "json-4 shards-0 workers-1 ranks-shuffled before",
        "json-1 shards-0 workers-2 ranks-as they are",
        "parquet-4 shards-4 workers-1 ranks-shuffled before",
    ),
)
@pytest.mark.parametrize("window", some([1, 40, 1000], 40))
@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_a_resume_at_every_tenth_row_goes_on_with_the_next(opened, table, case, window):
    kind, shards, workers, ranks, shuffle = CASES[case]

    def new_stream(rank, epoch):
        stream = SHUFFLES[shuffle](
            rank_of(opened(kind, shards), rank, ranks),
            lambda stream: flowdata.resample_rows(
                stream, table, key="id", seed=SEED, window=window
            ),
        )
        stream.set_epoch(epoch)
        return loader_of(stream, workers)

    for epoch in range(3) if LONG else [1]:
        found = Counter()
        for rank in range(ranks):
            whole, states = [], []
            first = new_stream(rank, epoch)
            for row in first:
                if len(whole) % 10 == 0:
                    states.append(first.state_dict())
                whole.append(row["id"])
            # Starting workers takes time.
            for number, state in list(enumerate(states))[:: 1 if LONG or not workers else 6]:
                resumed = new_stream(rank, epoch)
                resumed.load_state_dict(state)
                assert ids_of(resumed) == whole[10 * number + 1 :]
            found.update(whole)
        assert found == planned(table, epoch)


def test_a_resume_of_a_shuffle_after_it_misses_half_a_buffer_and_datasets_says_so(
    opened, table, caplog, monkeypatch
):
    monkeypatch.setattr(datasets.utils.logging.get_logger(), "propagate", True)
    buffer = 50

    def new_stream():
        drawn = flowdata.resample_rows(opened("parquet", 4), table, key="id", seed=SEED, window=1)
        return drawn.shuffle(seed=7, buffer_size=buffer)

    whole = len(rows_of(new_stream(), 0))
    first = new_stream()
    rows = iter(first)
    for _ in range(ROWS // 2):
        next(rows)
    resumed = new_stream()
    resumed.load_state_dict(first.state_dict())
    assert len(rows_of(resumed, 0)) == whole - ROWS // 2 - buffer // 2
    assert "without the buffer content" in caplog.text


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_a_state_of_a_loader_is_not_taken_by_one_with_more_workers(opened, table):
    def new_loader(workers):
        stream = opened("parquet", 4).shuffle(seed=7, buffer_size=50)
        return loader_of(flowdata.resample_rows(stream, table, key="id", seed=SEED), workers)

    first = new_loader(1)
    next(iter(first))
    more = new_loader(2)
    more.load_state_dict(first.state_dict())
    # torchdata 0.11 counts them, and has no words for it.
    with pytest.raises(AssertionError):
        next(iter(more))
