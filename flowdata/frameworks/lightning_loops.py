"""Where Lightning's loops are, and how its loader workers are started again."""

from importlib.metadata import version
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.utilities import CombinedLoader


def trained(trainer: Trainer) -> tuple[int, int]:
    """The epoch, and the batches of it that were trained on, as Lightning counts them.

    Lightning 2.6, loops: `processed` is raised after the step of a batch, and after the last
    batch of an epoch, before the hooks in which checkpoints are saved.
    """
    loop: Any = trainer.fit_loop
    epochs = loop.epoch_progress.current
    begun = epochs.started > epochs.processed
    return epochs.processed, loop.epoch_loop.batch_progress.current.processed if begun else 0


def check_saved(trainer: Trainer) -> None:
    """Refuse a checkpoint that does not say where in its epoch it was taken."""
    progress: Any = trainer.fit_loop.epoch_loop.batch_progress
    batches = progress.current.processed
    if trainer.ckpt_path is not None and 0 < batches < trainer.num_training_batches:
        raise RuntimeError(
            f"the checkpoint was taken after batch {batches} of an epoch by a run without "
            "FlowCallback, so it is not known which draws were trained on: resume from a "
            "checkpoint taken at the end of an epoch"
        )


def check_count(trainer: Trainer, *places: tuple[int, int]) -> None:
    """Refuse to go on where Lightning goes on elsewhere than at one of these places."""
    # Lightning 2.6: LearningRateFinder and BatchSizeFinder end by restoring a checkpoint of their
    # own, in `on_fit_start`, after which that of `ckpt_path` is not read to its end.
    epoch, batches = trained(trainer)
    if (epoch, batches) not in places:
        raise RuntimeError(
            f"the checkpoint was taken after batch {places[0][1]} of epoch {places[0][0]}, and "
            f"Lightning goes on after batch {batches} of epoch {epoch}: leave LearningRateFinder "
            "and BatchSizeFinder out of the callbacks of a run that resumes, as Lightning forgets "
            "by them where it was"
        )


def logs_now(trainer: Trainer) -> bool:
    """Whether Lightning hands its loggers what is logged in this step."""
    # Lightning 2.6, trainer/connectors/logger_connector: nothing public says so.
    return bool(
        getattr(getattr(trainer, "_logger_connector", None), "should_update_logs", True)
        or trainer.fast_dev_run  # type: ignore[attr-defined]
    )


def begin_epoch(trainer: Trainer) -> None:
    """Have Lightning count from the first batch where it saved before that.

    Lightning 2.6, loops: a checkpoint of `on_train_epoch_start` has the batches of the epoch
    before in its `batch_progress`, so that the epoch would end at once.
    """
    loop: Any = trainer.fit_loop
    if getattr(loop, "restarted_on_epoch_start", False):
        loop.epoch_loop.batch_progress.reset_on_run()


def overfits(trainer: Trainer) -> float:
    """The batches that are trained on again and again, or their share; 0 if there are none."""
    return getattr(trainer, "overfit_batches", 0)


def loaders(trainer: Trainer) -> list[Any]:
    """The loaders in whatever collection of them is trained on."""
    return list(CombinedLoader(trainer.train_dataloader).flattened)


def begins_shorter_loaders_again(trainer: Trainer) -> bool:
    """Whether a loader that comes to its end before others is gone through again."""
    return getattr(_part_of_fit_loop(trainer, "_combined_loader"), "_mode", "") == "max_size_cycle"


# Lightning 2.6, pytorch/loops/fit_loop.py: `_FitLoop.setup_data` and `advance` call iter() on the
# data fetcher, which calls iter() on the combined loader, which starts the workers. Nothing public
# stops and starts them again.
def stop_workers(trainer: Trainer) -> None:
    """End what was started on an epoch, or in a place, that was not known yet."""
    _part_of_fit_loop(trainer, "_combined_loader").reset()


def starts_workers_itself(trainer: Trainer) -> bool:
    """Whether Lightning starts the workers, a second time, after `on_train_epoch_start`."""
    # Lightning 2.6, pytorch/loops/training_epoch_loop.py: `on_run_start`.
    loop: Any = trainer.fit_loop
    goes_on = loop.restarting or getattr(loop, "is_resuming", False)
    return trainer.current_epoch > 0 and not (goes_on or loop.epoch_loop.restarting)


def start_workers(trainer: Trainer) -> None:
    """Have the loaders begin a pass."""
    iter(_part_of_fit_loop(trainer, "_data_fetcher"))


def _part_of_fit_loop(trainer: Trainer, name: str) -> Any:
    part = getattr(trainer.fit_loop, name, None)
    if part is None:
        raise RuntimeError(
            f"Lightning {version('lightning')} has no fit_loop.{name}, by which FlowCallback "
            "starts loader workers again on the right epoch: use Lightning 2.5 or 2.6"
        )
    return part
