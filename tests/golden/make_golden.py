"""Write the golden records, with the version of flowdata whose behaviour is to be kept.

Run it only when behaviour is to change, and say in the commit why: ``python make_golden.py``
replaces everything in ``records/`` by what the flowdata that is installed does. A later version
passes ``test_golden.py`` if it does the same to the bit, and reads what was saved then.
"""

import contextlib
import json
import shutil
import tempfile
import warnings
from collections import Counter
from pathlib import Path

from golden_cases import CASES
from golden_files import Stopped, files, scored
from golden_inputs import RECORDS, write_shards
from golden_states import STATES

import flowdata


def write(name, records):
    """One record a line."""
    lines = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in records.items()]
    (RECORDS / name).write_text("{\n" + ",\n".join(lines) + "\n}\n")


def saved(name, folder):
    """A state and the rows of two passes after it, which have those that were left."""
    state, left = STATES[name].interrupted(folder)
    passes = STATES[name].resumed(folder, state)
    assert Counter(left) <= Counter(passes[0]), name
    return {"state": state, "passes": passes}


def main():
    shutil.rmtree(RECORDS, ignore_errors=True)
    RECORDS.mkdir()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_shards(folder)
        write("cases.json", {name: case(folder) for name, case in CASES.items()})
        write("states.json", {name: saved(name, folder) for name in STATES})
        for name, thing in files(folder).items():
            thing.save(RECORDS / name)
    scored(RECORDS / "scored.parquet")
    with contextlib.suppress(Stopped):
        scored(RECORDS / "unfinished.parquet", most=3)
    # It names the process that scored.
    (RECORDS / "unfinished.parquet.parts" / "lock").unlink()
    print(f"written by flowdata {flowdata.__version__} in {Path(flowdata.__file__).parent}")


if __name__ == "__main__":
    warnings.simplefilter("ignore", flowdata.FlowDataWarning)
    main()
