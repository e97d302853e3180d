"""Batches of a language model by the memory there is."""

from types import SimpleNamespace

import pytest
import torch
from language_models import Plain, one_by_one, samples

from flowdata import CausalLM, score
from flowdata.scoring.language.causal_lm import tokens_that_fit


@pytest.mark.parametrize(
    ("free", "sizes", "tokens"),
    [
        # 2 bytes * (8 * 1,000 + 3 * 2,000) are 28 kB a token, in half of the memory.
        (56_000_000, {"hidden_size": 1000, "intermediate_size": 2000}, 1000),
        (80_000_000, {"hidden_size": 1000}, 1000),
        (80 << 30, {"hidden_size": 1000}, 32_768),
        (100, {"hidden_size": 1000}, 1),
        (100, {}, 32_768),
    ],
)
def test_the_tokens_of_a_batch_follow_from_free_memory_and_the_size_of_the_model(
    free, sizes, tokens
):
    assert tokens_that_fit(free, SimpleNamespace(**sizes), 2) == tokens


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_a_batch_that_does_not_fit_into_memory_is_halved(error):
    class Small(Plain):
        limit = 150

        def __init__(self):
            super().__init__()
            self.batches = []
            self.scored = 0

        def forward(self, ids):
            self.batches.append(ids.numel())
            if ids.numel() > self.limit:
                raise error
            self.scored += len(ids)
            return super().forward(ids)

    model, rows = Small(), samples(50)
    table = score(model, rows, CausalLM(max_tokens=2000), progress=False)
    alone = one_by_one(Plain(), rows)
    assert table.losses == pytest.approx([each.mean() for each in alone], rel=1e-5)
    # Seven more: whether the model is causal, and predicts the same again and alone.
    assert model.scored == len(rows) + 7
    # 2,000 to 1,000 to 500 to 250 to 125, once for the whole pass.
    assert 1 <= sum(size > 150 for size in model.batches) <= 5

    model.limit = 30
    longest = max(range(50), key=lambda row: len(rows[row]["input_ids"]))
    with pytest.raises(MemoryError, match=rf"row {longest} .*pass max_length="):
        score(model, rows, "causal_lm", progress=False)


def test_other_errors_of_the_model_are_not_taken_for_a_lack_of_memory():
    class Broken(Plain):
        def forward(self, ids):
            raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        score(Broken(), samples(2), "causal_lm", progress=False)
