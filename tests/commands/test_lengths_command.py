"""``flowdata lengths``: tokens of each row on the command line, without a model."""

import copy
import json

import datasets
import numpy as np
import pytest
from tokenizer_families import CHATML, family

import flowdata
from flowdata.commands.cli import main
from flowdata.scoring.row_lengths import _LengthPass

ROWS = [{"q": f"The {'quick ' * n}fox", "a": " jumps."} for n in range(40)]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """A folder with a tokenizer and nothing else."""
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer = copy.deepcopy(family("byte-level"))
    tokenizer.chat_template = CHATML
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in ROWS))
    return path


@pytest.fixture
def table(tmp_path, data):
    """A loss table of the rows, without lengths."""
    path = tmp_path / "losses.parquet"
    rows = datasets.load_dataset("json", data_files=str(data), split="train")
    losses = np.random.default_rng(0).gamma(2.0, size=len(ROWS))
    flowdata.LossTable.from_losses(losses, dataset=rows).save(path)
    return path


TEXT = ("--prompt", "q", "--response", "a")


def command(data, *options):
    return list(map(str, ["lengths", "--data", data, *options]))


def expected(**options):
    loss = flowdata.CausalLM(tokenizer=family("byte-level"), prompt="q", response="a", **options)
    return flowdata.lengths(ROWS, loss, progress=False).tolist()


def test_lengths_makes_a_small_file_that_inspect_reads(tokenizer, data, tmp_path, capsys):
    output = tmp_path / "lengths.parquet"
    assert main(command(data, "--tokenizer", tokenizer, *TEXT, "--output", output)) == 0
    shown = capsys.readouterr()
    found = flowdata.LossTable.load(output).lengths
    assert found.tolist() == expected()
    order = sorted(expected())
    for line in (
        f"{output} is written",
        "samples                  40",
        f"tokens                   {sum(order):,}",
        f"median {order[19]}, 95% up to {order[37]}, longest {order[-1]}",
    ):
        assert line in shown.out
    assert "max_length" not in shown.out
    assert "tokenizing: 100%" in shown.err
    assert main(["inspect", str(output)]) == 0
    assert capsys.readouterr().out.strip() == shown.out.partition("written\n")[2].strip()
    assert main(["inspect", str(output), "--html", str(tmp_path / "x.html")]) == 1
    assert "has lengths and no losses: leave --html" in capsys.readouterr().err


def test_lengths_are_added_to_a_table_that_keeps_its_losses(
    tokenizer, data, table, tmp_path, capsys
):
    before = flowdata.LossTable.load(table)
    most = sorted(expected())[30]
    options = ("--tokenizer", tokenizer, *TEXT, "--table", table, "--max-length", most)
    assert main(command(data, *options)) == 0
    shown = capsys.readouterr().out
    assert f"{table} has lengths now" in shown
    assert "above max_length, cut    9 samples" in shown
    after = flowdata.LossTable.load(table)
    assert after.lengths.tolist() == expected(max_length=most)
    assert after.losses.tolist() == before.losses.tolist()
    assert after.provenance == before.provenance
    assert {*tmp_path.iterdir()} == {data, table}
    assert main(["inspect", str(table)]) == 0
    shown = capsys.readouterr().out
    assert f"tokens of a sample       median {sorted(expected())[19]}, 95% up to {most}" in shown
    assert "effective sample size" in shown


def test_rows_with_input_ids_need_no_tokenizer_and_chats_one(tokenizer, tmp_path, capsys):
    turns = [{"role": "user", "content": "The fox"}, {"role": "assistant", "content": "jumps."}]
    rows = [{"input_ids": list(range(n)), "m": turns} for n in range(1, 5)]
    data, output = tmp_path / "data.json", tmp_path / "lengths.parquet"
    data.write_text(json.dumps(rows))
    assert main(command(data, "--output", output)) == 0
    assert flowdata.LossTable.load(output).lengths.tolist() == [1, 2, 3, 4]
    output = tmp_path / "chats.parquet"
    options = ("--messages", "m", "--tokenizer", tokenizer, "--output", output)
    assert main(command(data, *options)) == 0
    text = "<|im_start|>user\nThe fox<|im_end|>\n<|im_start|>assistant\njumps.<|im_end|>\n"
    size = len(family("byte-level")(text)["input_ids"])
    assert flowdata.LossTable.load(output).lengths.tolist() == [size] * 4


@pytest.mark.parametrize("place", ["--output", "--table"])
def test_a_count_that_is_interrupted_goes_on(
    tokenizer, data, table, tmp_path, capsys, monkeypatch, place
):
    path = table if place == "--table" else tmp_path / "lengths.parquet"
    score_rows = _LengthPass.score_rows
    counted = []

    def stopping(length_pass, rows, read):
        if stop and rows.max() >= 20:
            raise KeyboardInterrupt
        counted.extend(rows.tolist())
        return score_rows(length_pass, rows, read)

    monkeypatch.setattr(_LengthPass, "rows_per_read", 10)
    monkeypatch.setattr(_LengthPass, "score_rows", stopping)
    options = ("--tokenizer", tokenizer, *TEXT, place, path)
    stop = True
    assert main(command(data, *options)) == 130
    assert "flowdata: stopped; the same command goes on" in capsys.readouterr().err
    stop = False
    assert main(command(data, *options)) == 0
    assert counted == list(range(40))
    assert flowdata.LossTable.load(path).lengths.tolist() == expected()
    assert {*tmp_path.iterdir()} == {data, table, path}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((*TEXT, "--output", "o.parquet"), "columns of text ['q', 'a']: give --tokenizer"),
        (("--output", "o.parquet"), "there is no column input_ids, the columns are ['a', 'q']"),
        (("--text", "x", "--output", "o.parquet"), "there is no column ['x']"),
        (("--text", "q", *TEXT, "--output", "o.parquet"), "give one layout: --prompt"),
        (("--output", "none/o.parquet"), "there is no folder none to write o.parquet into"),
        ((*TEXT, "--table", "none.parquet"), "there is no loss table at none.parquet"),
        ((*TEXT, "--table", "other.parquet"), "made for a data set with fingerprint"),
        ((*TEXT, "--table", "short.parquet"), "3 losses, but the data set has 40 rows"),
        (
            (*TEXT, "--table", "lengths.parquet"),
            "has no losses, and lengths already: give --output",
        ),
        ((*TEXT, "--output", "losses.parquet"), "choose another one, or --table in place of it"),
        ((*TEXT, "--tokenizer", "/none/such", "--output", "o"), "no file or folder /none/such"),
        ((*TEXT, "--max-length", "1", "--output", "o"), "--max-length must be at least 2 tokens"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    tokenizer, data, table, tmp_path, capsys, monkeypatch, options, message
):
    monkeypatch.chdir(tmp_path)
    flowdata.LossTable.from_losses([3.0, 1.0, 2.0]).save("short.parquet")
    others = datasets.Dataset.from_list(ROWS[::-1])
    flowdata.LossTable.from_losses([1.0, *[2.0] * 39], dataset=others).save("other.parquet")
    rows = datasets.load_dataset("json", data_files=str(data), split="train")
    loss = flowdata.CausalLM(tokenizer=family("byte-level"), text="q")
    flowdata.lengths(rows, loss, output="lengths.parquet", progress=False)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    given = () if "give --tokenizer" in message else ("--tokenizer", tokenizer)
    assert main(command(data, *given, *options)) == 1
    shown = capsys.readouterr().err
    last = shown.strip().splitlines()[-1]
    assert last.startswith("flowdata: ")
    assert message in last
    assert "Traceback" not in shown
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("places", [(), ("--table", "t", "--output", "o")])
def test_lengths_are_written_to_one_place(places, capsys):
    with pytest.raises(SystemExit) as leaving:
        main(command("d.jsonl", *places))
    assert leaving.value.code == 2
    assert "usage: flowdata lengths" in capsys.readouterr().err
