"""TokenReader: which tokens of a row are scored, with the tokenizer of a real model."""

import copy

import datasets
import numpy as np
import pytest
from tokenizers.normalizers import Lowercase
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer

from flowdata import CausalLM
from flowdata.scoring.layouts.token_rows import IGNORED


@pytest.fixture(scope="module")
def tokenizer(smollm2):
    return AutoTokenizer.from_pretrained(smollm2)


def scored_text(tokenizer, sample):
    return tokenizer.decode(sample.ids[sample.labels != IGNORED])


def test_the_response_and_the_end_are_scored_and_the_prompt_is_not(tokenizer):
    loss = CausalLM(tokenizer=tokenizer, prompt="q", response="a")
    rows = [{"q": "What is 2 + 2?", "a": " It is 4."}, {"q": "Übung\n", "a": "macht den Meister"}]
    for row, sample in zip(rows, loss.reader()(rows), strict=True):
        assert scored_text(tokenizer, sample) == row["a"] + tokenizer.eos_token
        assert tokenizer.decode(sample.ids) == row["q"] + row["a"] + tokenizer.eos_token
        labelled = sample.labels != IGNORED
        assert np.array_equal(sample.labels[labelled], sample.ids[labelled])


def test_prompt_and_response_are_tokenized_as_one_text(tokenizer):
    (sample,) = CausalLM(tokenizer=tokenizer, prompt="q", response="a").reader()(
        [{"q": "The colour is re", "a": "d, of course"}]
    )
    whole = tokenizer("The colour is red, of course")["input_ids"]
    assert sample.ids[:-1].tolist() == whole
    # All of the response is scored, with the token that began in the prompt.
    assert scored_text(tokenizer, sample) == " red, of course" + tokenizer.eos_token


def test_plain_text_is_scored_whole(tokenizer):
    (sample,) = CausalLM(tokenizer=tokenizer, text="t").reader()([{"t": "All of it."}])
    assert scored_text(tokenizer, sample) == "All of it." + tokenizer.eos_token


def test_of_a_chat_what_the_assistant_says_is_scored(tokenizer):
    chat = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Two and two?"},
        {"role": "assistant", "content": "Four."},
        {"role": "user", "content": "And three?"},
        {"role": "assistant", "content": "Seven."},
    ]
    (sample,) = CausalLM(tokenizer=tokenizer, messages="m").reader()([{"m": chat}])
    text = tokenizer.apply_chat_template(chat, tokenize=False)
    assert tokenizer.decode(sample.ids) == text
    assert scored_text(tokenizer, sample) == "Four.<|im_end|>\nSeven.<|im_end|>\n"


def test_a_template_that_renders_a_turn_by_what_follows_is_refused(tokenizer):
    changed = copy.deepcopy(tokenizer)
    # Each turn ends with how many follow.
    changed.chat_template = (
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }} ({{ loop.revindex0 }})\n"
        "{% endfor %}"
    )
    chat = [{"role": role, "content": "x"} for role in ("user", "assistant", "user")]
    with pytest.raises(ValueError, match="differently when others follow"):
        CausalLM(tokenizer=changed, messages="m").reader()([{"m": chat}])


def test_a_long_sample_is_cut_on_the_right(tokenizer):
    rows = [{"q": "one two three four five six", "a": " seven eight nine"}]
    (whole,) = CausalLM(tokenizer=tokenizer, prompt="q", response="a").reader()(rows)
    (cut,) = CausalLM(tokenizer=tokenizer, prompt="q", response="a", max_length=7).reader()(rows)
    assert cut.truncated
    assert not whole.truncated
    assert cut.ids.tolist() == whole.ids[:7].tolist()
    assert cut.labels.tolist() == whole.labels[:7].tolist()


def test_rows_of_a_datasets_dataset_are_read(tokenizer):
    rows = datasets.Dataset.from_dict({"q": ["1 ", "2 "], "a": ["x", "y"], "other": [1, 2]})
    found = CausalLM(tokenizer=tokenizer, prompt="q", response="a").reader()(list(rows))
    assert [scored_text(tokenizer, sample)[:2] for sample in found] == [" x", " y"]


def test_an_end_the_tokenizer_adds_itself_is_scored_and_not_added_again(tokenizer):
    own, end = copy.deepcopy(tokenizer), (tokenizer.eos_token, tokenizer.eos_token_id)
    own.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{end[0]} $A {end[0]}", special_tokens=[end]
    )
    rows = [{"q": "What is 2 + 2?", "a": " It is 4."}]
    (plain,) = CausalLM(tokenizer=tokenizer, prompt="q", response="a").reader()(rows)
    (sample,) = CausalLM(tokenizer=own, prompt="q", response="a").reader()(rows)
    assert sample.ids.tolist() == [end[1], *plain.ids.tolist()]
    assert sample.labels.tolist() == [IGNORED, *plain.labels.tolist()]


@pytest.mark.parametrize("answer", ["", "7", "a\n\nb ", "日本語 🤖", "<|im_start|>"])
@pytest.mark.parametrize("question", ["", "Q: ", "ends with a word", "🤖"])
def test_all_of_any_response_is_scored_and_only_a_shared_token_of_the_prompt(
    tokenizer, question, answer
):
    row = {"q": question, "a": answer}
    (sample,) = CausalLM(tokenizer=tokenizer, prompt="q", response="a").reader()([row])
    scored = sample.labels != IGNORED
    # What is scored is the end of the sample, from the token in which the response begins.
    first = int(scored.argmax())
    assert scored[first:].all()
    response = f"{answer}{tokenizer.eos_token}"
    assert tokenizer.decode(sample.ids) == question + response
    assert scored_text(tokenizer, sample).endswith(response)
    # A token may end within the bytes of a character.
    assert response.endswith(tokenizer.decode(sample.ids[first + 1 :]).lstrip("\ufffd"))


def test_a_response_without_a_prompt_is_scored_whole(tokenizer):
    (sample,) = CausalLM(tokenizer=tokenizer, response="a").reader()([{"a": "Hello there."}])
    assert scored_text(tokenizer, sample) == "Hello there." + tokenizer.eos_token


def test_a_chat_in_which_the_assistant_is_silent_has_nothing_to_score(tokenizer):
    chat = [{"role": "system", "content": "x"}, {"role": "user", "content": "y"}]
    (sample,) = CausalLM(tokenizer=tokenizer, messages="m").reader()([{"m": chat}])
    assert (sample.labels == IGNORED).all()


def test_what_the_user_says_is_not_scored_even_if_the_assistant_says_the_same(tokenizer):
    chat = [{"role": role, "content": "Echo!"} for role in ("system", "user", "assistant")]
    (sample,) = CausalLM(tokenizer=tokenizer, messages="m").reader()([{"m": chat}])
    assert tokenizer.decode(sample.ids).count("Echo!") == 3
    assert scored_text(tokenizer, sample) == "Echo!<|im_end|>\n"


def test_ids_and_labels_are_taken_as_they_are_without_padding():
    row = {"input_ids": [0, 5, 6, 7, 0], "labels": [-100, 5, -100, 7, -100]}
    (plain,) = CausalLM().reader()([row])
    assert (plain.ids.tolist(), plain.labels.tolist()) == (row["input_ids"], row["labels"])
    (masked,) = CausalLM().reader()([row | {"attention_mask": np.array([0, 1, 1, 1, 0])}])
    assert (masked.ids.tolist(), masked.labels.tolist()) == ([5, 6, 7], [5, -100, 7])


def test_a_row_without_a_text_has_no_token_rather_than_the_word_none(tokenizer):
    rows = [{"q": "x", "a": None}, {"q": "x: ", "a": "y"}, {"q": None, "a": "x"}]
    found = CausalLM(tokenizer=tokenizer, prompt="q", response="a").reader()(rows)
    assert [sample.ids.size for sample in found[::2]] == [0, 0]
    assert scored_text(tokenizer, found[1]).strip() == "y" + tokenizer.eos_token
    for chat in (None, []):
        (sample,) = CausalLM(tokenizer=tokenizer, messages="m").reader()([{"m": chat}])
        assert sample.ids.size == sample.labels.size == 0


@pytest.mark.parametrize(
    ("chat", "error", "message"),
    [
        (
            [{"from": "human", "value": "x"}],
            ValueError,
            r"\['role', 'content'\].*\['from', 'value'",
        ),
        ('[{"role": "user", "content": "x"}]', TypeError, "stored as text.*json.loads"),
        ({"role": "user", "content": "x"}, TypeError, "list of turns, got dict"),
        (["user: x"], TypeError, "turn of a chat is a dict, got str"),
        ([{"role": "assistant", "content": "x"}], ValueError, "begins with the assistant"),
    ],
)
def test_what_is_no_chat_is_refused_with_what_it_is(tokenizer, chat, error, message):
    with pytest.raises(error, match=message):
        CausalLM(tokenizer=tokenizer, messages="m").reader()([{"m": chat}])


def test_what_a_chat_template_refuses_is_passed_on(tokenizer):
    strict = copy.deepcopy(tokenizer)
    strict.chat_template = "{{ raise_exception('roles must alternate') }}"
    chat = [{"role": "user", "content": "x"}]
    with pytest.raises(ValueError, match="template does not take the chat: roles must alternate"):
        CausalLM(tokenizer=strict, messages="m").reader()([{"m": chat}])
    strict.chat_template = None
    with pytest.raises(ValueError, match="no chat template"):
        CausalLM(tokenizer=strict, messages="m")


def lower_case(tokenizer):
    tokenizer.backend_tokenizer.normalizer = Lowercase()


def beginning(tokenizer):
    start = ("<|im_start|>", tokenizer.convert_tokens_to_ids("<|im_start|>"))
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{start[0]} $A", special_tokens=[start]
    )


def other_end(tokenizer):
    tokenizer.eos_token = "<|endoftext|>"


@pytest.fixture(scope="module")
def known(tokenizer):
    return CausalLM(tokenizer=tokenizer, text="t").identity()


@pytest.mark.parametrize("change", [lower_case, beginning, other_end])
def test_a_tokenizer_that_makes_other_tokens_is_another_one(tokenizer, known, change):
    changed = copy.deepcopy(tokenizer)
    change(changed)
    assert CausalLM(tokenizer=changed, text="t").identity() != known


def test_a_tokenizer_that_was_used_with_padding_and_truncation_is_the_same(tokenizer, known):
    used = copy.deepcopy(tokenizer)
    used(["one", "two three four"], padding=True, truncation=True, max_length=2)
    assert used.backend_tokenizer.truncation is not None
    assert CausalLM(tokenizer=used, text="t").identity() == known


def test_another_chat_template_matters_where_there_are_chats(tokenizer, known):
    changed = copy.deepcopy(tokenizer)
    changed.chat_template = f"{tokenizer.chat_template} "
    assert CausalLM(tokenizer=changed, text="t").identity() == known
    one, other = (CausalLM(tokenizer=t, messages="m").identity() for t in (tokenizer, changed))
    assert one != other
    assert one["tokenizer"] == other["tokenizer"] == known["tokenizer"]


class Slow:
    is_fast = False


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"response": "a"}, "pass tokenizer="),
        ({"prompt": "q"}, "one layout"),
        ({"text": "t", "messages": "m"}, r"\['messages', 'text'\]"),
        ({"text": "t", "tokenizer": Slow()}, "Slow cannot tell which characters"),
        ({"max_length": 1}, "at least 2 tokens, got 1"),
        ({"max_tokens": 0}, "at least 1, got 0"),
    ],
)
def test_options_that_do_not_fit_are_refused_at_once(options, message):
    with pytest.raises(ValueError, match=message):
        CausalLM(**options)


def test_a_missing_column_is_named_with_those_that_are_there(tokenizer):
    reader = CausalLM(tokenizer=tokenizer, prompt="question", response="answer").reader()
    with pytest.raises(ValueError, match=r"no column \['answer'\].* \['question', 'reply'\]"):
        reader([{"question": "q", "reply": "r"}])
