"""All of a response is scored and nothing else, for each family of fast tokenizers."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizer_families import FAMILIES, family

from flowdata import CausalLM
from flowdata.scoring.layouts.spans import MarkedText, mark_tokens
from flowdata.scoring.layouts.token_rows import IGNORED

PIECES = [
    *(" ", "  ", "    ", "\n", "\n\n", "\t", "\u00a0", " \n"),
    *("def", " return", "f(x):", ";", ";\n", ".", "fox", " dog", "Hello", "user"),
    *("é", "e\u0301", "ﬁ", "½", "日本", "😀", "مرحبا", "\u0301", "A", "ß", "٣", "\u200d"),
]
TEXT = st.lists(st.sampled_from(PIECES), max_size=8).map("".join)
LIKE_ALWAYS = settings(max_examples=30, deadline=None, derandomize=True)
EACH = pytest.mark.parametrize("name", FAMILIES)


def read(tokenizer, row, **columns):
    (sample,) = CausalLM(tokenizer=tokenizer, **columns).reader()([row])
    return sample.ids.tolist(), (sample.labels != IGNORED).tolist()


def common(one, other):
    equal = [mine == others for mine, others in zip(one, other, strict=False)]
    return equal.index(False) if False in equal else len(equal)


@EACH
@given(text=TEXT)
@LIKE_ALWAYS
def test_of_a_text_all_is_scored_but_what_the_tokenizer_adds(name, text):
    tokenizer = family(name)
    ids, scored = read(tokenizer, {"t": text}, text="t")
    own = tokenizer(text, add_special_tokens=False)["input_ids"]
    begin = common(ids, tokenizer("")["input_ids"][:1]) if len(ids) > len(own) + 1 else 0
    end = tokenizer.eos_token_id
    assert ids[begin:] == [*own, end]
    assert scored == [False] * begin + [True] * (len(own) + 1)


@EACH
@pytest.mark.parametrize("strips", [False, True])
@given(prompt=TEXT, response=TEXT)
@LIKE_ALWAYS
def test_a_response_is_scored_from_where_the_prompt_alone_differs(name, strips, prompt, response):
    tokenizer = family(name, strips=strips)
    prompt = f"{prompt}<|im_start|>" if strips else prompt
    ids, scored = read(tokenizer, {"q": prompt, "a": response}, prompt="q", response="a")
    encoded = tokenizer(prompt + response, return_offsets_mapping=True)
    whole = encoded["input_ids"]
    end = tokenizer.eos_token_id
    assert ids == (whole if whole[-1:] == [end] else [*whole, end])
    first = scored.index(True)
    assert all(scored[first:])
    begin = min(common(tokenizer(prompt)["input_ids"], ids), len(ids) - 1)
    assert first <= begin
    # A token may be of both and look like one of the prompt: an unknown word, an accent left out.
    for token in range(first, begin):
        assert encoded["offset_mapping"][token][1] > len(prompt)
        assert whole[token] not in tokenizer.convert_tokens_to_ids(["<|im_start|>", "<s>"])


@EACH
@pytest.mark.parametrize("strips", [False, True])
@given(contents=st.tuples(TEXT, TEXT, TEXT, TEXT))
@LIKE_ALWAYS
def test_of_a_chat_the_tokens_between_the_turns_of_others_are_scored(name, strips, contents):
    tokenizer = family(name, strips=strips)
    roles = ("user", "assistant", "user", "assistant")
    chat = [{"role": r, "content": c} for r, c in zip(roles, contents, strict=True)]
    ids, scored = read(tokenizer, {"m": chat}, messages="m")

    def tokens(turns, prompt=False):
        text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=prompt)
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    assert ids == tokens(chat)
    wanted = np.zeros(len(ids), dtype=bool)
    for number in (1, 3):
        begin = common(tokens(chat[:number], prompt=True), ids)
        wanted[begin : common(tokens(chat[: number + 1]), ids)] = True
    if "stripped" in name:
        # White space at the end of a head is gone, at the end of a prompt it is there.
        assert not np.any(scored & ~wanted)
    else:
        assert scored == wanted.tolist()


@EACH
@given(contents=st.tuples(TEXT, TEXT))
@LIKE_ALWAYS
def test_a_span_in_a_text_has_its_tokens_up_to_the_control_token_after_it(name, contents):
    tokenizer = family(name)
    head, span = f"{contents[0]}<|im_start|>", contents[1]
    whole = MarkedText(f"{head}{span}<|im_end|> fox", [(len(head), len(head + span))])
    ((ids, scored),) = mark_tokens(tokenizer, [whole], special=False)
    begin, end = tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])
    first, last = ids.tolist().index(begin) + 1, ids.tolist().index(end)
    # White space that a tokenizer strips from the end of a text is there before a control token.
    assert scored.tolist() == [first <= token < last for token in range(ids.size)]


@pytest.mark.parametrize("name", ["byte-level, trimmed", "byte-level, cl100k, trimmed"])
@given(contents=st.tuples(TEXT, TEXT, TEXT))
@LIKE_ALWAYS
def test_trimmed_offsets_make_no_difference(name, contents):
    roles = ("user", "assistant", "user")
    chat = [{"role": r, "content": c} for r, c in zip(roles, contents, strict=True)]
    row = {"m": chat, "q": contents[0], "a": contents[1]}
    for columns in ({"messages": "m"}, {"prompt": "q", "response": "a"}, {"text": "a"}):
        trimmed = read(family(name), row, **columns)
        assert trimmed == read(family(name.replace(", trimmed", "")), row, **columns)


@pytest.mark.parametrize("name", ["words", "word piece"])
def test_an_unknown_word_that_begins_in_the_prompt_is_scored(name):
    # The prompt alone is an unknown word too, of the same token.
    tokenizer = family(name)
    ids, scored = read(
        tokenizer, {"q": "dog \u4e00\u4e01x", "a": "\u4e02y"}, prompt="q", response="a"
    )
    unknown = np.array(ids) == tokenizer.unk_token_id
    assert unknown.any()
    last = len(ids) - 1 - int(unknown[::-1].argmax())
    assert all(scored[last:])


@pytest.mark.parametrize("name", ["byte-level, trimmed", "roberta", "byte-level, cl100k, trimmed"])
@pytest.mark.parametrize("span", ["  ", "fox  ", "fox \n  "])
def test_white_space_at_the_end_of_a_span_is_scored_before_plain_text(name, span):
    tokenizer = family(name)
    head = "Hi<|im_start|>"
    whole = MarkedText(f"{head}{span}.def", [(len(head), len(head + span))])
    ((ids, scored),) = mark_tokens(tokenizer, [whole], special=False)
    assert tokenizer.decode(ids[scored]).endswith(span)
