"""Rows with images between words: as a plain loop scores them, and as processors make them."""

import pytest
import torch
from vision_language import many_llava, many_qwen2_vl, own_loss

from flowdata import score


@pytest.mark.parametrize("loss", ["causal_lm", "model"])
@pytest.mark.parametrize("make", [many_llava, many_qwen2_vl])
def test_rows_of_several_images_and_of_none_are_scored_as_a_plain_loop_does(make, loss):
    torch.manual_seed(0)
    model, rows = make()
    wanted = [own_loss(model, row) for row in rows]
    assert len(rows) == 40
    options = {"collate_fn": only} if loss == "model" else {}
    found = score(model, rows, loss, progress=False, **options).losses
    assert found == pytest.approx(wanted, rel=1e-5)


def only(rows):
    """A batch of one row, whose images have an axis of their own already."""
    (row,) = rows
    return {
        name: value if isinstance(value, torch.Tensor) else torch.tensor([value])
        for name, value in row.items()
    }
