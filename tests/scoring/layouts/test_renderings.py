"""What was rendered for one chat is used for others that differ only in what is said."""

import pytest
from chat_templates import TEMPLATES, tokenizer_of, tokenizer_with, turns
from hypothesis import given, settings
from hypothesis import strategies as st

from flowdata import CausalLM
from flowdata.scoring.layouts.chat import ChatTemplate
from flowdata.scoring.layouts.renderings import NamedRenderer, Renderings, texts_looked_for

PIECES = [
    *(" ", "\n", "fox", "Hello", "user", "é", "😀", "<", "</think>", "<think>\nhm\n</think>\n\n"),
    *("/no_think", "turn1part1of", "{", "12"),
]
SAID = st.one_of(
    st.lists(st.sampled_from(PIECES), max_size=4).map("".join), st.sampled_from(["Hi", "Yes."])
)
CHATS = st.lists(st.lists(SAID, min_size=2, max_size=8), min_size=2, max_size=3)
NAMES = ["chatml", "mistral", "llama 2", "harmony", "thinker", "ended", "qwen3", "llama3_1"]
# What a user asks decides how an answer begins, which the chat does not show.
SOFT_SWITCH = (
    "{% for m in messages %}<{{ m.role }}>{% if m.role == 'assistant' %}<t></t>{% endif %}"
    "{{ m.content }}\n{% endfor %}{% if add_generation_prompt %}<assistant><t>"
    "{% if '/no_think' in messages[-1].content %}</t>{% endif %}{% endif %}"
)
TOKENIZERS = {name: tokenizer_of(name) for name in NAMES} | {"switch": tokenizer_with(SOFT_SWITCH)}


def marked(tokenizer, chat, remembered):
    try:
        return ChatTemplate(tokenizer, {}, remembered).mark_chat(chat)
    except ValueError as error:
        return str(error)


@pytest.mark.parametrize("name", TOKENIZERS)
@given(chats=CHATS)
@settings(max_examples=15, deadline=None, derandomize=True)
def test_answers_are_where_rendering_turn_by_turn_finds_them(name, chats):
    remembered = Renderings()
    found = [marked(TOKENIZERS[name], turns(*said), remembered) for said in chats]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(NamedRenderer, "renders", lambda *_: False)
        for said, one in zip(chats, found, strict=True):
            assert marked(TOKENIZERS[name], turns(*said), Renderings()) == one


@pytest.mark.parametrize("name", ["chatml", "qwen3", "gptoss"])
def test_another_chat_of_the_same_form_is_rendered_once(name, monkeypatch):
    tokenizer = tokenizer_of(name)
    read = CausalLM(tokenizer=tokenizer, messages="m").reader()
    calls = []
    inner = tokenizer.apply_chat_template

    def count(*args, **options):
        calls.append(options)
        return inner(*args, **options)

    monkeypatch.setattr(tokenizer, "apply_chat_template", count)
    for number, renders in ((0, None), (1, 1)):
        calls.clear()
        read([{"m": turns(*(f"{word} {number}" for word in ("Hi", "Hello", "So", "Bye") * 4))}])
        assert len(calls) == (renders or len(calls))


def test_texts_that_a_template_looks_for_are_those_it_may_find_in_what_is_said():
    assert texts_looked_for(TEMPLATES["chatml"]) == frozenset()
    assert texts_looked_for(SOFT_SWITCH) == {"/no_think"}
    assert {"<think>", "</think>"} < texts_looked_for(TEMPLATES["qwen3"])
    assert texts_looked_for("{% generation %}{% endgeneration %}") is None
