"""``turns=``: all that the assistant says, the last of it, or the whole chat, as TRL trains on."""

import json

import datasets
import pytest
from chat_templates import TEMPLATES, TWO_TAGS, tokenizer_of, tokenizer_with, turns
from language_models import llama
from tokenizer_families import CHATML
from trl import SFTConfig, SFTTrainer
from trl.chat_template_utils import get_training_chat_template

from flowdata import CausalLM, LossTable, score
from flowdata.commands.cli import main
from flowdata.scoring.layouts.token_rows import IGNORED

CHAT = [
    {"role": "system", "content": "Be brief."},
    *turns("Hi", "Hello", "And?", "No."),
]
PAIR = {"p": turns("Hi", "Hello", "And?"), "c": turns("Nothing.", "Sure?", "Yes.", first="a")}


@pytest.fixture(scope="module")
def tokenizer():
    return tokenizer_with(CHATML)


def read(tokenizer, row, **options):
    (sample,) = CausalLM(tokenizer=tokenizer, **options).reader()([row])
    return sample


def scored_text(tokenizer, row, **options):
    sample = read(tokenizer, row, **options)
    return tokenizer.decode(sample.ids[sample.labels != IGNORED])


def trained_on(folder, tokenizer, row, **options):
    """The ids and labels that TRL makes of a row."""
    tokenizer.pad_token = "<unk>"
    arguments = SFTConfig(
        str(folder), use_cpu=True, bf16=False, max_length=None, report_to=[], **options
    )
    rows = datasets.Dataset.from_list([row])
    trainer = SFTTrainer(llama(), arguments, train_dataset=rows, processing_class=tokenizer)
    (made,) = trainer.train_dataset
    if "labels" in made:
        return made["input_ids"], made["labels"]
    masks = [made[name] for name in ("completion_mask", "assistant_masks") if name in made]
    if options.get("completion_only_loss") is False:
        masks = [made["assistant_masks"]] if "assistant_masks" in made else []
    kept = [all(bits) for bits in zip(*masks, strict=True)] or [True] * len(made["input_ids"])
    chosen = zip(made["input_ids"], kept, strict=True)
    return made["input_ids"], [token if keep else IGNORED for token, keep in chosen]


@pytest.mark.parametrize(
    ("template", "columns", "chosen", "options"),
    [
        (CHATML, "messages", "all", {}),
        (TWO_TAGS, "messages", "assistant", {"assistant_only_loss": True}),
        (TWO_TAGS, "messages", None, {"assistant_only_loss": True}),
        (CHATML, "prompt, completion", None, {}),
        (CHATML, "prompt, completion", "all", {"completion_only_loss": False}),
        (TWO_TAGS, "prompt, completion", "assistant", {"assistant_only_loss": True}),
    ],
)
def test_what_is_scored_is_what_trl_trains_on(tmp_path, template, columns, chosen, options):
    tokenizer = tokenizer_with(template)
    if columns == "messages":
        row, names = {"messages": CHAT}, {"messages": "messages"}
    else:
        row = {"prompt": PAIR["p"], "completion": PAIR["c"]}
        names = {"prompt": "prompt", "response": "completion"}
    ids, labels = trained_on(tmp_path, tokenizer, row, **options)
    sample = read(tokenizer, row, **names, turns=chosen)
    assert sample.ids.tolist() == ids
    assert sample.labels[1:].tolist() == labels[1:]


@pytest.mark.parametrize("name", [n for n in ("chatml_training", "qwen3") if n in TEMPLATES])
def test_with_the_template_that_trl_trains_with_its_labels_are_read(tmp_path, name):
    tokenizer = tokenizer_of(name)
    ids, labels = trained_on(tmp_path, tokenizer, {"messages": CHAT}, assistant_only_loss=True)
    made = tokenizer_with(get_training_chat_template(tokenizer) or tokenizer.chat_template)
    sample = read(made, {"messages": CHAT}, messages="messages")
    assert made.decode(sample.ids) == tokenizer.decode(ids)
    assert (sample.labels != IGNORED).tolist() == [label != IGNORED for label in labels]


def test_turns_are_chosen_of_chats_and_of_responses(tokenizer):
    end = "<|im_end|>\n"
    read_as = {
        turns: scored_text(tokenizer, {"m": CHAT}, messages="m", turns=turns)
        for turns in (None, "assistant", "last", "all")
    }
    assert read_as["assistant"] == read_as[None] == f"Hello{end}No.{end}"
    assert read_as["last"] == f"No.{end}"
    assert read_as["all"] == tokenizer.apply_chat_template(CHAT, tokenize=False)
    read_as = {
        turns: scored_text(tokenizer, PAIR, prompt="p", response="c", turns=turns)
        for turns in (None, "assistant", "last", "all")
    }
    together = [*PAIR["p"], *PAIR["c"]]
    assert read_as["assistant"] == f"Nothing.{end}Yes.{end}"
    assert read_as["last"] == f"Yes.{end}"
    assert read_as["all"] == tokenizer.apply_chat_template(together, tokenize=False)
    assert read_as[None] == f"Nothing.{end}<|im_start|>user\nSure?{end}" + (
        f"<|im_start|>assistant\nYes.{end}"
    )
    alone = {"chosen": [*PAIR["p"], PAIR["c"][0]], "rejected": [*PAIR["p"], CHAT[2]]}
    assert scored_text(tokenizer, alone, response="rejected", turns="last") == f"Hello{end}"


def test_flags_choose_among_the_turns_of_a_response(tokenizer):
    row = {"p": PAIR["p"], "c": [PAIR["c"][0] | {"weight": 0}, *PAIR["c"][1:]]}
    with pytest.raises(ValueError, match='say turns="assistant", or put the turns into one'):
        read(tokenizer, row, prompt="p", response="c")
    columns = {"prompt": "p", "response": "c", "turns": "assistant"}
    assert scored_text(tokenizer, row, **columns) == "Yes.<|im_end|>\n"
    row = {"p": [*PAIR["p"][:1], PAIR["p"][1] | {"train": True}, PAIR["p"][2]], "c": PAIR["c"]}
    with pytest.raises(ValueError, match="nothing of a prompt"):
        read(tokenizer, row, **columns)


def test_a_last_turn_that_is_not_to_be_trained_on_leaves_nothing(tokenizer):
    chat = [*CHAT[:-1], CHAT[-1] | {"train": False}]
    assert scored_text(tokenizer, {"m": chat}, messages="m", turns="last") == ""
    chat = [*CHAT[:2], CHAT[2] | {"weight": 1}, *CHAT[3:]]
    assert scored_text(tokenizer, {"m": chat}, messages="m", turns="last") == "No.<|im_end|>\n"


def test_a_flag_and_the_whole_chat_contradict_each_other(tokenizer):
    chat = [*CHAT[:2], CHAT[2] | {"weight": 0}, *CHAT[3:]]
    with pytest.raises(ValueError, match=r"turn 2 has weight=0, but turns='all' scores all"):
        read(tokenizer, {"m": chat}, messages="m", turns="all")
    chat[2], chat[1] = CHAT[2], CHAT[1] | {"train": True}
    assert (read(tokenizer, {"m": chat}, messages="m", turns="all").labels >= 0).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"messages": "m", "turns": "first"}, r"turns must be one of .*'all'\), got 'first'"),
        (
            {"text": "t", "turns": "all"},
            "turns='all' says which turns of a chat .*: name messages=",
        ),
        ({"turns": "last"}, "turns='last' says which turns of a chat are scored: name messages="),
    ],
)
def test_a_choice_of_turns_where_there_are_none_is_refused(tokenizer, options, message):
    with pytest.raises(ValueError, match=message):
        CausalLM(tokenizer=tokenizer, **options)


def test_a_choice_of_turns_of_a_row_of_text_is_refused(tokenizer):
    for row, names in (
        ({"p": "Hi", "c": "Hello"}, {"prompt": "p", "response": "c"}),
        ({"chosen": "Hi you", "rejected": "Hi me"}, {"response": "chosen"}),
    ):
        with pytest.raises(TypeError, match=r"turns='last' says .* column '.*' holds text: leave"):
            read(tokenizer, row, **names, turns="last")


def test_a_choice_of_turns_is_another_pass_and_no_choice_is_the_pass_of_earlier_versions():
    tokenizer = tokenizer_of("chatml")
    chats = {"tokenizer": tokenizer, "messages": "m"}
    assert "turns" not in CausalLM(**chats).identity()
    assert CausalLM(**chats).identity() == CausalLM(**chats, turns="assistant").identity()
    pairs = {"tokenizer": tokenizer, "prompt": "p", "response": "c"}
    assert "turns" not in CausalLM(**pairs).identity()
    for columns in (chats, pairs):
        found = [CausalLM(**columns, turns=turns).identity() for turns in (None, "last", "all")]
        assert len({str(identity) for identity in found}) == 3
    found = CausalLM(**pairs, turns="assistant").identity()
    assert found != CausalLM(**pairs).identity()


def test_a_whole_chat_has_the_loss_that_the_model_computes_of_it():
    tokenizer = tokenizer_of("chatml")
    model = llama()
    model.resize_token_embeddings(len(tokenizer))
    rows = [{"m": CHAT}, {"m": CHAT[1:]}, {"m": CHAT[1:3]}]
    loss = CausalLM(tokenizer=tokenizer, messages="m", turns="all")
    found = score(model, rows, loss, progress=False)
    for row, mine in zip(rows, found.losses, strict=True):
        ids = tokenizer.apply_chat_template(row["m"], return_tensors="pt")["input_ids"]
        assert mine == pytest.approx(model.eval()(ids, labels=ids).loss.item(), rel=1e-5)


def test_turns_are_chosen_on_the_command_line(tmp_path, capsys):
    tokenizer = tokenizer_with(CHATML)
    model = llama()
    model.resize_token_embeddings(len(tokenizer))
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path / "model")
    rows = [{"m": CHAT}, {"m": CHAT[1:]}]
    data, output = tmp_path / "data.jsonl", tmp_path / "losses.parquet"
    data.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    command = ["score", "--model", tmp_path / "model", "--data", data, "--output", output]
    command = [str(word) for word in command]
    assert main([*command, "--messages", "m", "--turns", "last"]) == 0
    loss = CausalLM(tokenizer=tokenizer, messages="m", turns="last")
    expected = score(model, rows, loss, progress=False)
    assert LossTable.load(output).losses.tolist() == expected.losses.tolist()
    output.unlink()
    command[2] = str(tmp_path / "no-model")
    assert main([*command, "--text", "m", "--turns", "all"]) == 1
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith(
        "flowdata: --turns all says which turns of a chat are scored: name --mes"
    )
