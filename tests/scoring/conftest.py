"""A pass that was stopped."""

import pytest
from scoring_lines import Stop, scored

from flowdata.scoring.parts.folder import Parts


@pytest.fixture
def unfinished(tmp_path):
    output = tmp_path / "losses.parquet"
    with pytest.raises(Stop):
        scored(output, most=20)
    assert Parts(output).folder.exists()
    return output
