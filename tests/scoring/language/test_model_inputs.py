"""All columns that the forward of a model takes reach it, or are refused by name."""

import datasets
import numpy as np
import pytest
import torch
from language_models import Plain, gpt2, llama, one_by_one, samples
from peft import LoraConfig, get_peft_model
from tokenizer_families import family
from torch import nn
from torch_release import lacks
from vision_language import IMAGE, MODELS, model_and_rows, own_loss, row_of

from flowdata import CausalLM, FlowDataWarning, score


def losses(model, rows, loss="causal_lm", **options):
    return score(model, rows, loss, progress=False, **options).losses


def as_lists(row):
    return {k: v.tolist() if isinstance(v, torch.Tensor) else v for k, v in row.items()}


def without_axes_of_one(row):
    return {
        k: v[0] if isinstance(v, torch.Tensor) and v.shape[0] == 1 else v for k, v in row.items()
    }


def as_table(rows):
    names = dict.fromkeys(name for row in rows for name in row)
    return datasets.Dataset.from_list(
        [{name: as_lists(row).get(name) for name in names} for row in rows]
    )


FORMS = {
    "tensors": lambda rows: rows,
    "lists": lambda rows: [as_lists(row) for row in rows],
    "arrays": lambda rows: [{k: np.asarray(v) for k, v in row.items()} for row in rows],
    "squeezed": lambda rows: [without_axes_of_one(row) for row in rows],
    "a table": as_table,
    "a table of tensors": lambda rows: as_table(rows).with_format("torch"),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", MODELS)
def test_an_image_reaches_the_model_however_the_row_has_it(name, form):
    if name == "gemma 3" and torch.__version__ < (2, 6):
        pytest.skip(lacks("masks of images inside a causal one"))
    model, rows = model_and_rows(name)
    wanted = [own_loss(model, row) for row in rows]
    assert losses(model, FORMS[form](rows)) == pytest.approx(wanted, rel=1e-5)


def test_the_loss_with_an_image_is_not_that_of_its_placeholders():
    model, rows = model_and_rows("llava")
    row = rows[1]
    blind = {name: value for name, value in row.items() if name != "pixel_values"}
    assert abs(own_loss(model, row) - own_loss(model, blind)) > 1e-3
    with pytest.raises(ValueError, match=f"row 1 has token {IMAGE}, which stands for an image"):
        losses(model, [row, blind])


class PassesOn(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, input_ids, **options):
        return self.inner(input_ids, **options)


@pytest.mark.parametrize(
    "wrap",
    [PassesOn, lambda model: get_peft_model(model, LoraConfig(target_modules="all-linear", r=2))],
    ids=["keywords", "peft"],
)
def test_columns_reach_a_model_through_what_is_around_it(wrap):
    model, rows = model_and_rows("llava")
    wanted = [own_loss(model, row) for row in rows]
    rows = [row | {"id": 1, "source": "x", "input": "y"} for row in rows]
    assert losses(wrap(model), rows) == pytest.approx(wanted, rel=1e-5)


@pytest.mark.slow
def test_images_come_through_loader_workers_and_a_half_precision_model_takes_them():
    model, rows = model_and_rows("qwen2 vl")
    wanted = losses(model, rows)
    assert losses(model, rows, num_workers=1).tolist() == wanted.tolist()
    assert losses(model.bfloat16(), rows) == pytest.approx(wanted, rel=0.05)


def test_a_sample_that_is_cut_keeps_its_image_or_is_refused():
    model, rows = model_and_rows("qwen2 vl")
    cut = [{k: v[:14] if isinstance(v, list) else v for k, v in row.items()} for row in (rows[0],)]
    with pytest.warns(FlowDataWarning, match="1 of 1 samples were longer"):
        found = losses(model, rows[:1], CausalLM(max_length=14))
    assert found == pytest.approx([own_loss(model, row) for row in cut], rel=1e-5)
    with pytest.raises(ValueError, match=r"row 0: the model does not take .*pixel_values"):
        losses(model, [rows[0] | {"labels": rows[0]["input_ids"]}], CausalLM(max_length=5))


def test_token_types_are_embedded_in_batches():
    model, rows, random = gpt2(), samples(30), np.random.default_rng(0)
    with torch.no_grad():
        model.transformer.wte.weight.mul_(20)
    for number, row in enumerate(rows):
        types = random.integers(0, 5, size=len(row["input_ids"])).tolist()
        row["token_type_ids"] = types if number % 3 else None
    given = [{k: v for k, v in row.items() if v is not None} for row in rows]
    wanted = [own_loss(model.eval(), row) for row in given]
    calls = []
    model.register_forward_hook(lambda *_: calls.append(1))
    assert losses(model, rows) == pytest.approx(wanted, rel=1e-5)
    assert len(calls) < len(rows)
    plain = [each.mean() for each in one_by_one(model, rows)]
    assert np.max(np.abs(np.array(plain) / wanted - 1)) > 0.01


def test_positions_are_those_of_the_row():
    model = gpt2().eval()
    with torch.no_grad():
        model.transformer.wpe.weight.mul_(20)
    rows = [row | {"position_ids": [*range(7, 7 + len(row["labels"]))]} for row in samples(20)]
    assert losses(model, rows) == pytest.approx([own_loss(model, row) for row in rows], rel=1e-5)


@pytest.mark.parametrize("name", ["token_type_ids", "position_ids"])
def test_a_number_that_the_model_does_not_know_is_named_with_its_row(name):
    rows = [row | {name: [1] * len(row["labels"])} for row in samples(20)]
    rows[7][name] = [*rows[7][name][1:], 500]
    if name == "position_ids":
        rows = [row | {"attention_mask": [1] * len(row["labels"])} for row in rows]
    with pytest.raises(ValueError, match=f"row 7: the model does not take {name} .* 1 to 500, "):
        losses(gpt2(), rows)


def test_packed_samples_do_not_see_each_other():
    model, parts = llama(), samples(16, longest=30)
    packs, apart = [], []
    for first, second in zip(parts[::2], parts[1::2], strict=True):
        lengths = [len(part["input_ids"]) for part in (first, second)]
        packs.append(
            {
                "input_ids": first["input_ids"] + second["input_ids"],
                "labels": first["labels"] + [-100, *second["labels"][1:]],
                "position_ids": [*range(lengths[0]), *range(lengths[1])],
            }
        )
        apart.append(np.concatenate(one_by_one(model, [first, second])).mean())
    assert losses(model, packs) == pytest.approx(apart, rel=1e-5)
    # With a mask the model lets them see each other, and so does the pass.
    masked = [pack | {"attention_mask": [1] * len(pack["labels"])} for pack in packs]
    wanted = [own_loss(model.eval(), row) for row in masked]
    assert losses(model, masked) == pytest.approx(wanted, rel=1e-5)
    assert np.abs(np.array(apart) / wanted - 1).max() > 0.01


def test_padding_is_taken_from_all_that_is_one_for_each_token():
    model, rows = gpt2(), samples(10)
    for row in rows:
        row["token_type_ids"] = (np.arange(len(row["labels"])) % 3).tolist()
    padded = [
        {name: [0] * 4 + values + [0] * 3 for name, values in row.items()}
        | {
            "labels": [-100] * 4 + row["labels"] + [-100] * 3,
            "attention_mask": [0] * 4 + [1] * len(row["labels"]) + [0] * 3,
        }
        for row in rows
    ]
    assert losses(model, padded).tolist() == losses(model, rows).tolist()


@pytest.mark.parametrize(
    "name", ["completion_mask", "assistant_masks", "loss_mask", "loss_weights"]
)
def test_a_mask_says_what_is_scored_where_there_are_no_labels(name):
    model, rows = llama(), samples(10)
    masked = [
        {"input_ids": row["input_ids"], name: [int(label >= 0) for label in row["labels"]]}
        for row in rows
    ]
    if name == "loss_weights":
        masked = [row | {"labels": row["input_ids"]} for row in masked]
        with pytest.raises(ValueError, match=r"labels score tokens that \['loss_weights'\] leave"):
            losses(model, masked)
        masked = [row | {"labels": old["labels"]} for row, old in zip(masked, rows, strict=True)]
    assert losses(model, masked).tolist() == losses(model, rows).tolist()


def test_two_masks_score_what_both_do():
    row = {"input_ids": [5, 6, 7], "completion_mask": [0, 1, 1], "assistant_masks": [1, 0, 1]}
    (sample,) = CausalLM().reader()([row])
    assert sample.labels.tolist() == [-100, -100, 7]


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"completion_mask": [1, 0]}, r"completion_mask must be one 0 or 1 for each of the 3"),
        ({"loss_weights": [0.5, 1, 1]}, "loss_weights must be one 0 or 1"),
        ({"weight": 0.5}, "has weight=0.5.*take the column out"),
        ({"completion_mask": [1, 1, 0]}, r"labels score tokens that \['completion_mask'\]"),
        ({"attention_mask": [1, 0, 1]}, "attention_mask is 0 between tokens"),
        ({"attention_mask": [1, 1, 2]}, r"attention_mask must be .* values \[1, 2\].*packed"),
        ({"attention_mask": [[1, 0, 0], [1, 1, 0], [1, 1, 1]]}, r"attention_mask .*\(3, 3\)"),
        ({"seq_lengths": [1, 2]}, "has seq_lengths: it is a pack"),
        ({"cu_seq_lens_q": [0, 1, 3]}, "has cu_seq_lens_q: it is a pack"),
        ({"position_ids": [0, 1]}, "position_ids must be one number for each of the 3"),
        ({"position_ids": ["a", "b", "c"]}, "position_ids, which the model takes, as list"),
        ({"inputs_embeds": [[0.0]]}, "has inputs_embeds.* no part of a sample"),
        ({"pixel_values": [[0.0]]}, "has pixel_values, which the forward .* does not take"),
        ({"image_grid_thw": [[1, 2, 2]]}, "has image_grid_thw, which the forward"),
        ({"labels": [1, None, 2]}, "labels must be whole numbers"),
        ({"input_ids": [1, 2, 1.5]}, "input_ids must be whole numbers"),
        ({"input_ids": ["1", "2", "3"]}, "input_ids must be whole numbers"),
        ({"input_ids": [[1, 2, 3]] * 2}, r"input_ids .* shape \(length,\), got \(2, 3\)"),
    ],
)
def test_what_cannot_be_given_to_the_model_is_named(extra, message):
    row = {"input_ids": [5, 6, 7], "labels": [5, 6, 7]}
    with pytest.raises((TypeError, ValueError), match=f"row 1: .*{message}"):
        losses(llama(), [row, row | extra])


def test_columns_that_say_nothing_about_the_loss_pass():
    rows = samples(5)
    others = {
        "id": "a",
        "source": "x",
        "text": "y",
        "messages": [{"role": "user", "content": "x"}],
        "weight": 1,
        "sample_weight": float("nan"),
        "image_id": 7,
        "video_number": np.int64(3),
        "audio_path": "a.wav",
        "pixel_values": None,
        "image": b"x",
        "token_type_ids": [0],
        "length": 4,
        "special_tokens_mask": [1, 0],
        "number": torch.tensor(3),
        "seq_lengths": torch.zeros(0),
    }
    assert losses(llama(), [row | others for row in rows]).tolist() == pytest.approx(
        losses(llama(), rows).tolist()
    )


def test_positions_that_a_model_does_not_take_are_refused_where_they_matter():
    row = {"input_ids": [5, 6, 7], "labels": [5, 6, 7]}
    losses(Plain(), [row | {"position_ids": [0, 1, 2]}])
    with pytest.raises(ValueError, match=r"row 0: .*position_ids, which the forward of the model"):
        losses(Plain(), [row | {"position_ids": [0, 1, 0]}])


class Shortening(Plain):
    """Makes fewer logits than there are tokens, as a model that merges patches would."""

    def forward(self, ids):
        return super().forward(ids)[:, ::2]


def test_a_model_whose_logits_are_not_those_of_the_tokens_is_refused():
    with pytest.raises(TypeError, match=r"makes \(\d+, \d+\) of input_ids of shape"):
        losses(Shortening(), samples(3))


def test_text_that_has_an_image_beside_it_is_refused_by_a_model_that_sees():
    tokenizer = family("byte-level")
    model, _ = model_and_rows("llava")
    model.resize_token_embeddings(len(tokenizer))
    loss = CausalLM(tokenizer=tokenizer, text="t")
    row = {"t": "Hello, world!", "input_ids": [1], "labels": [1], "images": []}
    losses(model, [row], loss)
    for name in ("images", "image", "pixel_values"):
        with pytest.raises(ValueError, match=rf"row 0: the row has \['{name}'\]"):
            losses(model, [row | {name: [torch.zeros(3, 8, 8)]}], loss)
    blind = llama()
    blind.resize_token_embeddings(len(tokenizer))
    losses(blind, [row | {"images": ["x.png"]}], loss)


def test_the_row_whose_image_the_model_does_not_take_is_named():
    model, rows = model_and_rows("llava")
    broken = row_of(3, [IMAGE] * 4) | {"pixel_values": torch.zeros(2, 3, 8, 8)}
    with pytest.raises(
        ValueError, match=r"row 6: the model does not take pixel_values of shape \(2, 3"
    ):
        losses(model, [*rows, broken])
