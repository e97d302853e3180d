"""TokenLosses against the cross-entropy of all logits, for every way to use an output head."""

import numpy as np
import pytest
import torch
from language_models import gemma2, gpt2, llama
from torch import nn
from torch.nn import functional as F
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
)

from flowdata.scoring.language import head
from flowdata.scoring.language.head import TokenLosses

VOCABULARY = 61


class Headed(nn.Module):
    """Sums of embeddings so far, and a head; what is done with it is up to subclasses."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(VOCABULARY, 16)
        self.lm_head = nn.Linear(16, VOCABULARY)

    def get_output_embeddings(self):
        return self.lm_head

    def get_input_embeddings(self):
        return self.embed

    def body(self, ids):
        return torch.tanh(self.embed(ids).cumsum(dim=1))

    def forward(self, ids):
        return self.lm_head(self.body(ids))


class Capped(Headed):
    """Small logits are next to what the head gives, large ones are not."""

    def body(self, ids):
        # The hidden state of token 0 is near zero, so that its logits are near zero too.
        hidden = super().body(ids)
        return hidden * torch.where(ids == 0, 1e-3, 60.0)[..., None].to(hidden.dtype)

    def forward(self, ids):
        logits = super().forward(ids)
        return 30 * torch.tanh(logits / 30)


class Scaled(Headed):
    def forward(self, ids):
        return super().forward(ids) * 0.25


class Padded(Headed):
    """A head wider than the vocabulary, as tensor cores like it."""

    def __init__(self):
        super().__init__()
        self.lm_head = nn.Linear(16, VOCABULARY + 3)

    def forward(self, ids):
        return super().forward(ids)[..., :VOCABULARY]


class Twice(Headed):
    """Its head is called for this token and for the one after."""

    def forward(self, ids):
        hidden = self.body(ids)
        return self.lm_head(hidden) + self.lm_head(hidden.roll(1, dims=-1))


class Flat(Headed):
    """Its head is called on all positions of the batch in one row."""

    def forward(self, ids):
        hidden = self.body(ids)
        return self.lm_head(hidden.flatten(0, 1)).unflatten(0, ids.shape)


class Unused(Headed):
    def __init__(self):
        super().__init__()
        self.other = nn.Linear(16, VOCABULARY)

    def forward(self, ids):
        return self.other(self.body(ids))


class Tied(Headed):
    def __init__(self):
        super().__init__()
        self.lm_head.weight = self.embed.weight


class Headless(Headed):
    def get_output_embeddings(self):
        return None


KINDS = [Headed, Capped, Scaled, Padded, Twice, Flat, Unused, Tied, Headless]


def batch(number=7, *, longest=20, seed=0):
    """Ids padded on the right, lengths, and labels for the last two thirds of each row."""
    random = np.random.default_rng(seed)
    lengths = torch.from_numpy(np.sort(random.integers(2, longest, size=number))[::-1].copy())
    places = torch.arange(int(lengths.max()))
    real = places < lengths[:, None]
    ids = torch.from_numpy(random.integers(0, VOCABULARY, size=tuple(real.shape))) * real
    # The row that the model is first tried on has tokens 0 only to begin with.
    ids[0, :10] = 0
    labels = torch.where(real & (places >= lengths[:, None] // 3), ids, -100)
    return ids, lengths, labels


def expected(model, ids, lengths, labels):
    """Row by row, from all logits of the row alone."""
    losses = []
    for row, length in enumerate(lengths.tolist()):
        logits, targets = model(ids[row : row + 1, :length])[0, :-1], labels[row, 1:length]
        each = F.cross_entropy(logits.float(), targets, reduction="none", ignore_index=-100)
        losses.append(each[targets >= 0])
    return torch.cat(losses)


@pytest.fixture(autouse=True)
def _without_gradients():
    with torch.no_grad():
        yield


@pytest.mark.parametrize("few", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_losses_are_those_of_all_logits_however_the_head_is_used(kind, few, monkeypatch):
    if few:
        monkeypatch.setattr(head, "LOGITS_BYTES", 4 * VOCABULARY * 5)
    model = kind()
    losses = TokenLosses(model)
    for seed in range(3):
        found = losses(*batch(seed=seed))
        assert found.dtype == torch.float32
        torch.testing.assert_close(
            found, expected(model, *batch(seed=seed)), rtol=1e-5, atol=1e-5, msg=kind.__name__
        )


def test_a_head_that_comes_last_makes_a_chunk_of_logits_at_a_time(monkeypatch):
    monkeypatch.setattr(head, "LOGITS_BYTES", 4 * VOCABULARY * 5)
    model, made = Headed(), []
    model.lm_head.register_forward_hook(lambda module, inputs, output: made.append(output.shape))
    losses = TokenLosses(model)
    losses(*batch())
    made.clear()
    ids, lengths, labels = batch(seed=1)
    losses(ids, lengths, labels)
    assert made[0] == (len(ids), 1, VOCABULARY)
    # One position tells the width, then five at a time.
    assert made[1] == (1, VOCABULARY)
    assert {shape[0] for shape in made[2:-1]} == {5}
    assert sum(shape[0] for shape in made[2:]) == (labels[:, 1:] >= 0).sum()


@pytest.mark.parametrize("kind", [Capped, Scaled, Padded])
def test_where_the_logits_are_changed_the_head_sees_only_labelled_positions(kind):
    model, made = kind(), []
    losses = TokenLosses(model)
    losses(*batch())
    model.lm_head.register_forward_hook(lambda module, inputs, output: made.append(output.shape))
    ids, lengths, labels = batch(seed=1)
    losses(ids, lengths, labels)
    (shape,) = made
    assert shape[:2].numel() == (labels[:, 1:] >= 0).sum()


def transformed(config_kind, model_kind, **options):
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "head_dim": 8}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    torch.manual_seed(0)
    config = config_kind(vocab_size=VOCABULARY, initializer_range=0.5, **sizes, **heads, **options)
    return model_kind(config).eval()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("config", "model", "options"),
    [
        (Gemma2Config, Gemma2ForCausalLM, {"final_logit_softcapping": 0.5}),
        (GraniteConfig, GraniteForCausalLM, {"logits_scaling": 3.0}),
        (CohereConfig, CohereForCausalLM, {"logit_scale": 0.25}),
    ],
)
def test_logits_that_the_configuration_caps_or_scales_are_made_in_chunks(
    config, model, options, dtype, monkeypatch
):
    monkeypatch.setattr(head, "LOGITS_BYTES", 4 * VOCABULARY * 5)
    found = transformed(config, model, **options).to(dtype)
    losses, made = TokenLosses(found), []
    losses(*batch())
    found.lm_head.register_forward_hook(lambda module, inputs, output: made.append(output.shape))
    ids, lengths, labels = batch(seed=1)
    values = losses(ids, lengths, labels)
    assert made.pop(0)[:2] == (len(ids), 1)
    assert max(shape[0] for shape in made) == 5
    alone = torch.cat(
        [
            F.cross_entropy(
                found(ids[row : row + 1, :length]).logits[0, :-1].float(),
                labels[row, 1:length],
                reduction="none",
            )[labels[row, 1:length] >= 0]
            for row, length in enumerate(lengths.tolist())
        ]
    )
    exact = dtype == torch.float32
    torch.testing.assert_close(
        values, alone, rtol=1e-5 if exact else 0.05, atol=1e-5 if exact else 0.1
    )


@pytest.mark.parametrize("kind", [Headed, Capped, Headless])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_losses_of_half_precision_logits_are_computed_in_single_precision(kind, dtype):
    model = kind().to(dtype)
    found = TokenLosses(model)(*batch())
    assert found.dtype == torch.float32
    rounding = torch.finfo(dtype).eps
    torch.testing.assert_close(
        found, expected(model, *batch()), rtol=2 * rounding, atol=20 * rounding
    )


def test_a_lack_of_memory_while_the_head_is_tried_does_not_settle_what_it_does():
    class Starting(Capped):
        ready = False

        def forward(self, ids):
            if not self.ready:
                self.ready = True
                raise torch.OutOfMemoryError("out of memory")
            return super().forward(ids)

    model = Starting()
    losses = TokenLosses(model)
    with pytest.raises(torch.OutOfMemoryError):
        losses(*batch())
    torch.testing.assert_close(losses(*batch()), expected(model, *batch()), rtol=1e-5, atol=1e-5)


def test_no_hook_stays_on_the_model_even_after_an_error():
    class Failing(Headed):
        def forward(self, ids):
            if ids.shape[0] == 3:
                raise RuntimeError("broken")
            return super().forward(ids)

    model = Failing()
    losses = TokenLosses(model)
    losses(*batch())
    with pytest.raises(RuntimeError, match="broken"):
        losses(*batch(3))
    for module in model.modules():
        assert not vars(module)["_forward_pre_hooks"]
        assert not vars(module)["_forward_hooks"]


@pytest.mark.parametrize("kind", [Headed, Capped, Headless])
def test_no_labelled_position_gives_no_losses_and_the_first_token_has_none(kind):
    ids, lengths, labels = batch()
    labels[:, 1:] = -100
    labels[:, 0] = ids[:, 0]
    assert TokenLosses(kind())(ids, lengths, labels).shape == (0,)


class Told(Headed):
    """Keeps what it is told; its hidden states depend on the mask if it looks at it."""

    def __init__(self, *, looks):
        super().__init__()
        self.calls, self.looks = [], looks

    def forward(self, input_ids, attention_mask=None, use_cache=True):
        self.calls.append((input_ids, attention_mask, use_cache))
        logits = super().forward(input_ids)
        if self.looks:
            real = input_ids.shape[1] if attention_mask is None else attention_mask.sum(dim=1)
            logits = logits + torch.as_tensor(real).reshape(-1, 1, 1) * logits.abs()
        return logits


def test_a_model_that_looks_at_the_mask_is_told_what_is_padding():
    model = Told(looks=True)
    ids, lengths, labels = batch()
    TokenLosses(model)(ids, lengths, labels)
    *_, (seen, mask, cache) = model.calls
    assert torch.equal(seen, ids)
    assert mask.sum(dim=1).tolist() == lengths.tolist()
    assert torch.equal(mask, mask.sort(dim=1, descending=True).values)
    assert cache is False


def test_where_a_mask_changes_no_bit_none_is_given():
    model = Told(looks=False)
    ids, lengths, labels = batch()
    losses = TokenLosses(model)
    found = losses(ids, lengths, labels)
    *_, (seen, mask, cache) = model.calls
    assert torch.equal(seen, ids)
    assert mask is None
    assert cache is False
    torch.testing.assert_close(found, expected(Headed(), ids, lengths, labels))
    # It is found out once, on tokens that are none of the data's.
    model.calls.clear()
    losses(*batch(seed=1))
    assert [call[1] for call in model.calls] == [None]


def test_a_model_that_wants_its_mask_gets_it():
    class Strict(Told):
        def forward(self, input_ids, attention_mask=None, use_cache=True):
            return super().forward(input_ids, attention_mask.clone(), use_cache)

    model = Strict(looks=False)
    TokenLosses(model)(*batch())
    assert model.calls[-1][1] is not None


@pytest.mark.parametrize("make", [llama, gpt2, gemma2])
def test_losses_of_padded_texts_are_those_with_a_mask_bit_for_bit(make, monkeypatch):
    model = make().eval()
    ids, lengths, labels = batch(9, seed=2)
    unmasked = TokenLosses(model)
    with torch.no_grad():
        found = unmasked(ids, lengths, labels)
        monkeypatch.setattr(TokenLosses, "_is_same_unmasked", lambda self, device: False)
        assert torch.equal(found, TokenLosses(model)(ids, lengths, labels))
    # Which attention a release has decides whether a mask changes bits; that of 2.13 it does not.
    if torch.__version__ >= (2, 13):
        assert unmasked._needs_mask is False  # noqa: SLF001


def test_the_vocabulary_is_that_of_the_embeddings_if_there_are_any():
    assert TokenLosses(Headed()).vocabulary == VOCABULARY
    assert TokenLosses(nn.Linear(1, 1)).vocabulary is None
