"""Arrays of jobs on the command line: the script of the guide, killed jobs, and what is refused."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from guides import ROOT, blocks
from language_models import llama
from tokenizer_families import family

import flowdata
from flowdata.commands.cli import main
from flowdata.scoring.parts.folder import Parts
from flowdata.table.part_file import read_part

COMMAND = Path(sys.executable).parent
WORDS = ["The ", "quick ", "brown ", "fox ", "jumps "]
ROWS = [
    {"question": "".join(WORDS[: n % 5 + 1]), "answer": f" {'over ' * (n % 7 + 1)}{n}"}
    for n in range(90)
]
ENVIRONMENT = os.environ | {
    "OMP_NUM_THREADS": "1",
    "PATH": f"{COMMAND}{os.pathsep}{os.environ['PATH']}",
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a model and data."""
    folder = tmp_path_factory.mktemp("place")
    tokenizer = family("byte-level")
    tokenizer.save_pretrained(folder / "model")
    torch.manual_seed(0)
    model = llama()
    model.resize_token_embeddings(len(tokenizer))
    model.save_pretrained(folder / "model")
    lines = (f"{json.dumps(row)}\n" for row in ROWS)
    (folder / "questions.jsonl").write_text("".join(lines))
    return folder


def command(output, *options):
    options = ["--max-tokens", "120", "--num-workers", "0", *options]
    columns = ["--prompt", "question", "--response", "answer", "--token-losses"]
    start = ["score", "--model", "model", "--data", "questions.jsonl", "--output", str(output)]
    return [*start, *columns, *options]


@pytest.fixture(autouse=True)
def one_thread():
    """As the processes that tests start: sums over several threads round otherwise."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def one_pass(place, monkeypatch):
    monkeypatch.chdir(place)
    output = place / "one.parquet"
    assert main(command(output)) == 0
    return flowdata.LossTable.load(output, tokens=True)


def require_same(found, expected):
    for name in ("losses", "n_tokens", "lengths", "token_losses"):
        assert getattr(found, name).tobytes() == getattr(expected, name).tobytes()


def rows_of(output, job):
    parts = map(read_part, Parts(output).folder.glob("*.parquet"))
    return sum(len(part.scores) for part in parts if part.job == job)


# Slow, so that there is something to kill, and with a part for each batch.
PROGRAM = """
import sys, time
from flowdata.commands.cli import main
from flowdata.scoring.passes import resuming
from flowdata.scoring.language.causal_lm import LanguagePass

begin, save = LanguagePass._begin_batch, resuming._save_regularly
LanguagePass._begin_batch = lambda self, samples: (time.sleep(0.3), begin(self, samples))[1]
resuming._save_regularly = lambda *arguments: save(*arguments[:-1], 0.0)
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_jobs_that_are_killed_and_run_again_make_the_table_of_one_pass(place, one_pass, tmp_path):
    output, jobs = tmp_path / "losses.parquet", [(0, 3), (1, 3)]
    running = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, *command(output), "--shard", f"{number}/{count}"],
            cwd=place,
            env=ENVIRONMENT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for number, count in jobs
    ]
    deadline = time.monotonic() + 200
    for process, job in zip(running, jobs, strict=True):
        while not rows_of(output, job):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert main([*command(output), "--shard", "2/3"]) == 0
    unfinished = r"0/3 \(not finished\), 1/3 \(not finished\)"
    with pytest.raises(flowdata.TableFileError, match=unfinished):
        flowdata.LossTable.merge(output)
    kept = {path: path.read_bytes() for path in Parts(output).folder.glob("*.parquet")}
    for number in (1, 0):
        assert main([*command(output), "--shard", f"{number}/3"]) == 0
    # What was saved is there still, and is not scored again.
    assert kept == {path: path.read_bytes() for path in kept}
    assert sum(rows_of(output, (number, 3)) for number in range(3)) == len(ROWS)
    require_same(flowdata.LossTable.merge(output), one_pass)


@pytest.mark.slow
def test_the_scripts_of_the_guide_run_as_they_are(place, one_pass, monkeypatch, capsys):
    monkeypatch.chdir(place)
    page = ROOT / "flowdata" / "scoring" / "parts" / "README.md"
    job, merge = [block.text for block in blocks(page) if block.language == "sh"][:2]
    script = job.replace("FOLDER_OR_NAME", "model").replace("score ", "score --max-tokens 120 ")
    # One process for all jobs, whose command is the shell's.
    for number in (5, 0, 7, 1, 2, 3, 4, 6):
        asked = subprocess.run(
            ["bash", "-ec", f'flowdata() {{ printf "%s\\n" "$@"; }}\n{script}'],
            env=ENVIRONMENT | {"SLURM_ARRAY_TASK_ID": str(number)},
            capture_output=True,
            text=True,
            check=True,
        )
        assert main(asked.stdout.split()) == 0
        assert f"job {number}/8 has scored its share" in capsys.readouterr().out
    subprocess.run(["bash", "-ec", merge], env=ENVIRONMENT, check=True, timeout=100)
    found = flowdata.LossTable.load("questions.parquet")
    assert found.losses.tobytes() == one_pass.losses.tobytes()


def test_a_scheduler_is_asked_only_where_a_user_says_so(place, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(place)
    for name, value in {"ID": 2, "MIN": 1, "MAX": 3, "COUNT": 3, "STEP": 1}.items():
        monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", str(value))
    assert main(command(tmp_path / "all.parquet")) == 0
    shown = capsys.readouterr().out
    assert "job" not in shown
    assert "all.parquet is written" in shown
    output = tmp_path / "shared.parquet"
    assert main(command(output, "--shard", "auto")) == 0
    shown = capsys.readouterr().out
    assert "this is job 1 of 3, counted from 0, as SLURM_ARRAY_TASK_ID=2" in shown
    assert f"flowdata merge {output}.parts --output {output}" in shown
    assert main(["merge", f"{output}.parts", "-o", str(output)]) == 1
    assert "of 90 rows are missing" in capsys.readouterr().err
    assert not output.exists()
    # Jobs 1 and 2 alone, run again: an array of their own.
    for name, value in {"MAX": 2, "COUNT": 2}.items():
        monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", str(value))
    before = sorted(Parts(output).folder.iterdir())
    assert main(command(output, "--shard", "auto")) == 1
    assert "has parts of arrays of [3] jobs" in capsys.readouterr().err
    assert sorted(Parts(output).folder.iterdir()) == before
    # More jobs than there were are no part of those, as after a trial with a few.
    for name, value in {"MAX": 5, "COUNT": 5}.items():
        monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", str(value))
    assert main(command(output, "--shard", "auto")) == 0


def test_merge_writes_over_no_table_of_another_pass(tmp_path, capsys):
    data = [(torch.tensor([float(row)]), torch.tensor([0.0])) for row in range(20)]
    output = tmp_path / "losses.parquet"
    for number in range(2):
        options = {"output": output, "shard": (number, 2), "batch_size": 5, "progress": False}
        flowdata.score(torch.nn.Identity(), data, "mse", **options)
    other = tmp_path / "other.parquet"
    flowdata.LossTable.from_losses([1.0, 2.0]).save(other)
    assert main(["merge", str(tmp_path), "--output", str(other)]) == 1
    assert "Choose another --output, or delete it" in capsys.readouterr().err
    assert len(flowdata.LossTable.load(other)) == 2
    for _ in range(2):
        assert main(["merge", f"{output}.parts", "--output", str(output)]) == 0
        assert f"{output} is written; look at it with: flowdata inspect" in capsys.readouterr().out
    assert flowdata.LossTable.load(output).losses.tolist() == [row**2 for row in range(20)]
    assert main(["merge", str(tmp_path / "none"), "-o", str(output)]) == 1
    assert f"there is no part at {tmp_path / 'none'}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--shard", "8/8"], "counted from 0, so that the last is 7/8"),
        (["--shard", "auto"], "this process is in no array of jobs"),
        (["--shard", "0/2", "--known", "t.parquet"], "--shard and --known do not go together"),
        (["--shard", "0/2", "--engine", "ray", "--workers", "2"], "leave out --engine ray"),
    ],
)
def test_a_shard_that_cannot_be_is_refused_before_the_model_is_read(
    place, monkeypatch, capsys, tmp_path, options, message
):
    monkeypatch.chdir(place)
    assert main(command(tmp_path / "l.parquet", *options)) == 1
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
