"""The object store of the benchmarks, for tests: latency, bandwidth, range manners and faults.

with serving(folder, latency=0.03, bandwidth=80e6, reset=0.05, seed=1) as server:
    FlowShards(f"{server.url}/{{00..03}}.tar", ...)
    server.stats()["bytes"]
    server.answer(ranges="none")
"""

import sys
from pathlib import Path

# At the end: what the benchmarks are called must hide no library of that name.
sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

from serving import Served, serving

__all__ = ["Served", "serving"]
