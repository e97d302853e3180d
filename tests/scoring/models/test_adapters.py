import copy

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from flowdata import LossTable, MismatchError, score


@pytest.fixture(scope="module")
def base():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        initializer_range=0.5,
    )
    return LlamaForCausalLM(config)


@pytest.fixture
def adapted(base):
    """A LoRA model whose adapters are not zero, in training mode."""
    model = get_peft_model(
        copy.deepcopy(base), LoraConfig(r=4, target_modules=["q_proj", "v_proj"])
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    return model.train()


def rows():
    random = np.random.default_rng(0)
    ids = [random.integers(0, 50, size=length) for length in range(3, 20)]
    return [{"input_ids": each, "labels": each} for each in ids]


def test_a_peft_model_is_scored_as_its_base_model(base, adapted, tmp_path):
    path = tmp_path / "losses.parquet"
    through = score(adapted, rows(), "causal_lm", output=path, progress=False)
    expected = score(base, rows(), "causal_lm", progress=False)
    assert through.losses == pytest.approx(expected.losses, rel=1e-6)
    LossTable.load(path, dataset=rows(), model=base).check(model=adapted)


def test_with_adapters_it_is_scored_as_adapted_and_known_as_such(base, adapted):
    table = score(adapted, rows(), "causal_lm", adapters=True, progress=False)
    merged = copy.deepcopy(adapted).merge_and_unload().eval()
    expected = score(merged, rows(), "causal_lm", progress=False)
    assert table.losses == pytest.approx(expected.losses, rel=1e-4)
    table.check(model=adapted)
    with pytest.raises(MismatchError, match="this model has hash"):
        table.check(model=base)


def test_scoring_leaves_adapters_and_modes_as_they_were(adapted):
    ids = torch.arange(10)[None]
    before = adapted(ids).logits
    score(adapted, rows(), "causal_lm", progress=False)
    assert torch.equal(adapted(ids).logits, before)
    assert adapted.training
    loss = adapted(ids, labels=ids).loss
    loss.backward()
    trained = {name for name, p in adapted.named_parameters() if p.grad is not None}
    assert trained
    assert all("lora_" in name for name in trained)
