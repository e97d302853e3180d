"""``flowdata attach``, ``export`` and ``replay`` on the command line."""

import json
from itertools import islice

import datasets
import numpy as np
import pytest

import flowdata
from flowdata.commands.cli import main

ROWS = [{"id": f"k{row}", "text": f"row {row}"} for row in range(40)]
LOSSES = np.random.default_rng(0).gamma(2.0, size=len(ROWS))


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A folder with data, and a loss table of them."""
    monkeypatch.chdir(tmp_path)
    tmp_path.joinpath("data.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in ROWS))
    data = datasets.load_dataset("json", data_files="data.jsonl", split="train")
    table = flowdata.LossTable.from_losses(LOSSES, dataset=data, lengths=range(1, 41))
    table.save("table.parquet")
    table.with_keys([row["id"] for row in ROWS]).save("keyed.parquet")
    return tmp_path


def read(path):
    with open(path) as file:
        return [json.loads(line) for line in file]


def run(capsys, *arguments, status=0):
    assert main(list(map(str, arguments))) == status
    printed = capsys.readouterr()
    return printed.err if status else printed.out


def test_attach_is_the_function_of_this_name(capsys):
    out = run(capsys, "attach", "data.jsonl", "table.parquet", "-o", "out.jsonl")
    assert out == "40 rows have a field 'weight'; out.jsonl is written\n"
    weights = flowdata.FlowWeights.from_losses(np.float32(LOSSES))
    assert [row["weight"] for row in read("out.jsonl")] == weights.values.tolist()
    options = ("--field", "w", "--temperature", "0.5", "--normalize", "mean", "--key", "id")
    run(capsys, "attach", "data.jsonl", "keyed.parquet", "-o", "out.jsonl", *options)
    weights = flowdata.FlowWeights.from_losses(
        np.float32(LOSSES), temperature=0.5, normalize="mean"
    )
    assert [row["w"] for row in read("out.jsonl")] == weights.values.tolist()


def test_errors_of_files_speak_of_options(capsys, folder):
    command = ("attach", "data.jsonl", "table.parquet", "-o", "out.jsonl")
    folder.joinpath("data.jsonl").write_text('{"weight": 1}\n' * 40)
    assert run(capsys, *command, status=1) == (
        "flowdata: data.jsonl, line 1: it has a field 'weight' already: name another by --field, "
        "or replace it by --overwrite\n"
    )
    said = run(capsys, *command, "--overwrite", status=1)
    assert "give the file that was scored, or --key, the column of its keys; if they" in said
    assert said.endswith("say so by --unchecked\n")
    assert run(capsys, *command, "--overwrite", "--unchecked").startswith("40 rows")
    said = run(capsys, *command[:-1], "data.jsonl", status=1)
    assert "data.jsonl would be written over what it is made of: name another" in said
    said = run(capsys, "attach", "no.jsonl", "table.parquet", "-o", "out.jsonl", status=1)
    assert said == "flowdata: there is no file no.jsonl\n"


def test_losses_that_are_none_are_an_error_or_weight_0(capsys):
    losses = LOSSES.copy()
    losses[3] = np.nan
    flowdata.LossTable.from_losses(losses).save("table.parquet")
    command = ("attach", "data.jsonl", "table.parquet", "-o", "out.jsonl")
    said = run(capsys, *command, status=1)
    assert said.endswith("or give these rows weight 0: --on-invalid drop\n")
    run(capsys, *command, "--on-invalid", "drop")
    assert read("out.jsonl")[3]["weight"] == 0.0


def test_export_draws_as_a_sampler_does_and_verifies_what_it_wrote(capsys, folder):
    command = ("export", "data.jsonl", "table.parquet", "-o", "drawn.jsonl")
    out = run(capsys, *command, "--epochs", "3", "--seed", "5")
    assert "120 draws of 40 rows, 3 x 40; drawn.jsonl is written" in out
    sampler = flowdata.FlowSampler(flowdata.LossTable.load("table.parquet"), seed=5)
    drawn = read("drawn.jsonl")
    expected = [(epoch, f"k{row}") for epoch in range(3) for row in sampler]
    assert [(row["epoch"], row["id"]) for row in drawn] == expected
    assert [row["draw"] for row in drawn] == [*range(40)] * 3
    out = run(capsys, "export", "--verify", "drawn.jsonl")
    assert out == (
        "drawn.jsonl is as it was written: 120 draws of 40 rows, epochs 0 to 2, seed 5\n"
    )
    data = folder.joinpath("data.jsonl")
    data.write_bytes(data.read_bytes().replace(b"row 7", b"row 9"))
    said = run(capsys, "export", "--verify", "drawn.jsonl", status=1)
    assert said.startswith("flowdata: data.jsonl, the data, was changed, in bytes 0 to ")
    data.unlink()
    said = run(capsys, "export", "--verify", "drawn.jsonl", status=1)
    assert said.endswith("say where it is, or check the draws alone by --output-alone\n")
    out = run(capsys, "export", "--verify", "drawn.jsonl", "--output-alone")
    assert "as it was written (what it was made of was not looked at)" in out


def test_export_takes_the_options_of_a_plan(capsys):
    command = ("export", "data.jsonl", "table.parquet", "-o", "drawn.jsonl")
    options = ("--epoch-size", "0.5", "--scheme", "multinomial", "--first-epoch", "2", "--plain")
    run(capsys, *command, *options, "--temperature", "mean")
    weights = flowdata.LossTable.load("table.parquet").weights("mean")
    plan = flowdata.EpochPlan(weights, epoch=2, epoch_size=0.5, scheme="multinomial")
    assert read("drawn.jsonl") == [ROWS[row] for row in plan]
    out = run(capsys, *command, "--alpha", "0.5", "--epoch-size", "ess")
    assert "note: draws by weight^0.5 leave the rest of the weight to the loss" in out
    out = run(capsys, *command, "--alpha", "0.5", "--weight-field", "w", "--epoch-field", "e")
    assert "note" not in out
    weights = flowdata.LossTable.load("table.parquet").weights()
    rows, rest = list(flowdata.EpochPlan(weights, alpha=0.5)), weights.residual(0.5)
    expected = [(f"k{row}", 0, rest[row]) for row in rows]
    assert [(row["id"], row["e"], row["w"]) for row in read("drawn.jsonl")] == expected


def test_several_files_and_groups_are_exported_and_replayed(capsys, folder):
    lines = [json.dumps(row | {"source": "ab"[row["id"] > "k2"]}) for row in ROWS]
    folder.joinpath("grouped.jsonl").write_text("\n".join(lines))
    data = datasets.load_dataset("json", data_files="grouped.jsonl", split="train")
    table = flowdata.LossTable.from_losses(LOSSES, dataset=data)
    table.save("table.parquet")
    folder.joinpath("part-0.jsonl").write_text("\n".join(lines[:7]))
    folder.joinpath("part-1.jsonl").write_text("\n".join(lines[7:]))
    options = ("--groups", "source", "--shares", "a=1,b=3", "--seed", "5", "--plain")
    weights = table.weights(groups=data["source"], shares={"a": 1, "b": 3})
    expected = [lines[row] for row in flowdata.EpochPlan(weights, seed=5)]
    for parts in (["part-0.jsonl", "part-1.jsonl"], ["part-*.jsonl"]):
        out = run(capsys, "export", *parts, "table.parquet", "-o", "drawn.jsonl", *options)
        assert out.startswith("40 draws of 40 rows")
        assert folder.joinpath("drawn.jsonl").read_text().splitlines() == expected
        run(capsys, "export", "--verify", "drawn.jsonl")
        run(capsys, "export", "--verify", "drawn.jsonl", *parts, "table.parquet")
    run(capsys, "attach", "grouped.jsonl", "table.parquet", "-o", "out.jsonl", *options[:4])
    assert [row["weight"] for row in read("out.jsonl")] == weights.values.tolist()
    state = flowdata.FlowSampler(weights, seed=5).state_dict()
    folder.joinpath("state.json").write_text(json.dumps(state))
    step = command("--step", "2", "--data", "grouped.jsonl")
    out = run(capsys, *step, *options[:4]).splitlines()[2:]
    first = flowdata.EpochPlan(weights, seed=5)[8:12].tolist()
    assert [int(line.split(",")[0].removeprefix("  row ")) for line in out] == first
    assert "does not belong here" in run(capsys, *step, status=1)
    with pytest.raises(SystemExit):
        main(["export", "part-0.jsonl", "table.parquet", "-o", "x.jsonl", "--shares", "equal"])


@pytest.mark.parametrize(
    "arguments",
    [
        ("export",),
        ("export", "data.jsonl", "table.parquet"),
        ("export", "data.jsonl", "table.parquet", "-o", "x", "--epochs", "0"),
        ("export", "data.jsonl", "table.parquet", "-o", "x", "--epoch-size", "some"),
        ("attach", "data.jsonl", "table.parquet"),
        ("replay", "--table", "table.parquet", "--state", "s.json", "--step", "0"),
    ],
    ids=" ".join,
)
def test_wrong_usage_ends_with_status_2(arguments, capsys):
    with pytest.raises(SystemExit) as leaving:
        main(list(arguments))
    assert leaving.value.code == 2
    assert "usage: flowdata" in capsys.readouterr().err


# Replay.


@pytest.fixture
def state(folder):
    """A state of a sampler, in its second epoch."""
    sampler = flowdata.FlowSampler(flowdata.LossTable.load("table.parquet"), seed=5)
    list(sampler)
    list(islice(sampler, 24))
    folder.joinpath("state.json").write_text(json.dumps(sampler.state_dict()))
    return sampler.state_dict()


def command(*options, table="table.parquet"):
    return ("replay", "--table", table, "--state", "state.json", "--batch-size", "4", *options)


@pytest.mark.usefixtures("state")
def test_replay_prints_the_rows_of_a_step_and_what_they_are(capsys):
    table = flowdata.LossTable.load("table.parquet")
    plan = flowdata.EpochPlan(table, seed=5, epoch=1)
    out = run(capsys, *command("--step", "3", "--ranks", "2", "--data", "data.jsonl"))
    assert out.splitlines() == [
        "epoch 1, seed 5, step 3, all ranks",
        "the state was saved after 24 of 40 draws",
        *(
            f"  row {row}, loss {table.losses[row]:.4g}: id: k{row} text: row {row}"
            for row in plan[24:32].tolist()
        ),
    ]
    options = ("--step", "4", "--ranks", "2", "--rank", "1", "--epoch", "0")
    out = run(capsys, *command(*options, table="keyed.parquet"))
    expected = plan.at_epoch(0)[33:40:2].tolist()
    assert [line.split(",")[:2] for line in out.splitlines()[1:]] == [
        [f"  row {row}", f" key 'k{row}'"] for row in expected
    ]


def test_replay_says_what_is_wrong_with_a_state_or_step(capsys, state, folder):
    said = run(capsys, *command("--step", "10"), status=1)
    assert "epoch 1 has steps 0 to 9, of 4 x 1 of its 40 draws each: there is no step 10" in said
    said = run(capsys, *command("--step", "1", "--temperature", "0.5"), status=1)
    assert "the saved sampler state does not belong here: it has weights=" in said
    folder.joinpath("state.json").write_bytes(b"PK\x03\x04\x80")
    said = run(capsys, *command("--step", "1"), status=1)
    assert "state.json is no JSON file: write what the sampler's state_dict() gives" in said
    folder.joinpath("state.json").write_text(json.dumps({"model": [1]}))
    said = run(capsys, *command("--step", "1"), status=1)
    assert "not a sampler state: it has no plan" in said
    folder.joinpath("state.json").write_text(json.dumps([state, {"sampler": state}]))
    said = run(capsys, *command("--step", "1"), status=1)
    assert "state.json has 2 states of samplers: write one to a file" in said
    folder.joinpath("state.json").write_text(json.dumps({"step": 1, "loader": {"sampler": state}}))
    assert "epoch 1, seed 5, step 1" in run(capsys, *command("--step", "1"))


def test_replay_prints_the_packs_of_a_step(capsys, folder):
    table = flowdata.LossTable.load("table.parquet")
    sampler = flowdata.FlowPackSampler(table, max_length=60, batch_size=2, seed=5)
    folder.joinpath("state.json").write_text(json.dumps(sampler.state_dict(0)))
    out = run(capsys, *command("--step", "1")).splitlines()
    given = list(sampler)[4:8]
    assert out[2] == "pack 0 of the step"
    assert [line for line in out[2:] if "pack" in line] == [
        f"pack {n} of the step" for n in range(4)
    ]
    found = [int(line.split(",")[0].removeprefix("  row ")) for line in out[2:] if "row" in line]
    assert found == [row for pack in given for row in pack]
