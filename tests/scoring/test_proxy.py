"""A small model scores all rows, the large one a sample."""

import numpy as np
import pytest
import torch
from frameworks_language import make_tokenizer
from language_models import VOCABULARY, llama, samples
from torch import nn

import flowdata
from flowdata import CausalLM, LossTable, MismatchError, score, score_proxy


def shallow(model):
    """The same model without its last layer: cheaper, and near enough to it."""
    small = llama()
    small.load_state_dict(model.state_dict())
    small.model.layers = small.model.layers[:1]
    return small


def test_the_table_is_the_small_models_and_the_sample_the_large_ones():
    model, rows = llama(), samples(200)
    small = shallow(model)
    found = score_proxy(model, rows, "causal_lm", proxy=small, sample=64, progress=False)
    alone = score(small, rows, "causal_lm", progress=False)
    assert np.array_equal(found.table.losses, alone.losses)
    assert found.table.provenance.model == "LlamaForCausalLM in place of LlamaForCausalLM"
    found.table.check(model=small)
    with pytest.raises(MismatchError):
        found.table.check(model=model)
    assert found.rows.size == len(found.sample) == 64
    whole = score(model, rows, "causal_lm", progress=False)
    assert found.sample.losses == pytest.approx(whole.losses[found.rows], rel=1e-5)
    # The estimates hold what all rows say.
    ranks = [np.argsort(np.argsort(table.losses)) for table in (alone, whole)]
    low, high = found.agreement.rank_correlation[1:]
    assert low < np.corrcoef(*ranks)[0, 1] < high
    p, q = (table.weights().values for table in (alone, whole))
    low, high = found.agreement.moved[1:]
    assert low < np.abs(p / p.mean() - q / q.mean()).mean() / 2 < high
    assert "64 of 200 rows" in str(found)


def test_a_model_is_its_own_best_proxy():
    model, rows = llama(), samples(40)
    found = score_proxy(model, rows, "causal_lm", proxy=llama(), sample=40, progress=False)
    assert found.agreement.rank_correlation.value == pytest.approx(1)
    assert found.agreement.moved.value == pytest.approx(0, abs=1e-6)
    assert found.agreement.moved_if_uniform.value > 0.03


def test_a_stopped_pass_goes_on_and_models_are_loaded_one_after_the_other(tmp_path):
    rows, loaded = samples(60), []

    def load(name):
        loaded.append(name)
        if name == "broken":
            raise RuntimeError("no room")
        return llama() if name == "large" else shallow(llama())

    options = {"sample": 20, "output": tmp_path / "table.parquet", "progress": False}
    with pytest.raises(RuntimeError, match="no room"):
        score_proxy(
            lambda: load("broken"), rows, "causal_lm", proxy=lambda: load("small"), **options
        )
    assert len(LossTable.load(tmp_path / "table.parquet")) == 60
    found = score_proxy(
        *(lambda: load("large"), rows, "causal_lm"),
        **({"proxy": lambda: load("small"), "proxy_name": "tiny", "model_name": "big"} | options),
    )
    assert loaded == ["small", "broken", "small", "large"]
    assert len(LossTable.load(tmp_path / "table.sample.parquet")) == 20
    assert found.sample.provenance.model == "big"


def texts(count):
    """Rows of text, of one to twelve words."""
    words = ["and", "so", "on", "row1", "row2", "so", "on", "row3", "row4", "and", "row5"]
    return [
        {"id": row, "text": " ".join(words[(row + place) % 11] for place in range(row % 12 + 1))}
        for row in range(count)
    ]


def test_lengths_are_those_of_the_large_models_tokens(tmp_path):
    own = make_tokenizer()
    other = make_tokenizer()
    other.add_tokens(["so on"])
    model = llama()
    model.resize_token_embeddings(max(len(own), len(other), VOCABULARY))
    rows = texts(48)
    loss, proxy_loss = (CausalLM(tokenizer=each, text="text") for each in (own, other))
    output = tmp_path / "table.parquet"
    found = score_proxy(
        model, rows, loss, proxy=model, proxy_loss=proxy_loss, sample=24, output=output, key="id"
    )
    counted = flowdata.lengths(rows, loss, progress=False)
    assert not np.array_equal(flowdata.lengths(rows, proxy_loss, progress=False), counted)
    assert np.array_equal(found.table.lengths, counted)
    saved = LossTable.load(output)
    assert np.array_equal(saved.lengths, counted)
    assert saved.rows_of([5]).tolist() == [5]
    tokens = CausalLM(tokenizer=other, text="text", token_losses=True)
    with pytest.raises(ValueError, match="tokens, and the large one has others"):
        score_proxy(model, rows, loss, proxy=model, proxy_loss=tokens)


def test_models_of_images_and_what_cannot_be_sampled():
    torch.manual_seed(0)
    data = torch.utils.data.TensorDataset(torch.randn(80, 6), torch.randint(3, (80,)))
    large, small = (
        nn.Sequential(nn.Linear(6, wide), nn.Tanh(), nn.Linear(wide, 3)) for wide in (32, 4)
    )
    found = score_proxy(large, data, proxy=small, sample=32, progress=False)
    assert found.sample.losses == pytest.approx(
        score(large, data, progress=False).losses[found.rows], rel=1e-5
    )
    with pytest.raises(ValueError, match="at least 2 rows, got sample=1"):
        score_proxy(large, data, proxy=lambda: pytest.fail("a model was loaded"), sample=1)
    with pytest.raises(ValueError, match="this is a stream"):
        score_proxy(large, iter(data), proxy=small)
    with pytest.raises(ValueError, match="merge, and give the table here as known="):
        score_proxy(large, data, proxy=small, shard=(0, 2), output="t.parquet")
