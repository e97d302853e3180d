"""A stream of rows is scored on several ranks, each of which reads its part."""

import pytest
from launching import torchrun

from flowdata import LossTable


@pytest.mark.slow
def test_ranks_score_their_parts_and_go_on_after_a_stop(tmp_path):
    output = tmp_path / "losses.parquet"
    config = {"rows": 50, "batches": 3, "output": str(output)}
    ranks = torchrun("streamed_rows.py", config, tmp_path)
    for losses, before, scored, twice in ranks:
        assert losses == {f"row {number}": float(number) for number in range(50)}
        assert 0 < before < scored
        assert "more than once" in twice
        assert "split_dataset_by_node" in twice
    # No row twice.
    assert sum(scored for _, _, scored, _ in ranks) == 50
    assert len(LossTable.load(output)) == 50
    assert not output.with_name("losses.parquet.parts").exists()
