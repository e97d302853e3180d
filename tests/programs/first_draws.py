"""A user's first three lines, in an environment that holds the wheel and what it depends on."""

import sys
from pathlib import Path

import flowdata

table = flowdata.LossTable.from_losses([0.2, 0.9, 2.5, 7.0])
sampler = flowdata.FlowSampler(table, epoch_size="full", seed=0)
print("draws:", list(sampler))

found = Path(flowdata.__file__)
if not found.is_relative_to(sys.prefix):
    sys.exit(f"flowdata was imported from {found}, which is not the environment {sys.prefix}")
if len(list(sampler)) != 4:
    sys.exit("an epoch of the full size has as many draws as the table has rows")
