"""Batches with weighted targets, of all kinds of data sets, in unchanged loops."""

import copy
from collections import namedtuple

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset
from weighted_loading import drawing_loader, weighted_loader

import flowdata
from flowdata import EpochPlan, FlowDataset, FlowWeights, LossTable, MismatchError
from flowdata.reweight import WeightedTarget, plain, reweight

ROWS = 24
Pair = namedtuple("Pair", "image label")


@pytest.fixture
def losses():
    return np.random.default_rng(0).gamma(2, size=ROWS)


@pytest.fixture
def data():
    generator = torch.Generator().manual_seed(1)
    return TensorDataset(
        torch.randn(ROWS, 5, generator=generator),
        torch.randint(0, 3, (ROWS,), generator=generator),
    )


def train(model, loader, epochs=2):
    """An ordinary loop that knows of no weights."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(epochs):
        for inputs, targets in loader:
            loss = F.cross_entropy(model(inputs), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def train_by_hand(model, data, weights, batch_size, epochs=2):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    inputs, targets = data.tensors
    for _ in range(epochs):
        for rows in torch.arange(ROWS).split(batch_size):
            losses = F.cross_entropy(model(inputs[rows]), targets[rows], reduction="none")
            loss = (losses * weights[rows]).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("normalize", ["mean", None, "max", "sum"])
def test_an_unchanged_loop_trains_as_a_hand_written_weighted_loss(data, losses, normalize, workers):
    weights = FlowWeights.from_losses(losses)
    expected = (
        weights.values
        / {
            "mean": weights.values.mean(),
            None: 1,
            "max": weights.values.max(),
            "sum": weights.values.sum(),
        }[normalize]
    )
    model = nn.Linear(5, 3)
    other = copy.deepcopy(model)
    loader = weighted_loader(data, weights, normalize=normalize, batch_size=7, num_workers=workers)
    found = train(model, loader)
    by_hand = train_by_hand(other, data, torch.from_numpy(expected).float(), 7)
    torch.testing.assert_close(found, by_hand, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("item", "options"),
    [
        (lambda x, y: (x, y), {}),
        (lambda x, y: (y, x), {"target": 0}),
        (lambda x, y: [x, y], {"target": 1}),
        (lambda x, y: Pair(x, y), {}),
        (lambda x, y: {"x": x, "labels": y}, {}),
        (lambda x, y: {"x": x, "label": y}, {}),
        (lambda x, y: {"x": x, "y": y}, {"target": "y"}),
        (lambda x, y: {"x": {"deep": x}, "y": {"deep": y}}, {"target": "function"}),
    ],
)
def test_the_target_is_found_in_batches_of_all_kinds(data, losses, item, options):
    if options.get("target") == "function":

        def place(batch, add_weights):
            batch["y"]["deep"] = add_weights(batch["y"]["deep"])
            return batch

        options = {"target": place}
    items = [item(x, y) for x, y in data]
    weights = FlowWeights.from_losses(losses, normalize="mean")
    [batch] = weighted_loader(items, weights, batch_size=ROWS, **options)
    found = [part for part in leaves(batch) if isinstance(part, WeightedTarget)]
    assert len(found) == 1
    assert torch.equal(plain(found[0]), data.tensors[1])
    np.testing.assert_allclose(found[0].weights.numpy(), weights.values, rtol=1e-6)
    assert type(batch) is type(DataLoader(items, batch_size=ROWS).__iter__().__next__())


def test_a_batch_encoding_keeps_its_kind(losses):
    from transformers import BatchEncoding

    items = [{"input_ids": [row], "labels": row} for row in range(ROWS)]

    def encode(rows):
        made = {name: torch.tensor([row[name] for row in rows]) for name in rows[0]}
        return BatchEncoding(made)

    [batch] = weighted_loader(items, losses, batch_size=ROWS, collate_fn=encode)
    assert type(batch) is BatchEncoding
    moved = batch.to("cpu")["labels"]
    np.testing.assert_allclose(moved.weights.numpy(), losses / losses.mean(), rtol=1e-6)


def test_several_targets_share_the_weights(data, losses):
    items = [{"x": x, "start": y, "end": y + 1} for x, y in data]

    def place(batch, add_weights):
        return batch | {"start": add_weights(batch["start"]), "end": add_weights(batch["end"])}

    [batch] = weighted_loader(items, losses, batch_size=ROWS, target=place)
    assert torch.equal(batch["start"].weights, batch["end"].weights)


def leaves(value):
    if isinstance(value, torch.Tensor):
        return [value]
    values = value.values() if isinstance(value, dict) else value
    return [leaf for part in values for leaf in leaves(part)]


def test_weights_can_be_an_entry_of_the_batch_instead(data, losses):
    [(_, targets, weights)] = weighted_loader(data, losses, entry="w", batch_size=ROWS)
    assert type(targets) is torch.Tensor
    np.testing.assert_allclose(weights.numpy(), losses / losses.mean(), rtol=1e-6)
    items = [{"x": x, "labels": y} for x, y in data]
    [batch] = weighted_loader(items, losses, entry="flow_weight", batch_size=ROWS)
    assert torch.equal(batch["flow_weight"], weights)
    listed = weighted_loader(
        data, losses, entry="w", batch_size=ROWS, collate_fn=lambda items: [torch.ones(1)]
    )
    assert type(next(iter(listed))) is list


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_every_alpha_has_the_same_expected_gradient(data, losses, alpha):
    """Mean gradient over 400 epochs of draws against the full weighted gradient."""
    weights = FlowWeights.from_losses(losses)
    model = nn.Linear(5, 3).double()
    inputs, targets = data.tensors[0].double(), data.tensors[1]
    share = torch.from_numpy(weights.values / weights.values.sum())
    per_row = torch.stack(
        [
            torch.autograd.grad(F.cross_entropy(model(x[None]), y[None]), model.weight)[0].flatten()
            for x, y in zip(inputs, targets, strict=True)
        ]
    )
    full = share @ per_row
    epochs, total = 100, torch.zeros_like(full)
    loader_of = drawing_loader if alpha else weighted_loader
    loader = loader_of(TensorDataset(inputs, targets), weights, alpha=alpha, batch_size=ROWS)
    for _ in range(epochs if alpha else 1):
        for x, y in loader:
            loss = F.cross_entropy(model(x), y)
            total += torch.autograd.grad(loss, model.weight)[0].flatten()
    mean = total / (epochs if alpha else 1)
    noise = (per_row - full).norm(dim=1).mean() * losses.size**-0.5 * epochs**-0.5
    assert (mean - full).norm() < (6 * noise if alpha else 1e-6)


def test_alpha_draws_by_a_part_of_the_weight(data, losses):
    weights = FlowWeights.from_losses(losses)
    draws = {"seed": 3, "epoch_size": 12}
    loader = drawing_loader(data, weights, alpha=0.5, draws=draws, batch_size=ROWS)
    [(inputs, targets)] = loader
    rows = EpochPlan(weights, alpha=0.5, seed=3, epoch_size=12)[:]
    assert torch.equal(inputs, data.tensors[0][rows])
    np.testing.assert_allclose(targets.weights.numpy(), weights.residual(0.5)[rows], rtol=1e-6)


@pytest.mark.parametrize("normalize", ["mean", None, "max", "sum"])
def test_the_scale_is_the_same_for_every_alpha(losses, normalize):
    """Mean weight of a draw: the sum of p times weight, with p of the draws."""
    weights = FlowWeights.from_losses(losses)
    scales = []
    for alpha in (0.0, 0.3, 1.0):
        data, _ = reweight(range(ROWS), weights, alpha=alpha, normalize=normalize)
        drawn = weights.power(alpha).relative
        scales.append(
            sum(item.weight * p for item, p in zip(data, drawn, strict=True)) / sum(drawn)
        )
    np.testing.assert_allclose(scales, scales[0], rtol=1e-6)
    expected = {"mean": 1, None: weights.mean, "max": weights.mean / weights.max, "sum": 1 / ROWS}
    np.testing.assert_allclose(scales[0], expected[normalize], rtol=1e-6)


def test_draws_of_a_framework_are_of_weighted_rows(data, losses):
    weights = FlowWeights.from_losses(losses)
    rows, collate = reweight(data, weights, alpha=0.5)
    drawn = FlowDataset(rows, weights, alpha=0.5, seed=3)
    [(inputs, targets)] = DataLoader(drawn, batch_size=ROWS, collate_fn=collate)
    order = EpochPlan(weights, alpha=0.5, seed=3)[:]
    assert torch.equal(inputs, data.tensors[0][order])
    np.testing.assert_allclose(targets.weights.numpy(), weights.residual(0.5)[order], rtol=1e-6)
    with pytest.raises(TypeError, match="reweight its rows"):
        reweight(FlowDataset(data, weights), weights)


def test_what_frameworks_call_on_a_data_set_reaches_the_one_inside(losses):
    class Counting(TensorDataset):
        def set_epoch(self, epoch):
            self.epoch = epoch

    inside = Counting(torch.zeros(ROWS), torch.zeros(ROWS))
    data, _ = reweight(inside, losses)
    data.set_epoch(3)
    assert inside.epoch == 3
    assert not hasattr(data, "state_dict")
    assert not hasattr(copy.deepcopy(data), "column_names")


def test_tokens_get_their_own_weights_where_their_labels_are():
    rows = [
        {"input_ids": torch.tensor([5, 6, 7, 8]), "labels": torch.tensor([-100, -100, 7, 8])},
        {"input_ids": torch.tensor([5, 6, 7, 0]), "labels": torch.tensor([5, 6, 7, -100])},
    ]
    table = LossTable(
        np.array([1.0, 2.0], dtype=np.float32),
        LossTable.from_losses([1.0, 2.0]).provenance,
        n_tokens=np.array([2, 2], dtype=np.int32),
        token_losses=np.array([1.0, 2.0, 3.0, 4.0], dtype=np.float32),
    )
    expected = table.token_weights(normalize="mean").values
    [batch] = weighted_loader(rows, table, level="token", batch_size=2)
    spread = torch.zeros(2, 4)
    spread[0, 2:], spread[1, 1:3] = (
        torch.from_numpy(expected[part]) for part in (slice(2), slice(2, 4))
    )
    torch.testing.assert_close(batch["labels"].weights, spread)
    [noted] = weighted_loader(rows, table, level="token", batch_size=2, entry="w")
    torch.testing.assert_close(noted["w"], spread)
    assert type(noted["labels"]) is torch.Tensor
    # Any negative label is one that no loss counts, as in the scoring pass.
    ignored = copy.deepcopy(rows)
    ignored[0]["labels"][:2] = torch.tensor([-1, -2])
    [other] = weighted_loader(ignored, table, level="token", batch_size=2)
    torch.testing.assert_close(other["labels"].weights, spread)
    short = copy.deepcopy(rows)
    short[0]["labels"][2] = -100
    with pytest.raises(
        ValueError, match="row 0 has 1 labels that are learned in the batch, but weights of 2"
    ):
        list(weighted_loader(short, table, level="token", batch_size=2))


def test_wrong_calls_are_refused(data, losses):
    with pytest.raises(MismatchError, match="24 rows, but there are 3 weights"):
        reweight(data, [1, 2, 3])
    for options, message in (
        ({"normalize": "median"}, "normalize must be"),
        ({"level": "word"}, "level must be"),
        ({"alpha": -0.5}, "alpha must be"),
        ({"level": "token", "alpha": 0.5}, "samples are drawn, not tokens"),
    ):
        with pytest.raises(ValueError, match=message):
            reweight(data, losses, **options)
    for options, message in (
        ({"target": 5}, "no target 5"),
        ({"target": "labels"}, "no target 'labels'"),
        ({"collate_fn": lambda items: items[0][0]}, "as a function"),
    ):
        with pytest.raises(TypeError, match=message):
            next(iter(weighted_loader(data, losses, batch_size=4, **options)))
    items = [{"x": x} for x, _ in data]
    with pytest.raises(TypeError, match="the batch has no 'labels'"):
        next(iter(weighted_loader(items, losses)))
    _, collate = reweight(data, losses)
    with pytest.raises(TypeError, match=r"have no weights.*evaluation"):
        next(iter(DataLoader(data, collate_fn=collate)))


def test_the_names_are_exported():
    assert flowdata.reweight.reweight is reweight
    assert flowdata.WeightedTarget is WeightedTarget


@pytest.mark.parametrize("as_tuple", [True, False])
@pytest.mark.parametrize("alpha", [None, 0.5])
def test_a_stream_of_shards_is_reweighted(tmp_path, as_tuple, alpha):
    import webdataset as wds

    with wds.TarWriter(str(tmp_path / "a.tar")) as tar:
        for row in range(ROWS):
            tar.write({"__key__": f"{row:03d}", "cls": row})
    index = flowdata.index_shards(tmp_path / "a.tar", progress=False)
    table = LossTable.from_losses(np.random.default_rng(0).gamma(2, size=ROWS), index=index)
    stream = flowdata.FlowShards(tmp_path / "a.tar", table, mode="reweight", alpha=alpha).decode()
    if as_tuple:
        stream = stream.to_tuple("cls", "cls", "__weight__")
    loader = weighted_loader(stream, target=None if as_tuple else "cls", batch_size=5)
    expected = table.weights().residual(alpha or 0.0)
    seen = []
    for batch in loader:
        target = batch[1] if as_tuple else batch["cls"]
        np.testing.assert_allclose(target.weights.numpy(), expected[plain(target)], rtol=1e-6)
        seen += target.tolist()
    if alpha is None:
        assert sorted(seen) == list(range(ROWS))
    with pytest.raises(TypeError, match="a stream needs samples with a weight"):
        next(iter(weighted_loader(stream.map(lambda sample: 3), batch_size=5)))
    with pytest.raises(TypeError, match="weights are needed"):
        weighted_loader([1, 2])
    with pytest.raises(TypeError, match="bring their weights: look each"):
        weighted_loader(stream, [1, 2])
    with pytest.raises(ValueError, match="for weights of rows"):
        weighted_loader(stream, normalize=None)


@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf")])
def test_a_stream_has_no_wrong_weights(weight):
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            yield {"x": 1, "labels": 2, "__weight__": weight}

    with pytest.raises(ValueError, match="must be finite and >= 0"):
        list(weighted_loader(Stream(), batch_size=1))


@pytest.mark.parametrize("kind", [float, np.float32, np.float64, np.array, torch.tensor, int])
def test_the_weight_at_the_end_of_a_stream_is_any_number(kind):
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            for row in range(4):
                yield torch.zeros(2), row, kind(row)

    [(_, targets)] = weighted_loader(Stream(), batch_size=4)
    assert targets.weights.tolist() == targets.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("sample", [(1, 0.5), (1, 2, "0.5"), (1, 2, True), (1, 2, np.ones(1))])
def test_a_target_is_not_taken_for_a_weight(sample):
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            yield sample

    with pytest.raises(TypeError, match=f"after input and target.*tuple of {len(sample)}"):
        next(iter(weighted_loader(Stream())))
