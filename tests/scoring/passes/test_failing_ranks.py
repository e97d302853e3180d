"""What happens to one rank, the others learn, though its process lives on."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch.distributed as dist
from long_run import LONG

PROGRAM = Path(__file__).parents[2] / "programs" / "failing_ranks.py"
ROWS = 60


@pytest.fixture
def run(tmp_path):
    """What came of scenarios on each rank, by the name of the scenario."""
    started = []

    def run(size, *scenarios, holder=None):
        store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        port = store.port
        if holder is not None:
            # Free again, for a rank that holds the store itself.
            del store
            port = -port
        for rank in range(size):
            command = [sys.executable, str(PROGRAM), *map(str, (rank, size, port, tmp_path))]
            started.append(
                subprocess.Popen(
                    [*command, *scenarios],
                    env=os.environ | {"OMP_NUM_THREADS": "1"},
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )
        said = [process.communicate(timeout=200)[1] for process in started]
        found = {}
        for rank in range(size):
            for line in (tmp_path / f"{rank}.jsonl").read_text().splitlines():
                name, *outcome = json.loads(line)
                found.setdefault(name, {})[rank] = outcome
        assert len(found) == len(scenarios), said
        return found

    yield run
    for process in started:
        process.kill()


KINDS = {
    "at once": "MemoryError",
    "in the middle": "MemoryError: no room for 3 GiB",
    "interrupted": "KeyboardInterrupt",
    "exiting": "SystemExit: 3",
    "data": "RuntimeError",
    "no data": "ValueError",
    "disk full": "TableFileError: cannot write the scores",
    "at the last batch": "MemoryError",
}


def others_know(outcomes, failing, cause):
    for rank, (error, text, losses, _) in outcomes.items():
        assert losses is None
        if rank == failing:
            assert error == cause.partition(":")[0] or cause.partition(":")[2] in text
        else:
            assert error == "FlowDataError", text
            assert text.startswith(f"rank {failing} stopped: "), text
            assert cause in text
            assert "second line" not in text
            assert "the same call goes on from there" in text


@pytest.mark.slow
@pytest.mark.parametrize(("size", "failing"), [(2, 0), (2, 1), (3, 1)] if LONG else [(2, 1)])
def test_an_error_on_one_rank_is_one_on_all_and_names_the_rank(run, size, failing):
    """The process of the rank that failed lives on, and all ranks try the next thing."""
    names = [f"{kind} on {failing}" for kind in KINDS]
    found = run(size, *names, "nothing")
    for name, cause in zip(names, KINDS.values(), strict=True):
        assert found[name].keys() == set(range(size))
        others_know(found[name], failing, cause)
    for error, text, losses, _ in found["nothing"].values():
        assert (error, text) == ("NoneType", "None")
        assert losses == [float(row**2) for row in range(ROWS)]


STOPPED = "another rank stopped"
# On how many ranks, which of them holds the store, and what the others are told.
SILENT = [
    (
        *(3, None),
        {
            "getting stuck on 1": "rank 1 does not get on: no batch for 3 s (rank_timeout)",
            "not coming on 1": "rank 1 has not called score within 3 s (rank_timeout)",
            "killed on 1": "rank 1 stopped: no sign of life for 4 s",
        },
    ),
    # Alone: torch numbers groups, and this rank makes one less.
    (2, None, {"interrupted before an exchange on 1": f"{STOPPED}; its message says why"}),
    (2, 0, {"killed on 0": f"{STOPPED}, and the store of torch.distributed with it"}),
]


@pytest.mark.slow
@pytest.mark.parametrize(("size", "holder", "reasons"), SILENT if LONG else SILENT[-1:])
def test_a_rank_that_stops_answering_is_given_up(run, size, holder, reasons):
    found = run(size, *reasons, holder=holder)
    for name, why in reasons.items():
        for rank in set(range(size)) - {int(name[-1])}:
            error, text, losses, _ = found[name][rank]
            assert (error, losses) == ("FlowDataError", None)
            assert text.startswith(why)
