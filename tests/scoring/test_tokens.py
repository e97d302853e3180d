import datasets
import numpy as np
import pytest
from transformers import AutoTokenizer

from flowdata import CausalLM
from flowdata.scoring.tokens import IGNORED


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
    import copy

    changed = copy.deepcopy(tokenizer)
    changed.chat_template = (
        "{% for m in messages %}{{ loop.length }} {{ m['role'] }}: {{ m['content'] }}{% endfor %}"
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
    with pytest.raises(ValueError, match=r"no \['answer'\], it has \['question', 'reply'\]"):
        reader([{"question": "q", "reply": "r"}])
