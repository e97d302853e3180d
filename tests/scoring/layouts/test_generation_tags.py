"""What a template tags as the assistant's, and whose turn that is."""

import numpy as np
import pytest
from chat_templates import TWO_TAGS, tokenizer_with, turns
from hypothesis import given, settings
from hypothesis import strategies as st

from flowdata import CausalLM
from flowdata.scoring.layouts.token_rows import IGNORED

BEGIN, END = "{% generation %}", "{% endgeneration %}"
HEADER = "{{ '<|im_start|>' + m.role + '\n' }}"
SAYS = "{{ m.content + '<|im_end|>' }}"
EACH = "{% for m in messages %}"
# What was thought and what is said are tagged apart, as well as calls of tools.
THREE_TAGS = (
    f"{EACH}{HEADER}{{% if m.role == 'assistant' %}}{{% if m.thinking %}}"
    f"<think>{BEGIN}{{{{ m.thinking }}}}{END}</think>{{% endif %}}{BEGIN}{SAYS}{END}"
    f"{{% if m.tool_calls %}}<tool_call>{BEGIN}{{{{ m.tool_calls | tojson }}}}{END}</tool_call>"
    f"{{% endif %}}{{% else %}}{SAYS}{{% endif %}}{{% endfor %}}"
)
IN_MACRO = (
    f"{{% macro say(m) %}}{HEADER}{BEGIN}{SAYS}{END}{{% endmacro %}}{EACH}"
    f"{{% if m.role == 'assistant' %}}{{{{ say(m) }}}}{{% else %}}{HEADER}{SAYS}{{% endif %}}"
    "{% endfor %}"
)
IN_BLOCK = (
    f"{EACH}{{% if m.role == 'assistant' %}}{{% set said %}}{HEADER}{BEGIN}{SAYS}{END}"
    f"{{% endset %}}{{{{ said }}}}{{% else %}}{HEADER}{SAYS}{{% endif %}}{{% endfor %}}"
)
AT_ITS_BEGIN = IN_MACRO.replace(f"say(m) %}}{HEADER}", "say(m) %}").replace(
    "{{ say(m) }}", f"{HEADER}{{{{ say(m) }}}}"
)
WHOLE = f"{EACH}{BEGIN}{HEADER}{SAYS}{END}{{% endfor %}}"
CHAT = turns("Hi", "Hello", "And?", "No.")


def read(template, chat, **options):
    tokenizer = tokenizer_with(template)
    (sample,) = CausalLM(tokenizer=tokenizer, messages="m", **options).reader()([{"m": chat}])
    scored = sample.labels != IGNORED
    return tokenizer.decode(sample.ids[scored]), scored


def flagged(chat, *numbers):
    """The chat with the weight 0 in these turns."""
    return [turn | ({"weight": 0} if n in numbers else {}) for n, turn in enumerate(chat)]


def theirs(template, chat):
    found = tokenizer_with(template).apply_chat_template(
        chat, return_dict=True, return_assistant_tokens_mask=True
    )
    return np.array(found["assistant_masks"]) == 1


@pytest.mark.parametrize("template", [TWO_TAGS, THREE_TAGS, AT_ITS_BEGIN, WHOLE])
def test_what_is_tagged_is_scored_however_many_tags_a_turn_has(template):
    chats = [CHAT, CHAT[:3]]
    if "thinking" in template:
        chats.append([CHAT[0], CHAT[1] | {"thinking": "hm"}, *CHAT[2:]])
    for chat in chats:
        assert read(template, chat)[1].tolist() == theirs(template, chat).tolist()


def test_of_a_turn_that_is_left_out_no_tag_is_scored():
    assert read(TWO_TAGS, flagged(CHAT, 1))[0] == "No.<|im_end|></s>"
    assert read(TWO_TAGS, flagged(CHAT, 3))[0] == "Hello<|im_end|>"
    assert read(TWO_TAGS, CHAT, turns="last")[0] == "No.<|im_end|></s>"
    call = {"tool_calls": [{"name": "f"}]}
    chat = [turn | {"thinking": "hm"} | call if n % 2 else turn for n, turn in enumerate(CHAT)]
    said = 'hm{}<|im_end|>[{{"name": "f"}}]'
    assert read(THREE_TAGS, chat)[0] == said.format("Hello") + said.format("No.")
    assert read(THREE_TAGS, flagged(chat, 1))[0] == said.format("No.")
    assert read(THREE_TAGS, flagged(chat, 3))[0] == said.format("Hello")


@pytest.mark.parametrize("template", [IN_MACRO, IN_BLOCK])
def test_tags_whose_place_transformers_loses_are_refused(template):
    said, found = read(AT_ITS_BEGIN, CHAT)
    assert said == "Hello<|im_end|>No.<|im_end|>"
    assert theirs(template, CHAT).sum() != found.sum() or (theirs(template, CHAT) != found).any()
    with pytest.raises(ValueError, match=r"generation tags, as they are in a macro or a block: ta"):
        read(template, CHAT)


@given(st.lists(st.tuples(st.booleans(), st.sampled_from(["", "x", " y ", "\n"])), min_size=1))
@settings(max_examples=20, deadline=None, derandomize=True)
def test_the_tags_of_a_chat_are_those_of_each_of_its_turns(kinds):
    chat = turns(*(text for pair in kinds for text in ("Hi", pair[1])))
    out = [2 * n + 1 for n, (kept, _) in enumerate(kinds) if not kept]
    rest = [n for n in range(1, len(chat), 2) if n not in out]
    whole = theirs(TWO_TAGS, chat)
    one, other = (read(TWO_TAGS, flagged(chat, *numbers))[1] for numbers in (out, rest))
    assert (one | other).tolist() == whole.tolist()
    assert not (one & other).any()


def test_the_templates_of_a_tokenizer_with_several_are_told_apart_by_the_tools():
    template = {"default": TWO_TAGS, "tool_use": f"{{{{ tools | tojson }}}}{TWO_TAGS}"}
    tokenizer = tokenizer_with(TWO_TAGS)
    tokenizer.chat_template = template
    tools = [{"name": "clock"}]
    loss = CausalLM(tokenizer=tokenizer, messages="m")
    plain, tooled = loss.reader()([{"m": CHAT}, {"m": CHAT, "tools": tools}])
    for sample, tool in ((plain, None), (tooled, tools)):
        found = tokenizer.apply_chat_template(
            CHAT, tools=tool, return_dict=True, return_assistant_tokens_mask=True
        )
        assert sample.ids.tolist() == found["input_ids"]
        assert (sample.labels != IGNORED).astype(int).tolist() == found["assistant_masks"]
    row = {"m": CHAT, "chat_template_kwargs": {"chat_template": WHOLE}}
    (named,) = loss.reader()([row])
    assert (named.labels != IGNORED).all()
