"""Loader workers of a process that has used its tokenizer before."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAMS = Path(__file__).parents[2] / "programs"
PROGRAM = """
import torch
from frameworks_language import make_model, make_tokenizer
from flowdata import CausalLM, score

tokenizer = make_tokenizer()
rows = [{"text": "and so on " * (row % 9 + 1)} for row in range(64)]
# The threads of the tokenizer begin here, and are not there in a fork.
tokenizer([row["text"] for row in rows])
loss = CausalLM(tokenizer=tokenizer, text="text")
model = make_model(len(tokenizer))
alone, others = (score(model, rows, loss, num_workers=n, progress=False) for n in (0, 1))
assert (alone.losses == others.losses).all()
print(len(others))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="workers are forked")
def test_workers_tokenize_although_threads_of_tokenizers_were_asked_for():
    variables = {"TOKENIZERS_PARALLELISM": "true", "PYTHONPATH": str(PROGRAMS)}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=os.environ | variables,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "64\n"
