"""Models of equal parameters have equal hashes, any other model has another."""

import peft
import pytest
import torch
import transformers
from torch import nn

from flowdata.table.fingerprint import (
    model_fingerprint,
)


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))


def classifier():
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2}
    config = transformers.BertConfig(
        vocab_size=20, num_hidden_layers=1, max_position_embeddings=8, num_labels=3, **sizes
    )
    return transformers.BertForSequenceClassification(config)


def test_models_of_equal_parameters_have_equal_fingerprints():
    assert model_fingerprint(network()) == model_fingerprint(network())
    assert model_fingerprint(network()) != model_fingerprint(network(seed=1))


@pytest.mark.parametrize("name", list(network().state_dict()))
def test_the_model_fingerprint_changes_with_any_value_of_a_parameter_or_buffer(name):
    model = network()
    values = model.state_dict()[name].view(-1)
    values[-1] += 1
    assert model_fingerprint(model) != model_fingerprint(network())


def test_the_model_fingerprint_changes_with_name_shape_and_dtype():
    model = nn.Linear(2, 2, bias=False)
    renamed, reshaped = nn.Sequential(model), nn.Linear(4, 1, bias=False)
    reshaped.weight = nn.Parameter(model.weight.reshape(1, 4))
    halved = nn.Linear(2, 2, bias=False, dtype=torch.bfloat16)
    halved.load_state_dict(model.state_dict())
    models = (model, renamed, reshaped, halved)
    assert len({model_fingerprint(model) for model in models}) == 4


def test_the_model_fingerprint_depends_on_neither_mode_nor_gradients_nor_layout():
    model, expected = network(), model_fingerprint(network())
    model.eval().requires_grad_(False)
    assert model_fingerprint(model) == expected
    model.train().requires_grad_(True)
    model[0].weight.grad = torch.ones(4, 3)
    assert model_fingerprint(model) == expected
    model[3].weight = nn.Parameter(model[3].weight.detach().t().contiguous().t())
    assert not model[3].weight.is_contiguous()
    assert model_fingerprint(model) == expected


def test_taking_the_fingerprint_leaves_the_model_as_it_was():
    model = network().train()
    model_fingerprint(model)
    assert model.training
    torch.testing.assert_close(model.state_dict(), network().state_dict(), rtol=0, atol=0)


def test_a_model_without_parameters_and_one_with_scalar_and_empty_buffers_have_fingerprints():
    model = nn.Identity()
    bare = model_fingerprint(model)
    model.register_buffer("steps", torch.tensor(3))
    model.register_buffer("nothing", torch.zeros(0, 4))
    assert model_fingerprint(model) != bare


@pytest.mark.parametrize(
    ("build", "options"),
    [
        (network, {"target_modules": ["0", "3"]}),
        (network, {"target_modules": ["0"], "modules_to_save": ["3"]}),
        (network, {"target_modules": ["0"], "use_dora": True}),
        (classifier, {"target_modules": ["query", "dense", "word_embeddings"]}),
        (classifier, {"target_modules": ["query"], "task_type": "SEQ_CLS"}),
    ],
)
def test_a_lora_model_has_the_fingerprint_of_its_base_model(build, options):
    base = model_fingerprint(build())
    adapted = peft.get_peft_model(build(), peft.LoraConfig(r=2, **options))
    assert any("lora_" in name for name in adapted.state_dict())
    assert model_fingerprint(adapted) == base
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                parameter.add_(1.0)
    assert model_fingerprint(adapted) == base


def test_another_base_under_the_same_adapter_is_another_model():
    config = peft.LoraConfig(r=2, target_modules=["0"])
    adapted = peft.get_peft_model(network(seed=1), config)
    assert model_fingerprint(adapted) != model_fingerprint(network())


def test_adapters_count_when_asked_for():
    def adapted(**options):
        config = peft.LoraConfig(r=2, target_modules=["0"], **options)
        return peft.get_peft_model(network(), config)

    plain, strong = adapted(), adapted(init_lora_weights=False)
    assert model_fingerprint(plain, adapters=True) != model_fingerprint(network())
    assert model_fingerprint(plain, adapters=True) != model_fingerprint(strong, adapters=True)
    assert model_fingerprint(network(), adapters=True) == model_fingerprint(network())


def test_an_adapter_added_by_transformers_itself_leaves_the_fingerprint_of_the_base_model():
    model = classifier()
    model.add_adapter(peft.LoraConfig(r=2, target_modules=["query"], init_lora_weights=False))
    assert model_fingerprint(model) == model_fingerprint(classifier())


@pytest.mark.slow
def test_a_compiled_or_wrapped_model_has_the_fingerprint_of_the_model_inside():
    inner, expected = network(), model_fingerprint(network())
    compiled_part = network()
    compiled_part[0] = torch.compile(compiled_part[0])
    for model in (
        *(torch.compile(inner), nn.DataParallel(inner), nn.DataParallel(torch.compile(inner))),
        compiled_part,
    ):
        assert model_fingerprint(model) == expected
    adapted = peft.get_peft_model(network(), peft.LoraConfig(r=2, target_modules=["0"]))
    assert model_fingerprint(torch.compile(adapted)) == expected
    assert model_fingerprint(nn.DataParallel(network(seed=1))) != expected
