"""Either side of a preference pair is scored after the prompt that both share."""

import datasets
import pytest
import trl.data_utils
from chat_templates import tokenizer_of, turns
from hypothesis import given, settings
from hypothesis import strategies as st
from language_models import llama

from flowdata import CausalLM, score
from flowdata.scoring.layouts.token_rows import IGNORED

SIDES = ("chosen", "rejected")
WORDS = st.lists(st.sampled_from(["Hi", " fox", " ", "\n", "dog", "é", "."]), max_size=4)
LIKE_ALWAYS = settings(max_examples=30, deadline=None, derandomize=True)


@pytest.fixture(scope="module")
def tokenizer():
    return tokenizer_of("chatml")


def read(tokenizer, row, **columns):
    (sample,) = CausalLM(tokenizer=tokenizer, **columns).reader()([row])
    return sample.ids.tolist(), sample.labels.tolist()


def scored_text(tokenizer, row, **columns):
    ids, labels = read(tokenizer, row, **columns)
    return tokenizer.decode(
        [token for token, label in zip(ids, labels, strict=True) if label != IGNORED]
    )


@given(prompt=WORDS, sides=st.tuples(WORDS, WORDS))
@LIKE_ALWAYS
def test_of_texts_each_side_is_what_trl_takes_from_the_pair(prompt, sides):
    tokenizer = tokenizer_of("chatml")
    row = {
        side: "".join(prompt) + "".join(rest) + end
        for side, rest, end in zip(SIDES, sides, "!?", strict=True)
    }
    explicit = trl.data_utils.extract_prompt(row)
    for side in SIDES:
        implicit = read(tokenizer, row, response=side)
        assert implicit == read(tokenizer, explicit, prompt="prompt", response=side)


@given(shared=st.lists(WORDS, min_size=1, max_size=3), sides=st.tuples(WORDS, WORDS))
@LIKE_ALWAYS
def test_of_turns_each_side_is_what_trl_takes_from_the_pair(shared, sides):
    tokenizer = tokenizer_of("chatml")
    begin = turns(*("".join(words) for words in shared))
    last = "assistant" if len(shared) % 2 else "user"
    row = {
        side: [*begin, {"role": last, "content": "".join(rest) + end}]
        for side, rest, end in zip(SIDES, sides, "!?", strict=True)
    }
    explicit = trl.data_utils.extract_prompt(row)
    for side in SIDES:
        implicit = read(tokenizer, row, response=side)
        assert implicit == read(tokenizer, explicit, prompt="prompt", response=side)


def test_both_sides_are_scored_as_two_tables(tokenizer):
    chat = turns("Hi", "Hello", "Colour of the sky?")
    rows = [
        {"chosen": [*chat, *turns(good, first="a")], "rejected": [*chat, *turns(bad, first="a")]}
        for good, bad in (("Blue.", "Green."), ("Black at night.", "No"), ("Blue", "Red"))
    ]
    assert scored_text(tokenizer, rows[0], response="chosen") == "Blue.<|im_end|>\n"
    assert scored_text(tokenizer, rows[0], response="rejected") == "Green.<|im_end|>\n"
    model = llama()
    model.resize_token_embeddings(len(tokenizer))
    data = datasets.Dataset.from_list(rows)
    for side in SIDES:
        found = score(model, data, CausalLM(tokenizer=tokenizer, response=side), progress=False)
        whole = [{"m": row[side]} for row in rows]
        last = CausalLM(tokenizer=tokenizer, messages="m", turns="last")
        assert found.losses.tolist() == score(model, whole, last, progress=False).losses.tolist()


def test_a_side_of_a_pair_is_another_pass_and_the_chosen_one_that_of_earlier_versions(tokenizer):
    sides = [CausalLM(tokenizer=tokenizer, response=side).identity() for side in SIDES]
    assert "pair" not in sides[0]
    assert sides[1]["pair"]
    given = CausalLM(tokenizer=tokenizer, prompt="prompt", response="rejected").identity()
    assert "pair" not in given


@pytest.mark.parametrize("side", SIDES)
def test_a_column_of_text_that_is_called_so_is_all_scored(tokenizer, side):
    row = {"chosen": "Hi fox", "rejected": "Hi dog"}
    assert scored_text(tokenizer, row, text=side) == f"{row[side]}</s>"
    alone = {side: "Hi fox"}
    assert scored_text(tokenizer, alone, response=side) == "Hi fox</s>"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"rejected": turns("Hi", "Yes"), "chosen": None}, "nothing in 'chosen', which says where"),
        ({"rejected": turns("Hi", "Yes"), "chosen": "No"}, "one holds turns, one does not"),
        ({"rejected": turns("Hi", "Yes"), "chosen": turns("Ho", "No")}, "no turn in common"),
        ({"rejected": turns("Hi", "Yes"), "chosen": []}, "is empty"),
        ({"rejected": "Hi", "chosen": 3}, "column 'chosen' holds 3"),
    ],
)
def test_a_rejected_side_whose_prompt_is_not_known_is_refused(tokenizer, row, message):
    with pytest.raises((TypeError, ValueError), match=message):
        read(tokenizer, row, response="rejected")


@pytest.mark.parametrize("column", ["messages", "conversations"])
def test_turns_of_other_names_are_those_that_trl_makes_of_them(tokenizer, column):
    names = {"role": "from", "content": "value"}
    chat = [{names[key]: turn[key] for key in turn} for turn in turns("Hi", "Hello", "So?", "No.")]
    found = read(tokenizer, {column: chat}, messages=column)
    made = trl.data_utils.maybe_convert_to_chatml({column: chat})
    assert found == read(tokenizer, made, messages="messages")
    other = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]
    with pytest.raises(ValueError, match="keys to role and content, and the roles to user and as"):
        read(tokenizer, {column: other}, messages=column)
