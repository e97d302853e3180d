"""Unmodified models of transformers, with sequence and token weights."""

import copy

import pytest
import torch
from torch.nn import functional as F
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertForSequenceClassification,
    T5Config,
    T5ForConditionalGeneration,
)
from weighted_language import (
    by_hand,
    close,
    compiled_or_skipped,
    gradients,
    make_rows,
    padded,
    small_model,
    spread_weights,
    tables,
)
from weighted_loading import weighted_loader

from flowdata.reweight import UnweightedLossError, WeightedTarget


@pytest.fixture(scope="module")
def model():
    return small_model()


@pytest.mark.parametrize("level", ["sample", "token"])
@pytest.mark.parametrize("items", [None, 37])
def test_the_loss_of_a_model_is_that_of_the_authors(model, level, items):
    rows = make_rows()
    table = tables(model, rows)
    loader = weighted_loader(rows, table, level=level, batch_size=8, collate_fn=padded)
    [batch] = loader
    options = {} if items is None else {"num_items_in_batch": items}
    found = model(**batch, **options).loss
    plain_batch = padded(rows)
    weights = spread_weights(table, range(len(rows)), plain_batch, level)
    expected = by_hand(model, plain_batch, weights, items)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)
    by_model = gradients(model, found)
    assert close(by_model, gradients(model, by_hand(model, plain_batch, weights, items)))


def test_it_holds_under_autocast(model):
    rows = make_rows()
    table = tables(model, rows)
    [batch] = weighted_loader(rows, table, batch_size=8, collate_fn=padded)
    plain_batch = padded(rows)
    weights = spread_weights(table, range(len(rows)), plain_batch, "sample")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = model(**batch).loss
        expected = by_hand(model, plain_batch, weights)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("level", ["sample", "token"])
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_compiled_model_computes_its_own_loss(model, level, backend):
    rows = make_rows(lengths=(6,) * 4)
    table = tables(model, rows)
    [batch] = weighted_loader(rows, table, level=level, batch_size=4, collate_fn=padded)
    plain_batch = padded(rows)
    compiled_or_skipped(model, plain_batch)
    compiled = copy.deepcopy(model)
    expected_model = copy.deepcopy(model)
    loss = torch.compile(compiled, backend=backend)(**batch).loss
    weights = spread_weights(table, range(4), plain_batch, level)
    expected = by_hand(expected_model, plain_batch, weights)
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-7)
    assert close(gradients(compiled, loss), gradients(expected_model, expected))


@pytest.mark.slow
def test_a_compiled_step_with_a_loss_of_torch():
    layer, inputs = torch.nn.Linear(5, 3), torch.randn(4, 5)
    target = WeightedTarget(torch.tensor([0, 1, 2, 1]), torch.tensor([0.1, 0.5, 2.0, 3.0]))
    torch.compiler.reset()
    step = torch.compile(lambda x, y: F.cross_entropy(layer(x), y), backend="aot_eager")
    torch.testing.assert_close(step(inputs, target), F.cross_entropy(layer(inputs), target))
    with pytest.raises(UnweightedLossError):
        torch.compile(lambda x, y: layer(x).log_softmax(1).gather(1, y), backend="aot_eager")(
            inputs, target[:, None]
        )


@pytest.mark.parametrize(
    ("kind", "labels", "outputs"),
    [
        ("single_label_classification", torch.tensor([0, 2, 1]), 3),
        ("multi_label_classification", torch.tensor([[0.0, 1, 1], [1, 0, 0], [1, 1, 0]]), 3),
        ("regression", torch.tensor([0.5, 2.0, -1.0]), 1),
    ],
)
def test_classifiers_of_transformers(kind, labels, outputs):
    torch.manual_seed(0)
    model = BertForSequenceClassification(
        BertConfig(
            vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
            intermediate_size=8, num_labels=outputs, problem_type=kind,
        )
    ).eval()  # fmt: skip
    ids = torch.randint(0, 20, (3, 5))
    weights = torch.tensor([0.5, 1.0, 3.0])
    found = model(input_ids=ids, labels=WeightedTarget(labels, weights)).loss
    each = [model(input_ids=ids[i : i + 1], labels=labels[i : i + 1]).loss for i in range(3)]
    torch.testing.assert_close(found, (torch.stack(each) * weights).mean(), rtol=1e-5, atol=1e-6)


def test_an_encoder_and_decoder_with_labels_that_make_its_inputs():
    torch.manual_seed(0)
    model = T5ForConditionalGeneration(
        T5Config(
            vocab_size=20, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2,
            decoder_start_token_id=0, dropout_rate=0.0,
        )
    ).eval()  # fmt: skip
    ids, labels = torch.randint(1, 20, (3, 5)), torch.randint(1, 20, (3, 4))
    weights = torch.tensor([0.5, 1.0, 3.0])
    found = model(input_ids=ids, labels=WeightedTarget(labels, weights)).loss
    each = [model(input_ids=ids[i : i + 1], labels=labels[i : i + 1]).loss for i in range(3)]
    torch.testing.assert_close(found, (torch.stack(each) * weights).mean(), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("level", ["sample", "token"])
def test_the_real_language_model_has_the_gradients_of_a_hand_written_loss(smollm2, level):
    model = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32).eval()
    rows = make_rows(40_000, lengths=(6, 9, 7))
    table = tables(model, rows)
    [batch] = weighted_loader(rows, table, level=level, batch_size=3, collate_fn=padded)
    found = gradients(model, model(**batch).loss)
    plain_batch = padded(rows)
    weights = spread_weights(table, range(3), plain_batch, level)
    expected = gradients(model, by_hand(model, plain_batch, weights))
    assert close(found, expected)
    assert not close(gradients(model, model(**plain_batch).loss), expected, 1e-2)
