"""Starting the framework programs, and what they should have drawn."""

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from itertools import chain
from pathlib import Path

from frameworks_common import SEED, WEIGHTS

from flowdata import EpochPlan

PROGRAMS = Path(__file__).parents[1] / "programs"
TIMEOUT = 150


def torchrun(program, runs, folder, *, processes=2, killed=False):
    """The outcome of each run, by rank; None where the run kills itself."""
    out, path = folder / "out.json", folder / "config.json"
    out.unlink(missing_ok=True)
    path.write_text(json.dumps({"runs": runs, "out": str(out)}))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    with (folder / "output.txt").open("w+") as output:
        run = subprocess.Popen(
            [*launcher, f"--nproc-per-node={processes}", str(PROGRAMS / program), str(path)],
            # The path is for the process that loader workers are forked from.
            env=os.environ
            | {
                "OMP_NUM_THREADS": "1",
                "ACCELERATE_USE_CPU": "true",
                "PYTHONPATH": os.pathsep.join([str(PROGRAMS), os.environ.get("PYTHONPATH", "")]),
            },
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = run.wait(TIMEOUT)
        except subprocess.TimeoutExpired:
            os.killpg(run.pid, signal.SIGKILL)
            code = f"still running after {TIMEOUT} s"
        output.seek(0)
        assert (code != 0) == killed, f"torchrun: {code}\n{output.read()}"
    return None if killed else json.loads(out.read_text())


def planned(epoch, draws, weights=WEIGHTS, seed=SEED):
    return EpochPlan(weights, seed=seed, epoch=epoch, epoch_size=draws)[:].tolist()


def flat(batches):
    return list(chain.from_iterable(batches))


def same_rows(drawn, expected):
    return Counter(drawn) == Counter(expected)


def dealt(rows, batch_size, ranks):
    """Batches dealt to ranks in turn, as accelerate does: by rank, by step."""
    batches = [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]
    return [batches[rank::ranks] for rank in range(ranks)]


def by_step(by_rank):
    """Batches of each rank, turned into steps that have the batch of each rank."""
    return [list(step) for step in zip(*by_rank, strict=True)]
