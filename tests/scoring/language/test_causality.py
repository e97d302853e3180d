"""Causal language models pass, whatever they are made of; all others are refused by name."""

import pytest
import torch
import transformers
from language_models import Plain, gpt2, llama, samples
from torch import nn

from flowdata import InvalidLossError, score

VOCABULARY = 97
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
}
LONG = SIZES | {"max_position_embeddings": 128}
SPECIAL = {"cls_token_id": 1, "sep_token_id": 2, "bos_token_id": 1, "eos_token_id": 2}
ROWS = samples(6, longest=24)

CAUSAL = {
    "sliding window": lambda: transformers.Gemma3ForCausalLM(
        transformers.Gemma3TextConfig(**LONG, head_dim=8, num_key_value_heads=2, sliding_window=4)
    ),
    "experts": lambda: transformers.MixtralForCausalLM(
        transformers.MixtralConfig(**LONG, num_key_value_heads=4, num_local_experts=4)
    ),
    "recurrent": lambda: transformers.MambaForCausalLM(
        transformers.MambaConfig(vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2)
    ),
    "BERT as a decoder": lambda: transformers.BertLMHeadModel(
        transformers.BertConfig(**SIZES, is_decoder=True)
    ),
    "attention and dropout": gpt2,
    "none of transformers": Plain,
    "one token": lambda: nn.Embedding(VOCABULARY, VOCABULARY),
}
BOTH_WAYS = {
    "BERT": lambda: transformers.BertForMaskedLM(transformers.BertConfig(**SIZES)),
    "RoBERTa": lambda: transformers.RobertaForMaskedLM(transformers.RobertaConfig(**SIZES)),
    "ELECTRA": lambda: transformers.ElectraForMaskedLM(transformers.ElectraConfig(**SIZES)),
    "ModernBERT": lambda: transformers.ModernBertForMaskedLM(
        transformers.ModernBertConfig(**SIZES, **SPECIAL, pad_token_id=0)
    ),
    "XLNet": lambda: transformers.XLNetLMHeadModel(
        transformers.XLNetConfig(vocab_size=VOCABULARY, d_model=32, n_layer=2, n_head=4, d_inner=48)
    ),
    "BERT that is no decoder": lambda: transformers.BertLMHeadModel(
        transformers.BertConfig(**SIZES)
    ),
}


def made(make, dtype=torch.float32):
    torch.manual_seed(0)
    return make().to(dtype).train()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", CAUSAL)
def test_causal_models_are_scored(kind, dtype):
    table = score(made(CAUSAL[kind], dtype), ROWS, "causal_lm", progress=False)
    assert (table.losses > 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", BOTH_WAYS)
def test_models_that_read_what_they_shall_predict_are_refused(kind, dtype):
    model = made(BOTH_WAYS[kind], dtype)
    with pytest.raises(TypeError, match="is no causal language model") as error:
        score(model, ROWS, "causal_lm", progress=False)
    assert type(model).__name__ in str(error.value)
    assert all(module.training for module in model.modules())


def test_a_masked_model_is_refused_with_other_columns_too():
    rows = [row | {"token_type_ids": [0] * len(row["input_ids"])} for row in ROWS]
    with pytest.raises(TypeError, match="is no causal language model"):
        score(made(BOTH_WAYS["BERT"]), rows, "causal_lm", progress=False)


@pytest.mark.parametrize(
    ("ids", "labels"),
    [
        ([5] * 9, [5] * 9),
        ([0] * 9, [0] * 9),
        ([5, 6], [-100, 6]),
        ([5, 6, 7, 8], [-100, 6, -100, -100]),
        ([5, 6, 7, 8], [-100, -100, -100, 8]),
    ],
)
def test_a_few_tokens_tell_a_masked_model_from_a_causal_one(ids, labels):
    rows = [{"input_ids": [5, 6], "labels": [-100, -100]}, {"input_ids": ids, "labels": labels}]
    options = {"on_invalid": "drop", "progress": False}
    assert score(made(gpt2), rows, "causal_lm", **options).losses[1] > 0
    with pytest.raises(TypeError, match="is no causal language model"):
        score(made(BOTH_WAYS["BERT"]), rows, "causal_lm", **options)


@pytest.mark.parametrize(
    "make",
    [
        lambda: transformers.BartForConditionalGeneration(
            transformers.BartConfig(
                vocab_size=VOCABULARY,
                d_model=32,
                encoder_layers=1,
                decoder_layers=1,
                encoder_attention_heads=4,
                decoder_attention_heads=4,
                encoder_ffn_dim=32,
                decoder_ffn_dim=32,
            )
        ),
        lambda: transformers.T5ForConditionalGeneration(
            transformers.T5Config(vocab_size=VOCABULARY, d_model=32, d_kv=8, d_ff=32, num_layers=1)
        ),
    ],
    ids=["BART", "T5"],
)
def test_an_encoder_decoder_model_is_refused_before_it_is_run(make):
    with pytest.raises(TypeError, match="is an encoder-decoder model") as error:
        score(made(make), ROWS, "causal_lm", progress=False)
    assert "Score it with flowdata.Seq2Seq" in str(error.value)


class ReadsPromptBothWays(Plain):
    """Causal from the sixth token on; before, all six are read at once."""

    def forward(self, ids):
        embedded = torch.tanh(self.embed(ids))
        seen = embedded.cumsum(dim=1)
        prompt = embedded[:, :6].sum(dim=1, keepdim=True)
        places = torch.arange(ids.shape[1])[:, None]
        return self.out(torch.where(places < 6, prompt, seen))


def test_a_prompt_may_be_read_both_ways_but_no_response():
    torch.manual_seed(0)
    rows = [
        {"input_ids": ids.tolist(), "labels": [-100] * 7 + ids[7:].tolist()}
        for ids in torch.randint(0, VOCABULARY, (4, 12))
    ]
    score(ReadsPromptBothWays(), rows, "causal_lm", progress=False)
    rows = [{"input_ids": row["input_ids"][:6], "labels": row["input_ids"][:6]} for row in rows]
    with pytest.raises(TypeError, match="is no causal language model"):
        score(ReadsPromptBothWays(), rows, "causal_lm", progress=False)


def test_a_long_prompt_is_cut_before_the_model_is_tried():
    widths = []

    class Watched(Plain):
        def forward(self, ids):
            widths.append(ids.shape[1])
            return super().forward(ids)

    ids = list(range(90))
    score(
        Watched(),
        [{"input_ids": ids, "labels": [-100] * 80 + ids[80:]}] * 2,
        "causal_lm",
        progress=False,
    )
    assert widths[:2] == [32, 32]


def test_weights_of_8_bits_raise_no_false_alarm():
    model = torch.ao.quantization.quantize_dynamic(llama().eval(), {nn.Linear}, torch.qint8)
    assert (score(model, ROWS, "causal_lm", progress=False).losses > 0).all()


@pytest.mark.parametrize("size", [0.1, 10.0])
def test_a_model_that_draws_random_numbers_is_refused_as_random(size):
    class Random(Plain):
        def forward(self, ids):
            logits = super().forward(ids)
            return logits + size * torch.randn(logits.shape)

    torch.manual_seed(0)
    with pytest.raises(TypeError, match="losses of Random are random"):
        score(Random(), ROWS, "causal_lm", progress=False)


def test_the_loss_of_a_masked_model_is_its_own_by_default():
    model, rows = made(BOTH_WAYS["BERT"]).eval(), []
    for ids in torch.randint(5, VOCABULARY, (4, 12), generator=torch.Generator().manual_seed(1)):
        chosen = torch.arange(12) % 4 == 1
        masked, labels = ids.masked_fill(chosen, 4), ids.masked_fill(~chosen, -100)
        rows.append({"input_ids": masked, "labels": labels})
    with torch.no_grad():
        own = [model(**{name: part[None] for name, part in row.items()}).loss for row in rows]
    found = score(model, rows, progress=False).losses
    torch.testing.assert_close(torch.tensor(found), torch.stack(own), rtol=1e-5, atol=0)


def test_a_model_that_gives_nan_is_told_so():
    model = gpt2()
    with torch.no_grad():
        model.lm_head.weight.fill_(float("nan"))
    with pytest.raises(InvalidLossError, match="NaN"):
        score(model, ROWS, "causal_lm", progress=False)


class Contaminated(nn.Module):
    """A causal model of embeddings, to which something is added."""

    def __init__(self, add):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.out, self.add = nn.Embedding(60, 16), nn.Linear(16, 60), add

    def forward(self, input_ids):
        hidden = self.embed(input_ids)
        return self.out(hidden + self.add(hidden))


@pytest.mark.parametrize(
    ("add", "message"),
    [
        (lambda hidden: 0.05 * torch.randn_like(hidden), "losses of Contaminated are random"),
        (lambda hidden: -hidden.mean(0, keepdim=True), "depends on the other texts of its batch"),
        (lambda hidden: 0.1 * hidden.shape[1], "depends on .* or on the padding after it"),
    ],
)
@pytest.mark.parametrize("length", [3, 30])
def test_predictions_that_are_random_or_see_the_batch_are_refused(add, message, length):
    ids = [[(7 * n + 3 * row) % 60 for n in range(length + row)] for row in range(4)]
    rows = [{"input_ids": some, "labels": some} for some in ids]
    with pytest.raises(TypeError, match=message):
        score(Contaminated(add), rows, "causal_lm", progress=False)
    score(Contaminated(lambda hidden: 0.1), rows, "causal_lm", progress=False)
