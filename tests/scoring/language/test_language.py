"""Losses of language models against those of each sample alone."""

import datasets
import numpy as np
import pytest
import torch
from language_models import VOCABULARY, Plain, gemma2, gpt2, llama, one_by_one, samples

from flowdata import CausalLM, score


@pytest.mark.parametrize("make", [llama, gpt2, gemma2, Plain])
def test_losses_are_those_of_each_sample_alone(make):
    model, rows = make(), samples()
    table = score(model, rows, CausalLM(token_losses=True, max_tokens=200), progress=False)
    alone = one_by_one(model, rows)
    assert table.losses == pytest.approx([each.mean() for each in alone], rel=1e-5)
    assert table.n_tokens.tolist() == [each.size for each in alone]
    assert table.token_losses == pytest.approx(np.concatenate(alone), rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("max_tokens", [1, 64, 10_000])
def test_losses_do_not_depend_on_batches_or_order(max_tokens):
    model, rows = llama(), samples()
    table = score(model, rows, "causal_lm", progress=False)
    order = np.random.default_rng(1).permutation(len(rows))
    other = score(
        model, [rows[row] for row in order], CausalLM(max_tokens=max_tokens), progress=False
    )
    assert other.losses == pytest.approx(table.losses[order], rel=1e-5)


def test_the_head_never_sees_a_token_that_is_not_scored_but_one_a_row():
    model, rows = llama(), samples()
    seen = []
    model.lm_head.register_forward_hook(lambda module, inputs, output: seen.append(output.shape))
    table = score(model, rows, CausalLM(max_tokens=500), progress=False)
    positions = sum(shape[:-1].numel() for shape in seen)
    # One position of each row stands in for the forward pass, 8 and 8, 2 x 32, 6 x 34, 2 x 48 and
    # 4 x 24 + 12 for finding out.
    assert positions <= table.n_tokens.sum() + len(rows) + 16 + 64 + 204 + 96 + 108 + len(seen)
    assert all(shape.numel() < 2 * 500 * VOCABULARY for shape in seen)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_losses_of_a_half_precision_model_are_float32(dtype):
    model, rows = llama().to(dtype), samples(10)
    alone = [each.mean() for each in one_by_one(model, rows)]
    table = score(model, rows, CausalLM(token_losses=True), progress=False)
    assert table.losses.dtype == table.token_losses.dtype == np.float32
    assert table.provenance.dtype == str(dtype).removeprefix("torch.")
    # Sums in half precision depend on the shape of the batch, but not for a batch of one.
    assert table.losses == pytest.approx(alone, rel=0.01)
    single = score(model, rows, CausalLM(max_tokens=1), progress=False)
    assert single.losses == pytest.approx(alone, rel=1e-5)
    # Not rounded to half precision.
    assert np.any(torch.tensor(table.losses).to(dtype).float().numpy() != table.losses)


def test_padding_that_the_attention_mask_shows_does_not_count():
    model, rows = llama(), samples(20)
    padded = []
    for number, row in enumerate(rows):
        pad = 5
        left = number % 2 == 0
        extended = {}
        for name, filler in (("input_ids", 0), ("labels", -100), ("attention_mask", 0)):
            values = row.get(name, [1] * len(row["input_ids"]))
            extended[name] = [filler] * pad + values if left else values + [filler] * pad
        padded.append(extended)
    plain, other = (score(model, data, "causal_lm", progress=False) for data in (rows, padded))
    assert other.losses == pytest.approx(plain.losses, rel=1e-5)


def test_rows_of_a_datasets_dataset_are_scored_in_its_order():
    rows = samples(30)
    dataset = datasets.Dataset.from_list(rows)
    table = score(llama(), dataset, CausalLM(token_losses=True), progress=False)
    assert table.losses == pytest.approx(
        [each.mean() for each in one_by_one(llama(), rows)], rel=1e-5
    )
    table.check(dataset=dataset, model=llama())
    tensors = score(llama(), dataset.with_format("torch"), "causal_lm", progress=False)
    assert tensors.losses.tolist() == pytest.approx(table.losses.tolist(), rel=1e-6)


def test_sequence_and_token_weights_are_the_authors():
    model, rows = llama(), samples()
    table = score(model, rows, CausalLM(token_losses=True), progress=False)
    alone = one_by_one(model, rows)
    means = np.array([each.mean() for each in alone])
    assert table.weights().values == pytest.approx(np.exp(-means / np.median(means)), rel=1e-4)
    tokens = np.concatenate(alone)
    weights = table.token_weights()
    assert weights.temperature == pytest.approx(np.median(tokens), rel=1e-5)
    assert weights.values == pytest.approx(np.exp(-tokens / np.median(tokens)), rel=1e-4)
    third = slice(*table.token_offsets[2:4])
    assert weights[third] == pytest.approx(np.exp(-alone[2] / np.median(tokens)), rel=1e-4)
