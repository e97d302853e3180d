"""Programs in several processes, started by torchrun."""

import json
import os
import subprocess
import sys
from pathlib import Path

import psutil

SUPPORT = Path(__file__).parent
PROGRAMS = SUPPORT.parent / "programs"
TIMEOUT = 150
OUTPUT = "output.txt"


def torchrun(program, config, folder, *, processes=2, fails=False):
    """The outcome of a program, read from the JSON file that it is told to write.

    None where it is to fail, or to be killed; what it printed is in ``folder / OUTPUT``.
    """
    out, path = folder / "out.json", folder / "config.json"
    out.unlink(missing_ok=True)
    path.write_text(json.dumps(config | {"out": str(out)}))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    with (folder / OUTPUT).open("w+") as output:
        run = psutil.Popen(
            [*launcher, f"--nproc-per-node={processes}", str(PROGRAMS / program), str(path)],
            # The path is for the process that loader workers are forked from.
            env=os.environ
            | {
                "OMP_NUM_THREADS": "1",
                "ACCELERATE_USE_CPU": "true",
                "PYTHONPATH": os.pathsep.join(
                    [str(PROGRAMS), str(SUPPORT), os.environ.get("PYTHONPATH", "")]
                ),
            },
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            code = run.wait(TIMEOUT)
        except subprocess.TimeoutExpired:
            # Ranks have sessions of their own, and would be left over.
            for process in [*run.children(recursive=True), run]:
                process.kill()
            code = f"still running after {TIMEOUT} s"
        output.seek(0)
        expected = isinstance(code, int) and (code != 0) == fails
        assert expected, f"torchrun: {code}\n{output.read()}"
    return None if fails else json.loads(out.read_text())
