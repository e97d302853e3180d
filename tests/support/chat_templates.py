"""Chat templates of real models, and chats to render with them."""

import copy
import re
from functools import cache
from pathlib import Path

import trl
from tokenizer_families import CHATML, family

# As Mistral's: tools, and what the system says, stand before what the user says last.
MISTRAL = (
    "{{ bos_token }}{% set chat = messages[1:] if messages[0].role == 'system' else messages %}"
    "{% set users = chat | selectattr('role', 'equalto', 'user') | list %}"
    "{% for m in chat %}{% if m.role == 'user' %}"
    "{% if tools and m == users[-1] %}[AVAILABLE_TOOLS]{{ tools | tojson }}[/AVAILABLE_TOOLS]"
    "{% endif %}[INST]"
    "{% if m == users[-1] and messages[0].role == 'system' %}{{ messages[0].content }}\n\n"
    "{% endif %}{{ m.content }}[/INST]"
    "{% elif m.role == 'tool' %}[TOOL_RESULTS]{{ m.content | tojson }}[/TOOL_RESULTS]"
    "{% elif m.tool_calls %}[TOOL_CALLS]{{ m.tool_calls | tojson }}{{ eos_token }}"
    "{% else %}{{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
)
LLAMA_2 = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content | trim }} "
    "[/INST]{% else %} {{ m.content | trim }} {{ eos_token }}{% endif %}{% endfor %}"
)
# As Harmony: the end of the chat is another token, and what was thought before is left out.
HARMONY = (
    "{% for m in messages %}<|start|>{{ m.role }}{% if m.role == 'assistant' %}{% if loop.last %}"
    "{% if m.thinking %}<|channel|>analysis<|message|>{{ m.thinking }}<|end|><|start|>assistant"
    "{% endif %}<|channel|>final<|message|>{{ m.content }}<|return|>{% else %}"
    "<|channel|>final<|message|>{{ m.content }}<|end|>{% endif %}{% else %}"
    "<|message|>{{ m.content }}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant{% endif %}"
)
# As Qwen 3: what was thought before the user spoke last is left out.
THINKER = (
    "{% set ns = namespace(last=0) %}{% for m in messages %}{% if m.role == 'user' %}"
    "{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
    "{% if m.role == 'assistant' and loop.index0 > ns.last %}"
    "{{ '<think>\n' + (m.thinking or '') + '\n</think>\n\n' }}{% endif %}"
    "{{ m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% if begun %}{{ '<think>\n' }}{% endif %}{% endif %}"
)
# As Phi 3: the chat ends with a token of its own, unless it is to go on.
ENDED = (
    "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)
TAGGED_CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' %}"
    "{% generation %}{{ m.content + '<|im_end|>\n' }}{% endgeneration %}{% else %}"
    "{{ m.content + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
OWN = (
    {"chatml_training": TAGGED_CHATML}
    | {"chatml": CHATML, "mistral": MISTRAL, "llama 2": LLAMA_2, "harmony": HARMONY}
    | {
        "thinker": THINKER,
        "ended": ENDED,
    }
)
# The end of the chat is tagged apart, as by Phi 3 in TRL.
TWO_TAGS = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' %}"
    "{% generation %}{{ m.content + '<|im_end|>' }}{% endgeneration %}{% else %}"
    "{{ m.content + '<|im_end|>' }}{% endif %}{% endfor %}"
    "{% if messages[-1].role == 'assistant' %}{% generation %}</s>{% endgeneration %}{% endif %}"
)
TRL_FOLDER = Path(trl.__file__).parent / "chat_templates"
TEMPLATES = OWN | {
    path.stem: path.read_text(encoding="utf-8") for path in sorted(TRL_FOLDER.glob("*.jinja"))
}
TAGGED = [name for name, template in TEMPLATES.items() if re.search("{%-? generation", template)]
UNTAGGED = [name for name in TEMPLATES if name not in TAGGED]

_CONTROL = re.compile(
    r"<\|[^|<>{}'\"\s]+\|>|<｜[^｜<>]+｜>|<\|?[a-z_]*(?:turn|channel)\|?>|\[/?[A-Z_]+\]|</?think>"
    r"|</?tool_call>|<end_of_utterance>"
)
CLOCK = {
    "type": "function",
    "function": {
        "name": "clock",
        "description": "Tells the time.",
        "parameters": {
            "type": "object",
            "properties": {"zone": {"type": "string", "description": "Where."}},
            "required": ["zone"],
        },
    },
}


@cache
def tokenizer_of(name):
    """A byte-level tokenizer with a template of these."""
    return tokenizer_with(TEMPLATES[name])


def tokenizer_with(template):
    """A byte-level tokenizer that knows the control tokens of a template."""
    made = copy.deepcopy(family("byte-level"))
    control = {*_CONTROL.findall(template), "<|user|>", "<|assistant|>", "<|system|>"}
    made.add_special_tokens({"additional_special_tokens": sorted(control)})
    made.chat_template = template
    return made


def turns(*said, first="user"):
    """User and assistant in turn."""
    roles = ("user", "assistant") if first == "user" else ("assistant", "user")
    return [{"role": roles[n % 2], "content": text} for n, text in enumerate(said)]


def in_parts(chat):
    """The same chat with content in parts."""
    return [
        turn | {"content": [{"type": "text", "text": turn["content"]}]} if turn["content"] else turn
        for turn in chat
    ]


SAID = ("Hi fox?", "Hello dog!", "And then?", "Nothing more.", "Why?", "Because.")
SYSTEM = {"role": "system", "content": "Be brief."}
CALL = {"id": "call00001", "type": "function"} | {
    "function": {"name": "clock", "arguments": {"zone": "UTC"}}
}
CALLS = [
    *turns("What time?"),
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "name": "clock", "content": "12:00", "tool_call_id": "call00001"},
    *turns("It is noon.", "And now?", "Still noon.", first="assistant"),
]
THOUGHTS = turns(*SAID[:4])
for turn, thought in zip(THOUGHTS[1::2], ("hm one", "hm two"), strict=True):
    turn["reasoning_content"] = thought
ROWS = {
    "one answer": {"m": turns(*SAID[:2])},
    "three answers": {"m": turns(*SAID)},
    "system": {"m": [SYSTEM, *turns(*SAID[:4])]},
    "the user speaks last": {"m": turns(*SAID[:5])},
    "reasoning": {"m": THOUGHTS},
    "thinking": {"m": turns("Hi", "<think>\nhm one\n</think>\n\nHello!", "So?", SAID[3])},
    "tools": {"m": CALLS, "tools": [CLOCK]},
}


def readings(name, loss):
    """What is read of each of the rows that a template takes: kind, row, sample."""
    for kind, row in ROWS.items():
        for found in (row, row | {"m": in_parts(row["m"])}):
            try:
                (sample,) = loss.reader()([found])
            except ValueError:
                continue
            yield kind, found, sample
            break
