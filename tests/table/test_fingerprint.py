"""Fingerprints: equal content has equal hashes, any other content has others."""

import functools
import os
import subprocess
import sys
from collections import OrderedDict
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from pathlib import Path
from uuid import UUID

import datasets
import numpy as np
import peft
import pytest
import torch
import transformers
from PIL import Image
from torch import nn
from torch.utils.data import Subset, TensorDataset

from flowdata.table.fingerprint import (
    RANDOM,
    code_fingerprint,
    dataset_fingerprint,
    model_fingerprint,
    reads_the_same_twice,
    transform_fingerprint,
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


class Noisy(list):
    def __getitem__(self, row):
        return super().__getitem__(row), torch.rand(2)


class Opaque:
    """A sample of a kind that has no bytes."""


class Colour(Enum):
    RED = 1
    BLUE = 2


@dataclass
class Point:
    x: int
    y: int


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


@pytest.mark.parametrize(
    "build",
    [
        lambda: [(torch.arange(3) + row, row) for row in range(5)],
        lambda: [{"text": f"row {row}", "values": [1.5, None, True, b"x"]} for row in range(5)],
        lambda: [np.full((2, 2), row, np.float16) for row in range(5)],
        lambda: [np.float32(row) for row in range(5)],
        lambda: TensorDataset(torch.arange(10.0).reshape(5, 2), torch.arange(5)),
        lambda: Subset(TensorDataset(torch.arange(9.0)), [8, 1, 2, 3, 4]),
        lambda: [Image.new("RGB", (4, 2), (row, 0, 0)) for row in range(5)],
        lambda: datasets.Dataset.from_dict({"text": list("abcde"), "label": [0, 1, 0, 1, 2]}),
        list,
    ],
)
def test_data_sets_of_equal_content_have_equal_fingerprints(build):
    assert dataset_fingerprint(build()) == dataset_fingerprint(build()) is not None


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ([1, 2], [2, 1]),
        ([1, 2], [1, 2, 2]),
        ([1, 2], [1.0, 2.0]),
        ([1], [True]),
        (["12", "3"], ["1", "23"]),
        (["a"], [b"a"]),
        ([("ab", "c")], [("a", "bc")]),
        ([[1, [2]]], [[[1], 2]]),
        ([{"a": 1}], [{"b": 1}]),
        ([torch.zeros(4)], [torch.zeros(2, 2)]),
        ([torch.zeros(4)], [torch.zeros(4, dtype=torch.int32)]),
        ([0] * 20, [0] * 30),
        ([np.zeros(4)], [np.eye(4)[3]]),
        ([np.zeros(4)], [np.zeros(4) - 0.0j]),
        ([Image.new("L", (4, 2))], [Image.new("L", (2, 4))]),
        ([Image.new("L", (4, 2))], [Image.new("L", (4, 2), 1)]),
        ([Image.new("L", (4, 1))], [Image.new("P", (4, 1))]),
        ([datetime(2024, 1, 2)], [datetime(2024, 1, 3)]),
        ([{"at": date(2024, 1, 2)}], [{"at": date(2024, 1, 3)}]),
        ([time(1)], [time(2)]),
        ([timedelta(1)], [timedelta(2)]),
        ([Decimal("1.0")], [Decimal("1.00")]),
        ([UUID(int=1)], [UUID(int=2)]),
        ([Path("a")], [Path("b")]),
        ([Path("a")], ["a"]),
        ([Colour.RED], [Colour.BLUE]),
        ([Point(1, 2)], [Point(2, 1)]),
        ([{1, 2}], [{1, 3}]),
        ([1 + 2j], [1 + 3j]),
        ([np.array([(1, "a")], dtype=[("n", "i4"), ("text", "O")])], [np.array([(1, "b")], "O")]),
        # What cannot be seen does not hide what can be.
        ([(Opaque(), 1)], [(Opaque(), 2)]),
        ([(Opaque(), 1)], [(object(), 1)]),
    ],
)
def test_data_sets_of_other_content_have_other_fingerprints(one, other):
    assert dataset_fingerprint(one) != dataset_fingerprint(other)


def test_the_order_of_the_keys_of_a_sample_does_not_matter():
    one, other = [OrderedDict(a=1, b=2)], [{"b": 2, "a": 1}]
    assert dataset_fingerprint(one) == dataset_fingerprint(other)


def test_at_most_sixteen_rows_are_read_among_them_the_first_and_the_last():
    class Counting(list):
        read = ()

        def __getitem__(self, row):
            self.read = {*self.read, row}
            return super().__getitem__(row)

    rows = Counting(range(1000))
    dataset_fingerprint(rows)
    assert len(rows.read) == 16
    assert {0, 999} < rows.read


def test_a_hugging_face_data_set_has_one_fingerprint_under_any_format_and_transform():
    plain = datasets.Dataset.from_dict({"text": list("abcde"), "label": [0, 1, 0, 1, 2]})
    expected = dataset_fingerprint(plain)
    for kind in ("numpy", "torch", "arrow"):
        assert dataset_fingerprint(plain.with_format(kind, columns=["label"])) == expected
    noisy = plain.with_transform(lambda rows: {"label": torch.rand(len(rows["label"])).tolist()})
    assert dataset_fingerprint(noisy) == expected
    plain.set_format("torch")
    assert dataset_fingerprint(plain) == expected
    assert plain.format["type"] == "torch"
    assert dataset_fingerprint(plain.select([1, 0, 2, 3, 4])) != expected


def test_data_that_reads_differently_twice_has_no_fingerprint():
    torch.manual_seed(0)
    assert dataset_fingerprint(Noisy(range(5))) is None
    assert not reads_the_same_twice(Noisy(range(5)))
    assert reads_the_same_twice(list(range(5)))


@pytest.mark.parametrize(
    "sample",
    [
        *(Opaque(), {"a": Opaque()}, [[Opaque()]], object),
        torch.eye(3).to_sparse(),
    ],
)
def test_samples_that_cannot_be_hashed_have_no_fingerprint_and_are_not_called_noisy(sample):
    assert dataset_fingerprint([sample]) is None
    assert reads_the_same_twice([sample])


def test_dates_of_a_hugging_face_data_set_are_known():
    def made(year):
        return datasets.Dataset.from_dict({"at": [datetime(year, 1, day) for day in range(1, 9)]})

    assert dataset_fingerprint(made(2024)) == dataset_fingerprint(made(2024)) is not None
    assert dataset_fingerprint(made(2024)) != dataset_fingerprint(made(2025))


def test_a_sample_that_holds_itself_has_a_fingerprint():
    sample = [1]
    sample.append(sample)
    assert dataset_fingerprint([sample]) is not None


def test_a_transform_is_known_by_what_it_makes_and_formats_are_none():
    plain = datasets.Dataset.from_dict({"x": list(range(5))})
    one, same, other = (
        plain.with_transform(lambda rows, by=by: {"x": [x + by for x in rows["x"]]})
        for by in (1, 1, 2)
    )
    assert transform_fingerprint(one) == transform_fingerprint(same)
    assert transform_fingerprint(one) != transform_fingerprint(other)
    torch.manual_seed(0)
    noisy = plain.with_transform(lambda rows: {"x": torch.rand(len(rows["x"])).tolist()})
    assert transform_fingerprint(noisy) == RANDOM
    for data in (plain, plain.with_format("torch"), [1, 2], TensorDataset(torch.ones(2))):
        assert transform_fingerprint(data) is None


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


def power(exponent, base=2):
    def function(x, *, offset=0):
        return [value**exponent + base + offset for value in x]

    return function


class Loss(nn.Module):
    def __init__(self, factor=1.0):
        super().__init__()
        self.factor = factor
        self.register_buffer("scale", torch.ones(1))

    def forward(self, model, batch):
        return model(batch) * self.factor


class Callable:
    def __init__(self, factor):
        self.factor = factor

    def __call__(self, model, batch):
        return model(batch) * self.factor

    def method(self, model, batch):
        return model(batch) + self.factor


def recursive(depth):
    def function(x):
        return x if x > depth else function(x + 1)

    return function


@pytest.mark.parametrize(
    "build",
    [
        power,
        lambda number: functools.partial(power, base=number),
        lambda number: functools.partial(torch.sum, dim=number),
        lambda number: lambda x: power(number)(x),
        lambda number: lambda x, by=number: x * by,
        Loss,
        Callable,
        lambda number: Callable(number).method,
        recursive,
        lambda number: power({"nested": [number]}),
    ],
)
def test_a_function_is_known_by_its_code_and_by_what_it_closes_over(build):
    assert code_fingerprint(build(1.0)) == code_fingerprint(build(1.0))
    assert code_fingerprint(build(1.0)) != code_fingerprint(build(2.0))


def test_functions_of_other_code_have_other_fingerprints():
    functions = (
        *(lambda m, b: m(b).abs(), lambda m, b: m(b).square(), lambda m, b: m(b) + 1),
        *(lambda m, b: m(b) + 2, lambda m, b: [x + 1 for x in b], lambda m, b: [x + 2 for x in b]),
        *(torch.sum, torch.mean, power(1), Loss(), Callable(1).method, Callable(1)),
    )
    assert len({code_fingerprint(function) for function in functions}) == len(functions)


def test_arrays_of_objects_are_known_by_content_and_not_by_address():
    one, other = (
        [np.array(["".join(["long ", "text"]), [row, 2]], dtype=object) for row in range(3)]
        for _ in range(2)
    )
    assert dataset_fingerprint(one) in (None, dataset_fingerprint(other))


def test_conjugated_tensors_are_known_by_their_values():
    values = torch.tensor([1.0 + 2.0j, 3.0])
    one, other = ([values.conj()], [values.conj().resolve_conj()])
    assert dataset_fingerprint(one) == dataset_fingerprint(other) != dataset_fingerprint([values])


PROGRAM = """
import torch
from torch import nn
from flowdata.table.fingerprint import code_fingerprint, dataset_fingerprint, model_fingerprint

torch.manual_seed(0)
print(model_fingerprint(nn.Linear(3, 4)))
print(dataset_fingerprint([{"text": "a", "label": 1, "x": torch.ones(2), "tags": {"a", "b"}}]))
print(code_fingerprint(lambda x: x in {"one", "two", "three", 4}))
"""


@pytest.mark.slow
def test_fingerprints_are_the_same_in_every_process():
    environments = [os.environ | {"PYTHONHASHSEED": seed} for seed in ("1", "2")]
    outputs = [
        subprocess.run(
            [sys.executable, "-c", PROGRAM], env=env, check=True, capture_output=True, text=True
        ).stdout
        for env in environments
    ]
    assert outputs[0] == outputs[1]
    assert "None" not in outputs[0]
