"""What a run drew in Python, the command line draws and replays: any weights, any arrangement."""

import json

import datasets
import numpy as np
import pytest

import flowdata
from flowdata.commands.cli import main

COUNT = 60
ROWS = [
    {"id": f"k{row}", "label": row % 4 + 3, "source": "ab"[row % 3 == 0], "part": row // 30}
    for row in range(COUNT)
]
LOSSES = np.random.default_rng(0).gamma(2.0, size=COUNT)
NAMES = ["data-0.jsonl", "data-1.jsonl"]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A folder with data in two files, and a loss table of them."""
    monkeypatch.chdir(tmp_path)
    for part, name in enumerate(NAMES):
        rows = [row for row in ROWS if row["part"] == part]
        tmp_path.joinpath(name).write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return tmp_path


@pytest.fixture
def table():
    data = datasets.load_dataset("json", data_files=NAMES, split="train")
    table = flowdata.LossTable.from_losses(LOSSES, dataset=data, lengths=range(1, COUNT + 1))
    table.save("table.parquet")
    return table


def run(capsys, *arguments, status=0):
    assert main(list(map(str, arguments))) == status
    printed = capsys.readouterr()
    return printed.err if status else printed.out


def usage(capsys, *arguments):
    with pytest.raises(SystemExit) as leaving:
        main(list(arguments))
    assert leaving.value.code == 2
    return " ".join(capsys.readouterr().err.split())


def replayed(capsys, sampler, *options, status=0):
    with open("state.json", "w") as file:
        json.dump(sampler.state_dict(), file)
    step = ("--table", "table.parquet", "--state", "state.json", "--step", "1")
    out = run(capsys, "replay", *step, "--batch-size", "4", "--ranks", "2", *options, status=status)
    if status:
        return out
    return [int(line.split(",")[0].split()[1]) for line in out.splitlines() if "loss" in line]


def exported(capsys, *options):
    run(capsys, "export", *NAMES, "table.parquet", "-o", "drawn.jsonl", "--seed", "5", *options)
    with open("drawn.jsonl") as file:
        return [int(json.loads(line)["id"][1:]) for line in file]


FUNCTIONS = {
    "a threshold": lambda table: table.weights(function=lambda losses, tau: losses <= tau),
    "clipped": lambda table: table.weights(
        function=lambda losses, tau: np.exp(
            -np.clip(losses, *np.quantile(losses, [0.1, 0.9])) / tau
        )
    ),
    "a product": lambda table: table.weights().times(LOSSES > 0.5),
    "groups by a function": lambda table: table.weights(
        groups=[row["source"] for row in ROWS], function=lambda losses, tau: 1 / (1 + losses)
    ),
    "a mix": lambda table: flowdata.mix(
        {"a": table.select(slice(0, 30)), "b": table.select(slice(30, 60))}, shares="equal"
    ),
}


@pytest.mark.parametrize("case", FUNCTIONS)
def test_saved_weights_of_any_function_draw_what_the_run_drew(capsys, table, case):
    weights = FUNCTIONS[case](table)
    flowdata.save_weights(weights, "weights.parquet")
    plan = flowdata.EpochPlan(weights, seed=5)
    of_run = ("--weights", "weights.parquet")
    assert exported(capsys, *of_run) == list(plan)
    sampler = flowdata.FlowSampler(weights, seed=5)
    assert replayed(capsys, sampler, *of_run) == plan[8:16].tolist()
    assert "does not belong here" in replayed(capsys, sampler, status=1)
    out = run(capsys, "attach", *NAMES, "table.parquet", "-o", ".", *of_run, status=1)
    assert "would be written over what it is made of" in out


def test_an_array_of_weights_is_taken_and_normalized(capsys, table, folder):
    numbers = 1 / (1 + LOSSES)
    np.save("weights.npy", numbers)
    of_run = ("--weights", "weights.npy")
    sampler = flowdata.FlowSampler(flowdata.FlowWeights.from_weights(numbers), seed=5)
    plan = flowdata.EpochPlan(numbers, seed=5)
    assert exported(capsys, *of_run) == list(plan)
    assert replayed(capsys, sampler, *of_run) == plan[8:16].tolist()
    folder.joinpath("out").mkdir()
    attach = ("attach", *NAMES, "table.parquet", "-o", "out", "--normalize", "mean")
    assert run(capsys, *attach, *of_run) == "60 rows have a field 'weight'; out has them\n"
    lines = [line for name in NAMES for line in (folder / "out" / name).read_text().splitlines()]
    found = [json.loads(line)["weight"] for line in lines]
    np.testing.assert_allclose(found, numbers / numbers.mean(), rtol=1e-12)


def test_weights_that_are_made_take_no_other_options(capsys, table):
    flowdata.save_weights(table.weights(), "weights.parquet")
    np.save("short.npy", np.ones(3))
    np.save("objects.npy", np.array([{}]), allow_pickle=True)
    export = ("export", *NAMES, "table.parquet", "-o", "x.jsonl", "--weights")
    for option in (["--temperature", "0.5"], ["--groups", "source"], ["--on-invalid", "drop"]):
        said = usage(capsys, *export, "weights.parquet", *option)
        assert f"--weights are made already: leave {option[0]} out" in said
    said = run(capsys, *export, "short.npy", status=1)
    assert "short.npy has 3 weights, and the loss table 60 rows" in said
    said = run(capsys, *export, "objects.npy", status=1)
    assert "objects.npy holds no weights, one for each row" in said
    said = run(capsys, *export, "table.parquet", status=1)
    assert "table.parquet is no file of weights: flowdata.save_weights(weights, path)" in said


ARRANGED = {
    "numbers": (
        lambda _: flowdata.Strata([row["label"] for row in ROWS], batch_size=8),
        ("--strata", "label"),
    ),
    "numbers that count the groups": (
        lambda _: flowdata.Strata([row["label"] - 3 for row in ROWS], batch_size=8),
        ("--strata", "label"),
    ),
    "names": (
        lambda _: flowdata.Strata([row["source"] == "b" for row in ROWS], batch_size=8, levels=2),
        ("--strata", "source", "--levels", "2"),
    ),
    "another batch": (
        lambda _: flowdata.Strata([row["part"] for row in ROWS], batch_size=16),
        ("--strata", "part", "--arranged-batch", "16"),
    ),
    "by length": (
        lambda table: flowdata.ByLength(table, batch_size=8),
        ("--by-length",),
    ),
    "by length in windows": (
        lambda table: flowdata.ByLength(table, batch_size=4, window=3),
        ("--by-length", "--arranged-batch", "4", "--window", "3"),
    ),
}


@pytest.mark.parametrize("case", ARRANGED)
def test_arranged_draws_are_exported_and_replayed(capsys, table, case):
    make, options = ARRANGED[case]
    arrange = make(table)
    plan = flowdata.EpochPlan(table, seed=5, arrange=arrange)
    sampler = flowdata.FlowSampler(table, seed=5, arrange=arrange)
    assert replayed(capsys, sampler, *options, "--data", *NAMES) == plan[8:16].tolist()
    size = () if "--arranged-batch" in options else ("--arranged-batch", "8")
    assert exported(capsys, *options, *size) == list(plan)


def test_strata_without_a_name_are_the_groups_of_the_weights(capsys, table):
    weights = table.weights(groups=[row["source"] for row in ROWS], shares="equal")
    strata = flowdata.Strata(weights.groups, batch_size=8)
    flowdata.save_weights(weights, "weights.parquet")
    plan = flowdata.EpochPlan(weights, seed=5, arrange=strata)
    sampler = flowdata.FlowSampler(weights, seed=5, arrange=strata)
    of_columns = ("--groups", "source", "--shares", "equal")
    for of_run in (("--weights", "weights.parquet"), (*of_columns, "--data", *NAMES)):
        assert replayed(capsys, sampler, *of_run, "--strata") == plan[8:16].tolist()
    for of_run in (("--weights", "weights.parquet"), of_columns):
        assert exported(capsys, *of_run, "--arranged-batch", "8", "--strata") == list(plan)
    said = replayed(capsys, flowdata.FlowSampler(table, arrange=strata), "--strata", status=1)
    assert "the weights have no groups: --strata needs the name of a field" in said


def test_a_wrong_arrangement_is_named(capsys, table):
    strata = flowdata.Strata([row["label"] for row in ROWS], batch_size=8)
    sampler = flowdata.FlowSampler(table, arrange=strata)
    said = replayed(capsys, sampler, status=1)
    assert "a plan that is arranged by strata: give --strata or --by-length" in said
    data = ("--data", *NAMES)
    for wrong in (["--strata", "source"], ["--strata", "label", "--levels", "4"], ["--by-length"]):
        said = replayed(capsys, sampler, *wrong, *data, status=1)
        assert "arranged by strata: give" in said
        assert "and the sizes, of the run" in said
    said = replayed(capsys, sampler, "--strata", "label", status=1)
    assert "label is a column of the data: give --data too" in said
    said = replayed(capsys, flowdata.FlowSampler(table), "--by-length", status=1)
    assert "without strata, and not by length: leave --strata and --by-length out" in said
    export = ("export", *NAMES, "table.parquet", "-o", "x.jsonl")
    said = usage(capsys, *export, "--by-length")
    assert said.endswith("--strata and --by-length need --arranged-batch")
    said = usage(capsys, *export, "--by-length", "--strata", "label")
    assert said.endswith("two arrangements: give one")
    said = usage(capsys, *export, "--by-length", "--levels", "2", "--arranged-batch", "2")
    assert said.endswith("--levels is of --strata: leave it out")
    assert "is of --strata or --by-length" in usage(capsys, *export, "--arranged-batch", "2")


def test_data_in_several_files_are_those_of_the_table_in_a_row(capsys, table, folder):
    sampler = flowdata.FlowSampler(table, seed=5)
    with open("state.json", "w") as file:
        json.dump({"seed": 1, "epoch": 2, "loader": {"sampler": sampler.state_dict()}}, file)
    step = ("replay", "--table", "table.parquet", "--state", "state.json", "--step", "0")
    out = run(capsys, *step, "--batch-size", "60", "--data", *NAMES).splitlines()[2:]
    assert [line.split("id: ")[1].split()[0] for line in out] == [f"k{row}" for row in sampler]
    said = run(capsys, *step, "--batch-size", "60", "--data", *NAMES[::-1], status=1)
    assert "data" in said
    folder.joinpath("other.jsonl").write_text('{"id": 3}\n' * 30)
    said = run(capsys, *step, "--batch-size", "60", "--data", NAMES[0], "other.jsonl", status=1)
    assert "data-0.jsonl and other.jsonl are not put in a row:" in said


def test_the_manifest_of_draws_is_no_state(capsys, table):
    exported(capsys)
    step = ("--table", "table.parquet", "--step", "0", "--batch-size", "4", "--state")
    said = run(capsys, "replay", *step, "drawn.jsonl.manifest.json", status=1)
    assert "is the manifest of draws that flowdata export wrote: their file has the rows" in said


def test_what_groups_get_is_printed(capsys, table, folder):
    folder.joinpath("out").mkdir()
    options = ("--groups", "source", "--shares", "a=1,b=3")
    weights = table.weights(groups=[row["source"] for row in ROWS], shares={"a": 1, "b": 3})
    for more in (("export", "-o", "x.jsonl"), ("attach", "-o", "out")):
        out = run(capsys, more[0], *NAMES, "table.parquet", *more[1:], *options)
        assert out.endswith(f"{weights.summary()}\n")
        assert "75.0%" in out


def test_options_that_have_no_part_are_wrong_usage(capsys):
    said = usage(capsys, "export", "--verify", "x.jsonl", "-o", "y.jsonl")
    assert said.endswith("--verify compares a file, and writes none: leave -o out")
    export = ("export", *NAMES, "table.parquet", "-o", "x.jsonl", "--plain")
    for option in ("--epoch-field", "--draw-field"):
        assert "--plain leaves both fields out" in usage(capsys, *export, option, "z")
