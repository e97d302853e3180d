"""loss="model": whatever loss a model computes itself, one row at a time, or an error."""

import numpy as np
import pytest
import torch
import transformers
from torch import nn
from torch.nn import functional as F
from torch_release import lacks
from vision_models import BERT, bert_sequences, image, made, own_losses, seeded, words

from flowdata import score


def losses(model, rows, loss="model", **options):
    return score(model, rows, loss, progress=False, **options).losses


def boxes(number):
    found = torch.rand(1 + number % 4, 4, generator=seeded(number)) / 2 + 0.1
    kinds = torch.randint(0, 3, (len(found),), generator=seeded(number))
    return {"class_labels": kinds, "boxes": found}


def detection(rows):
    """A batch as the models of transformers that find objects take it."""
    return {
        "pixel_values": torch.stack([row["pixel_values"] for row in rows]),
        "labels": [row["labels"] for row in rows],
    }


def yolos():
    config = transformers.YolosConfig(
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        intermediate_size=48,
        image_size=[32, 32],
        patch_size=8,
        num_detection_tokens=6,
        num_labels=3,
    )
    rows = [
        {
            "pixel_values": image(number, 32 + 8 * (number % 2), 32 + 8 * (number % 3)),
            "labels": boxes(number),
        }
        for number in range(40)
    ]
    return made(transformers.YolosForObjectDetection, config), rows, detection


def detr():
    backbone = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], out_features=["stage2"]
    )
    config = transformers.DetrConfig(
        use_timm_backbone=False,
        use_pretrained_backbone=False,
        backbone=None,
        backbone_config=backbone,
        d_model=32,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        num_queries=6,
        num_labels=3,
    )
    rows = [
        {"pixel_values": image(number, 32 + 16 * (number % 2), 48), "labels": boxes(number)}
        for number in range(40)
    ]
    return made(transformers.DetrForObjectDetection, config), rows, detection


def wav2vec2(**options):
    config = transformers.Wav2Vec2Config(
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        intermediate_size=48,
        conv_dim=[16, 16],
        conv_stride=[5, 2],
        conv_kernel=[10, 3],
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4,
        vocab_size=12,
        pad_token_id=0,
        initializer_range=0.3,
        **options,
    )
    rows = [
        {
            "input_values": torch.randn(400 + 37 * number, generator=seeded(number)),
            "labels": torch.randint(1, 12, (3 + number % 8,), generator=seeded(number)),
        }
        for number in range(40)
    ]
    return made(transformers.Wav2Vec2ForCTC, config), rows, None


def answers():
    """Its labels have names of their own."""
    rows = []
    for number in range(40):
        ids = words(number)
        rows.append(
            {
                "input_ids": ids,
                "start_positions": torch.tensor(1),
                "end_positions": torch.tensor(len(ids) - 1),
            }
        )
    model = made(transformers.BertForQuestionAnswering, transformers.BertConfig(**BERT))
    return model, rows, None


MODELS = {
    "YOLOS": yolos,
    "DETR": detr,
    "Wav2Vec2 CTC": wav2vec2,
    "Wav2Vec2 CTC, mean": lambda: wav2vec2(ctc_loss_reduction="mean"),
    "BERT, answers": answers,
    "BERT, several labels": lambda: (*bert_sequences("several labels"), None),
}


@pytest.mark.parametrize("name", MODELS)
def test_the_loss_is_that_of_a_plain_loop(name):
    model, rows, collate = MODELS[name]()
    wanted = own_losses(model, rows, collate)
    assert len(wanted) == 40
    assert losses(model, rows, collate_fn=collate) == pytest.approx(wanted, rel=1e-5)


def test_rows_may_have_lists_and_columns_that_say_nothing_to_the_model():
    model, rows, _ = answers()
    plain = [
        {name: part.tolist() for name, part in row.items()} | {"id": f"a{number}"}
        for number, row in enumerate(rows)
    ]
    assert losses(model, plain).tolist() == losses(model, rows).tolist()


class Own(nn.Module):
    """Smoothed cross-entropy, which has no name here, in whatever form."""

    def __init__(self, form):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Linear(9, 4)
        self.dropout = nn.Dropout(0.5)
        self.form = form

    def forward(self, inputs, labels=None):
        logits = self.body(self.dropout(inputs))
        if labels is None:
            return {"logits": logits}
        loss = F.cross_entropy(logits, labels, label_smoothing=0.1)
        return self.form(loss, logits)


FORMS = {
    "dict": lambda loss, logits: {"loss": loss, "logits": logits},
    "tuple": lambda loss, logits: (loss, logits),
    "output": lambda loss, logits: transformers.modeling_outputs.SequenceClassifierOutput(
        loss=loss, logits=logits
    ),
    "axis of one": lambda loss, logits: {"loss": loss[None], "logits": logits},
}
PAIRS = [(numbers, torch.tensor(n % 4)) for n, numbers in enumerate(torch.randn(7, 9))]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("named", [False, True])
def test_a_loss_without_a_name_is_found_in_whatever_forward_gives(form, named):
    model = Own(FORMS[form])
    rows = [{"inputs": x, "labels": y} for x, y in PAIRS] if named else PAIRS
    x, y = (torch.stack(part) for part in zip(*PAIRS, strict=True))
    wanted = F.cross_entropy(model.body(x), y, label_smoothing=0.1, reduction="none")
    assert losses(model, rows) == pytest.approx(wanted.detach().numpy(), rel=1e-5)
    # The modes are put back.
    assert model.training
    assert model.dropout.training


def test_where_the_default_cannot_take_a_loss_apart_it_says_so():
    with pytest.raises(ValueError, match=r'none of those known here.* pass loss="model"'):
        losses(Own(FORMS["dict"]), PAIRS, "classification")


class TakesTargets(nn.Module):
    """Its second argument has another name."""

    def forward(self, inputs, targets):
        return {"loss": (inputs.sum(dim=1) - targets).square().mean()}


def test_targets_are_given_by_place_to_a_model_that_knows_no_labels():
    wanted = [(x.sum() - y).square().item() for x, y in PAIRS]
    assert losses(TakesTargets(), PAIRS) == pytest.approx(wanted, rel=1e-5)


def clip():
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
    config = {"text_config": {**sizes, "vocab_size": 60}, "projection_dim": 16}
    config["vision_config"] = {**sizes, "image_size": 16, "patch_size": 8}
    return config


def image_and_text(number):
    return {
        "pixel_values": image(number, 16, 16),
        "input_ids": torch.randint(5, 60, (8,), generator=seeded(number)),
    }


def with_loss(rows):
    batch = torch.utils.data.default_collate(rows)
    return {**batch, "return_loss": True}


@pytest.mark.parametrize("kind", ["CLIP", "Siglip"])
def test_a_loss_that_compares_the_samples_of_a_batch_is_refused(kind):
    config = getattr(transformers, f"{kind}Config")(**clip())
    model = made(getattr(transformers, f"{kind}Model"), config)
    rows = [image_and_text(number) for number in range(4)]
    with pytest.raises(ValueError, match="compares the samples of a batch") as error:
        losses(model, rows, collate_fn=with_loss)
    assert "row 0 alone" in str(error.value)
    assert "loss=function(model, batch)" in str(error.value)


def test_a_random_loss_is_refused():
    config = transformers.ViTMAEConfig(
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        intermediate_size=48,
        image_size=16,
        patch_size=4,
        decoder_hidden_size=32,
        decoder_num_hidden_layers=1,
        decoder_num_attention_heads=4,
        decoder_intermediate_size=32,
    )
    model = made(transformers.ViTMAEForPreTraining, config)
    with pytest.raises(ValueError, match="computes of row 0 is random"):
        losses(model, [{"pixel_values": image(number, 16, 16)} for number in range(3)])


class FindsObjects(nn.Module):
    """As the models of torchvision that find objects: losses when training alone."""

    def forward(self, images, targets):
        if self.training:
            return {"loss_classifier": images.sum(), "loss_box_reg": images.sum()}
        return [{"boxes": torch.zeros(0, 4)}]


class TakesOne(Own):
    def forward(self, inputs, labels=None):
        if len(inputs) > 1:
            raise RuntimeError("one at a time")
        return super().forward(inputs, labels)


def test_a_model_that_takes_one_sample_at_a_time_is_scored():
    found = losses(TakesOne(FORMS["dict"]), PAIRS)
    assert found == pytest.approx(losses(Own(FORMS["dict"]), PAIRS), rel=1e-6)


@pytest.mark.parametrize(
    ("model", "rows", "said"),
    [
        (FindsObjects(), PAIRS, r"row 0: FindsObjects gives no loss .* in evaluation mode"),
        (Own(FORMS["dict"]), [{"inputs": x} for x, _ in PAIRS], r"row 0: Own gives no loss"),
        (Own(FORMS["dict"]), [{"inputs": x, "target": y} for x, y in PAIRS], "target=int64"),
        (Own(FORMS["dict"]), [*PAIRS[:5], (torch.ones(7), 1)], r"row 5: Own does not take .*7\)"),
        (nn.Linear(9, 4), PAIRS, "row 0: Linear does not take the batch"),
        (Own(lambda loss, logits: {"loss": logits}), PAIRS, "row 0: Own gives no loss"),
        (Own(lambda loss, logits: (logits, loss)), PAIRS, "row 0: Own gives no loss"),
    ],
)
def test_a_row_without_a_loss_is_named(model, rows, said):
    with pytest.raises(ValueError, match=said):
        losses(model, rows)


def has_squared_error_of_bfloat16():
    try:
        F.mse_loss(*torch.ones(2, 1, dtype=torch.bfloat16))
    except RuntimeError:
        return False
    return True


@pytest.mark.parametrize("loss", ["model", "classification"])
@pytest.mark.parametrize("problem", ["classes", "several labels", "one number"])
def test_low_precision_is_that_of_the_model(problem, loss):
    if problem == "one number" and not has_squared_error_of_bfloat16():
        pytest.skip(lacks("squared error of bfloat16 on a CPU"))
    model, rows = bert_sequences(problem)
    model.bfloat16()
    if problem != "classes":
        rows = [row | {"labels": row["labels"].bfloat16()} for row in rows]
    found, wanted = losses(model, rows, loss), own_losses(model, rows)
    # A batch of other shape is rounded otherwise, to 8 bits.
    assert found == pytest.approx(wanted, rel=0 if loss == "model" else 0.05, abs=0.02)


@pytest.mark.parametrize("loss", ["model", "classification"])
def test_autocast_is_that_of_the_caller(loss):
    model, rows = bert_sequences("classes")
    with torch.autocast("cpu", torch.bfloat16):
        found, wanted = losses(model, rows, loss), own_losses(model, rows)
    assert found == pytest.approx(wanted, rel=1e-5)
    assert np.abs(found / own_losses(model, rows) - 1).max() > 1e-5


def test_what_labels_mean_is_decided_by_the_first_row_whichever_rows_are_scored(tmp_path):
    model, rows = bert_sequences("several labels")
    model.config.problem_type = None
    # A whole number would mean one class to the model if it saw it first.
    rows[3]["labels"] = torch.tensor(2)
    with pytest.raises(ValueError, match="row 3: "):
        losses(model, rows[:5], output=tmp_path / "losses.parquet", save_every=0.0)
    with pytest.raises(ValueError, match="row 3: "):
        losses(model, rows[:5], output=tmp_path / "losses.parquet")
    assert model.config.problem_type is None


def test_the_table_says_how_it_was_scored_and_a_pass_goes_on(tmp_path):
    output = tmp_path / "losses.parquet"

    class Stopping(Own):
        calls = 0

        def forward(self, inputs, labels=None):
            self.calls += 1
            if self.calls == 16:
                raise KeyboardInterrupt
            return super().forward(inputs, labels)

    model, options = Own(FORMS["dict"]), {"output": output, "save_every": 0.0}
    stopping = Stopping(FORMS["dict"])
    with pytest.raises(KeyboardInterrupt):
        losses(stopping, PAIRS, **options)
    table = score(model, PAIRS, "model", progress=False, **options)
    assert table.provenance.loss == "model"
    assert table.losses.tolist() == losses(model, PAIRS).tolist()
