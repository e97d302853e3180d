"""What accelerate's script of distributed data loops asserts, with a FlowDataset in the loader.

The assertions are those of accelerate/test_utils/scripts/test_distributed_data_loop.py, in our
words and on two processes; README.md lists what does not apply.
"""

import pytest
from launching import torchrun

pytestmark = pytest.mark.slow

SIZES = {
    "3 rows, even": ({"even": True, "rows": 3, "batch_size": 1}, [[1, 1], [1, 1]]),
    "7 rows, even": ({"even": True, "rows": 7, "batch_size": 2}, [[2, 2], [2, 2]]),
    "3 rows": ({"even": False, "rows": 3, "batch_size": 1}, [[1, 1], [1]]),
    "7 rows": ({"even": False, "rows": 7, "batch_size": 2}, [[2, 2], [2, 1]]),
}
LOADERS = ["in order", "shuffled", "batch_sampler", "sampler of batches"]
RUNS = {
    **{name: {"what": "batch_sizes", **options} for name, (options, _) in SIZES.items()},
    **{name: {"what": "iterated", "kind": name} for name in LOADERS},
    **{f"resumed by {by}": {"what": "resumed", "by": by} for by in ("loader", "accelerator")},
    "pickled": {"what": "pickled"},
}


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data_loop")
    outcomes = torchrun("conformance_accelerate.py", {"runs": RUNS}, folder)
    return {name: [rank["found"] for rank in by_rank] for name, by_rank in outcomes.items()}


@pytest.mark.parametrize("name", SIZES)
def test_ranks_have_batches_of_the_sizes_that_even_batches_promises(found, name):
    assert found[name] == SIZES[name][1]


def test_an_accelerator_and_a_prepared_data_set_are_pickled(found):
    assert found["pickled"] == [[True, 2]] * 2


@pytest.mark.parametrize("kind", LOADERS)
def test_all_elements_are_iterated_over_by_the_ranks_together(found, kind):
    assert found[kind] == [list(range(22))] * 2


@pytest.mark.parametrize("by", ["loader", "accelerator"])
def test_what_is_left_of_a_pass_is_what_a_saved_state_goes_on_with(found, by):
    for left, after in found[f"resumed by {by}"]:
        assert len(left) == 5
        assert after == left
