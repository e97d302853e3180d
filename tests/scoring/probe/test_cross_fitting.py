"""score_probe: the loss of each row under a head that has not seen it."""

import copy
import pickle

import numpy as np
import pytest
import torch
import transformers
from sklearn.linear_model import LogisticRegression
from torch import nn
from torch.nn import functional as F
from torch.utils.data import ConcatDataset, Subset, TensorDataset

import flowdata
from flowdata import (
    FlowDataWarning,
    LossTable,
    MismatchError,
    linear_probe,
    score,
    score_probe,
)
from flowdata.scoring.models.reliability import warn_if_unreliable
from flowdata.scoring.probe.folds import assign_folds

GENERATOR = torch.Generator().manual_seed(0)
CLASSES = torch.randint(0, 4, (120,), generator=GENERATOR)
CENTRES = torch.randn(4, 12, generator=GENERATOR)
INPUTS = CENTRES[CLASSES] + torch.randn(120, 12, generator=GENERATOR)
ROWS = TensorDataset(INPUTS, CLASSES)


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, 4))


def cross_fitted(model, rows=ROWS, head="2", **options):
    return score_probe(model, rows, head=head, progress=False, **options)


def test_rows_with_wrong_labels_are_rarely_drawn_where_a_probe_would_learn_them_by_heart():
    generator = torch.Generator().manual_seed(0)
    right = torch.randint(0, 10, (400,), generator=generator)
    centres = torch.randn(10, 1280, generator=generator)
    inputs = centres[right] + 6 * torch.randn(400, 1280, generator=generator)
    wrong = torch.rand(400, generator=generator) < 0.175
    given = torch.where(wrong, torch.randint(0, 10, (400,), generator=generator), right)
    harmful = (given != right).numpy()
    weights = cross_fitted(
        nn.Sequential(nn.Identity(), nn.Linear(1280, 10)), TensorDataset(inputs, given), "1"
    ).weights()
    assert weights.values[harmful].sum() / weights.values.sum() < 0.01 < 0.1 < harmful.mean()


@pytest.mark.parametrize("folds", [2, 5, 120])
def test_each_loss_is_that_of_a_head_that_was_fitted_on_the_other_folds(folds):
    model = network()
    table = cross_fitted(model, folds=folds, weight_decay=1e-2)
    with torch.no_grad():
        features = model[1](model[0](INPUTS)).numpy()
    fold_of = assign_folds(CLASSES.numpy(), folds, 0)
    for fold in range(min(folds, 3)):
        out = fold_of == fold
        reference = LogisticRegression(C=1 / (1e-2 * (~out).sum()), tol=1e-8, max_iter=10_000)
        reference.fit(features[~out], CLASSES[~out])
        chance = reference.predict_proba(features[out])
        wanted = -np.log(chance[np.arange(out.sum()), CLASSES[out]])
        np.testing.assert_allclose(table.losses[out], wanted, rtol=2e-2, atol=2e-3)


def test_the_model_is_left_with_the_head_of_all_rows_and_nothing_else_changed():
    model, probed = network().train(), network()
    model[0].bias.requires_grad_(False)
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    cross_fitted(model)
    linear_probe(probed, ROWS, head="2", progress=False)
    torch.testing.assert_close(model.state_dict(), probed.state_dict())
    assert torch.equal(model[0].weight, before["0.weight"])
    assert model.training
    assert [value.requires_grad for value in model.parameters()] == [True, False, True, True]
    assert torch.equal(torch.get_rng_state(), state)


def test_the_model_runs_once_over_the_rows():
    model, seen = network(), []
    model[0].register_forward_hook(lambda _, inputs, output: seen.append(len(inputs[0])))
    cross_fitted(model, batch_size=50)
    assert seen == [50, 50, 20]


def test_losses_do_not_depend_on_a_head_that_has_seen_the_rows():
    fresh, probed = network(), network()
    linear_probe(probed, ROWS, head="2", weight_decay=0.0, progress=False)
    np.testing.assert_array_equal(cross_fitted(fresh).losses, cross_fitted(probed).losses)


@pytest.mark.parametrize("options", [{"seed": 1}, {"folds": 4}])
def test_losses_are_a_function_of_the_seed_and_the_folds(options):
    first, again = cross_fitted(network()).losses, cross_fitted(network()).losses
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, cross_fitted(network(), **options).losses)


@pytest.mark.parametrize("folds", [2, 3, 5, 7])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_folds_are_alike_in_all_and_in_each_class_and_no_class_is_lost(folds, seed):
    counts = [2, 3, 2, 40, 11, 2, 100]
    classes = np.random.default_rng(seed).permutation(np.repeat([0, 5, 7, 8, 9, 20, 21], counts))
    fold_of = assign_folds(classes, folds, seed)
    for part in (classes >= 0, *(classes == kind for kind in np.unique(classes))):
        sizes = np.bincount(fold_of[part], minlength=folds)
        assert sizes.max() - sizes.min() <= 1
    for fold in range(folds):
        assert set(classes[fold_of != fold]) == set(classes)


def test_a_class_of_one_row_is_named():
    classes = CLASSES.clone()
    classes[17] = 5
    model = network()
    model[2] = nn.Linear(8, 6)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=r"1 classes have one row alone: row 17 \(class 5\)"):
        cross_fitted(model, TensorDataset(INPUTS, classes))
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"folds": 1}, "folds must be from 2 to the number of rows, 120, got 1"),
        ({"folds": 121}, "got 121"),
        ({"batch_size": 0}, "batch_size"),
        ({"weight_decay": -1.0}, "weight_decay"),
        ({"head": "fc"}, "no module 'fc'"),
        ({"rows": []}, "the data set is empty"),
        ({"rows": TensorDataset(INPUTS, CLASSES + 1)}, "the head has 4 outputs"),
        ({"rows": TensorDataset(INPUTS * torch.nan, CLASSES)}, "NaN or infinite features"),
    ],
)
def test_what_cannot_be_fitted_is_refused(options, said):
    with pytest.raises(ValueError, match=said):
        cross_fitted(network(), **options)


@pytest.mark.parametrize(
    "last", [nn.Softmax(dim=1), nn.Linear(4, 4), nn.Sigmoid()], ids=["softmax", "linear", "sigmoid"]
)
def test_a_head_that_is_not_the_last_is_refused(last):
    with pytest.raises(ValueError, match="the model changes what its head gives"):
        cross_fitted(nn.Sequential(*network(), last))


def test_log_softmax_after_the_head_changes_no_cross_entropy():
    plain, with_log = network(), nn.Sequential(*network(), nn.LogSoftmax(dim=1))
    np.testing.assert_array_equal(cross_fitted(plain).losses, cross_fitted(with_log).losses)


def test_a_transformers_classifier_is_scored_on_dicts_with_labels():
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2}
    model = transformers.BertForSequenceClassification(
        transformers.BertConfig(vocab_size=20, num_hidden_layers=1, num_labels=3, **sizes)
    )
    rows = [
        {"input_ids": torch.full((5,), row), "attention_mask": torch.ones(5), "labels": row % 3}
        for row in range(18)
    ]
    assert np.isfinite(cross_fitted(model, rows, "classifier").losses).all()


def test_the_table_says_that_it_is_cross_fitted_and_is_one_of_the_model_that_is_left(tmp_path):
    model, output = network(), tmp_path / "losses.parquet"
    table = cross_fitted(model, output=output, seed=3, model_name="small")
    assert table.provenance.model == "small"
    assert table.provenance.loss == "cross_entropy"
    for said in ('"folds": 5', '"seed": 3', "cross_fitted", '"head": "2"'):
        assert said in table.provenance.options
    loaded = LossTable.load(output, dataset=ROWS, model=model)
    np.testing.assert_array_equal(loaded.losses, table.losses)
    with pytest.raises(MismatchError):
        LossTable.load(output, model=network())


def test_the_same_call_writes_the_same_table_and_another_is_refused(tmp_path):
    output = tmp_path / "losses.parquet"
    first = cross_fitted(network(), output=output)
    np.testing.assert_array_equal(cross_fitted(network(), output=output).losses, first.losses)
    other = network()
    other[0].weight.data += 1
    calls = [
        (network(), {"seed": 1}),
        (network(), {"folds": 3}),
        (network(), {"rows": TensorDataset(INPUTS + 1, CLASSES)}),
        (other, {}),
    ]
    for model, options in calls:
        with pytest.raises(MismatchError, match="does not belong here"):
            cross_fitted(model, output=output, **options)
    url = "memory://cross-fitted/losses.parquet"
    assert cross_fitted(network(), output=url).losses.tolist() == first.losses.tolist()
    with pytest.raises(MismatchError, match="does not belong here"):
        cross_fitted(calls[0][0], output=url, **calls[0][1])


def of_modules(model):
    """The state of a model, put into a new one."""
    other = network()
    other.load_state_dict(model.state_dict())
    return other


@pytest.mark.parametrize("fit", [linear_probe, score_probe], ids=["linear_probe", "score_probe"])
@pytest.mark.parametrize(
    "again",
    [
        lambda model: model,
        copy.deepcopy,
        of_modules,
        lambda model: pickle.loads(pickle.dumps(model)),
        nn.Sequential,
    ],
    ids=["itself", "copy", "state", "pickle", "wrapped"],
)
def test_score_warns_of_rows_on_which_the_head_was_fitted(fit, again):
    model = network()
    keys, attributes = set(model.state_dict()), set(vars(model[2]))
    fit(model, ROWS, head="2", progress=False)
    assert (set(model.state_dict()), set(vars(model[2]))) == (keys, attributes)
    with pytest.warns(FlowDataWarning, match="fitted on these rows by linear_probe"):
        score(again(model), ROWS, progress=False)


@pytest.mark.parametrize(
    "rows",
    [
        Subset(ROWS, list(range(0, 120, 7))),
        Subset(ROWS, list(range(119, -1, -1))),
        ConcatDataset([ROWS, TensorDataset(INPUTS + 1, CLASSES)]),
        [(*row,) for row in ROWS],
    ],
    ids=["some", "turned round", "with others", "a list"],
)
def test_it_warns_of_the_same_rows_in_another_order_or_number(rows):
    model = network()
    linear_probe(model, ROWS, head="2", progress=False)
    with pytest.warns(FlowDataWarning, match="rows by linear_probe"):
        score(model, rows, progress=False)


def test_it_is_silent_on_other_rows_and_once_the_head_has_been_trained_on():
    model = network()
    linear_probe(model, Subset(ROWS, range(60)), head="2", progress=False)
    score(model, Subset(ROWS, range(60, 120)), progress=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    F.cross_entropy(model(INPUTS), CLASSES).backward()
    optimizer.step()
    score(model, Subset(ROWS, range(60)), progress=False)


@pytest.mark.parametrize("name", ["classification", "cross_entropy"])
def test_losses_that_are_rounding_are_warned_of(name):
    logits = torch.zeros(9, 4)
    logits[:, 0] = torch.linspace(13, 20, 9)
    rows = TensorDataset(logits, torch.zeros(9, dtype=torch.int64))
    with pytest.warns(FlowDataWarning, match="weights at this temperature are noise"):
        score(nn.Identity(), rows, name, progress=False)


@pytest.mark.parametrize(
    ("rows", "name"),
    [
        (TensorDataset(torch.full((9,), 1e-5), torch.zeros(9) + 2e-5), "mse"),
        (TensorDataset(torch.linspace(1e-5, 2e-5, 9), torch.full((9,), 3e-5)), "classification"),
        (TensorDataset(torch.linspace(14, 20, 9), torch.ones(9)), "bce"),
        (
            TensorDataset(torch.tensor([[9.0, 0]] * 9), torch.zeros(9, dtype=torch.int64)),
            "cross_entropy",
        ),
    ],
    ids=["mse", "small numbers", "bce", "certain"],
)
def test_small_losses_that_are_exact_are_not(rows, name):
    score(nn.Identity(), rows, name, progress=False)


def test_a_language_model_that_knows_the_rows_by_heart_is_warned_of():
    table = LossTable.from_losses(np.full(5, 3e-7, np.float32), loss="causal_lm")
    with pytest.warns(FlowDataWarning, match="score_probe"):
        warn_if_unreliable(table, [0] * 5)


def test_the_name_is_there():
    assert flowdata.score_probe is score_probe
