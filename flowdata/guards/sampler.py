"""SamplerGuard: advice to the user of a FlowSampler, from who calls it."""

import copy
from dataclasses import dataclass, replace
from typing import NoReturn, Protocol

from flowdata.errors import warn
from flowdata.guards.detection import Caller, can_see_splits, find_caller
from flowdata.guards.epochs import SetEpochs, advise_even_batches
from flowdata.guards.ranks import data_ranks, group_size
from flowdata.guards.stack import is_running
from flowdata.guards.switch import enabled

_PACKS = "FlowPackSampler"


class Pass(Protocol):
    """A pass of a sampler over an epoch."""

    @property
    def epoch(self) -> int:
        """The epoch that is drawn."""

    @property
    def finished(self) -> bool:
        """Whether all of it was drawn."""

    @property
    def abandoned(self) -> bool:
        """Whether nobody can draw from it any more."""


@dataclass(frozen=True)
class _StartedPass:
    """A pass, and who began it."""

    sampler_pass: Pass
    epoch_was_set: bool
    """Whether its epoch had been set, or loaded."""
    prepared: bool
    """accelerate began it while it built its loader, ahead of the epoch's name."""
    reads_ahead: bool
    """A loader of accelerate draws a batch ahead of the one that it gives out."""


class SamplerGuard:
    """Warns where a framework makes a sampler draw what its user does not expect."""

    def __init__(self) -> None:
        self._set_epochs = SetEpochs()
        self._epoch_was_set = False
        """Whether the epoch of the next pass was set or loaded."""
        self._loaded: tuple[int, int] | None = None
        """Epoch and position of a loaded state, up to the next draw or the next epoch's name."""
        self._running: _StartedPass | None = None
        self._has_advised = False

    def __copy__(self) -> "SamplerGuard":
        copied = SamplerGuard()
        copied.__dict__ |= self.__dict__ | {"_set_epochs": copy.copy(self._set_epochs)}
        return copied

    def on_iter(self, owner: str, *, rank: int, replicas: int, draws: int) -> None:
        """Make sure that every draw goes to one rank: not to all of them, and not to none.

        Raises:
            RuntimeError: where a framework divides the draws of one rank again.
        """
        if not enabled() or group_size() == 1:
            return
        caller = find_caller()
        advise_even_batches(caller, draws)
        if caller.splits_draws and replicas > 1:
            raise RuntimeError(
                f"{owner} gives rank {rank} its share of the draws, and {caller.splits_draws} "
                f"would split that share again and lose the rest: use {_of_all_ranks(owner)}, "
                "without num_replicas, which draws for all ranks"
            )
        unsplit = not caller.splits_draws and replicas == 1 and can_see_splits()
        # Ranks that share a model are to have the same draws.
        if unsplit and data_ranks(group_size()) > 1:
            warn(
                f"{owner} gives each of the {group_size()} ranks all draws, and nothing "
                f"splits them here: use {_of_one_rank(owner)}, which gives each rank its share"
            )

    def on_first_draw(
        self, sampler_pass: Pass, *, position: int, at_saved_place: bool, can_go_on: bool
    ) -> None:
        """A pass draws for the first time.

        Args:
            sampler_pass: the pass.
            position: draws of its epoch before the first.
            at_saved_place: whether a loader's saved state says where it begins.
            can_go_on: whether, in addition, something of the epoch is left there.

        Raises:
            RuntimeError: where a loader leaves out draws of an epoch that is not known, or that
                the sampler has left out already.
        """
        caller = find_caller()
        if caller.lightning_resumes and not can_go_on:
            self._advise_once(
                "Lightning resumes from a checkpoint without saying at which draw of its epoch the "
                "sampler is to go on: add flowdata.frameworks.lightning.FlowCallback to the "
                "Trainer's callbacks, from the first run on"
            )
        epoch_was_set = self._epoch_was_set or at_saved_place
        if position and not at_saved_place:
            _refuse_leaving_out_twice(caller, position)
        if caller.accelerate_iterates:
            # Its count is not that of the run that was saved.
            epoch_is_known = sampler_pass.epoch == self._set_epochs.last or at_saved_place
            if caller.fast_forwards and not epoch_is_known:
                _refuse_forgotten_epoch(caller, "call set_epoch(epoch) of the prepared loader")
        elif not (epoch_was_set or caller.accelerate_builds_loader):
            self._advise_forgetting(caller)
        if not epoch_was_set and caller.accelerate_iterates:
            warn(
                f"FlowSampler draws epoch {sampler_pass.epoch} because nobody named another: "
                "accelerate's skip_first_batches hides the sampler from its loader. Call the "
                "sampler's set_epoch(epoch) before each epoch (under the transformers Trainer: add "
                "flowdata.frameworks.trainer.FlowCallback to the callbacks)"
            )
        self._epoch_was_set, self._loaded = False, None
        self._running = _StartedPass(
            sampler_pass,
            epoch_was_set,
            prepared=caller.accelerate_builds_loader,
            reads_ahead=caller.accelerate_iterates,
        )

    def on_set_epoch(self, epoch: int) -> None:
        """An epoch is set, which the next pass is to draw."""
        self._advise_lost_state(epoch)
        begun = self._running
        drawn = None if begun is None else begun.sampler_pass.epoch
        self._set_epochs.add(epoch, drawn=None if begun is None or begun.prepared else drawn)
        self._advise_prepared(epoch, 0)
        self._epoch_was_set, self._running = True, None
        if begun is not None:
            caller = find_caller()
            self._advise_beside_lightning(caller, begun.sampler_pass, epoch)
            if begun.prepared and drawn == epoch:
                # It is what is drawn, as soon as accelerate's loader begins.
                self._running = replace(begun, prepared=not caller.accelerate_iterates)

    def on_load(self, epoch: int, position: int) -> None:
        """A state is loaded, from which the next pass is to go on."""
        self._advise_prepared(epoch, position)
        self._set_epochs.last = epoch
        self._loaded = epoch, position
        self._epoch_was_set, self._running = True, None

    def on_save(self) -> None:
        """A state of what was drawn is saved, without a word of what was trained on."""
        begun = self._running
        # accelerate 1.15, data_loader.py: `DataLoaderShard.__iter__` fetches the next batch before
        # it yields one, to know which is the last.
        if begun is None or not begun.reads_ahead:
            return
        # torchdata 0.11 takes states when it asks for a batch; accelerate gives them out in time.
        if is_running("torchdata.stateful_dataloader.stateful_dataloader", ""):
            return
        if not (begun.sampler_pass.finished and begun.sampler_pass.abandoned):
            warn(
                "accelerate's loader reads a batch ahead of the one that is trained on, so this "
                "state would lose it: save sampler.state_dict(position=steps x batch size x "
                "ranks), with the steps of this epoch"
            )

    def _advise_lost_state(self, epoch: int) -> None:
        loaded, self._loaded = self._loaded, None
        if loaded is None or epoch == loaded[0]:
            self._loaded = loaded
        elif epoch < loaded[0] and enabled():
            warn(
                f"a state of epoch {loaded[0]}, draw {loaded[1]}, was loaded, and "
                f"set_epoch({epoch}) goes back from it before anything was drawn: have the loop "
                "name epochs from sampler.epoch on, as in range(sampler.epoch, epochs)"
            )

    def _advise_forgetting(self, caller: Caller) -> None:
        if not caller.forgetting_part:
            return
        how = (
            "give StatefulDataLoader sampler= and batch_size=, or torchdata's own BatchSampler "
            "(torchdata.stateful_dataloader.sampler), or call sampler.set_epoch(epoch)"
        )
        if caller.fast_forwards:
            _refuse_forgotten_epoch(caller, how)
        self._advise_once(
            f"the states of this StatefulDataLoader do not hold the epoch that is drawn, because "
            f"{caller.forgetting_part} has no state_dict: {how} before each epoch"
        )

    def _advise_beside_lightning(self, caller: Caller, begun: Pass, epoch: int) -> None:
        if not caller.lightning_fits:
            return
        callback = "add flowdata.frameworks.lightning.FlowCallback to the Trainer's callbacks"
        if caller.lightning_restarts_workers:
            if begun.epoch >= epoch:
                self._advise_once(
                    f"Lightning draws epoch {epoch} a second time, because it went through this "
                    f"loader, shorter than another, again in the epoch before: {callback}"
                )
        # Lightning 2.6: before the first epoch of a run `_FitLoop.setup_data` calls iter(), which
        # starts the workers; `_FitLoop.advance` calls `set_epoch` after that.
        elif not begun.abandoned and begun.epoch != epoch:
            self._advise_once(
                f"the loader's workers were started on epoch {begun.epoch} before Lightning "
                f"named it as epoch {epoch}, and will draw the former: {callback}"
            )

    def _advise_prepared(self, epoch: int, position: int) -> None:
        # accelerate 1.15, data_loader.py: `DataLoaderAdapter.__init__` asks a StatefulDataLoader
        # for its state, and torchdata 0.11 starts the workers to answer, which draw at once.
        begun = self._running
        if begun is None or not begun.prepared or begun.sampler_pass.abandoned:
            return
        if (begun.sampler_pass.epoch, 0) != (epoch, position):
            warn(
                f"accelerate started the loader's workers on epoch {begun.sampler_pass.epoch} "
                f"before it was known that epoch {epoch} is to be drawn from draw {position}, and "
                "they will draw the former: name the epoch, or load the state, before "
                "accelerator.prepare()"
            )

    def _advise_once(self, message: str) -> None:
        if not self._has_advised:
            self._has_advised = True
            warn(message)


def _of_all_ranks(owner: str) -> str:
    return f"{owner}(...)" if owner == _PACKS else "FlowSampler(weights)"


def _of_one_rank(owner: str) -> str:
    if owner == _PACKS:
        return f"{owner}(..., num_replicas=ranks, rank=rank)"
    return "DistributedFlowSampler(weights)"


def _refuse_forgotten_epoch(caller: Caller, how: str) -> NoReturn:
    raise RuntimeError(
        "StatefulDataLoader leaves out the draws that it has given out before, but its state does "
        f"not say of which epoch, because {caller.forgetting_part} has no state_dict: {how} before "
        "each epoch"
    )


def _refuse_leaving_out_twice(caller: Caller, position: int) -> None:
    """Refuse a loader that skips draws which the sampler's loaded state has skipped already."""
    if caller.splits_draws == "Lightning":
        raise RuntimeError(
            f"the sampler goes on at draw {position} of its epoch, and Lightning has wrapped it in "
            "one that reads whole epochs: use DistributedFlowSampler(weights)"
        )
    for leaves_out, loader, advice in (
        (caller.fast_forwards, "StatefulDataLoader", "load the loader's state alone"),
        (caller.accelerate_skips, "accelerate's skip_first_batches", "use one of the two"),
    ):
        if leaves_out:
            raise RuntimeError(
                f"the sampler goes on at draw {position} of its epoch, where its loaded state "
                f"says, and {loader} leaves out batches from there on, so that they would be left "
                f"out twice: {advice}"
            )
