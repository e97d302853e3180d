"""Tables that stay in their file, in several processes and threads, and files that change."""

import gc
import multiprocessing
import os
import pickle
import shutil
import threading

import numpy as np
import pytest
from stored_tables import COUNTS, ROWS, held, write

from flowdata import LossTable, TableFileError
from flowdata.table import parquet
from flowdata.table.parquet import DamagedFileError


@pytest.fixture
def path(tmp_path):
    return tmp_path / "table.parquet"


def total_of(weights, queue):
    try:
        queue.put(float(weights.part(0, ROWS).sum()))
    except TableFileError as error:
        queue.put(str(error))


def in_another_process(method, weights):
    context = multiprocessing.get_context(method)
    queue = context.SimpleQueue()
    process = context.Process(target=total_of, args=(weights, queue))
    process.start()
    found = queue.get()
    process.join()
    return found


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_process_goes_on_with_the_file_that_was_opened(path, monkeypatch):
    write(path, "plain", monkeypatch)
    held(monkeypatch, 100)
    weights = LossTable.load(path).weights(0.5, on_invalid="drop")
    assert in_another_process("fork", weights) == weights.relative.sum()
    copied = path.with_name("copy")
    shutil.copy(path, copied)
    os.replace(copied, path)
    assert in_another_process("fork", weights) == weights.relative.sum()


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_file_that_is_written_over_is_noticed_in_a_forked_process(path, monkeypatch):
    write(path, "plain", monkeypatch)
    held(monkeypatch, 100)
    weights = LossTable.load(path).weights(0.5, on_invalid="drop")
    path.write_bytes(path.read_bytes()[:-20] + bytes(20))
    assert "table.parquet was replaced or changed since" in in_another_process("fork", weights)


def test_a_table_that_is_copied_over_the_file_is_noticed_where_it_is_read_on(path, monkeypatch):
    write(path, "plain", monkeypatch)
    held(monkeypatch, 100)
    weights = LossTable.load(path).weights(0.5, on_invalid="drop")
    LossTable.from_losses(weights.part(0, ROWS)).save(path.with_name("other"))
    # Into the same file, as cp does: values of the other table lie where those of this one did.
    path.write_bytes(path.with_name("other").read_bytes())
    with pytest.raises(TableFileError, match=r"table\.parquet was replaced or changed since"):
        weights.part(300, 400)


CHANGES = ("replaced", "written over", "other losses", "no table", "gone")


@pytest.mark.parametrize("change", CHANGES)
def test_a_file_that_is_not_the_same_is_an_error_where_it_is_opened_again(
    path, change, monkeypatch
):
    write(path, "plain", monkeypatch)
    held(monkeypatch, 100)
    table = LossTable.load(path)
    travelling = pickle.dumps((table, table.weights(0.5, on_invalid="drop")))
    pickle.loads(travelling)
    if change == "gone":
        path.unlink()
    elif change == "written over":
        path.write_bytes(path.read_bytes())
    elif change == "no table":
        path.unlink()
        path.write_text("loss\n0.5\n")
    else:
        other = LossTable.from_losses(np.ones(ROWS + 5)) if change == "other losses" else table
        other.save(path)
    text = "there is no loss table at" if change == "gone" else "was replaced or changed since this"
    with pytest.raises(TableFileError, match=text) as error:
        pickle.loads(travelling)
    assert str(path) in str(error.value)
    # What is open stays readable, unless it was written over.
    if change != "written over":
        assert np.count_nonzero(np.isnan(table.losses)) == 2


@pytest.mark.slow
def test_a_spawned_process_opens_the_file_again(path, monkeypatch):
    write(path, "plain", monkeypatch)
    held(monkeypatch, 100)
    weights = LossTable.load(path).weights(0.5, on_invalid="drop")
    assert in_another_process("spawn", weights) == weights.relative.sum()


def test_threads_read_side_by_side(path, monkeypatch):
    write(path, "shards", monkeypatch)
    held(monkeypatch, 100)
    index = LossTable.load(path).index
    expected = [index.of_shard(number).offsets.tolist() for number in range(len(COUNTS))]
    wrong = []

    def read(seed):
        for number in np.random.default_rng(seed).integers(0, len(COUNTS), 100).tolist():
            if index.of_shard(number).offsets.tolist() != expected[number]:
                wrong.append(number)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_table_that_is_dropped_closes_its_file(path, monkeypatch):
    write(path, "shards", monkeypatch)
    held(monkeypatch, 100)
    open_files = len(os.listdir("/proc/self/fd")) if os.path.exists("/proc/self/fd") else 0
    for _ in range(20):
        LossTable.load(path).index.of_shard(1)
    gc.collect()
    if open_files:
        assert len(os.listdir("/proc/self/fd")) <= open_files + 1


def test_another_working_directory_finds_the_file_again(path, monkeypatch):
    write(path, "plain", monkeypatch)
    held(monkeypatch, 100)
    monkeypatch.chdir(path.parent)
    travelling = pickle.dumps(LossTable.load(path.name))
    monkeypatch.chdir("/")
    assert len(pickle.loads(travelling).losses) == ROWS


@pytest.mark.parametrize(("failures", "code"), [(2, 5), (9, 5), (1, 9)])
def test_a_disk_that_fails_for_a_moment_while_a_column_is_read_is_asked_again(
    path, monkeypatch, failures, code
):
    write(path, "plain", monkeypatch)
    held(monkeypatch, 100)
    monkeypatch.setattr(parquet, "RETRY_WAITS", (0.0, 0.0))
    table = LossTable.load(path)
    file = table._losses._file._reader.file  # noqa: SLF001
    left, real = [OSError(code, os.strerror(code))] * failures, file.read_row_group

    def failing(*arguments, **options):
        if left:
            raise left.pop()
        return real(*arguments, **options)

    monkeypatch.setattr(file, "read_row_group", failing)
    if failures == 2:
        assert len(table.losses) == ROWS
        return
    with pytest.raises(TableFileError, match=f"{os.strerror(code)}; that does not mean") as error:
        table.losses  # noqa: B018
    assert not isinstance(error.value, DamagedFileError)
