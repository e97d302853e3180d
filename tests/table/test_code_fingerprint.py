"""Functions that compute the same have equal hashes, in every process."""

import functools
import importlib
import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from flowdata.table.fingerprint import (
    code_fingerprint,
)


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


def counting(model, batch):
    counting.calls += 1
    return model(batch)


def test_what_a_call_changes_outside_the_code_makes_no_other_function():
    """A pass that was stopped goes on with the same function, which has been called."""
    counting.calls, module = 0, Loss()
    before = code_fingerprint(counting), code_fingerprint(module)
    counting(nn.Identity(), 1)
    module.eval().register_forward_hook(lambda *_: None)
    assert (code_fingerprint(counting), code_fingerprint(module)) == before


def test_an_imported_function_is_known_by_its_code_and_not_by_its_name(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    path, found = tmp_path / "losses_of_a_user.py", []
    for body in ("abs", "square", "abs"):
        path.write_text(
            f"# {body}\n\n\ndef loss(model, batch):\n    return model(batch).{body}()\n"
        )
        sys.modules.pop("losses_of_a_user", None)
        importlib.invalidate_caches()
        found.append(code_fingerprint(importlib.import_module("losses_of_a_user").loss))
    assert found[0] == found[2] != found[1]


PROGRAM = """
from functools import partial

import torch
from torch import nn
from torch.utils.data import default_collate
from flowdata.table.fingerprint import code_fingerprint, dataset_fingerprint, model_fingerprint

torch.manual_seed(0)
print(model_fingerprint(nn.Linear(3, 4)))
print(dataset_fingerprint([{"text": "a", "label": 1, "x": torch.ones(2), "tags": {"a", "b"}}]))


class Loss(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def forward(self, model, batch):
        return self.layer(model(batch)), {"d", "e", "f"}


class Callable:
    kinds = frozenset("uvw")

    def __call__(self, model, batch):
        return [key for key in batch if key in {"a", "b", "c"}]

    def method(self, rows):
        return self, rows


def in_main(rows, names=frozenset("xyz"), *, others={"x": {"p", "q", "r"}}):
    return [row for row in rows if row in {"one", "two", "three", 4}]


def closing(names):
    return lambda rows: [lambda row: row in {"one", "two", "three"}, names]


for function in (
    *(lambda x: x in {"one", "two", "three", 4}, in_main, closing({"a", "b", "c"}), Loss()),
    *(closing(torch.ones(2)), partial(in_main, names={"x", "y", "z"}), Callable()),
    *(Callable().method, nn.CrossEntropyLoss(reduction="none"), torch.stack, default_collate),
):
    print(code_fingerprint(function))
"""


@pytest.mark.slow
def test_fingerprints_are_the_same_in_every_process():
    environments = [os.environ | {"PYTHONHASHSEED": seed} for seed in ("1", "2", "3")]
    outputs = [
        subprocess.run(
            [sys.executable, "-c", PROGRAM], env=env, check=True, capture_output=True, text=True
        ).stdout
        for env in environments
    ]
    assert outputs[0] == outputs[1] == outputs[2]
    lines = outputs[0].split()
    assert len(set(lines)) == len(lines) == 13
    assert "None" not in outputs[0]
