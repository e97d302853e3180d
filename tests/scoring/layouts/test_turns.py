"""Prompts, responses and chats as turns: rendered by the chat template, labelled as TRL does."""

import copy
from pathlib import Path

import datasets
import numpy as np
import pytest
import trl.data_utils
from language_models import llama
from tokenizer_families import CHATML, family
from trl import SFTConfig, SFTTrainer

from flowdata import CausalLM, score
from flowdata.scoring.layouts.token_rows import IGNORED

PARTS = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['content'] is string %}"
    "{{ m['content'] }}{% else %}{% for part in m['content'] %}{{ part['text'] }}{% endfor %}"
    "{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TAGGED = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}{{ '<|im_start|>assistant\n' }}"
    "{% generation %}{{ m['content'] + '<|im_end|>' }}{% endgeneration %}{% else %}"
    "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' }}{% endif %}\n"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TOOLS = "{% if tools %}<|im_start|>system\n{{ tools | tojson }}<|im_end|>\n{% endif %}" + CHATML
THINKING = CHATML.replace("assistant\n'}}{% endif", "assistant\n<think>\n'}}{% endif")


@pytest.fixture(scope="module")
def tokenizer():
    return family("byte-level")


def with_template(tokenizer, template):
    changed = copy.deepcopy(tokenizer)
    changed.chat_template = template
    return changed


def turns(*contents, roles=("user", "assistant")):
    return [
        {"role": roles[number % len(roles)], "content": content}
        for number, content in enumerate(contents)
    ]


def read(tokenizer, row, **columns):
    (sample,) = CausalLM(tokenizer=tokenizer, **columns).reader()([row])
    return sample


def scored_text(tokenizer, sample):
    return tokenizer.decode(sample.ids[sample.labels != IGNORED])


BY_COMMON_PREFIX = hasattr(trl.data_utils, "common_prefix_length")
LABELS_OTHERWISE = "this TRL takes the length of the prompt alone"
TEXTS = {
    "prompt": ["Say:", "Two and two?\n", "🤖"],
    "completion": [" Hello", "Four.", " "],
}
MERGED = {
    "prompt": ["fo", "end\n\n", "Say: ", "def f(x):\n    "],
    "completion": ["x jumps", "Hello", "fox", "return x\n"],
}
ROWS = {
    "text": [{"text": text} for text in ("Hello, world!", "def f(x):\n\n    return 2\n", "日本")],
    "prompt, completion": [
        {"prompt": p, "completion": c} for p, c in zip(*TEXTS.values(), strict=True)
    ],
    "prompt, completion of turns": [
        {"prompt": turns(p), "completion": turns(c, roles=["assistant"])}
        for p, c in zip(*TEXTS.values(), strict=True)
    ],
    "several turns": [
        {
            "prompt": turns("Be brief.", "Hi", "Hello", "1?", roles=("system", *["user"] * 3)),
            "completion": turns("Yes.", "No?", "No.", roles=("assistant", "user")),
        }
    ],
    "tools": [
        {
            "prompt": turns("What time is it?"),
            "completion": turns("Now.", roles=["assistant"]),
            "tools": '[{"type": "function", "function": {"name": "clock"}}]',
        }
    ],
    "merged": [{"prompt": p, "completion": c} for p, c in zip(*MERGED.values(), strict=True)],
    "thinking": [{"prompt": turns("Why?"), "completion": turns("So.", roles=["assistant"])}],
}
TEMPLATES = {"tools": TOOLS, "thinking": THINKING}


@pytest.mark.parametrize("layout", ROWS)
@pytest.mark.parametrize("name", ["byte-level", "llama 2", "byte-level, cl100k, trimmed"])
def test_tokens_and_labels_are_those_that_trl_trains_on(tmp_path, layout, name):
    if layout in ("merged", "thinking") and not BY_COMMON_PREFIX:
        pytest.skip(LABELS_OTHERWISE)
    tokenizer = with_template(family(name), TEMPLATES.get(layout, CHATML))
    tokenizer.pad_token = "<unk>"
    arguments = SFTConfig(str(tmp_path), use_cpu=True, bf16=False, max_length=None, report_to=[])
    rows = datasets.Dataset.from_list(ROWS[layout])
    trainer = SFTTrainer(llama(), arguments, train_dataset=rows, processing_class=tokenizer)
    columns = {"prompt": "prompt", "response": "completion"}
    columns = {"text": "text"} if layout == "text" else columns
    found = CausalLM(tokenizer=tokenizer, **columns).reader()(list(rows))
    for sample, made in zip(found, trainer.train_dataset, strict=True):
        assert sample.ids.tolist() == made["input_ids"]
        mask = made.get("completion_mask", [1] * len(sample.ids))
        labels = made.get("labels", np.where(mask, sample.ids, IGNORED).tolist())
        # Of the first token there is nothing to predict.
        assert sample.labels[1:].tolist() == labels[1:]


def test_prompt_and_response_of_turns_have_the_loss_of_the_chat():
    tokenizer = with_template(family("word piece"), CHATML)
    model = llama()
    model.resize_token_embeddings(len(tokenizer))
    rows = [
        {"p": turns(f"What is {n}?"), "c": turns(f"It is {n}", roles=["assistant"])}
        for n in ("user", "fox", "dog")
    ]
    chats = [{"m": row["p"] + row["c"]} for row in rows]
    pairs = CausalLM(tokenizer=tokenizer, prompt="p", response="c")
    whole = CausalLM(tokenizer=tokenizer, messages="m")
    found = score(model, datasets.Dataset.from_list(rows), pairs, progress=False)
    assert found.losses.tolist() == score(model, chats, whole, progress=False).losses.tolist()
    alone = CausalLM(tokenizer=tokenizer, response="m")
    assert found.losses.tolist() == score(model, chats, alone, progress=False).losses.tolist()


def test_the_chosen_side_of_a_pair_is_scored_after_its_prompt(tokenizer):
    chat = turns("Hi", "Hello", "Colour of the sky?")
    good, bad = (turns(answer, roles=["assistant"]) for answer in ("Blue.", "Green."))
    explicit = {"prompt": chat, "chosen": good, "rejected": bad}
    implicit = {"chosen": chat + good, "rejected": chat + bad}
    one = read(tokenizer, explicit, prompt="prompt", response="chosen")
    other = read(tokenizer, implicit, response="chosen")
    assert scored_text(tokenizer, one) == "Blue.<|im_end|>\n"
    assert one.ids.tolist() == other.ids.tolist()
    assert one.labels.tolist() == other.labels.tolist()


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"chosen": turns("Hi", "Yes"), "rejected": None}, "nothing in 'rejected'"),
        ({"chosen": turns("Hi", "Yes"), "rejected": "No"}, "one holds turns, one does not"),
        ({"chosen": turns("Hi", "Yes"), "rejected": turns("Ho", "No")}, "no turn in common"),
        ({"chosen": turns("Hi", "Yes"), "rejected": []}, "is empty"),
        ({"chosen": "Hi", "rejected": 3}, "column 'rejected' holds 3"),
    ],
)
def test_a_pair_whose_prompt_is_not_known_is_refused(tokenizer, row, message):
    with pytest.raises((TypeError, ValueError), match=message):
        read(tokenizer, row, response="chosen")


def test_turns_are_not_rendered_without_a_template_and_another_one_is_another_pass(tokenizer):
    row = {"p": turns("Hi"), "c": turns("Hello", roles=["assistant"])}
    with pytest.raises(ValueError, match="no chat template to render turns with"):
        read(with_template(tokenizer, None), row, prompt="p", response="c")
    found = {
        CausalLM(tokenizer=with_template(tokenizer, template), response="c")
        .identity()
        .get("chat_template")
        for template in (None, CHATML, PARTS)
    }
    assert len(found) == 3


def test_of_a_pair_of_texts_what_both_begin_with_is_the_prompt(tokenizer):
    row = {"chosen": "Q: sky? A: blue", "rejected": "Q: sky? A: red"}
    sample = read(tokenizer, row, response="chosen")
    assert scored_text(tokenizer, sample) == " blue</s>"
    row = trl.data_utils.extract_prompt(row)
    given = read(tokenizer, row, prompt="prompt", response="chosen")
    assert sample.labels.tolist() == given.labels.tolist()


def test_keys_that_a_table_fills_with_none_are_not_there(tokenizer):
    parts = PARTS.replace("{{ part['text']", "{{ '!' if 'image' in part }}{{ part['text']")
    calls = "{{ m['tool_calls'] | tojson if m['tool_calls'] }}<|im_end|>"
    template = "{{ tools | tojson }}" + parts.replace("<|im_end|>", calls)
    changed = with_template(tokenizer, template)

    def row(**empty):
        call = {"name": "f", "arguments": {"city": "Rome"} | empty}
        part = {"type": "text", "text": "So"} | empty
        answer = {"role": "assistant", "content": [part], "tool_calls": [call]} | empty
        return {"m": [*turns("Hi"), answer], "tools": [{"name": "f"} | empty]}

    found, wanted = (read(changed, each, messages="m") for each in (row(image=None), row()))
    assert found.ids.tolist() == wanted.ids.tolist()


@pytest.mark.parametrize("changes", ["upper", "lower", "title", "capitalize", "trim"])
def test_a_template_may_change_the_case_of_what_is_said(tokenizer, changes):
    changed = with_template(tokenizer, CHATML.replace("m['content']", f"m['content'] | {changes}"))
    sample = read(changed, {"m": turns("Hi You", "so It is")}, messages="m")
    assert scored_text(changed, sample).lower() == "so it is<|im_end|>\n"


def test_a_chat_may_begin_with_the_assistant_where_that_is_not_scored(tokenizer):
    chat = turns("Welcome", "Hi", "Hello", roles=("assistant", "user"))
    with pytest.raises(ValueError, match="begins with the assistant"):
        read(tokenizer, {"m": chat}, messages="m")
    chat[0]["weight"] = 0
    sample = read(tokenizer, {"m": chat}, messages="m")
    assert scored_text(tokenizer, sample) == "Hello<|im_end|>\n"


def test_what_the_template_tags_is_scored(tokenizer):
    tagged = with_template(tokenizer, TAGGED)
    chat = turns("Hi", "Hello", "And?", "Nothing.")
    sample = read(tagged, {"m": chat}, messages="m")
    assert scored_text(tagged, sample) == "Hello<|im_end|>Nothing.<|im_end|>"
    theirs = tagged.apply_chat_template(chat, return_dict=True, return_assistant_tokens_mask=True)
    assert (sample.labels != IGNORED).tolist() == [bool(m) for m in theirs["assistant_masks"]]
    chat[1]["weight"] = 0
    sample = read(tagged, {"m": chat}, messages="m")
    assert scored_text(tagged, sample) == "Nothing.<|im_end|>"


@pytest.mark.parametrize("flag", ["weight", "train", "training", "trainable", "loss"])
def test_a_turn_is_scored_as_its_flag_says(tokenizer, flag):
    chat = turns("Hi", "Hello", "And?", "Nothing.", "Well?", "Bye")
    chat[1][flag], chat[3][flag], chat[4][flag] = False, 1.0, None
    sample = read(tokenizer, {"m": chat}, messages="m")
    assert scored_text(tokenizer, sample) == "Nothing.<|im_end|>\nBye<|im_end|>\n"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"weight": 0.5}, r"turn 1 has weight=0.5.*input_ids and labels"),
        ({"train": "no"}, r"turn 1 has train='no'"),
        ({"weight": 1, "train": False}, "turn 1 is scored and not scored"),
        ({"train_detail": [{"begin": 0}]}, r"turn 1 has \['train_detail'\]"),
        ({"loss_scale": 0.1}, r"turn 1 has \['loss_scale'\]"),
        ({"mask": True}, r"turn 1 has \['mask'\]"),
    ],
)
def test_a_flag_that_cannot_be_honoured_is_refused(tokenizer, flags, message):
    chat = turns("Hi", "Hello")
    chat[1] |= flags
    with pytest.raises(ValueError, match=message):
        read(tokenizer, {"m": chat}, messages="m")


def test_a_flag_that_wants_the_user_scored_is_refused(tokenizer):
    chat = turns("Hi", "Hello")
    chat[0]["train"] = True
    with pytest.raises(ValueError, match=r"turn 0 of 'user' has train=True, but only"):
        read(tokenizer, {"m": chat}, messages="m")
    row = {"p": turns("Hi"), "c": turns("Hello", roles=["assistant"])}
    row["c"][0]["weight"] = 0
    with pytest.raises(ValueError, match=r"turns say which of them are trained on.*messages="):
        read(tokenizer, row, prompt="p", response="c")


def test_tools_and_options_of_a_row_reach_the_template(tokenizer):
    template = "{% if brief %}brief{% endif %}" + TOOLS
    changed = with_template(tokenizer, template)
    tool = {"type": "function", "function": {"name": "clock"}}
    row = {"m": turns("Hi", "Hello"), "tools": [tool], "chat_template_kwargs": {"brief": True}}
    text = changed.decode(read(changed, row, messages="m").ids)
    assert text == changed.apply_chat_template(row["m"], tools=[tool], brief=True, tokenize=False)
    assert "clock" in text
    for none in (None, []):
        read(tokenizer, row | {"tools": none}, messages="m")
    with pytest.raises(ValueError, match="row has tools, which the chat template does not render"):
        read(tokenizer, row, messages="m")
    with pytest.raises(ValueError, match="tools are text, but not JSON"):
        read(changed, row | {"tools": "clock"}, messages="m")


@pytest.mark.parametrize(
    "found", [np.array, list, lambda parts: parts if len(parts) > 1 else parts[0]["text"]]
)
def test_content_in_parts_is_read_where_the_template_takes_it(tokenizer, found):
    parts = [{"type": "text", "text": text} for text in ("Hel", "lo")]
    chat = turns([{"type": "text", "text": "Hi"}], found(parts))
    sample = read(with_template(tokenizer, PARTS), {"m": chat}, messages="m")
    assert scored_text(tokenizer, sample) == "Hello<|im_end|>\n"


PRINTED = "prints the parts of turn 0 as Python does"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("m['content'] | string", PRINTED),
        ("m['content'] | tojson", PRINTED),
        ("m['content'][0] | string", PRINTED),
        ("m['content'][0]['text']", "leaves out what turn 1 says: give its content as one text"),
        ("(m['content'] if m['content'] is string else '')", "leaves out what turn 0 says"),
    ],
)
def test_content_in_parts_is_refused_where_the_template_does_not_take_it(
    tokenizer, content, message
):
    parts = [{"type": "text", "text": text} for text in ("Hel", "lo")]
    changed = with_template(tokenizer, CHATML.replace("m['content']", content))
    with pytest.raises(ValueError, match=message):
        read(changed, {"m": turns(parts[:1], parts)}, messages="m")


def test_text_that_a_template_for_parts_leaves_out_is_refused(tokenizer):
    # As those of Idefics 3 and SmolVLM: a text is a list of letters without a type.
    letters = PARTS.replace("m['content'] is string", "false").replace(
        "{{ part['text'] }}", "{% if part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
    )
    with pytest.raises(ValueError, match=r"leaves out what turn 0 says: .* in parts"):
        read(with_template(tokenizer, letters), {"m": turns("Hi", "Hello")}, messages="m")


def test_with_each_template_of_trl_a_response_begins_where_trl_has_it_or_is_refused(tokenizer):
    said = ("Hi fox", "Hello dog", "And?\n", "<think>\nhm\n</think>\n\nNothing. ")
    templates = sorted(Path(trl.data_utils.__file__).parent.glob("chat_templates/*.jinja"))
    if not BY_COMMON_PREFIX:
        pytest.skip(LABELS_OTHERWISE)
    taken = 0
    for template in templates:
        changed = with_template(tokenizer, template.read_text())
        for chat in (turns(*said), turns(*([{"type": "text", "text": text}] for text in said))):
            try:
                sample = read(changed, {"p": chat[:3], "c": chat[3:]}, prompt="p", response="c")
            except ValueError:
                continue
            head, whole = (
                changed.apply_chat_template(part, add_generation_prompt=prompt)["input_ids"]
                for part, prompt in ((chat[:3], True), (chat, False))
            )
            begin = trl.data_utils.common_prefix_length(head, whole)
            assert sample.ids.tolist() == whole
            assert sample.labels.tolist() == [IGNORED] * begin + whole[begin:]
            assert "Nothing." in scored_text(changed, sample)
            taken += 1
    assert taken > len(templates)


@pytest.mark.parametrize(
    ("turn", "message"),
    [
        ({"content": [{"type": "image"}]}, r"turn 1 in column 'm' has a part .* \(image\)"),
        ({"content": ["text"]}, r"has a part that is not text \(str\)"),
        ({"content": 4}, "content of turn 1 in column 'm' is int, not text"),
        ({"content": []}, r"is \[\], not text"),
        ({"content": None}, "content of turn 1 in column 'm' is None, and it calls no tool"),
        ({"role": "gpt"}, r"no turn of role 'assistant'.*\['gpt', 'user'\]: rename 'gpt'"),
        ({"role": 1}, "the role of turn 1 in column 'm' is int"),
        ({"tool_calls": [{"name": "f"}]}, "has tool_calls, which the chat template does not"),
        ({"reasoning_content": "hm"}, "has reasoning_content, which the chat template does not"),
    ],
)
def test_what_of_a_turn_cannot_be_rendered_is_refused(tokenizer, turn, message):
    chat = turns("Hi", "Hello")
    chat[1] |= turn
    with pytest.raises((TypeError, ValueError), match=message):
        read(tokenizer, {"m": chat}, messages="m")


def test_a_call_of_a_tool_needs_no_content(tokenizer):
    template = CHATML.replace("m['content']", "(m['content'] or m['tool_calls'] | tojson)")
    chat = [*turns("Hi"), {"role": "assistant", "content": None, "tool_calls": [{"name": "f"}]}]
    sample = read(with_template(tokenizer, template), {"m": chat}, messages="m")
    assert scored_text(tokenizer, sample) == '[{"name": "f"}]<|im_end|>\n'


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"p": "Hi", "c": turns("Hello", roles=["assistant"])}, "the prompt in column 'p' is str"),
        ({"p": turns("Hi"), "c": "Hello"}, "column 'p' holds the turns of a chat"),
        ({"p": [], "c": turns("Hello", roles=["assistant"])}, "the prompt has no turn"),
        ({"p": turns("Hi"), "c": turns("Hi", "Hello")}, "begins with the turns of the prompt"),
    ],
)
def test_a_prompt_and_a_response_that_do_not_fit_are_refused(tokenizer, row, message):
    rows = [{"p": turns("1"), "c": turns("2", roles=["assistant"])}, row]
    loss = CausalLM(tokenizer=tokenizer, prompt="p", response="c")
    model = llama()
    model.resize_token_embeddings(len(tokenizer))
    with pytest.raises((TypeError, ValueError), match=f"row 1: .*{message}"):
        score(model, rows, loss, progress=False)


def test_rows_of_text_among_rows_of_turns_are_refused(tokenizer):
    rows = [{"p": turns("1"), "c": turns("2", roles=["assistant"])}, {"p": "1", "c": "2"}]
    model = llama()
    model.resize_token_embeddings(len(tokenizer))
    loss = CausalLM(tokenizer=tokenizer, prompt="p", response="c")
    with pytest.raises(ValueError, match="row 1 holds text, row 0 turns"):
        score(model, rows, loss, progress=False)
