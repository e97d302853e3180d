"""Templates of real models: scored is what they tag themselves, or what the assistant says."""

import itertools
import re

import numpy as np
import pytest
from chat_templates import TAGGED, TEMPLATES, UNTAGGED, readings, tokenizer_of

from flowdata import CausalLM
from flowdata.scoring.layouts.token_rows import IGNORED

# The chats that each template takes; those that are about reasoning, and about tools.
ALWAYS = {"one answer", "three answers", "the user speaks last", "thinking"}
THINK = re.compile("harmony|thinker|gptoss|qwen3$|qwen3_[568]|nemotron|gemma4|glm|muse")
CALL = re.compile("mistral|gptoss|qwen2_5$|qwen3|nemotron|gemma4|glm|muse|llama3_[12]|lfm2_v2")
# What else a template has a model write before its answer.
CHANNELS = {
    "gptoss": ("final", "analysisassistantfinal"),
    "harmony": ("final", "analysisassistantfinal"),
    "muse_glimmer": ("to=user", "to=selfassistant to=user"),
    # Where the result of a tool came before, a model would have to write this, too.
    "diffusion_gemma": ("model", "thought"),
    "gemma4_v5": ("thought",),
}


def loss_of(name, **options):
    return CausalLM(tokenizer=tokenizer_of(name), messages="m", **options)


def rendered(name, row, **options):
    return tokenizer_of(name).apply_chat_template(
        row["m"], tools=row.get("tools"), return_dict=True, **options
    )


def runs_of(name, ids, chosen):
    """The text of each run of chosen tokens."""
    runs = itertools.groupby(zip(ids.tolist(), chosen.tolist(), strict=True), key=lambda t: t[1])
    decode = tokenizer_of(name).decode
    return [decode([token for token, _ in run]) for is_chosen, run in runs if is_chosen]


@pytest.mark.parametrize("name", TAGGED)
def test_of_a_template_with_tags_its_own_mask_is_scored(name):
    kinds = []
    for kind, row, sample in readings(name, loss_of(name)):
        theirs = rendered(name, row, return_assistant_tokens_mask=True)
        assert sample.ids.tolist() == theirs["input_ids"]
        assert (sample.labels != IGNORED).tolist() == np.array(theirs["assistant_masks"]).tolist()
        kinds.append(kind)
    assert {*kinds} >= ALWAYS


@pytest.mark.parametrize("name", UNTAGGED)
def test_what_is_scored_reads_as_what_the_assistant_said(name):
    tokenizer = tokenizer_of(name)
    kinds = set()
    for kind, row, sample in readings(name, loss_of(name)):
        kinds.add(kind)
        assert sample.ids.tolist() == rendered(name, row)["input_ids"]
        answers = [turn for turn in row["m"] if turn["role"] == "assistant"]
        found = runs_of(name, sample.ids, sample.labels != IGNORED)
        assert len(found) == len(answers), (kind, found)
        for turn, piece in zip(answers, found, strict=True):
            content = turn["content"]
            said = content if isinstance(content, str) else content[0]["text"]
            assert said.split("</think>")[-1].strip() in piece
            if not said:
                assert "clock" in piece
                assert "UTC" in piece
                continue
            for text in (said, *said.split("\n"), turn.get("reasoning_content", "")):
                piece = piece.replace(text, "") if text else piece
            for token in tokenizer.get_added_vocab():
                piece = piece.replace(token, "")
            assert piece.strip() in ("", *CHANNELS.get(name, ())), kind
    assert kinds >= ALWAYS | ({"reasoning"} if THINK.match(name) else set())
    assert kinds >= ({"tools"} if CALL.match(name) else set())


# Where TRL tags more than what follows the prompt: the token at which Glm 4.5 stops.
STOPS = {"glm4moe": "<|user|>"}
# Where it tags less: a space between the prompt and the answer; what comes after a tool was called.
LEFT_OUT = {"llava_next": {" "}, "diffusion_gemma": {"<|tool_response>", "<|turn>model\n"}}


@pytest.mark.parametrize("name", [name for name in UNTAGGED if f"{name}_training" in TEMPLATES])
def test_what_is_scored_is_what_trl_tags_in_the_same_template_but_what_the_prompt_gives(name):
    tokenizer = tokenizer_of(name)
    for kind, row, sample in readings(name, loss_of(name)):
        theirs = rendered(f"{name}_training", row, return_assistant_tokens_mask=True)
        text = tokenizer.decode(sample.ids)
        if tokenizer_of(f"{name}_training").decode(theirs["input_ids"]) != text:
            # It renders earlier turns otherwise, to keep what was thought.
            continue
        head = row["m"][:1] if row["m"][0]["role"] == "user" else row["m"][:2]
        prompt = tokenizer.apply_chat_template(head, tokenize=False, add_generation_prompt=True)
        ours, tagged = sample.labels != IGNORED, np.array(theirs["assistant_masks"]) == 1
        for run in runs_of(name, sample.ids, tagged & ~ours):
            assert run in prompt or run == STOPS.get(name), (kind, run)
        assert {*runs_of(name, sample.ids, ours & ~tagged)} <= LEFT_OUT.get(name, set()), kind
