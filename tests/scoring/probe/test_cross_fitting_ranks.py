"""score_probe on several ranks: one table and one head, those of one process."""

import numpy as np
import pytest
from launching import OUTPUT, torchrun

from flowdata import LossTable

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("rows", [41, 6])
def test_all_ranks_have_the_table_and_the_head_that_one_process_makes(tmp_path, rows):
    found = {}
    for processes in (1, 2, 3):
        # With features in memory, and on disk.
        output = None if processes == 2 else str(tmp_path / f"{processes}.parquet")
        config = {"rows": rows, "output": output}
        found[processes] = torchrun("probe_rows.py", config, tmp_path, processes=processes)
        losses, head = found[processes][0]
        assert all(other == [losses, head] for other in found[processes])
        if output is not None:
            np.testing.assert_array_equal(LossTable.load(output).losses, np.float32(losses))
    # Bit for bit: batches are made of the same rows.
    assert found[1][0] == found[2][0] == found[3][0]


def test_an_error_on_one_rank_ends_all_of_them(tmp_path):
    config = {"rows": 41, "output": str(tmp_path / "losses.parquet"), "fails": 1}
    torchrun("probe_rows.py", config, tmp_path, fails=True)
    assert "is bad" in (tmp_path / OUTPUT).read_text()
    assert not (tmp_path / "losses.parquet").exists()


def test_ranks_go_on_with_what_others_have_left(tmp_path):
    log = tmp_path / "log"
    config = {"rows": 41, "output": str(tmp_path / "whole.parquet"), "log": str(log)}
    whole = torchrun("probe_rows.py", config, tmp_path, processes=1)
    assert log.stat().st_size == 41
    log.unlink()
    config["output"] = str(tmp_path / "losses.parquet")
    torchrun("probe_rows.py", config | {"stops": [1, 3]}, tmp_path, fails=True)
    assert 12 <= log.stat().st_size < 41
    assert torchrun("probe_rows.py", config, tmp_path, processes=3) == whole * 3
    # A batch of each of the two that had been computed, but not written.
    assert 41 <= log.stat().st_size <= 41 + 2 * 4
    done = log.stat().st_size
    assert torchrun("probe_rows.py", config, tmp_path, processes=2) == whole * 2
    assert log.stat().st_size == done
