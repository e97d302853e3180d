"""Fitting a head to features: a linear one by L-BFGS, any other by a function."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import skip_init

from flowdata.core.arrays import is_invalid
from flowdata.errors import InvalidLossError
from flowdata.scoring.models.classification import LossFunction
from flowdata.scoring.models.loss_formulas import Formula, UnscorableSample, of_flags, of_values
from flowdata.scoring.probe.features import CLASSES, Features, named
from flowdata.table.digest import Digest

FitFunction: TypeAlias = Callable[[Tensor, Tensor], nn.Module]
"""(features of shape (m, d), targets of shape (m, ...)) -> a module that was fitted to them."""

_FORMULAS: dict[str, Formula] = {"bce": of_flags, "mse": of_values}
LOSSES = [CLASSES, *_FORMULAS]
"""Names of losses that heads are fitted to."""

FIT_BYTES = 1 << 28
"""Features of this many bytes are in memory at a time, where a head is fitted by L-BFGS."""


@dataclass(frozen=True)
class HeadFit:
    """How a head is fitted and scored.

    Attributes:
        head: that of the model.
        loss: name of the loss, or the function.
        fit: makes a fitted head; None for a linear one by L-BFGS.
        weight_decay, max_iter: of L-BFGS.
        seed: of the random numbers that ``fit`` draws.
    """

    head: nn.Module
    loss: str | LossFunction
    fit: FitFunction | None = None
    weight_decay: float = 1e-4
    max_iter: int = 200
    seed: int = 0
    _last: list[nn.Module] = field(default_factory=list, repr=False, compare=False)
    """What ``fit`` returned last."""

    def fitted(
        self, found: Features, rows: NDArray[np.int64], *, from_zero: bool = False, number: int = 0
    ) -> nn.Module:
        """A head that was fitted to some rows.

        Args:
            found: what heads see, of all rows.
            rows: those to fit to, rising.
            from_zero: whether a linear head begins at zero, not where that of the model stands.
            number: of the fit; each draws other random numbers.

        Raises:
            TypeError, ValueError: for a function that makes no head that the model can have.
        """
        if self.fit is None:
            return self._linear(found, rows, from_zero=from_zero)
        device = self._device
        features = torch.from_numpy(found.features[rows]).to(device)
        targets = torch.from_numpy(found.targets[rows]).to(device)
        devices = [device] if device.type == "cuda" else []
        before = _content(self.head)
        # The same numbers each time, whatever was drawn before; the caller's stay untouched.
        with torch.random.fork_rng(devices=devices), torch.enable_grad():
            torch.manual_seed((self.seed << 16) + number & ((1 << 63) - 1))
            fitted = self.fit(features, targets)
        self._require_like_head(fitted)
        if _content(self.head) != before or _share(fitted, self.head):
            raise ValueError(_not_new("it trains or returns the head of the model"))
        if any(_share(fitted, last) for last in self._last):
            raise ValueError(_not_new("it returned the module of the fold before once more"))
        self._last[:] = [fitted]
        return fitted.eval().to(device, torch.float32)

    def losses(
        self, fitted: nn.Module, found: Features, rows: NDArray[np.int64], whose: str
    ) -> NDArray[np.float32]:
        """The loss of each of some rows under a fitted head.

        Raises:
            InvalidLossError: naming rows whose losses are NaN, infinite or negative.
            ValueError: where the loss is not one of each row.
        """
        some = []
        with torch.no_grad():
            for features, targets in self._chunks(found, rows):
                some.append(self._of(fitted, features, targets).float().cpu().numpy())
        losses = np.concatenate(some)
        bad = is_invalid(losses)
        if bad.any():
            raise InvalidLossError(
                f"NaN, infinite or negative losses {losses[bad][:3].tolist()} of {whose} in "
                f"{named(rows[bad])}: its fit has diverged, or the loss is none"
            )
        return losses

    def _linear(self, found: Features, rows: NDArray[np.int64], *, from_zero: bool) -> nn.Module:
        layer = self.head
        assert isinstance(layer, nn.Linear)
        # Without drawing parameters: the caller's random numbers stay untouched.
        fitted: nn.Linear = skip_init(  # type: ignore[no-untyped-call]
            nn.Linear,
            *(layer.in_features, layer.out_features, layer.bias is not None),
            device=self._device,
        )
        with torch.no_grad():
            for parameter, values in zip(fitted.parameters(), layer.parameters(), strict=True):
                parameter.copy_(torch.zeros_like(values) if from_zero else values)
        optimizer = torch.optim.LBFGS(
            fitted.parameters(), max_iter=self.max_iter, line_search_fn="strong_wolfe"
        )
        # One is kept: its features need not be read again and again.
        kept = [*self._chunks(found, rows)] if self._is_one_chunk(found, rows) else None

        def closure() -> float:
            optimizer.zero_grad()
            total = 0.0
            for features, targets in kept or self._chunks(found, rows):
                share = len(features) / rows.size
                loss = self._of(fitted, features, targets).mean() * share
                loss.backward()  # type: ignore[no-untyped-call]
                total += loss.item()
                # Before the next ones are read.
                del features, targets, loss
            penalty = 0.5 * self.weight_decay * fitted.weight.square().sum()
            penalty.backward()  # type: ignore[no-untyped-call]
            return total + penalty.item()

        # The caller may have gradients switched off.
        with torch.enable_grad():
            optimizer.step(closure)  # type: ignore[no-untyped-call]
        return fitted

    def _of(self, fitted: nn.Module, features: Tensor, targets: Tensor) -> Tensor:
        if self.loss == CLASSES:
            return F.cross_entropy(fitted(features), targets, reduction="none")
        try:
            if isinstance(self.loss, str):
                outputs = fitted(features)
                if outputs.shape[1:] == (1,) and targets.ndim == 1:
                    # As models of transformers that give one number take them.
                    targets = targets[:, None]
                return _FORMULAS[self.loss](outputs, targets)
            losses = torch.as_tensor(self.loss(fitted, (features, targets)))
        except UnscorableSample as error:
            raise ValueError(f"{error}, of the targets of the head") from error
        if losses.shape != (len(features),):
            raise ValueError(
                f"the loss function returned shape {tuple(losses.shape)} for {len(features)} rows, "
                f"({len(features)},) is needed: it is called with the head in place of the model, "
                "and a batch of (features, targets)"
            )
        return losses

    def _chunks(self, found: Features, rows: NDArray[np.int64]) -> Iterator[tuple[Tensor, Tensor]]:
        """Rows in turn, as many as there is memory for; which go together is always the same."""
        size = _chunk_rows(found)
        for start in range(0, rows.size, size):
            some = rows[start : start + size]
            targets = torch.from_numpy(found.targets[some]).to(self._device)
            if self.loss == CLASSES:
                targets = targets.long()
            yield torch.from_numpy(found.features[some]).to(self._device), targets

    def _is_one_chunk(self, found: Features, rows: NDArray[np.int64]) -> bool:
        return rows.size <= _chunk_rows(found)

    @property
    def _device(self) -> torch.device:
        return next(self.head.parameters()).device

    def _require_like_head(self, fitted: Any) -> None:
        if not isinstance(fitted, nn.Module):
            raise TypeError(
                "fit must return a fitted module: fit(features, targets) -> head, it returned "
                f"{type(fitted).__name__}"
            )
        ours, its = shapes_of(self.head), shapes_of(fitted)
        if ours != its:
            raise ValueError(
                f"fit made a {type(fitted).__name__} of {its}, and the head of the model is a "
                f"{type(self.head).__name__} of {ours}: put a head of the same layers into the "
                "model first, its parameters are replaced"
            )


def _not_new(what: str) -> str:
    return (
        f"fit must make a new head each time, and {what}: what goes on from the fit of another "
        "fold has seen the rows that are held out. Make it inside of fit, as by nn.Linear(...)"
    )


def _content(head: nn.Module) -> str:
    digest = Digest()
    digest.feed(state_of(head))
    return digest.hexdigest()


def _share(one: nn.Module, other: nn.Module) -> bool:
    """Whether two modules have a parameter in common."""
    return not {*map(id, one.parameters())}.isdisjoint(map(id, other.parameters()))


def write_head(head: nn.Module, state: dict[str, Tensor]) -> None:
    """Put the parameters and buffers of a fitted head into that of the model."""
    with torch.no_grad():
        for name, values in head.state_dict(keep_vars=True).items():
            values.data.copy_(state[name])


def state_of(fitted: nn.Module) -> dict[str, Tensor]:
    """The parameters and buffers of a fitted head, on the CPU."""
    return {name: values.detach().cpu() for name, values in fitted.state_dict().items()}


def _chunk_rows(found: Features) -> int:
    width = int(found.features.shape[1])
    return max(FIT_BYTES // (4 * max(width, 1)), 1)


def shapes_of(head: nn.Module) -> dict[str, tuple[int, ...]]:
    """The shapes of the parameters and buffers of a head."""
    return {name: tuple(values.shape) for name, values in head.state_dict().items()}


def is_state_of(head: nn.Module, state: dict[str, Tensor]) -> bool:
    """Whether parameters and buffers are those of a head like this one."""
    return {name: tuple(values.shape) for name, values in state.items()} == shapes_of(head)
