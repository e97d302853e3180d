"""Columns of text: what is no text is refused, special tokens are there once."""

import copy

import numpy as np
import pytest
from language_models import llama
from tokenizer_families import CHATML, family

from flowdata import CausalLM, InvalidLossError, score


@pytest.fixture(scope="module")
def tokenizer():
    return family("byte-level")


def read(tokenizer, row, **columns):
    (sample,) = CausalLM(tokenizer=tokenizer, **columns).reader()([row])
    return sample


@pytest.mark.parametrize(
    "value",
    [{"a": 1}, ["a"], float("nan"), 7, 2.5, b"text", True, np.float32(1), np.array(["a"]), ("a",)],
    ids=repr,
)
@pytest.mark.parametrize("column", ["p", "c", "t"])
def test_what_is_no_text_is_refused_with_its_row_and_column(tokenizer, value, column):
    rows = [{"p": "1", "c": "2", "t": "3"}, {"p": "1", "c": "2", "t": "3"} | {column: value}]
    columns = {"text": "t"} if column == "t" else {"prompt": "p", "response": "c"}
    model = llama()
    model.resize_token_embeddings(len(tokenizer))
    with pytest.raises(TypeError, match=f"row 1: column '{column}' holds .*, not text"):
        score(model, rows, CausalLM(tokenizer=tokenizer, **columns), progress=False)


def test_text_of_numpy_is_text_and_none_is_no_response(tokenizer):
    model = llama()
    model.resize_token_embeddings(len(tokenizer))
    loss = CausalLM(tokenizer=tokenizer, text="t")
    rows = [{"t": np.str_("Hello, world!")}, {"t": "Hello, world!"}]
    first, second = score(model, rows, loss, progress=False).losses
    assert first == second
    with pytest.raises(InvalidLossError, match=r"no response token .* rows \[1\]"):
        score(model, [rows[0], {"t": None}], loss, progress=False)


@pytest.mark.parametrize("name", ["llama 2", "roberta", "t5", "word piece", "metaspace"])
@pytest.mark.parametrize("columns", [{"text": "t"}, {"prompt": "q", "response": "a"}])
def test_special_tokens_that_a_text_has_already_are_there_once(name, columns):
    tokenizer = family(name)
    before, after = (
        text in tokenizer.decode(tokenizer("x")["input_ids"]) for text in ("<s>", "</s>")
    )
    head, end = "<s>" if before else "", "</s>"
    plain = {"t": "Hello fox", "q": "Hello", "a": " fox"}
    own = {"t": f"{head}Hello fox{end}", "q": f"{head}Hello", "a": f" fox{end}"}
    once, twice = (read(tokenizer, row, **columns) for row in (plain, own))
    assert twice.ids.tolist() == once.ids.tolist()
    assert twice.labels.tolist() == once.labels.tolist()
    assert (twice.ids == tokenizer.eos_token_id).sum() == 1
    assert not after or twice.ids[-1] == tokenizer.eos_token_id


def test_a_text_rendered_before_is_the_chat():
    tokenizer = copy.deepcopy(family("llama 2"))
    tokenizer.eos_token = "<|im_end|>"
    tokenizer.chat_template = "{{ bos_token }}" + CHATML
    chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    text = tokenizer.apply_chat_template(chat, tokenize=False)
    sample = read(tokenizer, {"t": text}, text="t")
    assert sample.ids.tolist() == read(tokenizer, {"m": chat}, messages="m").ids.tolist()
