"""Streams in processes that are started in every way, also after torch has computed."""

import json
import os
import subprocess
import sys
from collections import Counter

import pytest
from launching import PROGRAMS
from shard_files import make_table, planned, write_shards

pytestmark = pytest.mark.slow


def test_streams_are_built_and_read_in_processes_of_every_kind_after_torch_has_computed(tmp_path):
    urls = write_shards(tmp_path, (20, 3, 12))
    table = make_table(urls)
    table.save(tmp_path / "losses.parquet")
    found = subprocess.run(
        [sys.executable, PROGRAMS / "forked_streams.py", urls, tmp_path / "losses.parquet"],
        env=os.environ | {"OMP_NUM_THREADS": "4", "PYTHONPATH": os.pathsep.join(sys.path)},
        check=True,
        capture_output=True,
        timeout=300,
    ).stdout
    found = json.loads(found)
    expected = planned(table, epoch_size=40, seed=3)
    # Its weights are its own.
    assert len(found.pop("built_there_from_tensors")) == 40
    assert len(found) == 12
    for case, names in found.items():
        assert Counter(names) == expected, case
