"""Files that pose as tables: refused in our words, before they take memory or time."""

import os
import subprocess
import sys

import numpy as np
import pytest
from hostile_tables import LOSSES, REFUSED, SOUND, same_table, table_of
from long_run import LONG

from flowdata import LossTable, ShardIndex, TableFileError
from flowdata.table import parquet


@pytest.fixture
def path(tmp_path):
    return tmp_path / "table.parquet"


@pytest.mark.parametrize("make", REFUSED.values(), ids=REFUSED)
def test_a_table_that_is_none_is_refused_by_name(path, make):
    make(path)
    for tokens in (True, False):
        try:
            LossTable.load(path, tokens=tokens)
        except TableFileError as error:
            refused = str(error)
        else:
            # Its token losses are wrong, and were not read.
            assert not tokens
            continue
        assert str(path) in refused
        assert len(refused) < 1000


@pytest.mark.parametrize("make", SOUND.values(), ids=SOUND)
def test_a_table_written_otherwise_is_as_good(path, make):
    make(path)
    assert LossTable.load(path, tokens=True).losses.tolist() == LOSSES.tolist()


@pytest.mark.parametrize("kind", ["plain", "keys", "tokens", "shards"])
def test_a_bit_flipped_in_a_footer_is_noticed_or_changes_nothing(path, kind):
    table = table_of(kind)
    table.save(path)
    table = LossTable.load(path, tokens=True)
    whole = path.read_bytes()
    first = len(whole) - 8 - int.from_bytes(whole[-8:-4], "little")
    places = [(byte, bit) for byte in range(first, len(whole)) for bit in range(8)]
    for byte, bit in places if LONG else places[:: 41 if kind == "plain" else 83]:
        changed = bytearray(whole)
        changed[byte] ^= 1 << bit
        path.write_bytes(changed)
        try:
            found = LossTable.load(path, tokens=True)
        except TableFileError as error:
            refused = str(error)
        else:
            assert same_table(found, table), (byte, bit)
            continue
        assert str(path) in refused


def test_a_bit_flipped_in_a_page_is_noticed(path):
    table = table_of("tokens")
    table.save(path)
    whole = path.read_bytes()
    losses = whole.index(table.losses.tobytes())
    tokens = whole.index(table.token_losses.tobytes())
    for begin, size in ((losses, table.losses.nbytes), (tokens, table.token_losses.nbytes)):
        for byte in range(begin, begin + size, 1 if LONG else 11):
            changed = bytearray(whole)
            changed[byte] ^= 1 << byte % 8
            path.write_bytes(changed)
            with pytest.raises(TableFileError, match=r"table\.parquet is not a readable"):
                LossTable.load(path, tokens=True)


@pytest.mark.parametrize("read", [LossTable.load, ShardIndex.load])
def test_what_is_no_file_is_refused_and_keeps_nobody_waiting(path, read):
    os.mkfifo(path)
    for place in (path, path.parent, "/dev/zero", "/dev/null"):
        with pytest.raises(TableFileError, match="not a readable Parquet file, but a"):
            read(place)
    with pytest.raises(TableFileError, match="there is no"):
        read(path.parent / "none")
    (path.parent / "link").symlink_to(path.parent / "none")
    with pytest.raises(TableFileError, match="there is no"):
        read(path.parent / "link")
    with pytest.raises(TableFileError, match=r"cannot read the .* nosuch://b/t\.parquet: "):
        read("nosuch://b/t.parquet")
    for url in ("memory://b/none.parquet", f"file://{path.parent}/none"):
        with pytest.raises(TableFileError, match="there is no"):
            read(url)


@pytest.mark.parametrize("code", [5, 13, 24, 116, 12])
def test_a_file_that_cannot_be_read_now_is_not_called_damaged(path, monkeypatch, code):
    def failing(*arguments):
        raise OSError(code, os.strerror(code))

    table_of("plain").save(path)
    monkeypatch.setattr(parquet, "RETRY_WAITS", (0.0,))
    with monkeypatch.context() as patch:
        patch.setattr("pyarrow.OSFile", failing)
        with pytest.raises(TableFileError, match=f"{os.strerror(code)}; that does not mean"):
            LossTable.load(path)
    assert LossTable.load(path).losses.tolist() == LOSSES.tolist()


def test_a_disk_that_fails_for_a_moment_is_asked_again(path, monkeypatch):
    import pyarrow as pa

    failures, opened = [OSError(5, "x"), OSError(116, "x")], pa.OSFile

    def failing(*arguments):
        if failures:
            raise failures.pop()
        return opened(*arguments)

    table_of("plain").save(path)
    monkeypatch.setattr(parquet, "RETRY_WAITS", (0.0, 0.0))
    monkeypatch.setattr(pa, "OSFile", failing)
    assert LossTable.load(path).losses.tolist() == LOSSES.tolist()


MEASURE = """
import os, resource, sys
sys.path[:0] = sys.argv[1:2]
from hostile_tables import REFUSED, table_of
from pathlib import Path
import numpy as np
import pyarrow as pa
import flowdata

path = Path(sys.argv[2])
table_of("tokens").save(path)
flowdata.LossTable.load(path, tokens=True)
resident = lambda: int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
for name in sys.argv[3:]:
    if name == "sound":
        flowdata.LossTable.from_losses(np.ones(4_000_000)).save(path)
    else:
        REFUSED[name](path)
    pa.default_memory_pool().release_unused()
    open("/proc/self/clear_refs", "w").write("5")
    before = resident()
    try:
        flowdata.LossTable.load(path, tokens=True)
    except flowdata.TableFileError:
        pass
    status = open("/proc/self/status").read()
    peak = int(status.split("VmHWM:")[1].split()[0]) * 1024
    print(f"{peak - before} {path.stat().st_size} {name}")
"""
WORST = [
    *("sound", "2**40 rows", "2**31 rows", "a page of 2 GB", "provenance much too long"),
    *("provenance too deep", "provenance too long", "a footer longer than the file"),
]


@pytest.mark.slow
def test_what_a_file_claims_takes_no_memory_before_it_is_there(path):
    support = os.path.join(os.path.dirname(__file__), "..", "support")
    names = list(REFUSED) if LONG else WORST
    out = subprocess.run(
        [sys.executable, "-c", MEASURE, support, str(path), *names],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    ).stdout
    assert len(out.splitlines()) == len(names)
    for line in out.splitlines():
        used, size, name = line.split(maxsplit=2)
        rows = 4_000_000 * np.float32().nbytes if name == "sound" else 0
        # 12 MB more are what an interpreter takes for itself now and then.
        assert int(used) < 2 * int(size) + rows + (12 << 20), line
