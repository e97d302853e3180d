"""Models in half precision, under autocast, and compiled."""

import itertools

import numpy as np
import pytest
import torch
from language_models import Plain, llama, samples
from long_run import some

from flowdata import CausalLM, MismatchError, score


def test_autocast_is_another_pass(tmp_path):
    model, rows, output = llama(), samples(30), tmp_path / "table.parquet"
    exact = score(model, rows, "causal_lm", output=output, progress=False)
    assert exact.provenance.dtype == "float32"
    with torch.autocast("cpu", torch.bfloat16):
        found = score(model, rows, "causal_lm", progress=False)
        assert found.provenance.dtype == "float32 autocast to bfloat16"
        with pytest.raises(MismatchError, match="dtype"):
            score(model, rows, "causal_lm", output=output, progress=False)
    assert not np.array_equal(found.losses, exact.losses)
    assert found.losses == pytest.approx(exact.losses, rel=0.02)


# A model of transformers takes ten seconds to compile.
@pytest.mark.parametrize(
    ("make", "part"),
    some(list(itertools.product([Plain, llama], ["body", "model", "wrapped"])), (Plain, "wrapped")),
)
def test_a_compiled_model_has_the_losses_and_the_identity_of_the_same_model(make, part):
    torch.compiler.reset()
    rows, options = samples(40), CausalLM(max_tokens=200)
    exact = score(make(), rows, options, progress=False)
    model = make()
    if part == "wrapped":
        model = torch.compile(model, dynamic=True, backend="eager")
    else:
        inner = getattr(model, "base_model", model) if part == "body" else model
        inner.compile(dynamic=True, backend="eager")
    found = score(model, rows, options, progress=False)
    assert found.losses == pytest.approx(exact.losses, rel=1e-6)
    assert found.provenance.identity() == exact.provenance.identity()
