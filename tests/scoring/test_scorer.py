"""score with function losses: right, in order, and without a trace in model or randomness."""

import copy
import random
from types import SimpleNamespace

import datasets
import numpy as np
import peft
import pytest
import torch
import transformers
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from flowdata import FlowDataWarning, InvalidLossError, score
from flowdata.table.fingerprint import model_fingerprint

GENERATOR = torch.Generator().manual_seed(6)
INPUTS = torch.randn(37, 4, generator=GENERATOR)
CLASSES = torch.randint(0, 3, (37,), generator=GENERATOR)
ROWS = TensorDataset(INPUTS, CLASSES)
WORKERS = [0, pytest.param(2, marks=pytest.mark.slow)]


def network():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3))
    model(torch.randn(50, 4))  # running statistics that are worth keeping
    return model


def logits():
    with torch.no_grad():
        return network().eval()(INPUTS)


def run(model=None, dataset=ROWS, *args, **options):
    return score(network() if model is None else model, dataset, *args, progress=False, **options)


def expected():
    return F.cross_entropy(logits(), CLASSES, reduction="none").numpy()


def own(model, batch):
    """The second entry of a sample is its loss."""
    return batch[1].float()


def with_losses(*losses):
    return TensorDataset(torch.zeros(len(losses), 4), torch.tensor(losses))


@pytest.mark.parametrize("loss", ["classification", "cross_entropy"])
def test_losses_of_classes_are_the_cross_entropy_of_each_row(loss):
    table = run(None, ROWS, loss)
    assert table.losses.dtype == np.float32
    np.testing.assert_allclose(table.losses, expected(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("loss", ["classification", "bce"])
def test_losses_of_flags_are_the_binary_cross_entropy_of_each_row(loss):
    flags = torch.rand(37, 3, generator=GENERATOR) < 0.3
    wanted = F.binary_cross_entropy_with_logits(logits(), flags.float(), reduction="none").mean(1)
    found = run(None, TensorDataset(INPUTS, flags), loss).losses
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("loss", ["classification", "mse"])
def test_losses_of_numbers_are_the_squared_error_of_each_row(loss):
    values = torch.randn(37, 3, generator=GENERATOR)
    found = run(None, TensorDataset(INPUTS, values), loss).losses
    np.testing.assert_allclose(found, (logits() - values).square().mean(1), rtol=1e-4, atol=1e-6)


def test_samples_may_be_dicts_and_outputs_have_logits():
    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = network()

        def forward(self, pixels):
            return SimpleNamespace(loss=None, logits=self.inner(pixels))

    dataset = [{"pixels": x, "labels": y} for x, y in ROWS]
    np.testing.assert_allclose(run(Wrapped(), dataset).losses, expected(), rtol=1e-5, atol=1e-6)


def test_a_classifier_of_transformers_is_scored_as_it_scores_itself():
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2}
    config = transformers.BertConfig(vocab_size=20, num_hidden_layers=1, num_labels=3, **sizes)
    model = transformers.BertForSequenceClassification(config)
    ids = torch.randint(0, 20, (5, 6), generator=GENERATOR)
    samples = [
        {"input_ids": ids[row], "attention_mask": torch.ones(6), "labels": row % 3}
        for row in range(5)
    ]
    found = run(model, samples, batch_size=2).losses
    model.eval()
    wanted = [
        model(ids[row : row + 1], torch.ones(1, 6), labels=torch.tensor([row % 3])).loss.item()
        for row in range(5)
    ]
    np.testing.assert_allclose(found, wanted, rtol=1e-4)


@pytest.mark.parametrize("workers", WORKERS)
def test_losses_are_in_the_order_of_the_data_set(workers):
    rows = np.random.default_rng(1).permutation(37).tolist()
    found = run(None, with_losses(*rows), own, batch_size=4, num_workers=workers).losses
    assert found.tolist() == rows


@pytest.mark.parametrize("size", [1, 5, 36, 37, 1000])
def test_the_batch_size_makes_no_difference(size):
    np.testing.assert_allclose(run(batch_size=size).losses, expected(), rtol=1e-5, atol=1e-6)


def test_the_last_batch_holds_what_is_left():
    sizes = []

    def counting(model, batch):
        sizes.append(len(batch[0]))
        return torch.ones(len(batch[0]))

    run(None, ROWS, counting, batch_size=8)
    assert sizes == [8, 8, 8, 8, 5]


def test_a_collate_function_makes_the_batches():
    def scaled(samples):
        return torch.stack([x for x, _ in samples]) / 2, torch.tensor([y for _, y in samples])

    half = run(dataset=TensorDataset(INPUTS / 2, CLASSES)).losses
    assert run(collate_fn=scaled).losses.tolist() == half.tolist()


def test_a_model_of_half_precision_gives_losses_of_single_precision():
    model = network().eval().bfloat16()
    table = run(model, TensorDataset(INPUTS.bfloat16(), CLASSES), batch_size=37)
    with torch.no_grad():
        output = model(INPUTS.bfloat16())
    wanted = F.cross_entropy(output.float(), CLASSES, reduction="none")
    assert table.losses.dtype == np.float32
    np.testing.assert_allclose(table.losses, wanted, rtol=1e-6, atol=1e-7)
    assert table.provenance.dtype == "bfloat16"


def test_a_model_without_parameters_can_be_scored():
    table = run(nn.Identity(), TensorDataset(INPUTS, CLASSES))
    wanted = F.cross_entropy(INPUTS, CLASSES, reduction="none")
    np.testing.assert_allclose(table.losses, wanted, rtol=1e-5)
    assert table.provenance.dtype is None


def test_a_function_of_ones_own_is_called_with_model_and_batch_and_named_in_the_provenance():
    model, seen = network(), []

    def margin(called, batch):
        seen.append((called is model, called.training, torch.is_grad_enabled(), type(batch)))
        return called(batch[0]).amax(dim=1).abs()

    table = run(model, ROWS, margin, batch_size=37)
    assert seen == [(True, False, False, list)]
    np.testing.assert_allclose(table.losses, logits().amax(1).abs(), rtol=1e-5, atol=1e-6)
    assert table.provenance.loss == "margin"


def test_provenance_tells_model_data_and_loss():
    provenance = run(model_name="mine").provenance
    assert (provenance.rows, provenance.loss, provenance.model) == (37, "classification", "mine")
    assert provenance.model_hash == model_fingerprint(network())
    assert run().provenance.model == "Sequential"
    run().check(dataset=ROWS, model=network())


def test_each_module_gets_its_mode_back_even_after_an_error():
    model = network().train()
    model[1].eval()
    run(model)
    assert [module.training for module in model] == [True, False, True, True]

    def broken(called, batch):
        raise RuntimeError("no memory")

    with pytest.raises(RuntimeError, match="no memory"):
        run(model, ROWS, broken)
    assert model.training
    assert [module.training for module in model] == [True, False, True, True]
    assert torch.is_grad_enabled()


def test_parameters_buffers_and_gradients_are_untouched():
    model = network().train()
    model(INPUTS).sum().backward()
    model[0].bias.requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    gradients = [parameter.grad.clone() for parameter in model.parameters()]
    run(model)
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        assert torch.equal(parameter.grad, gradient)
    trained = [parameter.requires_grad for parameter in model.parameters()]
    assert trained == [True, False, True, True, True, True]


@pytest.mark.parametrize("workers", WORKERS)
def test_no_global_random_number_is_drawn(workers):
    def states():
        kind, keys, *rest = np.random.get_state()  # noqa: NPY002
        return torch.get_rng_state().tolist(), random.getstate(), (kind, keys.tolist(), *rest)

    model = network().train()
    before = states()
    run(model, num_workers=workers)
    assert states() == before


def test_a_model_that_keeps_tensors_of_its_forward_pass_can_be_trained_after_it():
    class Caching(nn.Linear):
        scale = None

        def forward(self, inputs):
            if self.scale is None:
                self.scale = torch.full((3,), 2.0)
            return super().forward(inputs) * self.scale

    model = Caching(4, 3)
    run(model)
    model(INPUTS).sum().backward()
    assert model.weight.grad is not None


def test_an_invalid_loss_stops_the_pass_and_names_the_rows():
    rows = with_losses(1.0, 2.0, float("nan"), 3.0, -1.0, float("inf"))
    with pytest.raises(InvalidLossError, match=r"losses \[nan, -1.0, inf\] at rows \[2, 4, 5\];"):
        run(None, rows, own)
    with pytest.raises(InvalidLossError, match=r"\[-1.0, inf\] at rows \[4, 5\].*on_invalid="):
        run(None, with_losses(1.0, 2.0, 4.0, 3.0, -1.0, float("inf")), own, batch_size=3)


def test_only_the_first_five_rows_of_invalid_losses_are_named():
    with pytest.raises(InvalidLossError, match=r"at rows \[0, 1, 2, 3, 4\] and more"):
        run(None, with_losses(*[-1.0] * 6), own)
    with pytest.raises(InvalidLossError, match=r"at rows \[0, 1, 2, 3, 4\]; look"):
        run(None, with_losses(*[-1.0] * 5), own)


def test_dropped_losses_are_nan_in_the_table_and_have_weight_zero():
    rows = with_losses(1.0, float("nan"), 2.0, -1.0, float("-inf"), float("inf"))
    table = run(None, rows, own, on_invalid="drop", batch_size=4)
    np.testing.assert_array_equal(table.losses, [1.0, np.nan, 2.0] + [np.nan] * 3)
    assert np.flatnonzero(table.weights(on_invalid="drop").values).tolist() == [0, 2]


def test_dropping_losses_does_not_write_into_the_tensor_the_function_gave():
    kept = torch.tensor([1.0, float("inf"), -2.0])
    run(None, with_losses(0.0, 0.0, 0.0), lambda *_: kept, on_invalid="drop")
    assert kept.tolist() == [1.0, float("inf"), -2.0]


def test_an_unknown_treatment_of_invalid_losses_is_refused():
    with pytest.raises(ValueError, match="on_invalid"):
        run(on_invalid="ignore")


@pytest.mark.parametrize("size", [0, -1])
def test_a_batch_size_below_one_is_refused(size):
    with pytest.raises(ValueError, match=f"batch_size must be at least 1, got {size}"):
        run(batch_size=size)


def test_data_that_reads_differently_each_time_warns():
    class Augmented(TensorDataset):
        def __getitem__(self, row):
            x, y = super().__getitem__(row)
            return x + torch.randn(4), y

    torch.manual_seed(0)
    with pytest.warns(FlowDataWarning, match="without random augmentation") as warned:
        table = run(dataset=Augmented(INPUTS, CLASSES))
    assert [warning.filename for warning in warned] == [__file__]
    assert table.provenance.data_fingerprint is None


def test_loaders_streams_and_empty_data_are_refused():
    class Stream(IterableDataset):
        def __iter__(self):
            yield from ROWS

    with pytest.raises(TypeError, match="pass the data set, not a DataLoader"):
        run(dataset=DataLoader(ROWS))
    with pytest.raises(TypeError, match="a map-style data set is needed"):
        run(dataset=Stream())
    with pytest.raises(ValueError, match="the data set is empty"):
        run(dataset=[])
    columns = {"x": [1.0, 2.0], "y": [0, 1]}
    splits = datasets.DatasetDict({"train": datasets.Dataset.from_dict(columns)})
    for data in (columns, splits):
        with pytest.raises(TypeError, match=rf"{type(data).__name__} of \['.*one split"):
            run(dataset=data)
    with pytest.raises(TypeError, match=r"DataFrame has no rows by number.*from_pandas"):
        run(dataset=splits["train"].to_pandas())


def test_an_unknown_loss_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="got 'hinge'") as error:
        run(None, ROWS, "hinge")
    for name in ("bce", "causal_lm", "classification", "cross_entropy", "mse", "CausalLM"):
        assert name in str(error.value)


def test_losses_that_are_not_one_a_row_are_refused():
    with pytest.raises(ValueError, match=r"shape \(\) for a batch of 37 samples, \(37,\) is"):
        run(None, ROWS, lambda model, batch: F.cross_entropy(model(batch[0]), batch[1]))


def test_batches_the_loss_does_not_understand_are_refused():
    with pytest.raises(TypeError, match="a batch must be"):
        run(dataset=TensorDataset(INPUTS, CLASSES, CLASSES))


def test_a_progress_bar_is_shown_on_standard_error_when_asked_for(capsys):
    score(network(), ROWS, progress=True)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "scoring: 100%" in shown.err
    assert "37/37" in shown.err
    assert "samples/s" in shown.err
    score(network(), ROWS, progress=False)
    assert capsys.readouterr() == ("", "")


def test_a_peft_model_is_scored_as_its_base_model_unless_adapters_are_asked_for():
    config = peft.LoraConfig(r=2, target_modules=["0"], init_lora_weights=False)
    model = peft.get_peft_model(network(), config).eval()
    with torch.no_grad():
        adapted = F.cross_entropy(model(INPUTS), CLASSES, reduction="none").numpy()
    assert not np.allclose(adapted, expected())
    base, on = run(model), run(model, adapters=True)
    np.testing.assert_allclose(base.losses, expected(), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(on.losses, adapted, rtol=1e-5, atol=1e-6)
    base.check(model=network())
    assert on.provenance.model_hash != base.provenance.model_hash
    assert (base.provenance.adapters, on.provenance.adapters) == (False, True)
