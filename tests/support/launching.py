"""Programs in several processes: ranks as torchrun starts them, and in a long run by itself."""

import contextlib
import itertools
import json
import multiprocessing
import multiprocessing.forkserver
import os
import runpy
import socket
import subprocess
import sys
import time
from multiprocessing.connection import wait
from pathlib import Path

import psutil
from long_run import LONG

SUPPORT = Path(__file__).parent
PROGRAMS = SUPPORT.parent / "programs"
TIMEOUT = 150
_NUMBERS = itertools.count()
OUTPUT = "output.txt"
# What takes seconds to import, and that once for all ranks that are forked.
PRELOADED = [
    "accelerate",
    "datasets",
    "lightning",
    "peft",
    "torch.distributed.fsdp",
    "torch.nn.parallel",
    "torchdata.stateful_dataloader",
    "transformers.trainer",
    "trl.trainer.sft_trainer",
    "webdataset",
]


def environment():
    """Of programs."""
    return os.environ | {
        "OMP_NUM_THREADS": "1",
        "ACCELERATE_USE_CPU": "true",
        # For the process that loader workers are forked from.
        "PYTHONPATH": os.pathsep.join(
            [str(PROGRAMS), str(SUPPORT), os.environ.get("PYTHONPATH", "")]
        ),
    }


def torchrun(program, config, folder, *, processes=2, fails=False, itself=LONG):
    """The outcome of a program, read from the JSON file that it is told to write.

    None where it is to fail, or to be killed; what it printed is in ``folder / OUTPUT``. torchrun
    takes 10 s to start ranks that import frameworks: an ordinary run forks them from one process
    that has, with the environment that torchrun gives.
    """
    out, path = folder / "out.json", folder / "config.json"
    out.unlink(missing_ok=True)
    path.write_text(json.dumps(config | {"out": str(out)}))
    command = [str(PROGRAMS / program), str(path)]
    start = _by_torchrun if itself else _forked
    code = start(command, environment(), folder / OUTPUT, processes)
    expected = isinstance(code, int) and (code != 0) == fails
    assert expected, f"{program}: {code}\n{(folder / OUTPUT).read_text()}"
    return None if fails else json.loads(out.read_text())


def _by_torchrun(command, environment, output, processes):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    launcher += [f"--nproc-per-node={processes}"]
    with output.open("w") as file:
        run = psutil.Popen(
            [*launcher, *command], env=environment, stdout=file, stderr=subprocess.STDOUT
        )
        try:
            return run.wait(TIMEOUT)
        except subprocess.TimeoutExpired:
            # Ranks have sessions of their own, and would be left over.
            for process in [*run.children(recursive=True), run]:
                process.kill()
            return f"still running after {TIMEOUT} s"


def _forked(command, environment, output, processes):
    return ForkedRanks(command, environment, output, processes).wait(TIMEOUT)


class ForkedRanks:
    """Ranks that were started.

    Args:
        command: a program and its arguments.
        environment: of each, but for what torchrun gives.
        output: the file for what they print.
        processes: how many.
    """

    def __init__(self, command, environment, output, processes):
        output.write_text("")
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        port = _free_port()
        self.ranks = []
        for rank in range(processes):
            named = {
                "LOCAL_RANK": rank,
                "RANK": rank,
                "LOCAL_WORLD_SIZE": processes,
                "WORLD_SIZE": processes,
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": port,
                "TORCHELASTIC_RUN_ID": "none",
                "TORCHELASTIC_RESTART_COUNT": 0,
                "TORCHELASTIC_MAX_RESTARTS": 0,
            }
            its_own = dict(environment) | {name: str(value) for name, value in named.items()}
            self.ranks.append(context.Process(target=_rank, args=(command, its_own, output)))
            self.ranks[-1].start()
        self._forked_from = psutil.Process(self.ranks[0].pid).ppid()

    def are_running(self):
        return all(rank.exitcode is None for rank in self.ranks)

    def wait(self, seconds):
        """The exit code of the first that failed, or 0; or a text if they were still running."""
        end, code = time.monotonic() + seconds, 0
        while not code and (left := [rank for rank in self.ranks if rank.exitcode is None]):
            wait([rank.sentinel for rank in left], max(end - time.monotonic(), 0))
            code = next((rank.exitcode for rank in self.ranks if rank.exitcode), 0)
            if time.monotonic() > end:
                code = f"still running after {seconds} s"
        # As torchrun does, the others are ended where one has failed, but not at once.
        for rank in self.ranks:
            rank.join(1 if code else None)
        self.kill()
        return code

    def kill(self):
        for rank in self.ranks:
            rank.kill()
        for rank in self.ranks:
            rank.join()
        # Loader workers do not see the end of a rank that was killed, whose children they are not.
        for process in psutil.Process(self._forked_from).children():
            process.kill()


def _free_port():
    """A port that no server of another test is given: those are above 32,768."""
    for number in _NUMBERS:
        port = 20_000 + (os.getpid() * 64 + number % 64) % 10_000
        with contextlib.suppress(OSError), socket.socket() as free:
            free.bind(("127.0.0.1", port))
            return port
    raise AssertionError("unreachable")


def _rank(command, environment, output):
    """A rank, from its first line on; loader workers are forked from where it was itself."""
    multiprocessing.forkserver.ForkServer.ensure_running = lambda self: None
    os.setsid()
    with output.open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ.clear()
    os.environ.update(environment)
    sys.path[:0] = [str(PROGRAMS), str(SUPPORT)]
    sys.argv = command
    runpy.run_path(command[0], run_name="__main__")
