"""What a text or a chat has that would change what is scored, unseen."""

import pytest
from chat_templates import tokenizer_with, turns
from language_models import llama
from tokenizer_families import CHATML

from flowdata import CausalLM, FlowDataWarning, Seq2Seq, score

DATED = "{% if strftime_now is defined %}{{ strftime_now('%d %b %Y') }}{% endif %}" + CHATML


def model_of(tokenizer):
    config = llama().config
    config.vocab_size, config.eos_token_id = len(tokenizer), None
    return type(llama())(config)


def test_a_template_that_writes_the_date_is_warned_of_where_chats_are_scored():
    rows = [{"p": turns("Hi"), "c": turns("Hello", first="a")}] * 2
    texts = [{"p": "Hi", "c": " Hello"}] * 2
    loss = CausalLM(tokenizer=tokenizer_with(DATED), prompt="p", response="c")
    model = model_of(loss.tokenizer)
    with pytest.warns(FlowDataWarning, match="writes the date of today"):
        score(model, rows, loss, progress=False)
    for template, data in ((DATED, texts), ("{# strftime_now #}" + CHATML, rows)):
        loss = CausalLM(tokenizer=tokenizer_with(template), prompt="p", response="c")
        # A warning is an error here.
        score(model, data, loss, progress=False)


def test_half_a_character_is_named_with_its_row():
    tokenizer = tokenizer_with(CHATML)
    model = model_of(tokenizer)
    broken = "cut \ud83d"
    losses = {
        CausalLM(tokenizer=tokenizer, prompt="p", response="c"): {"p": "Hi", "c": broken},
        CausalLM(tokenizer=tokenizer, text="t"): {"t": broken},
        CausalLM(tokenizer=tokenizer, messages="m"): {"m": turns("Hi", broken)},
        CausalLM(tokenizer=tokenizer, messages="m", turns="all"): {"m": turns(broken, "Hi")},
    }
    for loss, row in losses.items():
        with pytest.raises(ValueError, match="row 0: the text has half a character"):
            score(model, [row], loss, progress=False)
    repaired = broken.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    score(model, [{"t": repaired}], CausalLM(tokenizer=tokenizer, text="t"), progress=False)
    reader = Seq2Seq(tokenizer, source="s", target="t").reader()
    (found,) = reader.read_each([{"s": "Hi", "t": broken}])
    assert "half a character" in found.reason
