"""score_probe on several ranks: one table and one head, those of one process."""

import numpy as np
import pytest
from launching import OUTPUT, torchrun

from flowdata import LossTable

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("rows", [41, 6])
def test_all_ranks_have_the_table_and_the_head_that_one_process_makes(tmp_path, rows):
    found = {}
    for processes in (1, 3):
        output = tmp_path / f"{processes}.parquet"
        config = {"rows": rows, "output": str(output)}
        found[processes] = torchrun("probe_rows.py", config, tmp_path, processes=processes)
        losses, head = found[processes][0]
        assert all(other == [losses, head] for other in found[processes])
        np.testing.assert_array_equal(LossTable.load(output).losses, np.float32(losses))
    for one, three in zip(found[1][0], found[3][0], strict=True):
        np.testing.assert_allclose(three, one, rtol=2e-2, atol=1e-2)


def test_an_error_on_one_rank_ends_all_of_them(tmp_path):
    config = {"rows": 41, "output": str(tmp_path / "losses.parquet"), "fails": 1}
    torchrun("probe_rows.py", config, tmp_path, fails=True)
    assert "is bad" in (tmp_path / OUTPUT).read_text()
    assert not (tmp_path / "losses.parquet").exists()
