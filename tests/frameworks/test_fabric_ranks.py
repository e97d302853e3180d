"""Lightning's Fabric on two ranks: states that were loaded go on."""

import frameworks_fabric
import pytest
from frameworks_fabric import EPOCH, POSITION, SEED, WEIGHTS
from launching import torchrun

from flowdata import EpochPlan

pytestmark = [pytest.mark.slow, pytest.mark.guard]


def planned(epoch):
    return EpochPlan(WEIGHTS, seed=SEED).at_epoch(epoch)[:].tolist()


def test_each_rank_goes_on_in_the_epoch_of_the_state_and_a_wrapped_sampler_between_epochs(tmp_path):
    ranks = torchrun(f"{frameworks_fabric.__name__}.py", {}, tmp_path)
    for rank, outcome in enumerate(ranks):
        rest, following = planned(EPOCH)[POSITION:], planned(EPOCH + 1)
        assert outcome["ranked"] == [rest[rank::2], following[rank::2]]
        assert "use DistributedFlowSampler" in outcome["refused"]
    for place, epoch in enumerate((EPOCH, EPOCH + 1)):
        drawn = [row for outcome in ranks for row in outcome["wrapped"][place]]
        assert sorted(drawn) == sorted(planned(epoch))
