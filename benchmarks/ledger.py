"""Ledger: what a benchmark has measured so far, so that a run that was cut goes on where it was."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any


class Ledger:
    """A file of measurements, a line of JSON each; several processes may write to it.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "ledger.jsonl"
    >>> Ledger(path).recall("two", lambda: 1 + 1)
    2
    >>> Ledger(path).recall("two", lambda: 1 / 0)
    2
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._known: dict[str, Any] = {}
        if path.exists():
            for line in path.read_text().splitlines():
                try:
                    key, found = json.loads(line)
                except json.JSONDecodeError:
                    continue  # The process was killed while it wrote.
                self._known[key] = found

    def recall(self, key: str, measure: Callable[[], Any]) -> Any:
        """What was measured under this name; it is measured, and written at once, if not yet."""
        if key not in self._known:
            found = measure()
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a") as file:
                # A line of its own, also behind one that was cut. One write, so that lines of
                # several processes do not mix.
                file.write(f"\n{json.dumps([key, found])}\n")
            self._known[key] = found
        return self._known[key]
