"""A real language model reads, and learns from, the samples of packs as it does from each alone."""

import ast
import sysconfig
from pathlib import Path

import numpy as np
import pytest
import torch
from long_run import LONG
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, AutoTokenizer

from flowdata import CausalLM, FlowPacks, PackCollator, score
from flowdata.reweight import reweight

ROWS, MAX_LENGTH = (24, 128) if LONG else (8, 96)
STEPS, LAYERS = (20, 30) if LONG else (4, 4)
"""Of SGD, on the first layers of the model: a step on all of them takes seconds."""


@pytest.fixture(scope="module")
def rows(smollm2):
    """Functions of mixed length, every other one after a text that is not learned."""
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    made = []
    for function in short_functions():
        prompt = tokenizer(f"{ast.get_docstring(function)}\n")["input_ids"]
        ids = [*prompt, *tokenizer(ast.unparse(function))["input_ids"], tokenizer.eos_token_id]
        hidden = len(prompt) if len(made) % 2 else 0
        # So that a pack has several.
        if len(ids) <= MAX_LENGTH // 2:
            made.append({"input_ids": ids, "labels": [-100] * hidden + ids[hidden:]})
    assert len(made) >= ROWS
    return made[:ROWS]


def short_functions():
    """Some of the standard library, with a docstring."""
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*s.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.FunctionDef) or not ast.get_docstring(node):
                continue
            if node.end_lineno - node.lineno < MAX_LENGTH // 8:
                yield node


def load(smollm2):
    return AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32, use_cache=False)


@pytest.fixture(scope="module")
def model(smollm2):
    return load(smollm2).eval()


@pytest.fixture(scope="module")
def table(model, rows):
    return score(model, rows, CausalLM(token_losses=True), progress=False)


def alone(row, width=None):
    """A batch of one row, padded on its right."""
    fill = (width or len(row["labels"])) - len(row["labels"])
    return {
        "input_ids": torch.tensor([row["input_ids"] + [0] * fill]),
        "labels": torch.tensor([row["labels"] + [-100] * fill]),
        "attention_mask": torch.tensor([[1] * len(row["labels"]) + [0] * fill]),
    }


def summed(model, batch):
    """The losses of a batch's tokens, added up, as the model computes them."""
    return model(**batch, num_items_in_batch=1).loss


def gradients(model, batches):
    model.zero_grad(set_to_none=True)
    for batch in batches:
        summed(model, batch).backward()
    found = {name: weight.grad.clone() for name, weight in model.named_parameters()}
    model.zero_grad(set_to_none=True)
    return found


def packs_of(data, table, weights=None):
    weights = table.weights() if weights is None else weights
    return FlowPacks(data, weights, table.lengths, MAX_LENGTH, batch_size=2)


def test_packs_have_the_tokens_positions_and_labels_of_their_rows(rows, table):
    packs = packs_of(rows, table)
    assert table.lengths.tolist() == [len(row["input_ids"]) for row in rows]
    for numbers, pack in zip(packs.plan[:], packs[:], strict=True):
        samples = [rows[number] for number in numbers]
        ids = [token for sample in samples for token in sample["input_ids"]]
        labels = [token for sample in samples for token in [-100, *sample["labels"][1:]]]
        positions = [place for sample in samples for place in range(len(sample["labels"]))]
        assert pack["input_ids"].tolist() == ids
        assert pack["labels"].tolist() == labels
        assert pack["position_ids"].tolist() == positions
        assert len(ids) <= MAX_LENGTH
    assert max(map(len, packs.plan[:])) > 1


def test_summed_losses_of_packs_are_those_of_their_samples_alone(model, rows, table):
    packs = packs_of(rows, table)
    with torch.no_grad():
        of_row = [float(summed(model, alone(row))) for row in rows]
        drawn = sorted(zip(packs.plan[:], packs[:], strict=True), key=lambda pack: len(pack[0]))
        for numbers, pack in drawn:
            expected = sum(of_row[number] for number in numbers)
            batch = PackCollator()([pack])
            assert float(summed(model, batch)) == pytest.approx(expected, rel=1e-4)
        # Samples that see those before them would be noticed.
        del batch["position_ids"]
        assert len(numbers) > 1
        assert float(summed(model, batch)) != pytest.approx(expected, rel=1e-3)


def test_gradients_of_packs_are_the_sums_of_those_of_their_samples(model, rows, table):
    packs = packs_of(rows, table)
    sizes = np.array([len(pack) for pack in packs.plan])
    numbers = np.argsort(-sizes)[: len(packs) if LONG else 2].tolist()
    batch = PackCollator()([packs[number] for number in numbers])
    found = gradients(model, [batch])
    samples = [rows[row] for number in numbers for row in packs.plan[number]]
    assert len(samples) > 2
    expected = gradients(model, map(alone, samples))
    for name, gradient in expected.items():
        assert (found[name] - gradient).norm() <= 1e-3 * gradient.norm(), name


@pytest.mark.parametrize("level", ["sample", "token"])
def test_weights_reach_the_tokens_of_packs(model, rows, table, level):
    options = {"normalize": None, "level": level}
    data, collate = reweight(rows, table, **options, collate_fn=PackCollator())
    packs = packs_of(data, table, np.ones(len(rows)))
    weighted, collate_alone = reweight(
        rows, table, **options, collate_fn=lambda items: alone(items[0])
    )
    count = len(packs) if LONG else 2
    with torch.no_grad():
        of_row = {
            row: float(summed(model, collate_alone([weighted[row]])))
            for row in np.unique(np.concatenate(packs.plan[:count]))
        }
        loader = DataLoader(packs, 2, collate_fn=collate, sampler=range(count))
        for number, batch in enumerate(loader):
            rows_of_batch = np.concatenate(packs.plan[2 * number : 2 * number + 2])
            expected = sum(of_row[row] for row in rows_of_batch)
            assert float(summed(model, batch)) == pytest.approx(expected, rel=1e-4)
            assert len(rows_of_batch) > 2
            assert batch["labels"].weights.unique().numel() > 2


def trained(smollm2, steps):
    """The loss a token of each step of SGD, of several batches each."""
    model = load(smollm2).train()
    model.model.layers = model.model.layers[:LAYERS]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    curve = []
    for batches in steps:
        tokens = sum(int((batch["labels"][:, 1:] >= 0).sum()) for batch in batches)
        losses = []
        for batch in batches:
            loss = model(**batch, num_items_in_batch=tokens).loss
            loss.backward()
            losses.append(loss.item())
        optimizer.step()
        optimizer.zero_grad()
        curve.append(sum(losses))
    return np.array(curve)


def test_training_on_packs_follows_that_on_their_samples_padded_one_by_one(smollm2, rows, table):
    packs = packs_of(rows, table)
    loader = DataLoader(packs, 2, collate_fn=PackCollator())
    packed, single = [], []
    for epoch in range(-(-2 * STEPS // len(packs))):
        packs.set_epoch(epoch)
        packed += [[batch] for batch in loader]
        of_packs = packs.plan[:]
        single += [
            [alone(rows[row], MAX_LENGTH) for row in np.concatenate(of_packs[start : start + 2])]
            for start in range(0, len(packs), 2)
        ]
    curve = trained(smollm2, packed[:STEPS])
    assert len(curve) == STEPS
    np.testing.assert_allclose(curve, trained(smollm2, single[:STEPS]), atol=1e-3)
    assert np.ptp(curve) > 0.1
