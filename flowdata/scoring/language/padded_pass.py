"""A pass of a model that reads both ways, whose padding is masked but may be seen."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from flowdata.scoring.language.causal_lm import LanguagePass
from flowdata.scoring.language.own_token_loss import agree, require_own_loss
from flowdata.scoring.language.probe_rows import ProbeRows
from flowdata.scoring.layouts.token_rows import Tokens
from flowdata.scoring.models.inference import Arriving
from flowdata.scoring.parts.row_blocks import ChooseBatches

_TRIED = 6


class PaddedPass(LanguagePass):
    """Scores labels where they are, in batches that the model is told the padding of.

    A few samples are compared with the loss that the model computes itself, and some of all
    lengths of the data set, padded to the longest, with what they are alone.
    Where padding moves a loss, as in models that read blocks of tokens or take the last one,
    batches are made of samples of the same lengths. Rows of one length decide nothing: then each
    block of rows is looked at by itself, as another worker may score the one before.
    """

    probed = 256

    advice = ""
    """What to do where the model computes another loss."""

    def __init__(
        self,
        options: Any,
        model: nn.Module,
        device: torch.device,
        probe: ProbeRows | None = None,
    ) -> None:
        super().__init__(options, model, device, probe)
        self._model = model
        self._compared = False
        self._pads: bool | None = None
        self._of_probe: bool | None = None

    def _losses_of(self, samples: Sequence[Tokens]) -> Tensor:
        """Losses of all labels of samples that can be one batch, sample by sample."""
        raise NotImplementedError

    def _own_inputs(self, sample: Tokens) -> dict[str, Any]:
        """What forward takes of a sample, labels included; nothing where that is not known."""
        raise NotImplementedError

    def _begin_batches(
        self,
        rows: NDArray[np.int64],
        samples: Sequence[Tokens],
        lengths: NDArray[Any],
        choose: ChooseBatches,
    ) -> Iterator[tuple[NDArray[np.int64], Arriving, NDArray[Any]]]:
        self._pads = self._of_probe
        if self._pads is None:
            self._try_padding(samples)
        yield from super()._begin_batches(rows, samples, lengths, choose)

    def _begin_with(self, samples: Sequence[Tokens]) -> None:
        try:
            numbers = np.arange(len(samples))
            self._check_lengths(numbers, samples)
            self._check_tokens(numbers, samples)
        except (TypeError, ValueError):
            # Whoever scores these rows says so.
            return
        self._try_padding(samples)
        self._of_probe = self._pads

    def _try_padding(self, samples: Sequence[Tokens]) -> None:
        """Find out whether padding moves a loss; in batches there is too little of it to tell."""
        kinds: dict[Any, list[Tokens]] = {}
        for sample in samples:
            if sample.kind is not None and (sample.labels >= 0).any():
                kinds.setdefault(sample.kind, []).append(sample)
        for alike in kinds.values():
            if self._pads is not False:
                with contextlib.suppress(RuntimeError, MemoryError, ValueError):
                    self._try_padding_of(alike)

    def _try_padding_of(self, samples: Sequence[Tokens]) -> None:
        """Compare some samples of all lengths, padded to the longest, with what they are alone."""
        by_length = sorted(samples, key=lambda sample: sample.sides, reverse=True)
        shorter = [some for some in by_length if some.sides != by_length[0].sides]
        tried = np.linspace(0, len(shorter) - 1, min(_TRIED, len(shorter))).astype(int)
        for sample in (shorter[place] for place in tried):
            padded = self._losses_of([by_length[0], sample])[
                -np.count_nonzero(sample.labels >= 0) :
            ]
            self._pads = agree(padded.mean(), self._losses_of([sample]).mean())
            if not self._pads:
                return

    def _begin_batch(self, samples: Sequence[Tokens]) -> tuple[Arriving, NDArray[Any]]:
        counts = np.array([np.count_nonzero(sample.labels >= 0) for sample in samples])
        if not counts.any():
            return Arriving(torch.zeros(0)), counts
        try:
            if self._pads is not False:
                losses = self._losses_of(samples)
                self._compare(samples, losses, counts)
            if self._pads is False:
                losses = self._losses_by_shape(samples, counts)
        except (RuntimeError, MemoryError):
            if self._device.type == "cuda":
                torch.cuda.empty_cache()
            raise
        return Arriving(losses), counts

    def _compare(self, samples: Sequence[Tokens], losses: Tensor, counts: NDArray[Any]) -> None:
        """Compare some samples with what they are alone, where that is not done."""
        sides = np.array([sample.sides for sample in samples])
        padding = np.where(counts > 0, (sides.max(axis=0) - sides).sum(axis=1), -1)
        padded = padded_places(padding)
        if self._compared and (self._pads is not None or not padded):
            return
        ends = np.cumsum(counts)

        def of_batch(place: int) -> Tensor:
            return losses[int(ends[place] - counts[place]) : int(ends[place])]

        alone = {place: self._losses_of([samples[place]]) for place in padded}
        if not self._compared:
            scored = np.flatnonzero(counts)
            for place in padded or sorted({*scored[[0, scored.size // 2, -1]].tolist()}):
                if keywords := self._own_inputs(samples[place]):
                    # In low precision a loss is another in a batch.
                    found = alone[place] if padded else self._losses_of([samples[place]])
                    require_own_loss(self._model, keywords, found, advice=self.advice)
            self._compared = True
        if padded:
            self._pads = all(
                agree(of_batch(place).mean(), some.mean()) for place, some in alone.items()
            )
            if not self._pads:
                self._of_probe = False

    def _losses_by_shape(self, samples: Sequence[Tokens], counts: NDArray[Any]) -> Tensor:
        """Losses in the order of the samples, of which no two are padded."""
        of_each: list[Tensor] = [torch.zeros(0)] * len(samples)
        for places in _alike(samples):
            some = [samples[place] for place in places if counts[place]]
            if some:
                scored = [place for place in places if counts[place]]
                parts = torch.split(self._losses_of(some), counts[scored].tolist())
                for place, part in zip(scored, parts, strict=True):
                    of_each[place] = part
        return torch.cat([part for part in of_each if len(part)])


def padded_places(padding: NDArray[Any]) -> list[int]:
    """Places of the sample of most padding, of one of the middle, and of that of least.

    A model of blocks may leave alone what fits into one.
    """
    order = np.argsort(-padding, kind="stable")[: np.count_nonzero(padding > 0)]
    return list(dict.fromkeys(order[[0, order.size // 2, -1]].tolist())) if order.size else []


def pad_of(model: Any) -> int:
    """The token of padding; any will do where the model names none, as it is masked."""
    config = getattr(model, "config", None)
    decoder = getattr(config, "decoder", None)
    found = (getattr(some, "pad_token_id", None) for some in (config, decoder))
    return next((pad for pad in found if isinstance(pad, int) and pad >= 0), 0)


def _alike(samples: Sequence[Tokens]) -> Iterator[list[int]]:
    """Places of samples of the same lengths."""
    found: dict[Any, list[int]] = {}
    for place, sample in enumerate(samples):
        found.setdefault(sample.sides, []).append(place)
    yield from found.values()
