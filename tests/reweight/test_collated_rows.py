"""A collate function that mixes, moves, leaves out or repeats rows is refused; others are not."""

import random
from functools import partial

import numpy as np
import pytest
import torch
from fuzzing import examples
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset, default_collate

from flowdata import UnweightedLossError
from flowdata.reweight import WeightedTarget, plain, reweight

ROWS, CLASSES = 64, 5
RANDOM = np.random.default_rng(0)
WEIGHTS = RANDOM.random(ROWS)
INPUTS = torch.from_numpy(RANDOM.normal(size=(ROWS, 3)))
LABELS = RANDOM.integers(0, CLASSES, ROWS)
DATA = {
    "labels that are tensors": list(zip(INPUTS, torch.from_numpy(LABELS), strict=True)),
    "labels that are numbers": list(zip(INPUTS, LABELS.tolist(), strict=True)),
    "labels of numpy": list(zip(INPUTS.numpy(), LABELS, strict=True)),
    "numbers to regress": list(zip(INPUTS, RANDOM.normal(size=ROWS).tolist(), strict=True)),
    "vectors": list(zip(INPUTS, torch.from_numpy(RANDOM.random((ROWS, CLASSES))), strict=True)),
    "dicts": [{"x": x, "label": int(y)} for x, y in zip(INPUTS, LABELS, strict=True)],
}


def run(data, collate_fn, weights=WEIGHTS, passes=3, **options):
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    weighted, collate = reweight(data, weights, collate_fn=collate_fn, **options)
    loader = DataLoader(weighted, 8, shuffle=True, collate_fn=collate)
    return [batch for _ in range(passes) for batch in loader]


def batched(items):
    """Inputs and targets, rows of classes where they are labels."""
    batch = default_collate(items)
    inputs, targets = batch.values() if isinstance(batch, dict) else batch
    return inputs, targets if targets.is_floating_point() else F.one_hot(targets, CLASSES).float()


def mixed(make):
    """A collate function that mixes inputs and targets by a function of a batch."""

    def collate(items):
        inputs, targets = batched(items)
        made = make(inputs), make(targets)
        return {"x": made[0], "label": made[1]} if isinstance(items[0], dict) else made

    return collate


def mix_with(order, share=0.7):
    return lambda batch: share * batch + (1 - share) * batch[order(len(batch))]


def mix_in_place(batch):
    return batch.clone().mul_(0.6).add_(batch.roll(1, 0), alpha=0.4)


def mix_by_matrix(batch):
    torch.manual_seed(3)
    matrix = torch.softmax(torch.randn(len(batch), len(batch), dtype=batch.dtype), 1)
    return torch.einsum("ij,jk->ik", matrix, batch.reshape(len(batch), -1)).reshape(batch.shape)


def mix_by_numpy(batch):
    return torch.tensor(0.7 * batch.numpy() + 0.3 * np.flip(batch.numpy(), 0))


def mix_the_first(batch):
    return torch.cat([batch[:1] * 0.5 + batch[1:2] * 0.5, batch[1:]])


def mix_sometimes(batch):
    return mix_with(lambda n: torch.arange(n).roll(1))(batch) if random.random() < 0.4 else batch


MIXES = {
    "roll": mix_with(lambda n: torch.arange(n).roll(1), 0.5),
    "flip": mix_with(lambda n: torch.arange(n).flip(0)),
    "randperm": mix_with(torch.randperm),
    "hardly": mix_with(lambda n: torch.arange(n).roll(1), 0.99),
    "lerp": lambda batch: torch.lerp(batch, batch.roll(1, 0), 0.3),
    "in place": mix_in_place,
    "matrix": mix_by_matrix,
    "numpy": mix_by_numpy,
    "sometimes": mix_sometimes,
}


@pytest.mark.parametrize("mix", MIXES.values(), ids=MIXES)
@pytest.mark.parametrize("data", DATA.values(), ids=DATA)
def test_a_collate_function_that_mixes_rows_is_refused(data, mix):
    with pytest.raises(UnweightedLossError, match="mixes rows"):
        run(data, mixed(mix))


def test_a_collate_function_that_mixes_rows_is_refused_where_weights_are_an_entry():
    for mix in MIXES.values():
        with pytest.raises(UnweightedLossError, match="mixes rows"):
            run(DATA["labels that are numbers"], mixed(mix), entry="weight")


def test_one_mixed_row_of_labels_is_found():
    with pytest.raises(UnweightedLossError, match="mixes rows"):
        run(DATA["labels that are numbers"], mixed(mix_the_first))


def sort_by_input(items):
    key = "x" if isinstance(items[0], dict) else 0
    return default_collate(sorted(items, key=lambda item: float(item[key][0])))


def sort_in_place(items):
    key = "x" if isinstance(items[0], dict) else 0
    items.sort(key=lambda item: float(item[key][0]))
    return default_collate(items)


MOVES = {
    "sorted": sort_by_input,
    "sorted in place": sort_in_place,
    "reversed": lambda items: default_collate(items[::-1]),
    "shuffled": lambda items: default_collate(random.sample(items, len(items))),
    "two changed places": lambda items: default_collate([items[1], items[0], *items[2:]]),
    "the first repeated": lambda items: default_collate([items[0]] * len(items)),
    "the last left out, another repeated": lambda items: default_collate([*items[:-1], items[0]]),
}


@pytest.mark.parametrize("move", MOVES.values(), ids=MOVES)
@pytest.mark.parametrize("data", DATA.values(), ids=DATA)
def test_a_collate_function_that_moves_or_repeats_rows_is_refused(data, move):
    with pytest.raises(UnweightedLossError, match="moves, leaves out or repeats"):
        run(data, move)


@pytest.mark.parametrize("move", MOVES.values(), ids=MOVES)
def test_moved_rows_are_found_by_their_inputs_where_targets_are_alike(move):
    with pytest.raises(UnweightedLossError, match=r"is item .* by its part 0"):
        run([(x, 1.0) for x in INPUTS], move)


def test_rows_that_are_left_out_are_refused():
    with pytest.raises(ValueError, match=r"batch of 8 samples has a target of shape \(7,\)"):
        run(DATA["labels that are numbers"], lambda items: default_collate(items[1:]))


def with_partners(items, name):
    inputs, targets = default_collate(items)
    order = torch.randperm(len(inputs))
    parts = {"x": inputs, "labels": targets, name: targets[order], "share": 0.7}
    return parts if name else tuple(parts.values())


@pytest.mark.parametrize(("name", "target"), [("labels_b", None), ("other", "labels"), ("", 1)])
@pytest.mark.parametrize("kind", ["labels that are numbers", "numbers to regress", "vectors"])
def test_targets_of_partners_beside_those_of_the_rows_are_refused(kind, name, target):
    with pytest.raises(UnweightedLossError, match=r"its target in another order.*target\[order\]"):
        run(DATA[kind], partial(with_partners, name=name), target=target)


def flagged(items):
    """A part that has the same values as the target, but is another thing."""
    inputs, targets = default_collate(items)
    return {"x": inputs, "labels": targets % 2, "positive": (inputs[:, 0] > 0).long()}


def changed(function):
    def collate(items):
        inputs, targets = default_collate(items)
        return inputs, function(targets)

    return collate


def with_noise(items):
    inputs, targets = default_collate(items)
    return inputs + torch.randn_like(inputs), targets


def noisy_labels(targets):
    return torch.where(torch.rand(len(targets)) < 0.3, 0 * targets, targets)


KEEPING = {
    "one-hot": changed(lambda targets: F.one_hot(targets, CLASSES).float()),
    "one-hot by a matrix": changed(lambda targets: torch.eye(CLASSES)[targets]),
    "smoothed": changed(lambda targets: F.one_hot(targets, CLASSES) * 0.9 + 0.1 / CLASSES),
    "renamed": changed(lambda targets: CLASSES - 1 - targets),
    "of another dtype": changed(lambda targets: targets.to(torch.int16)),
    "with a dimension more": changed(lambda targets: targets[:, None].double()),
    "scaled": changed(lambda targets: (targets - 2.0) / 1.7),
    "of two classes": changed(lambda targets: targets > 2),
    "partly ignored": changed(lambda targets: targets.masked_fill(targets == 3, -100)),
    "with noise": changed(noisy_labels),
    "inputs with noise": with_noise,
    "a list": lambda items: list(default_collate(items)),
    "another part": flagged,
}


@pytest.mark.parametrize("keep", KEEPING.values(), ids=KEEPING)
@pytest.mark.parametrize("kind", list(DATA)[:3])
def test_a_collate_function_that_keeps_rows_apart_is_taken(kind, keep):
    assert len(run(DATA[kind], keep)) == 3 * ROWS / 8


def alike(labels):
    return (labels[:, None] == labels).float()


RELATIONS = {
    "numbers": lambda labels: torch.arange(len(labels)),
    "numbers of the second rank": lambda labels: torch.arange(len(labels)) + 3 * len(labels),
    "one-hot": lambda labels: torch.eye(len(labels)),
    "one-hot, of two signs": lambda labels: 2 * torch.eye(len(labels)) - 1,
    "same label": alike,
    "same label, as shares": lambda labels: alike(labels) / alike(labels).sum(1, keepdim=True),
}


@pytest.mark.parametrize("relate", RELATIONS.values(), ids=RELATIONS)
def test_the_targets_of_contrastive_learning_relate_the_rows_of_a_batch(relate):
    pairs = [(x, f"text {row}") for row, x in enumerate(INPUTS)]

    def collate(items):
        labels = torch.tensor([int(text[-1]) % 3 for _, text in items])
        return torch.stack([x for x, _ in items]), [text for _, text in items], relate(labels)

    assert len(run(pairs, collate)) == 3 * ROWS / 8


def padded_images(images):
    height, width = (max(image.shape[axis] for image in images) for axis in (0, 1))
    pads = [(0, width - image.shape[1], 0, height - image.shape[0]) for image in images]
    return torch.stack([F.pad(image, pad) for image, pad in zip(images, pads, strict=True)])


def resized_images(images):
    height = max(len(image) for image in images)
    return torch.cat([F.interpolate(image[None, None], (height, 8))[0] for image in images])


def cropped_images(images):
    height, width = (min(image.shape[axis] for image in images) for axis in (0, 1))
    return torch.stack([image[:height, :width] for image in images])


@pytest.mark.parametrize("make", [padded_images, resized_images, cropped_images])
def test_masks_may_have_the_size_of_their_batch(make):
    sizes = RANDOM.integers(4, 9, (ROWS, 2)).tolist()
    masks = [torch.from_numpy(RANDOM.random((height, width))) for height, width in sizes]
    data = list(zip(masks, masks, strict=True))
    batches = run(data, lambda items: (make([x for x, _ in items]), make([y for _, y in items])))
    assert len(batches) == 3 * ROWS / 8


def test_rows_of_equal_weights_may_be_mixed():
    batches = run(DATA["labels that are numbers"], mixed(MIXES["roll"]), np.full(ROWS, 2.0))
    assert all(isinstance(targets, WeightedTarget) for _, targets in batches)


@examples()
@given(st.permutations(range(8)), st.lists(st.integers(0, 2), min_size=8, max_size=8))
def test_an_order_is_taken_only_if_each_row_has_the_target_of_its_item(order, labels):
    data, collate = reweight(
        [({}, label) for label in labels],
        np.arange(1.0, 9),
        target="labels",
        collate_fn=lambda items: {"labels": torch.tensor([items[row][1] for row in order])},
    )
    items = [data[row] for row in range(8)]
    if [labels[row] for row in order] == labels:
        collate(items)
    else:
        with pytest.raises(UnweightedLossError):
            collate(items)


@examples()
@given(st.integers(2, 9), st.integers(0, 2**32), st.booleans())
def test_a_matrix_is_taken_only_if_it_mixes_no_row(rows, seed, mixes):
    generator = np.random.default_rng(seed)
    matrix = generator.dirichlet(np.ones(rows), rows) if mixes else np.eye(rows)
    labels = generator.permutation(rows).tolist()

    def collate_fn(items):
        targets = F.one_hot(torch.tensor(items), 9).double()
        if len(items) < rows:
            return (targets,)
        return (torch.from_numpy(matrix) @ targets,)

    data, collate = reweight(labels, np.arange(1.0, rows + 1), collate_fn=collate_fn)
    items = [data[row] for row in range(rows)]
    if mixes and rows > 2:
        with pytest.raises(UnweightedLossError):
            collate(items)
    elif not mixes:
        [targets] = collate(items)
        assert plain(targets).argmax(1).tolist() == labels


def test_a_collate_function_may_take_parts_out_of_its_items_or_need_a_whole_batch():
    def taking(items):
        labels = torch.tensor([item.pop("label") for item in items])
        return {"x": torch.stack([item["x"] for item in items]), "labels": F.one_hot(labels, 5)}

    def whole(items):
        assert len(items) == 8
        return {"labels": F.one_hot(torch.tensor([item["label"] for item in items]), 5)}

    for collate_fn in (taking, whole):
        assert len(run([dict(item) for item in DATA["dicts"]], collate_fn, passes=1)) == ROWS / 8


@pytest.mark.parametrize("workers", [0, 1])
def test_mixed_rows_of_a_stream_are_refused(workers):
    class Stream(IterableDataset):
        def __iter__(self):
            for (x, label), weight in zip(DATA["vectors"], WEIGHTS, strict=True):
                yield {"x": x, "labels": label, "__weight__": weight}

    def mix(items):
        batch = default_collate(items)
        return {name: MIXES["roll"](part) for name, part in batch.items()}

    weighted, collate = reweight(Stream(), collate_fn=mix)
    with pytest.raises(UnweightedLossError, match="mixes rows"):
        list(DataLoader(weighted, 8, collate_fn=collate, num_workers=workers))


def test_a_part_of_an_image_that_is_another_row_s_is_found():
    masks = torch.from_numpy(RANDOM.integers(0, 5, (ROWS, 96, 96)))

    def cut_and_mixed(items):
        inputs, targets = default_collate(items)
        targets[:, 40:60, 30:50] = targets.roll(1, 0)[:, 40:60, 30:50]
        return inputs, targets

    data = list(zip(INPUTS, masks, strict=True))
    with pytest.raises(UnweightedLossError, match="mixes rows"):
        run(data, cut_and_mixed)
    assert len(run(data, default_collate)) == 3 * ROWS / 8
