"""The default loss of models of transformers is their own, of rows of uneven shape, one by one."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from vision_models import (
    MODELS,
    PROBLEMS,
    bert_sequences,
    image,
    own_losses,
    padded,
    seeded,
    segformer,
    vit,
)

from flowdata import score

# A squared error near 0 is that of two numbers that are rounded.
ROUNDED = 2e-7


def losses(model, rows, *arguments, **options):
    return score(model, rows, *arguments, progress=False, **options).losses


@pytest.mark.parametrize("name", MODELS)
def test_the_default_loss_is_that_of_a_plain_loop(name):
    model, rows = MODELS[name]()
    said = getattr(model.config, "problem_type", None)
    wanted = own_losses(model, rows)
    assert len(wanted) == 40
    assert losses(model, rows, batch_size=16) == pytest.approx(wanted, rel=1e-5, abs=ROUNDED)
    assert getattr(model.config, "problem_type", None) == said


@pytest.mark.parametrize("problem", PROBLEMS)
def test_it_is_so_of_batches_that_a_collate_fn_pads(problem):
    model, rows = bert_sequences(problem)
    found = losses(model, rows, batch_size=16, collate_fn=padded)
    assert found == pytest.approx(own_losses(model, rows), rel=1e-5, abs=ROUNDED)


class Plain(nn.Module):
    """As torchvision's segmentation models: a dict of outputs, and no loss."""

    def __init__(self, *, second=False, pool=1):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.AvgPool2d(pool))
        self.second = second

    def forward(self, pixels):
        logits = self.body(pixels)
        return {"out": logits, "aux": logits} if self.second else {"out": logits}


def pixels(count=40):
    """Images of several sizes and classes of their pixels; 255 where there is none."""
    rows = []
    for number in range(count):
        size = (8 + 2 * (number % 3), 8 + 4 * (number % 2))
        classes = torch.randint(0, 4, size, generator=seeded(number), dtype=torch.uint8)
        classes[: number % 5] = 255
        rows.append((image(number, *size), classes))
    return rows


@pytest.mark.parametrize("loss", ["classification", "cross_entropy"])
def test_pixels_of_images_of_several_sizes_are_scored_but_for_those_without_a_class(loss):
    model, rows = Plain(), pixels()
    with torch.no_grad():
        wanted = [
            F.cross_entropy(model(x[None])["out"], y[None].long(), ignore_index=255).item()
            for x, y in rows
        ]
    found = losses(model, rows, loss, ignore_index=255, batch_size=16)
    assert found == pytest.approx(wanted, rel=1e-5)
    with pytest.raises(ValueError, match="pass ignore_index=255"):
        losses(model, rows, loss)


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (Plain(second=True), r"model.aux_classifier = None"),
        (Plain(pool=2), r"cross-entropy needs logits .* got \(\d+, 4, 4, 4\) and \(\d+, 8, 8\)"),
    ],
)
def test_what_is_added_or_brought_to_size_in_training_is_not_guessed(model, said):
    with pytest.raises(ValueError, match=said):
        losses(model, pixels(6), ignore_index=255)


def test_a_class_that_is_not_there_is_named_with_its_row():
    model, rows = segformer()
    rows[7]["labels"] = rows[7]["labels"].clone()
    rows[7]["labels"][-1, -1] = 77
    with pytest.raises(ValueError, match="row 7: the target is class 77"):
        losses(model, rows, batch_size=16)


def test_the_ignored_index_of_the_caller_is_ignored_beside_that_of_the_model():
    model, rows = segformer()
    wanted = own_losses(
        model,
        [row | {"labels": row["labels"].masked_fill(row["labels"] == 2, 255)} for row in rows],
    )
    found = losses(model, rows, ignore_index=2)
    assert found == pytest.approx(wanted, rel=1e-5)


def test_flags_of_pixels_over_all_pixels_are_the_models_own_loss_alone():
    model, rows = segformer(num_labels=1)
    for row in rows:
        found = (row["pixel_values"][0] > 0).long()
        row["labels"] = found.masked_fill(row["labels"] == 255, 255)
    with pytest.raises(ValueError, match=r'none of those known here.*pass loss="model"'):
        losses(model, rows)
    assert losses(model, rows, "model") == pytest.approx(own_losses(model, rows), rel=1e-5)


def test_labels_that_do_not_suit_the_problem_type_are_an_error():
    model, rows = bert_sequences("several numbers")
    rows = [row | {"labels": torch.tensor([1.0, 2.0])} for row in rows]
    with pytest.raises(ValueError, match="configured for the problem_type 'regression'"):
        losses(model, rows)


def test_a_column_of_keys_is_no_input():
    model, rows = Plain(), pixels(6)
    model.forward = lambda pixels: model.body(pixels)
    named = [{"pixels": x, "labels": y, "id": f"row {n}"} for n, (x, y) in enumerate(rows)]
    table = score(model, named, key="id", ignore_index=255, progress=False)
    assert table.losses.tolist() == losses(model, rows, ignore_index=255).tolist()
    assert table.keys[5] == "row 5"


@pytest.mark.parametrize("name", ["label", "label_ids"])
@pytest.mark.parametrize("loss", ["classification", "model"])
def test_labels_of_images_may_have_the_names_that_the_trainer_knows(name, loss):
    model, rows = vit("classes")
    named = [{"pixel_values": row["pixel_values"], name: row["labels"]} for row in rows[:9]]
    assert losses(model, named, loss) == pytest.approx(own_losses(model, rows[:9]), rel=1e-5)
