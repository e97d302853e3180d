import io
import json
import subprocess
import sys
import tarfile
from pathlib import Path

import datasets
import numpy as np
import pytest
import tokenizers
import torch
import transformers

import flowdata
from flowdata.commands.cli import main
from flowdata.scoring.language.causal_lm import LanguagePass

COMMAND = Path(sys.executable).with_name("flowdata")


def test_the_version_is_that_of_the_package(capsys):
    with pytest.raises(SystemExit) as leaving:
        main(["--version"])
    assert leaving.value.code == 0
    assert capsys.readouterr().out == f"flowdata {flowdata.__version__}\n"


SCORE = ["score", "--model", "m", "--data", "d.jsonl", "--output", "o.parquet"]


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["unknown"],
        ["demo", "--seeds", "0"],
        ["demo", "--seeds", "x"],
        [*SCORE, "--dtype", "float4"],
        [*SCORE, "--max-length", "0"],
        [*SCORE, "--output", "losses.csv"],
        ["merge", "o.parquet.parts", "--output", "s3://bucket/losses.JSONL"],
        [*SCORE, "--num-workers", "-1"],
        ["inspect", "t.parquet", "--temperature", "-1"],
        ["inspect", "t.parquet", "--temperature", "quantile:2"],
        ["index", "a.tar", "--output", "i.parquet", "--timeout", "0"],
        ["index", "a.tar", "--output", "i.parquet", "--timeout", "soon"],
    ],
    ids=" ".join,
)
def test_wrong_usage_ends_with_status_2_and_says_what_is_wrong(arguments, capsys):
    with pytest.raises(SystemExit) as leaving:
        main(arguments)
    assert leaving.value.code == 2
    assert "usage: flowdata" in capsys.readouterr().err


def test_help_explains_every_option_of_the_demo(capsys):
    with pytest.raises(SystemExit):
        main(["demo", "--help"])
    text = capsys.readouterr().out
    assert "--seeds" in text
    assert "--output" in text
    assert "--new-head" in text
    assert "controls" in text


def test_a_directory_that_cannot_be_made_is_named_without_a_traceback(tmp_path, capsys):
    occupied = tmp_path / "file"
    occupied.write_text("")
    assert main(["demo", "--seeds", "1", "--output", str(occupied)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("flowdata: ")
    assert str(occupied) in error


@pytest.mark.slow
def test_the_installed_command_runs_the_demo(tmp_path):
    finished = subprocess.run(
        [COMMAND, "demo", "--seeds", "1"], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert finished.returncode == 0, finished.stderr
    assert "FlowSampler" in finished.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["flowdata-demo"]
    assert (tmp_path / "flowdata-demo" / "demo.png").read_bytes().startswith(b"\x89PNG")


def test_index_writes_where_samples_lie_without_a_model(tmp_path, capsys):
    for shard in range(2):
        with tarfile.open(tmp_path / f"a-{shard}.tar", "w") as tar:
            for sample in range(3):
                member = tarfile.TarInfo(f"{sample}.txt")
                member.size = 4
                tar.addfile(member, io.BytesIO(b"text"))
    output = tmp_path / "index.parquet"
    assert main(["index", str(tmp_path / "a-{0..1}.tar"), "--output", str(output)]) == 0
    assert "6 samples in 2 shards" in capsys.readouterr().out
    index = flowdata.ShardIndex.load(output)
    assert [index.key(row) for row in range(6)] == ["0", "1", "2"] * 2
    assert index.lengths.tolist() == [(tmp_path / f"a-{n}.tar").stat().st_size for n in range(2)]
    table = flowdata.LossTable.from_losses([1, 2, 3, 4, 5, 6], index=index)
    table.save(tmp_path / "table.parquet")
    again = flowdata.ShardIndex.load(tmp_path / "table.parquet")
    assert again.offsets.tolist() == index.offsets.tolist()
    assert main(["index", "pipe:true", "--output", str(output)]) == 1
    assert "only with --allow-pipe" in capsys.readouterr().err
    assert main(["index", str(tmp_path / "none.tar"), "--output", str(output)]) == 1
    assert "none.tar" in capsys.readouterr().err


TEMPLATE = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}</>{% endfor %}"
TEMPLATE += "{% if add_generation_prompt %}<assistant>{% endif %}"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Folder of a language model that reads bytes, with its tokenizer."""
    folder = tmp_path_factory.mktemp("tiny")
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: number for number, letter in enumerate([*alphabet, "<end>"])}
    bytewise = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocabulary, merges=[]))
    bytewise.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=bytewise, eos_token="<end>", chat_template=TEMPLATE
    )
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    config = transformers.LlamaConfig(
        vocab_size=257, num_attention_heads=2, max_position_embeddings=256, **sizes
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return folder


ROWS = [{"q": f"{a} + {a}? ", "a": f"It is {a + a}."} for a in range(1, 9)]
CHATS = [
    {"m": [{"role": "user", "content": row["q"]}, {"role": "assistant", "content": row["a"]}]}
    for row in ROWS
]


def as_jsonl(rows, folder):
    path = folder / "data.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path


def as_json(rows, folder):
    path = folder / "data.json"
    path.write_text(json.dumps(rows), encoding="utf-8")
    return path


def as_parquet(rows, folder):
    datasets.Dataset.from_list(rows).to_parquet(str(folder / "data.parquet"))
    return folder / "data.parquet"


def as_csv(rows, folder):
    datasets.Dataset.from_list(rows).to_csv(str(folder / "data.csv"))
    return folder / "data.csv"


def as_folder(rows, folder):
    datasets.Dataset.from_list(rows).save_to_disk(str(folder / "saved"))
    return folder / "saved"


def as_splits(rows, folder):
    splits = datasets.DatasetDict({"train": datasets.Dataset.from_list(rows)})
    splits.save_to_disk(str(folder / "splits"))
    return folder / "splits"


def command(model, data, output, *options):
    return ["score", "--model", str(model), "--data", str(data), "--output", str(output), *options]


TEXT = ("--prompt", "q", "--response", "a")


@pytest.mark.parametrize(
    ("save", "rows", "options"),
    [
        (as_jsonl, ROWS, {"prompt": "q", "response": "a"}),
        (as_json, ROWS, {"text": "a"}),
        (as_parquet, ROWS, {"prompt": "q", "response": "a"}),
        (as_csv, ROWS, {"response": "a"}),
        (as_folder, ROWS, {"text": "q"}),
        (as_splits, ROWS, {"prompt": "q", "response": "a"}),
        (as_jsonl, CHATS, {"messages": "m"}),
        (as_parquet, CHATS, {"messages": "m"}),
        (as_folder, CHATS, {"messages": "m"}),
    ],
)
def test_score_reads_every_kind_of_data_and_writes_the_table_that_the_call_gives(
    tiny, tmp_path, capsys, save, rows, options
):
    output = tmp_path / "losses.parquet"
    flags = [part for name, column in options.items() for part in (f"--{name}", column)]
    assert main(command(tiny, save(rows, tmp_path), output, *flags)) == 0
    shown = capsys.readouterr().out
    assert shown.index("is written") < shown.index("effective sample size")
    table = flowdata.LossTable.load(output)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny)
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny)
    loss = flowdata.CausalLM(tokenizer=tokenizer, **options)
    expected = flowdata.score(model, rows, loss, progress=False)
    np.testing.assert_allclose(table.losses, expected.losses, rtol=1e-6)
    assert table.n_tokens.tolist() == expected.n_tokens.tolist()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("data.jsonl", '{"q": "x", "a"', "data.jsonl cannot be read as jsonl: "),
        ("data.jsonl", "", "data.jsonl is empty"),
        ("data.jsonl", "\n", "data.jsonl has no rows"),
        ("data", None, "there is no file or folder"),
        ("data.csv", "", "data.csv is empty"),
        ("data.csv", "q,a\n", "data.csv has no rows"),
        ("data.parquet", "q,a\n", "data.parquet cannot be read as parquet: "),
        ("data.jsonl", '{"q": "x", "b": "y"}\n', "no column ['a'], the columns are ['b', 'q']"),
        ("data.jsonl", None, "there is no file"),
        ("data.txt", "text", "must be one of .jsonl"),
    ],
)
def test_data_that_cannot_be_scored_ends_with_one_line_before_a_model_is_looked_for(
    tmp_path, capsys, name, content, message
):
    if content is not None:
        (tmp_path / name).write_text(content)
    data, model = tmp_path / name, tmp_path / "no-model"
    assert main(command(model, data, tmp_path / "losses.parquet", *TEXT)) == 1
    error = capsys.readouterr().err
    last = error.strip().splitlines()[-1]
    assert last.startswith("flowdata: ")
    assert message in last
    assert "Traceback" not in error
    assert "no-model" not in error


@pytest.mark.parametrize(
    ("chat", "message"),
    [
        ([{"from": "human", "value": "x"}], "row 0: a turn of a chat has no ['role', 'content']"),
        ("user: x", "row 0: the chat in column 'm' is stored as text"),
        ([{"role": "assistant", "content": "x"}], "row 0: the chat begins with the assistant"),
        ([{"role": "user", "content": "x"}], "no response token to score in rows [0]"),
        ([], "no response token to score in rows [0]"),
    ],
)
def test_a_chat_that_cannot_be_scored_is_named_with_its_row(tiny, tmp_path, capsys, chat, message):
    data = as_jsonl([{"m": chat}], tmp_path)
    assert main(command(tiny, data, tmp_path / "losses.parquet", "--messages", "m")) == 1
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith(f"flowdata: {message}")
    assert list(tmp_path.iterdir()) == [data]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--output", "missing/losses.parquet"), "there is no folder"),
        (("--text", "q"), "one layout"),
        (("--device", "abacus"), "--device abacus: "),
        (("--model", "missing/model.gguf"), "there is no file missing/model.gguf"),
        (("--model", "/none/such"), "there is no file or folder /none/such"),
    ],
)
def test_what_is_wrong_with_the_options_of_score_is_said(
    tiny, tmp_path, capsys, monkeypatch, options, message
):
    monkeypatch.chdir(tmp_path)
    data = as_jsonl(ROWS, tmp_path)
    assert main(command(tiny, data, tmp_path / "losses.parquet", *TEXT, *options)) == 1
    assert message in capsys.readouterr().err.strip().splitlines()[-1]
    assert list(tmp_path.iterdir()) == [data]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_refused(tiny, tmp_path, capsys):
    data, output = as_jsonl(ROWS, tmp_path), tmp_path / "losses.parquet"
    assert main(command(tiny, data, output, *TEXT, "--device", "cuda")) == 1
    assert "there is no CUDA device for --device cuda" in capsys.readouterr().err


def test_a_gguf_file_without_its_package_says_what_to_install(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    data, output = as_jsonl(ROWS, tmp_path), tmp_path / "losses.parquet"
    assert main(command(tmp_path / "model.gguf", data, output, *TEXT)) == 1
    assert "pip install gguf" in capsys.readouterr().err


def test_an_interrupted_score_says_that_the_same_command_goes_on(
    tiny, tmp_path, capsys, monkeypatch
):
    data, output = as_jsonl(ROWS, tmp_path), tmp_path / "losses.parquet"
    with monkeypatch.context() as patch:
        patch.setattr(LanguagePass, "score_chosen", interrupted_after_one)
        assert main(command(tiny, data, output, *TEXT, "--max-tokens", "1")) == 130
    assert "flowdata: stopped; the same command goes on" in capsys.readouterr().err
    (part,) = output.with_name("losses.parquet.parts").glob("*.parquet")
    assert main(command(tiny, data, output, *TEXT, "--max-tokens", "1")) == 0
    assert not part.exists()


score_chosen = LanguagePass.score_chosen


def interrupted_after_one(language_pass, rows, read, choose):
    yield next(score_chosen(language_pass, rows, read, choose))
    raise KeyboardInterrupt


@pytest.mark.filterwarnings("default::flowdata.FlowDataWarning")
def test_adapters_workers_and_patience_reach_the_scoring_pass(tiny, tmp_path, monkeypatch, capsys):
    seen = {}

    def scored(*arguments, **options):
        seen.update(options)
        return flowdata.LossTable.from_losses([0.0, 0.0, 0.0, 1.0])

    monkeypatch.setattr("flowdata.scoring.score", scored)
    data, output = as_jsonl(ROWS, tmp_path), tmp_path / "losses.parquet"
    options = ["--adapters", "--num-workers", "2", "--rank-timeout", "90"]
    assert main(command(tiny, data, output, *TEXT, *options)) == 0
    assert (seen["adapters"], seen["num_workers"], seen["rank_timeout"]) == (True, 2, 90.0)
    # A median of 0 gives no weights, but the table is there.
    shown, said = capsys.readouterr()
    assert "has no adapters: leave --adapters out" in said
    assert shown.index(f"{output} is written") < shown.index("note: --temperature median is 0")
    assert "--temperature" in shown


def test_rows_that_a_table_knows_by_key_are_not_scored_again(tiny, tmp_path, capsys, monkeypatch):
    scored = []

    def counting(language_pass, rows, read, choose):
        scored.extend(rows.tolist())
        return score_chosen(language_pass, rows, read, choose)

    monkeypatch.setattr(LanguagePass, "score_chosen", counting)
    rows = [row | {"id": f"row {number}"} for number, row in enumerate(ROWS)]
    first, all_rows = tmp_path / "first.parquet", tmp_path / "all.parquet"
    options = [*TEXT, "--key", "id"]
    assert main(command(tiny, as_jsonl(rows[:5], tmp_path), first, *options)) == 0
    options += ["--known", str(first)]
    assert main(command(tiny, as_jsonl(rows[::-1], tmp_path), all_rows, *options)) == 0
    assert scored == [*range(5), 0, 1, 2]
    table = flowdata.LossTable.load(all_rows)
    assert table.keys.tolist() == [row["id"] for row in rows[::-1]]
    known = flowdata.LossTable.load(first)
    assert table.losses[::-1][:5].tolist() == known.losses.tolist()
    capsys.readouterr()
    # Found out before a model is looked for.
    other = tmp_path / "other.parquet"
    data = as_jsonl([*rows, rows[3]], tmp_path)
    assert main(command("no-model", data, other, *options)) == 1
    assert "keys are there more than once: 'row 3' (rows 3 and 8)" in capsys.readouterr().err
    data = as_jsonl(rows[1:], tmp_path)
    assert main(command(tiny, data, other, *TEXT, "--known", str(first))) == 1
    said = capsys.readouterr().err
    assert "is not of the first 5 rows of this data set" in said
    assert "or give both keys, by --key, to find rows wherever they are" in said
