"""What a checkpoint did not have: refused where it is loaded, warned of where it is scored."""

import copy

import pytest
import torch
import transformers
from torch import nn

from flowdata import FlowDataError, FlowDataWarning, score, score_probe
from flowdata.scoring.models.pretrained import load_whole, warn_if_parameters_are_new

SIZES = {
    "vocab_size": 97,
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "intermediate_size": 48,
}
LLAMA = transformers.LlamaConfig(**SIZES, num_labels=3)
TIED = transformers.LlamaConfig(**SIZES, tie_word_embeddings=True)
BERT = transformers.BertConfig(**SIZES, num_labels=3)
WORDS = torch.randint(0, 97, (30, 6), generator=torch.Generator().manual_seed(0))
ROWS = [{"input_ids": ids, "labels": row % 3} for row, ids in enumerate(WORDS)]


@pytest.fixture
def saved(tmp_path):
    """Saves a new model, and gives its folder."""

    def save(kind, config):
        torch.manual_seed(0)
        kind(config).save_pretrained(tmp_path)
        return tmp_path

    return save


@pytest.mark.parametrize(
    ("kind", "config", "missing"),
    [
        (transformers.LlamaForSequenceClassification, LLAMA, "lm_head.weight"),
        (transformers.LlamaModel, LLAMA, "lm_head.weight"),
        (transformers.BertForSequenceClassification, BERT, "cls.predictions"),
    ],
    ids=["classifier", "base", "BERT"],
)
def test_a_checkpoint_without_a_head_is_refused_by_the_names_that_are_missing(
    saved, kind, config, missing
):
    with pytest.raises(FlowDataError, match=missing) as error:
        load_whole(transformers.AutoModelForCausalLM, str(saved(kind, config)))
    assert kind.__name__ in str(error.value)


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        (transformers.LlamaForCausalLM, LLAMA),
        (transformers.LlamaForCausalLM, TIED),
        (transformers.LlamaModel, TIED),
        (
            transformers.GPT2LMHeadModel,
            transformers.GPT2Config(vocab_size=97, n_embd=32, n_layer=1, n_head=4),
        ),
    ],
    ids=["whole", "tied", "tied base", "GPT-2"],
)
def test_a_tied_head_is_none_that_is_missing(saved, kind, config):
    model = load_whole(transformers.AutoModelForCausalLM, str(saved(kind, config)))
    warn_if_parameters_are_new(model)


def test_what_is_no_model_is_refused_by_name(tmp_path):
    with pytest.raises(FlowDataError, match="cannot be loaded as a causal language model"):
        load_whole(transformers.AutoModelForCausalLM, str(tmp_path))


@pytest.fixture
def new_head(saved):
    """A classifier of a masked language model: all is pre-trained but the head."""
    folder = saved(transformers.BertForMaskedLM, BERT)
    return transformers.AutoModelForSequenceClassification.from_pretrained(folder)


def test_score_warns_of_a_head_that_is_as_it_was_drawn(new_head):
    with pytest.warns(FlowDataWarning, match=r"classifier.weight of BertForSequence.* at random"):
        score(new_head, ROWS, progress=False)


@pytest.mark.parametrize("device_or_dtype", [torch.bfloat16, "cpu"])
def test_it_does_so_in_another_type(new_head, device_or_dtype):
    with pytest.warns(FlowDataWarning, match="at random"):
        score(new_head.to(device_or_dtype), ROWS, progress=False)


def test_it_warns_of_a_head_that_a_user_put_there(saved):
    folder = saved(transformers.BertForSequenceClassification, BERT)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder)
    score(model, ROWS, progress=False)
    model.classifier = nn.Linear(32, 3)
    with pytest.warns(FlowDataWarning, match=r"classifier.weight"):
        score(model, ROWS, progress=False)


def step(model):
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)
    model(WORDS, labels=torch.zeros(30, dtype=torch.int64)).loss.backward()
    optimizer.step()


def load_state(model):
    model.load_state_dict(copy.deepcopy(model.state_dict()))


def fit(model):
    score_probe(model, ROWS[:20], head="classifier", progress=False)
    # The pooler is new too, and no probe fits it.
    load_state(model.bert.pooler)


@pytest.mark.parametrize("change", [step, load_state, fit])
def test_it_is_silent_once_the_head_was_trained_loaded_or_fitted(new_head, change):
    change(new_head)
    score(new_head, ROWS[20:], progress=False)


def test_nothing_is_said_of_models_that_are_made_from_a_configuration():
    torch.manual_seed(0)
    score(transformers.BertForSequenceClassification(BERT), ROWS, progress=False)
