"""require_separate: models whose samples see each other in a pack are refused, others are not."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from language_models import VOCABULARY, Plain, gemma2, gpt2, llama
from long_run import some
from torch import nn
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    DataCollatorWithFlattening,
    GptOssConfig,
    GptOssForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    RwkvConfig,
    RwkvForCausalLM,
)

from flowdata import PackCollator
from flowdata.frameworks.contamination import ContaminationError, require_separate

SMALL = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2}


def pack(*lengths, seed=0):
    ids = np.random.default_rng(seed).integers(5, VOCABULARY, sum(lengths))
    positions = np.concatenate([np.arange(length) for length in lengths])
    return {"input_ids": torch.from_numpy(ids), "position_ids": torch.from_numpy(positions)}


PACK = pack(30, 20)


def without_cache(model):
    model.config.use_cache = False
    return model


def mamba():
    return MambaForCausalLM(MambaConfig(**SMALL, state_size=4))


def rwkv():
    return RwkvForCausalLM(RwkvConfig(**SMALL))


def bloom():
    return BloomForCausalLM(BloomConfig(**SMALL, n_head=4))


def opt():
    """It takes position_ids, and derives no mask of them."""
    return OPTForCausalLM(
        OPTConfig(**SMALL, num_attention_heads=4, ffn_dim=48, word_embed_proj_dim=32)
    )


def gpt_oss():
    """As `opt`, in transformers 5.23, with eager attention."""
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
    experts = {"num_local_experts": 4, "num_experts_per_tok": 2, "intermediate_size": 48}
    return GptOssForCausalLM(GptOssConfig(**SMALL, **heads, **experts))


class Numbered(nn.Module):
    """Reads tokens one by one and adds a place to each: counted through, or as it is told."""

    def __init__(self, as_told):
        super().__init__()
        torch.manual_seed(0)
        self.as_told = as_told
        self.embed, self.place = nn.Embedding(VOCABULARY, 16), nn.Embedding(128, 16)
        self.drop, self.out = nn.Dropout(0.5), nn.Linear(16, VOCABULARY)

    def forward(self, input_ids, position_ids, **kwargs):
        places = position_ids if self.as_told else torch.arange(input_ids.shape[1])[None]
        return self.out(torch.tanh(self.drop(self.embed(input_ids) + self.place(places))))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("make", "attention"),
    [(llama, "sdpa"), (llama, "eager"), (gpt2, "sdpa"), (gpt2, "eager"), (gemma2, "eager")],
)
def test_models_that_derive_a_mask_of_position_ids_keep_samples_apart(make, attention, dtype):
    model = without_cache(make()).to(dtype)
    model.set_attn_implementation(attention)
    found = require_separate(model, PACK)
    assert found.worst <= found.limit
    if dtype != torch.bfloat16:
        assert found.relative < 1e-6


@pytest.mark.parametrize("make", [mamba, rwkv, bloom, opt, gpt_oss])
def test_recurrent_models_and_those_that_make_no_mask_are_refused(make):
    torch.manual_seed(0)
    with pytest.raises(ContaminationError, match=r"see each other.*ByLength\(lengths, batch_size"):
        require_separate(without_cache(make()), PACK)


@pytest.mark.parametrize("make", [mamba, rwkv, opt])
def test_they_are_refused_in_16_bits_too(make):
    torch.manual_seed(0)
    model = without_cache(make()).bfloat16()
    with pytest.raises(ContaminationError, match="see each other"):
        require_separate(model, PACK)


def test_places_that_are_counted_through_are_refused():
    require_separate(Numbered(as_told=True), PACK)
    with pytest.raises(ContaminationError, match="Numbered lets the samples"):
        require_separate(Numbered(as_told=False), PACK)


def test_a_model_without_position_ids_is_refused_by_its_signature():
    with pytest.raises(ContaminationError, match="Plain takes no position_ids"):
        require_separate(Plain(), PACK)


def test_a_cache_makes_the_mask_go_away_and_the_message_says_so():
    model = llama()
    assert model.config.use_cache
    with pytest.raises(ContaminationError, match=r"It is its cache.*use_cache = False"):
        require_separate(model, PACK)
    require_separate(model, PACK, use_cache=False)
    with pytest.raises(ContaminationError, match="It is its cache"):
        require_separate(without_cache(model), PACK, use_cache=True)


def test_checkpointing_of_gradients_takes_the_cache_away_in_training():
    model = llama()
    model.gradient_checkpointing_enable()
    require_separate(model.train(), PACK)
    with pytest.raises(ContaminationError, match="It is its cache"):
        require_separate(model, PACK, use_cache=True)


def stacked(items, **more):
    return {name: values[None] for name, values in items[0].items()} | more


COLLATES = {
    "attention_mask of ones": (
        lambda items: stacked(items, attention_mask=torch.ones_like(items[0]["input_ids"])[None]),
        "The batch has an attention_mask",
    ),
    "no position_ids": (
        lambda items: {"input_ids": items[0]["input_ids"][None]},
        "position_ids of the batch are missing",
    ),
    "flattened once more": (
        DataCollatorWithFlattening(),
        "position_ids of the batch go on where a sample begins",
    ),
    "another order": (
        lambda items: stacked([{name: values.flip(0) for name, values in items[0].items()}]),
        "other input_ids than those of the pack",
    ),
}


@pytest.mark.parametrize(("collate", "text"), COLLATES.values(), ids=COLLATES)
def test_batches_in_which_samples_cannot_be_told_apart_are_refused(collate, text):
    with pytest.raises(ContaminationError, match=text):
        require_separate(without_cache(llama()), PACK, collate=collate)


def test_a_collate_function_that_pads_is_seen_through():
    def padded(items):
        room = 64 - len(items[0]["input_ids"])
        return stacked([{name: nn.functional.pad(v, (0, room)) for name, v in items[0].items()}])

    require_separate(without_cache(llama()), PACK, collate=padded)


class OneRowOnly(Numbered):
    """As flash attention in transformers: it sees the positions of a batch of one row."""

    def forward(self, input_ids, position_ids, **kwargs):
        self.as_told = len(input_ids) == 1
        return super().forward(input_ids, position_ids)


def test_a_batch_of_several_packs_is_tried_where_the_loader_makes_such():
    model = OneRowOnly(as_told=True)
    require_separate(model, PACK, collate=PackCollator())
    require_separate(model, PACK, collate=PackCollator(flatten=True), batch_size=4)
    with pytest.raises(ContaminationError, match="OneRowOnly lets"):
        require_separate(model, PACK, collate=PackCollator(), batch_size=4)
    model.config = SimpleNamespace(_attn_implementation="flash_attention_2")
    with pytest.raises(ContaminationError, match=r"use PackCollator\(flatten=True\)"):
        require_separate(model, PACK, collate=PackCollator(), batch_size=4)


def test_the_message_has_the_numbers():
    def largest(model):
        with torch.no_grad():
            batch = {name: values[None] for name, values in PACK.items()}
            together = model(**batch, attention_mask=torch.ones(1, 50))
            alone = model(PACK["input_ids"][None, 30:])
        both = (
            nn.functional.cross_entropy(logits[:-1], PACK["input_ids"][31:], reduction="none")
            for logits in (together.logits[0, 30:], alone.logits[0])
        )
        return float((next(both) - next(both)).abs().max())

    model = without_cache(llama()).eval()
    with pytest.raises(ContaminationError) as error:
        require_separate(model, PACK, collate=COLLATES["attention_mask of ones"][0])
    assert f"by {largest(model):.2g} at the worst token" in str(error.value)


def test_nothing_of_the_model_or_of_random_numbers_changes():
    model = Numbered(as_told=True)
    model.drop.train()
    model.out.eval()
    modes = [part.training for part in model.modules()]
    values = {name: value.clone() for name, value in model.state_dict().items()}
    random = torch.get_rng_state()
    require_separate(model, PACK)
    assert modes == [part.training for part in model.modules()]
    assert all(value.equal(model.state_dict()[name]) for name, value in values.items())
    assert torch.get_rng_state().equal(random)
    assert all(value.grad is None for value in model.parameters())
    assert not any(vars(part)["_forward_hooks"] for part in model.modules())


def test_a_refused_model_is_left_as_it_was_too():
    model = Numbered(as_told=False).train()
    with pytest.raises(ContaminationError):
        require_separate(model, PACK)
    assert all(part.training for part in model.modules())
    assert not any(vars(part)["_forward_hooks"] for part in model.modules())


@pytest.mark.parametrize("lengths", [(40,), (1, 40), (1, 1, 9, 1), (2, 2), (100, 2, 100)])
def test_any_pack_of_some_tokens_is_enough(lengths):
    require_separate(without_cache(llama()), pack(*lengths))
    with pytest.raises(ContaminationError):
        require_separate(llama(), pack(*lengths))


def test_batches_of_one_pack_are_taken_as_they_come_from_a_loader():
    batch = {name: values[None] for name, values in PACK.items()}
    require_separate(without_cache(llama()), batch)


@pytest.mark.parametrize("lengths", [(3,), (1, 1, 1)])
def test_a_pack_of_too_few_tokens_is_said_to_be_one(lengths):
    with pytest.raises(ValueError, match="a pack of 3 tokens: give a pack of more"):
        require_separate(llama(), pack(*lengths))


def test_losses_that_are_no_numbers_are_refused():
    model = without_cache(llama())
    model.lm_head.weight.data.fill_(float("nan"))
    with pytest.raises(ContaminationError, match="nan at the worst token"):
        require_separate(model, PACK)


def test_what_gives_no_logits_is_refused():
    with pytest.raises(ContaminationError, match="no logits of shape"):
        require_separate(without_cache(llama()).model, PACK)


def test_adapters_and_compiled_models_are_seen_through():
    from peft import LoraConfig, PrefixTuningConfig, get_peft_model

    adapted = get_peft_model(without_cache(llama()), LoraConfig(task_type="CAUSAL_LM"))
    require_separate(adapted, PACK)
    require_separate(torch.compile(without_cache(llama())), PACK)
    prefixed = PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    with pytest.raises(ContaminationError, match="see each other"):
        require_separate(get_peft_model(without_cache(llama()), prefixed), PACK)


@pytest.mark.slow
@pytest.mark.parametrize("attention", some(["sdpa", "eager"], "sdpa"))
def test_a_real_model_keeps_samples_apart_within_1e_4_and_not_beside_its_cache(smollm2, attention):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    model = AutoModelForCausalLM.from_pretrained(
        smollm2, dtype=torch.float32, attn_implementation=attention
    )
    texts = (
        "The capital of France is Paris, on the river Seine.",
        "def add(a, b):\n    return a + b",
    )
    rows = [torch.tensor(tokenizer(text)["input_ids"]) for text in texts]
    given = {
        "input_ids": torch.cat(rows),
        "position_ids": torch.cat([torch.arange(len(row)) for row in rows]),
    }
    found = require_separate(model, given, use_cache=False)
    assert found.relative < 1e-5
    assert found.worst < 1e-4
    with pytest.raises(ContaminationError, match=r"by 1?\d\d?.* at the worst token") as error:
        require_separate(model, given)
    assert "It is its cache" in str(error.value)
