"""FlowSampler and DistributedFlowSampler: an epoch plan as a torch sampler."""

import operator
from collections.abc import Iterator
from typing import Any

from numpy.typing import ArrayLike
from torch.utils.data import Sampler

from flowdata.core.plan import EpochPlan, EpochSize, Scheme, non_negative
from flowdata.core.strata import Strata
from flowdata.core.weights import FlowWeights, HasWeights
from flowdata.errors import MismatchError, warn
from flowdata.guards.asking import Asker, asker, ranks
from flowdata.guards.checks import check_even, named_by_loop
from flowdata.map_style.draws import DrawIterator, Draws

_VERSION = "version"
_SEED = "seed"
_EPOCH = "epoch"
_POSITION = "position"
_EPOCH_SIZE = "epoch_size"
_SCHEME = "scheme"
_ALPHA = "alpha"
_WEIGHTS = "weights"
_STRATA = "strata"
_STATE_VERSION = 1


class FlowSampler(Sampler[int]):
    """Draws rows in proportion to their weights; give it to a DataLoader as ``sampler=``.

    Every ``iter()`` is the next epoch, with new draws, unless `set_epoch` names one. Of R
    replicas, rank r takes draws r, r + R, r + 2R, ... of the same plan, so an epoch does not
    depend on R. Where R does not divide the epoch, its first draws are repeated at the end
    (or, with ``drop_last``, its last ones left out), as ``DistributedSampler`` does.

    The state is (seed, epoch, position), where the position counts the draws of all ranks. It
    can be loaded with another number of ranks; resuming costs what starting an epoch costs.
    A DataLoader with workers asks for draws ahead of the batches it has delivered: there, use
    torchdata's StatefulDataLoader, or state the position yourself, see `state_dict`.

    Args:
        weights, epoch_size, seed, scheme, alpha, strata: see `EpochPlan`.
        num_replicas: R. Leave it 1 under frameworks that split the sampler themselves
            (accelerate, transformers).
        rank: r, in [0, R).
        drop_last: leave out the draws of the last incomplete round of ranks.

    Raises:
        InvalidLossError: for weights that cannot be sampled.
        ValueError: for an unknown option or a rank outside [0, num_replicas).
        RuntimeError: on iterating with several replicas where a framework splits the draws again.

    It warns where the draws of all ranks would be the same, and where a framework hides from it
    which epoch is meant.

    >>> sampler = FlowSampler([1.0, 3.0], epoch_size=8, seed=1)
    >>> len(sampler), sorted(sampler)
    (8, [0, 0, 1, 1, 1, 1, 1, 1])
    """

    def __init__(
        self,
        weights: FlowWeights | HasWeights | ArrayLike,
        *,
        epoch_size: EpochSize = "full",
        seed: int = 0,
        scheme: Scheme = "systematic",
        alpha: float = 1.0,
        strata: Strata | None = None,
        num_replicas: int = 1,
        rank: int = 0,
        drop_last: bool = False,
    ) -> None:
        if not 0 <= operator.index(rank) < operator.index(num_replicas):
            raise ValueError(
                f"rank must be in [0, num_replicas), got rank={rank}, num_replicas={num_replicas}"
            )
        self._plan = EpochPlan(
            weights,
            epoch_size=epoch_size,
            seed=seed,
            scheme=scheme,
            alpha=alpha,
            strata=strata,
        )
        self.num_replicas = num_replicas
        self.rank = rank
        self.drop_last = drop_last
        if self._draws_left(0) == 0:
            raise ValueError(
                f"drop_last=True leaves no draw: the epoch has {len(self._plan)} draws for "
                f"{num_replicas} replicas"
            )
        self._position = 0
        self._running: Draws | None = None
        self._told = self._warned = False
        self._named: int | None = None

    @property
    def epoch(self) -> int:
        """The epoch that the next iteration draws."""
        return self._plan.epoch

    @property
    def seed(self) -> int:
        """The seed of all epochs."""
        return self._plan.seed

    @property
    def plan(self) -> EpochPlan:
        """The plan of `epoch`."""
        return self._plan

    @property
    def num_samples(self) -> int:
        """Draws of this rank in a whole epoch."""
        return self._draws_left(0)

    def __len__(self) -> int:
        return self.num_samples

    def __iter__(self) -> Iterator[int]:
        self._check_splitting()
        return DrawIterator.over(Draws(self))

    def set_epoch(self, epoch: int) -> None:
        """Make ``epoch`` the next one to be drawn, from its start.

        Naming the epoch that a loaded state is in does nothing, so that a resumed loop may call
        it as usual.
        """
        plan = self._plan.at_epoch(epoch)
        self._check_naming(epoch)
        self._go_to(epoch, self._position if plan is self._plan else 0)
        self._running = None

    def state_dict(self, position: int | None = None) -> dict[str, Any]:
        """A fresh, JSON-able dict from which `load_state_dict` continues.

        Args:
            position: draws of the current epoch that were trained on, over all ranks
                (steps x batch size x ranks). By default those that were asked for, which under
                DataLoader workers, and under accelerate, includes batches fetched ahead.
        """
        epoch, reached = self.epoch, self._position
        if self._running is not None:
            epoch, reached = self._running.epoch, self._running.position
        if position is not None:
            reached = non_negative(position, "position")
        elif self._running is not None and self._running.read_ahead:
            warn(
                "accelerate's loader reads a batch ahead of the one that is trained on, so this "
                "state would lose it: save sampler.state_dict(position=steps x batch size x "
                "ranks), with the steps of this epoch"
            )
        if self._draws_left(reached) == 0:
            epoch, reached = epoch + 1, 0
        return self._state(epoch, reached)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state of a sampler with the same weights and options.

        Seed, epoch and position are taken from the state; the number of ranks is free.

        Raises:
            MismatchError: when the state is of other weights or strata, or of another epoch size,
                scheme or alpha, or not a state at all.
        """
        epoch, position = self._checked(state)
        if self._draws_left(position) == 0:
            epoch, position = epoch + 1, 0
        self._check_prepared(epoch, position)
        self._plan = self._plan.at_epoch(epoch, seed=state[_SEED])
        self._position, self._named = position, epoch
        self._running, self._told = None, True

    def _go_to(self, epoch: int, position: int) -> None:
        """Draw from there next."""
        self._plan, self._position, self._told = self._plan.at_epoch(epoch), position, True

    def _check_splitting(self) -> None:
        """Every draw has to go to one rank: not to all of them, and not to none."""
        if ranks() == 1:
            return
        asked = asker()
        splits = asked.splits
        check_even(asked, len(self._plan))
        if splits and self.num_replicas > 1:
            raise RuntimeError(
                f"{type(self).__name__} gives rank {self.rank} its share of the draws, and "
                f"{splits} would split that share again and lose the rest: use "
                "FlowSampler(weights), without num_replicas, which draws for all ranks"
            )
        if not splits and self.num_replicas == 1:
            warn(
                f"FlowSampler gives each of the {ranks()} ranks all draws, and nothing splits "
                "them here: use DistributedFlowSampler(weights), which gives each rank its share"
            )

    def _check_naming(self, epoch: int) -> None:
        """Warn where a framework names another epoch than the one that is under way."""
        running = self._running
        begun = None if running is None or running.prepared else running.epoch
        self._named = named_by_loop(epoch, self._named, begun)
        self._check_prepared(epoch, 0)
        if running is None or running.dropped or not running.untold or running.epoch == epoch:
            return
        asked = asker()
        if asked.lightning and not asked.renews:
            self._warn_once(
                f"the loader's workers were started on epoch {running.epoch} before Lightning "
                f"named it as epoch {epoch}, and will draw the former: add "
                "flowdata.frameworks.lightning.FlowCallback to the Trainer's callbacks"
            )

    def _check_resuming(self, draws: Draws, asked: Asker) -> None:
        """Warn where Lightning resumes, and nobody tells the sampler from where."""
        if asked.resumes and not draws.restored:
            self._warn_once(
                "Lightning resumes from a checkpoint without saying at which draw of its epoch the "
                "sampler is to go on: add flowdata.frameworks.lightning.FlowCallback to the "
                "Trainer's callbacks, from the first run on"
            )

    def _warn_once(self, message: str) -> None:
        if not self._warned:
            self._warned = True
            warn(message)

    def _check_prepared(self, epoch: int, position: int) -> None:
        """Warn where accelerate had workers draw before it was known what."""
        running = self._running
        if running is None or not running.prepared or running.dropped:
            return
        if (running.epoch, 0) != (epoch, position):
            warn(
                f"accelerate started the loader's workers on epoch {running.epoch} before it was "
                f"known that epoch {epoch} is to be drawn from draw {position}, and they will draw "
                "the former: name the epoch, or load the state, before accelerator.prepare()"
            )

    def _begin(self, draws: Draws) -> tuple[int, int, EpochPlan]:
        """Hand the current epoch to an iteration that draws for the first time."""
        started = self.epoch, self._position, self._plan
        asked = asker()
        self._check_resuming(draws, asked)
        draws.ahead = asked.accelerate
        if not self._told and asked.accelerate:
            warn(
                f"FlowSampler draws epoch {self.epoch} because nobody named another: accelerate's "
                "skip_first_batches hides the sampler from its loader. Call the sampler's "
                "set_epoch(epoch) before each epoch (under the transformers Trainer: add "
                "flowdata.frameworks.trainer.FlowCallback to the callbacks)"
            )
        if not self._told:
            draws.untold, draws.prepared = True, asked.preparing
        self._told = False
        self._running = draws
        self._plan, self._position = self._plan.at_epoch(self.epoch + 1), 0
        return started

    def _draws_left(self, position: int) -> int:
        """Draws of each rank from a global position to the end of an epoch."""
        left = max(len(self._plan) - position, 0)
        return left // self.num_replicas if self.drop_last else -(-left // self.num_replicas)

    def _state(self, epoch: int, position: int) -> dict[str, Any]:
        return {
            _VERSION: _STATE_VERSION,
            _SEED: self.seed,
            _EPOCH: epoch,
            _POSITION: position,
            _EPOCH_SIZE: len(self._plan),
            _SCHEME: self._plan.scheme,
            _ALPHA: self._plan.alpha,
            _WEIGHTS: self._plan.weights.fingerprint,
            _STRATA: self._plan.strata.fingerprint if self._plan.strata else "",
        }

    def _checked(self, state: dict[str, Any]) -> tuple[int, int]:
        """Epoch and position of a state that fits this sampler."""
        own = self._state(0, 0)
        if not isinstance(state, dict):
            raise MismatchError(f"not a FlowSampler state: {state!r}")
        # Older states are of a time without strata.
        state = dict[str, Any]({_STRATA: ""}) | state
        if missing := own.keys() - state.keys():
            raise MismatchError(f"not a FlowSampler state: {sorted(missing)} missing")
        for key in (_VERSION, _EPOCH_SIZE, _SCHEME, _ALPHA, _WEIGHTS, _STRATA):
            if state[key] != own[key]:
                raise MismatchError(
                    f"the saved state has {key}={state[key]!r}, this sampler has {own[key]!r}; "
                    "its positions mean other rows here. Build the sampler from the same loss "
                    "table and with the same options as the run that was saved"
                )
        non_negative(state[_SEED], _SEED)
        return non_negative(state[_EPOCH], _EPOCH), non_negative(state[_POSITION], _POSITION)
