"""Rows with images between words: as a plain loop scores them, and as processors make them."""

import numpy as np
import pytest
import torch
from transformers import Qwen2VLImageProcessorPil
from vision_language import (
    BEGIN,
    END,
    IMAGE,
    llava_processor,
    many_llava,
    many_qwen2_vl,
    own_loss,
    picture,
    word_tokenizer,
)

from flowdata import CausalLM, score


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


def processed(processor, number, **options):
    """What a processor makes of a text with some images, and labels of its last words."""
    images = [picture(number + k) for k in range(number % 3)]
    text = "w5 <image> w6 " * len(images) + " ".join(f"w{9 + k}" for k in range(4 + number % 7))
    row = processor(images=images or None, text=text, **options)
    ids = torch.as_tensor(row["input_ids"])
    row["labels"] = ids.clone()
    row["labels"][..., :-3] = -100
    return row


def test_what_a_processor_makes_of_a_sample_is_a_row():
    model, _ = many_llava(0)
    processor = llava_processor()
    rows = [processed(processor, number, return_tensors="pt") for number in range(12)]
    assert {tuple(row["input_ids"].shape[:1]) for row in rows} == {(1,)}
    assert sum("pixel_values" in row for row in rows) == 8
    wanted = [own_loss(model, dict(row)) for row in rows]
    found = score(model, rows, "causal_lm", progress=False)
    assert found.losses == pytest.approx(wanted, rel=1e-5)
    assert found.lengths.tolist() == [row["input_ids"].shape[1] for row in rows]


def test_rows_of_an_image_processor_for_images_of_any_size_are_scored():
    model, _ = many_qwen2_vl(0)
    processor = Qwen2VLImageProcessorPil(
        patch_size=4, merge_size=2, min_pixels=64, max_pixels=400, temporal_patch_size=2
    )
    rows = []
    for number in range(8):
        made = processor(images=[picture(number + k) for k in range(1 + number % 3)])
        grids = np.asarray(made["image_grid_thw"])
        ids = [5]
        for grid in grids:
            ids += [BEGIN, *[IMAGE] * int(grid.prod() // 4), END, 6]
        words = list(range(9, 13 + number))
        row = {
            "input_ids": ids + words,
            "labels": [-100] * len(ids) + words,
            "mm_token_type_ids": [int(token == IMAGE) for token in ids + words],
            "pixel_values": torch.as_tensor(np.asarray(made["pixel_values"])),
            "image_grid_thw": torch.as_tensor(grids),
        }
        rows.append(row)
    wanted = [own_loss(model, row) for row in rows]
    found = score(model, rows, "causal_lm", progress=False).losses
    assert found == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("part", [{"type": "image"}, {"type": "image", "url": "x.png"}])
def test_a_chat_with_an_image_in_it_is_refused_by_name(part):
    model, _ = many_llava(0)
    tokenizer = word_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }} {% endfor %}"
    chat = [
        {"role": "user", "content": [part, {"type": "text", "text": "w7"}]},
        {"role": "assistant", "content": "w8"},
    ]
    loss = CausalLM(tokenizer=tokenizer, messages="messages")
    with pytest.raises((TypeError, ValueError), match=r"row 0: .*image"):
        score(model, [{"messages": chat}], loss, progress=False)


def test_an_image_beside_tokens_that_a_processor_has_not_seen_is_refused_by_name():
    model, rows = many_llava(2)
    beside = [row | {"images": [picture(0)]} for row in rows]
    # The one has its image as the processor made it, the other has tokens of text alone.
    assert score(model, beside[1:], "causal_lm", progress=False).losses.shape == (1,)
    with pytest.raises(ValueError, match=r"row 0: the row has \['images'\], of which"):
        score(model, beside, "causal_lm", progress=False)
