"""MonitorCallback for Lightning's Trainer."""

# The arguments of a hook are Lightning's.
# ruff: noqa: ARG002

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from flowdata.frameworks.lightning_loops import loaders, logs_now, trained
from flowdata.frameworks.monitored import MonitoredLoader
from flowdata.monitoring.monitor import Monitor

_MONITOR = "monitor"


class MonitorCallback(Callback):
    """Counts for a `flowdata.Monitor` what the trainer draws, and logs its figures.

    They go to the trainer's loggers by ``log_dict``, every ``log_every_n_steps``, and are of all
    ranks. What was counted is saved in each checkpoint. Name it beside FlowCallback, which sets
    the epochs.

    Args:
        monitor: of the sampler or data set, or of its weights.

    Raises:
        ValueError: on training, where it is not known what is drawn.
        MismatchError: on training, for a Monitor of other rows, and on resuming, for one of other
            weights or options.

    >>> from flowdata.frameworks.lightning import FlowCallback, MonitorCallback
    >>> # Trainer(callbacks=[FlowCallback(), MonitorCallback(flowdata.Monitor(weights))])
    """

    def __init__(self, monitor: Monitor) -> None:
        self.monitor = monitor
        self._loader: MonitoredLoader | None = None
        self._loaded: Any = None
        self._assumes = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Go on from what the checkpoint says was counted."""
        self.monitor.reset()
        self._loader = None
        self._assumes = self._loaded is None and trained(trainer) != (0, 0)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find what is drawn from again with the first batch, when all is in its place."""
        self._loader = None

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Note which epoch is drawn."""
        if self._loader is not None:
            return
        self._loader = MonitoredLoader(self.monitor, *loaders(trainer), ranks=trainer.world_size)
        if self._loaded is not None:
            self.monitor.load_state_dict(self._loaded)
        self._loader.look(batch_idx, assume=self._assumes)
        self._loaded, self._assumes = None, False

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Count a batch, and log the figures where Lightning logs."""
        assert self._loader is not None
        self._loader.trained(batch_idx)
        if logs_now(trainer):
            pl_module.log_dict(
                # Lightning ends a batch on all ranks, and they log at the same steps.
                self.monitor.figures(gather=trainer.world_size > 1),
                on_step=True,
                on_epoch=False,
                batch_size=1,
                rank_zero_only=True,
            )

    def state_dict(self) -> dict[str, Any]:
        """What was counted, also where nothing was added to what was loaded."""
        return {_MONITOR: self.monitor.state_dict() if self._loaded is None else self._loaded}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the state until it is known what is drawn from."""
        self._loaded = state_dict.get(_MONITOR)
