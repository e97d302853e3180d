"""A run under Lightning's Trainer that was stopped, and what its FlowCallback saved."""

import json
from typing import Any, NamedTuple

import torch
from golden_inputs import loader_over

EPOCH, BATCH, STOPPED = 48, 4, 5


class Training(NamedTuple):
    """Two epochs, stopped inside the first one.

    Attributes:
        make: (folder, seed) -> data set and sampler of the loader.
        seeds: of the run that is stopped, and of the one that goes on.
    """

    make: Any
    seeds: tuple[int, int]

    def interrupted(self, folder):
        """What the callback saved, by the name it has there, and the rows left of the epoch."""
        rows = self._rows(folder, self.seeds[0])
        return self._checkpoint(folder)["callbacks"], rows[BATCH * STOPPED : EPOCH]

    def resumed(self, folder, state):
        """What follows of both epochs where a checkpoint has the saved state."""
        torch.save(self._checkpoint(folder) | {"callbacks": state}, folder / "stopped.ckpt")
        rows = self._rows(folder, self.seeds[1], checkpoint=folder / "stopped.ckpt")
        return [rows[:-EPOCH], rows[-EPOCH:]]

    def _checkpoint(self, folder):
        """That of a run which is stopped, without the state of Lightning's own callback."""
        from lightning.pytorch.callbacks import ModelCheckpoint

        (folder / "stopped.ckpt").unlink(missing_ok=True)
        saving = ModelCheckpoint(folder, "stopped", every_n_train_steps=STOPPED)
        self._rows(folder, self.seeds[0], steps=STOPPED, callbacks=[saving])
        checkpoint = torch.load(folder / "stopped.ckpt", weights_only=False)
        saved = checkpoint["callbacks"].items()
        own = {name: state for name, state in saved if "ModelCheckpoint" not in name}
        return checkpoint | {"callbacks": json.loads(json.dumps(own))}

    def _rows(self, folder, seed, *, steps=2 * EPOCH // BATCH, checkpoint=None, callbacks=()):
        """Rows that a run trains on."""
        import lightning

        from flowdata.frameworks.lightning import FlowCallback

        class Reading(lightning.LightningModule):
            def __init__(self):
                super().__init__()
                self.layer, self.read = torch.nn.Linear(1, 1), []

            def training_step(self, batch, _):
                self.read += batch
                return self.layer(torch.ones(1)).sum()

            def configure_optimizers(self):
                return torch.optim.SGD(self.parameters(), lr=0.1)

        data, sampler = self.make(folder, seed)
        module = Reading()
        trainer = lightning.Trainer(
            max_steps=steps,
            accelerator="cpu",
            callbacks=[FlowCallback(), *callbacks],
            enable_checkpointing=bool(callbacks),
            enable_model_summary=False,
            enable_progress_bar=False,
            logger=False,
        )
        trainer.fit(module, loader_over(data, 0, BATCH, sampler=sampler), ckpt_path=checkpoint)
        return module.read
