"""What the command line says when something is wrong: one line, in its own words, status 1 or 2."""

import io
import json
import re
import subprocess
import sys
import tarfile
import warnings

import datasets
import numpy as np
import pytest
import tokenizers
import torch
import transformers

from flowdata import FlowDataWarning, LossTable
from flowdata.commands.cli import main
from flowdata.commands.speech import BROKEN_PIPE, Speech, describe, speaking
from flowdata.errors import warn

TEMPLATE = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}</>{% endfor %}"
TEMPLATE += "{% if add_generation_prompt %}<assistant>{% endif %}"
SIZES = {"vocab_size": 257, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
BART = {
    name: 1 if name.endswith("layers") else 16 if name.endswith("dim") else 2
    for part in ("encoder", "decoder")
    for name in (f"{part}_layers", f"{part}_ffn_dim", f"{part}_attention_heads")
}
ROWS = [{"q": f"{a} + {a}? ", "a": f"It is {a + a}."} for a in range(6)]

# Words of those who call functions, and of Python: name=value, function(), a class or a module.
FOREIGN = re.compile(
    r"\b[a-z]\w*=|\w\(\)|\bscore_probe\b|\bLossTable\b|\bjson\.loads|\btokenizer\.|Errno|Traceback"
)


def save_model(folder, kind, config, template=TEMPLATE):
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: number for number, letter in enumerate([*alphabet, "<end>"])}
    bytewise = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocabulary, merges=[]))
    bytewise.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=bytewise, eos_token="<end>", chat_template=template
    ).save_pretrained(folder)
    torch.manual_seed(0)
    kind(config).save_pretrained(folder)


def write_rows(path, rows):
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder of models, data, tables and shards, good and bad."""
    place = tmp_path_factory.mktemp("place")
    llama = transformers.LlamaConfig(**SIZES, num_attention_heads=2, max_position_embeddings=64)
    save_model(place / "m", transformers.LlamaForCausalLM, llama)
    save_model(place / "plain", transformers.LlamaForCausalLM, llama, None)
    save_model(place / "classifier", transformers.LlamaForSequenceClassification, llama)
    save_model(place / "base", transformers.LlamaModel, llama)
    save_model(
        place / "bert",
        transformers.BertForMaskedLM,
        transformers.BertConfig(**SIZES, num_attention_heads=2),
    )
    save_model(
        place / "bart",
        transformers.BartForConditionalGeneration,
        transformers.BartConfig(vocab_size=257, d_model=16, **BART),
    )
    for name in ("empty", "cut", "config"):
        (place / name).mkdir()
    for path in (place / "m").iterdir():
        (place / "cut" / path.name).write_bytes(path.read_bytes()[:-50])
    (place / "config" / "config.json").write_text("{")
    write_rows(place / "good.jsonl", ROWS)
    write_rows(place / "none.jsonl", [{"q": "x", "a": None}, *ROWS])
    write_rows(place / "numbers.jsonl", [{"q": 1, "a": 2}])
    write_rows(place / "long.jsonl", [{"q": "x" * 100, "a": "y"}])
    turns = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]
    write_rows(place / "chats.jsonl", [{"m": turns}])
    write_rows(place / "tokens.jsonl", [{"input_ids": [1, 2, 999], "labels": [1, 2, 3]}])
    (place / "text.txt").write_text("hello")
    (place / "latin.csv").write_bytes(b"q,a\n\xff\xfe,\xe9\n")
    (place / "half.parquet").write_bytes(b"PAR1xxxxPAR1")
    datasets.Dataset.from_list(ROWS).save_to_disk(place / "saved")
    datasets.Dataset.from_list(ROWS).to_parquet(place / "foreign.parquet")
    for name, losses in (
        ("six", [1.0, 2, 3, 4, 5, 6]),
        ("three", [1.0, 2, 3]),
        ("nan", [np.nan] * 6),
        ("zero", [0.0] * 6),
        ("zeros", [0.0] * 4 + [1, 2]),
    ):
        LossTable.from_losses(losses).save(place / f"{name}.parquet")
    other = datasets.Dataset.from_list(ROWS[::-1])
    LossTable.from_losses(np.arange(1.0, 7), dataset=other).save(place / "other.parquet")
    with tarfile.open(place / "a.tar", "w") as tar:
        for sample in range(3):
            member = tarfile.TarInfo(f"{sample}.txt")
            member.size = 4
            tar.addfile(member, io.BytesIO(b"text"))
    (place / "broken.tar").write_bytes(b"hello" * 400)
    assert main(["index", str(place / "a.tar"), "--output", str(place / "index.parquet")]) == 0
    return place


def scoring(*options, model="m", data="good.jsonl", output="o.parquet"):
    columns = options or ("--prompt", "q", "--response", "a")
    return ["score", "--model", model, "--data", data, "--output", output, *columns]


WRONG = [
    (scoring(model="nope/nope/nope"), "nope/nope/nope cannot be loaded as a causal language model"),
    (scoring(model="/nope"), "there is no file or folder /nope"),
    (scoring(model="empty"), "empty cannot be loaded"),
    (scoring(model="text.txt"), "text.txt cannot be loaded"),
    (scoring(model="config"), "config cannot be loaded"),
    (scoring(model="cut"), "cut cannot be loaded"),
    (scoring(model="classifier"), "classifier has no lm_head.weight"),
    (scoring(model="base"), "base has no lm_head.weight"),
    (scoring(model="bart"), "bart has no lm_head.weight"),
    (scoring(model="bert"), "is no causal language model"),
    (scoring("--messages", "m", model="plain", data="chats.jsonl"), "choose the --tokenizer of a"),
    (scoring("--text", "q", "--tokenizer", "empty"), "empty cannot be loaded as a tokenizer"),
    (scoring(data="nope.jsonl"), "there is no file nope.jsonl"),
    (scoring(data="empty"), "empty"),
    (scoring(data="half.parquet"), "half.parquet cannot be read as parquet"),
    (scoring(data="text.txt"), "a data file must be one of .jsonl"),
    (scoring(data="latin.csv"), "latin.csv cannot be read as csv"),
    (scoring(data="none.jsonl"), "give --on-invalid drop to give them weight 0"),
    (scoring(data="numbers.jsonl"), "row 0: column 'q' holds 1 of type int"),
    (scoring(data="long.jsonl"), "give --max-length 64 to cut longer samples"),
    (scoring("--prompt", "q"), "give one layout: --prompt and --response"),
    (scoring("--text", "q", "--messages", "a"), "give one layout"),
    (scoring("--prompt", "q", "--response", "z"), "with --prompt and --response, --messages or"),
    (scoring("--max-tokens", "64"), "name columns of text with --prompt and --response"),
    (scoring("--messages", "a"), "is stored as text, not as a list of turns"),
    (scoring("--text", "m", data="chats.jsonl"), "give it as --messages"),
    (scoring("--max-tokens", "64", data="tokens.jsonl"), "row 0 has token 999"),
    (scoring("--text", "q", "--split", "test"), "good.jsonl has no splits: leave --split out"),
    (scoring("--text", "q", "--split", "test", data="saved"), "saved has no splits"),
    (scoring("--text", "q", "--max-length", "1"), "--max-length must be at least 2"),
    (scoring(output="no/o.parquet"), "there is no folder no"),
    (scoring(output="empty"), "empty is a folder: give the name of a file"),
    (scoring(output="foreign.parquet"), "foreign.parquet is Parquet, but not a loss table"),
    (scoring(output="text.txt"), "text.txt is not a readable Parquet file"),
    (["inspect", "nope.parquet"], "there is no loss table at nope.parquet"),
    (["inspect", "empty"], "directory"),
    (
        ["inspect", "index.parquet"],
        "is an index of tar shards, not a loss table: 3 samples without",
    ),
    (["inspect", "six.parquet", "--compare", "index.parquet"], "is an index of tar shards"),
    (["inspect", "foreign.parquet"], "foreign.parquet is Parquet, but not a loss table"),
    (["inspect", "half.parquet"], "half.parquet is not a readable Parquet file"),
    (["inspect", "nan.parquet"], "none of the 6 losses is finite"),
    (["inspect", "zeros.parquet"], "give --temperature mean or a positive number"),
    (["inspect", "zero.parquet", "--temperature", "mean"], "pass a positive number"),
    (["inspect", "six.parquet", "--compare", "three.parquet"], "have 6 and 3 rows"),
    (["inspect", "six.parquet", "--compare", "nan.parquet"], "no row has a valid loss in both"),
    (["inspect", "six.parquet", "--data", "nope.jsonl"], "there is no file nope.jsonl"),
    (["inspect", "three.parquet", "--data", "good.jsonl"], "there are 3 losses"),
    (["inspect", "other.parquet", "--data", "good.jsonl"], "rows were changed or reordered"),
    (["inspect", "six.parquet", "--html", "no/page.html"], "there is no folder no"),
    (["inspect", "six.parquet", "--html", "empty"], "empty is a folder"),
    (["index", "nope.tar", "--output", "i.parquet"], "there is no shard nope.tar"),
    (["index", "broken.tar", "--output", "i.parquet"], "broken.tar has a corrupt header"),
    (["index", "pipe:true", "--output", "i.parquet"], "only with --allow-pipe"),
    (["index", "a.tar", "a.tar", "--output", "i.parquet"], "a shard is given twice: a.tar"),
    (["index", "a.tar", "--output", "no/i.parquet"], "there is no folder no"),
    (["index", "a.tar", "--output", "empty"], "empty is a folder"),
    (["demo", "--output", "text.txt"], "text.txt is a file: give a folder"),
]


@pytest.mark.parametrize(("arguments", "said"), WRONG, ids=[said[:40] for _, said in WRONG])
def test_what_is_wrong_is_said_on_one_line_in_words_of_the_command_line(
    place, monkeypatch, capsys, arguments, said
):
    monkeypatch.chdir(place)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert main(arguments) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line[:8] == "flowdata"]
    assert said in line
    assert not FOREIGN.search(line), line
    assert not list(place.glob("[oi].parquet*"))


@pytest.mark.parametrize(
    "arguments",
    [
        scoring(data="s3://bucket/d.jsonl"),
        scoring(data="https://host/d.jsonl"),
        scoring(model="s3://bucket/m"),
        scoring("--text", "q", "--tokenizer", "hf://m"),
        ["inspect", "t.parquet", "--compare", "s3://bucket/t.parquet"],
        ["inspect", "t.parquet", "--html", "abfs://bucket/p.html"],
        ["index", "a.tar", "--output", "s3://bucket/i.parquet"],
        ["demo", "--output", "s3://bucket/demo"],
    ],
    ids=lambda arguments: next(part for part in arguments if "://" in part),
)
def test_a_url_where_a_file_is_needed_is_refused_as_one(tmp_path, monkeypatch, capsys, arguments):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as leaving:
        main(arguments)
    assert leaving.value.code == 2
    url = next(part for part in arguments if "://" in part)
    assert f"{url} is a URL: give a path of this machine" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "arguments", [["inspect", ""], ["score", "--model", "m", "--data", "d", "--output", ""]]
)
def test_no_name_where_one_is_needed_is_said(capsys, arguments):
    with pytest.raises(SystemExit):
        main(arguments)
    assert "a path of this machine is needed, got nothing" in capsys.readouterr().err


@pytest.mark.slow
def test_a_reader_that_leaves_ends_a_command_in_silence(place):
    command = [sys.executable, "-m", "flowdata", "inspect", str(place / "six.parquet")]
    ran = subprocess.run(
        ["bash", "-c", '"$@" | true; echo ${PIPESTATUS[0]}', "-", *command],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ran.stderr == ""
    assert ran.stdout.strip() in (str(BROKEN_PIPE), "0")


def warn_of_two_things(speech):
    with speaking(speech):
        warnings.simplefilter("always")
        warn("3 samples were longer than max_length and were cut")
        warnings.warn("something else", UserWarning, stacklevel=1)


def test_warnings_are_lines_of_the_command_and_those_of_others_stay_as_they_are(capsys):
    with pytest.warns(UserWarning, match="something else"):
        warn_of_two_things(Speech({"max_length": "--max-length"}))
    shown = capsys.readouterr().err
    assert shown == "flowdata: warning: 3 samples were longer than --max-length and were cut\n"


def test_samples_that_are_cut_are_reported_by_the_command(place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    with warnings.catch_warnings():
        warnings.simplefilter("always", FlowDataWarning)
        assert main(scoring("--text", "a", "--max-length", "5", output="cut.parquet")) == 0
    assert (
        "flowdata: warning: 6 of 6 samples were longer than --max-length" in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ('pass on_invalid="drop" to go on', "give --on-invalid drop to go on"),
        ("temperature='median' is 0", "--temperature median is 0"),
        ("pass adapters=True", "give --adapters"),
        ("pass max_length= to cut", "give --max-length to cut"),
        ("pass max_length=64.", "give --max-length 64."),
        ("the text=word of a model", "the text=word of a model"),
        ("two\n  lines", "two lines"),
    ],
)
def test_arguments_are_told_as_options(message, said):
    flags = {"on_invalid": "--on-invalid", "temperature": "--temperature", "adapters": "--adapters"}
    assert Speech(flags | {"max_length": "--max-length"})(message) == said


def test_errors_of_the_system_name_the_file_first():
    with pytest.raises(FileNotFoundError) as missing:
        open("/none/such")  # noqa: SIM115
    assert describe(missing.value) == "/none/such: No such file or directory"
    assert describe(MemoryError()) == "MemoryError"
