"""What `score_probe` keeps on disk: features, losses of folds, and the head beside the table."""

import contextlib
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from io import BytesIO
from os import PathLike
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flowdata.errors import TableFileError
from flowdata.files import Place, reason_of, replacing
from flowdata.scoring.parts.folder import Parts
from flowdata.scoring.parts.row_blocks import Worker
from flowdata.scoring.probe.feature_parts import FeatureParts
from flowdata.scoring.probe.features import Features
from flowdata.table.checks import require_same_pass
from flowdata.table.fingerprint import code_fingerprint
from flowdata.table.loss_table import LossTable
from flowdata.table.provenance import Provenance
from flowdata.table.scored_rows import ScoredRows

HEAD = ".head"


class FittedHead(NamedTuple):
    """The head of all rows.

    Attributes:
        state: its parameters and buffers, on the CPU.
        hashes: of the rows that it was fitted on, uint64.
    """

    state: dict[str, Tensor]
    hashes: NDArray[np.uint64]


class ProbeOutput:
    """The table, ``<table>.head`` beside it, and, until it is there, two folders.

    Args:
        output: where the table is saved.
        provenance: of the call, without the hash of a model whose head is not fitted yet.
        collate_fn: by which the model's batches are made.
    """

    def __init__(
        self,
        output: str | PathLike[str],
        provenance: Provenance,
        collate_fn: Callable[[list[Any]], Any] | None,
    ) -> None:
        self._provenance = provenance
        self._identity = provenance.identity()
        if collate_fn is not None:
            # Tables of earlier versions do not have it.
            self._identity["collate_code"] = code_fingerprint(collate_fn)
        self._parts = Parts(output)
        self._features = FeatureParts(self._parts.table)
        self._head: Place = self._parts.table.with_name(f"{self._parts.table.name}{HEAD}")

    def begin(self, stack: ExitStack, job: Worker | None, *, alone: bool) -> NDArray[np.bool_]:
        """Take the lock, and find out which rows have features, shape (rows,).

        Args:
            stack: holds the lock.
            job: of an array, if it is one.
            alone: whether nobody else writes into the folder.

        Raises:
            MismatchError: where there is something of another call.
            TableFileError: when it cannot be written, or someone else writes it.
        """
        stack.enter_context(self._parts.locked(job))
        if alone:
            stack.enter_context(self._parts.removed_if_empty())
        there = self._features.rows_there(self._identity)
        self._parts.claim(self._identity)
        return there

    def finished(self) -> tuple[LossTable, FittedHead | None] | None:
        """The table and its head, where a call has ended; no head where that is not known.

        Raises:
            MismatchError: for the table of another call.
        """
        if not self._parts.is_finished:
            return None
        table = LossTable.load(self._parts.table)
        # The hash of the model is that of the head that is not fitted yet.
        ours, found = (
            {**known.identity(), "model_hash": None, "adapters": None}
            for known in (self._provenance, table.provenance)
        )
        require_same_pass(
            ours,
            found,
            what=f"the table {self._parts.table}",
            advice="Call with the same model, data and options, choose another output, or delete "
            "it",
        )
        # Earlier versions kept no head. A damaged one is fitted again.
        try:
            read = torch.load(BytesIO(self._head.read_bytes()), weights_only=True)
            return table, FittedHead(read["state"], read["hashes"].numpy().view(np.uint64))
        except Exception:
            return table, None

    def save_features(self, found: Iterable[Features], every: float) -> None:
        """Write features as they come."""
        self._features.save_regularly(found, self._identity, every)

    def all_features(self) -> "contextlib.AbstractContextManager[Features]":
        """Features of all rows, mapped from a file."""
        return self._features.assembled(self._identity)

    def losses(self) -> NDArray[np.float32]:
        """The losses of folds that were scored before; NaN elsewhere."""
        found = np.full(self._provenance.rows, np.nan, dtype=np.float32)
        for part in self._parts.load(self._identity):
            found[part.scores.rows] = part.scores.losses
        return found

    def add_losses(self, rows: NDArray[np.int64], losses: NDArray[np.float32]) -> None:
        """Keep the losses of a fold."""
        self._parts.add(ScoredRows(rows, losses), self._identity)

    def finish(self, table: LossTable, head: FittedHead) -> None:
        """Write the head, then the table, and delete what was kept until then."""
        try:
            with replacing(self._head) as temporary:
                hashes = torch.from_numpy(head.hashes.view(np.int64))
                torch.save({"state": head.state, "hashes": hashes}, temporary)
        except OSError as error:
            raise TableFileError(
                f"cannot write the head {self._head}: {reason_of(error)}; features and losses are "
                "kept: make room, and the same call goes on"
            ) from error
        self._parts.finish(table)
        self._parts.remove(self._identity)
        self._features.remove(self._identity)
