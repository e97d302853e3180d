"""A plain training, and one that goes on from a state, where a library has renamed something.

usage: renamed_library.py PACKAGE NAME[,NAME...] SCENARIO

The package is imported from its own source, in which the names are others throughout, as in a
release that renamed them. The training is one that uses flowdata as it should be: whatever
flowdata warns of is an error.
"""

import importlib.machinery
import re
import sys
import tempfile
import warnings


class Renamed(importlib.machinery.SourceFileLoader):
    """Loads a module from its source, with names in it replaced, and from no cache."""

    def get_code(self, fullname):
        source = self.get_data(self.path).decode()
        found.update(NAMES.findall(source))
        return self.source_to_code(NAMES.sub(r"\1_renamed", source), self.path)


class Finder:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] != PACKAGE.partition(".")[0] or not name.startswith(PACKAGE):
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is not None and type(spec.loader) is importlib.machinery.SourceFileLoader:
            spec.loader = Renamed(name, spec.loader.path)
        return spec


PACKAGE, names, SCENARIO = sys.argv[1:]
NAMES = re.compile(rf"\b({names.replace(',', '|')})\b")
found = set()
sys.meta_path.insert(0, Finder)

import numpy as np  # noqa: E402
import torch  # noqa: E402
from torch.utils.data import DataLoader, Subset  # noqa: E402

import flowdata  # noqa: E402

warnings.simplefilter("error", flowdata.FlowDataWarning)
ROWS, SEED = 24, 3
WEIGHTS = np.random.default_rng(0).random(ROWS)
FEATURES = torch.rand(ROWS, 3)


def planned(epoch):
    return flowdata.EpochPlan(WEIGHTS, seed=SEED, epoch=epoch)[:].tolist()


def rows_in(loader):
    return torch.cat(list(loader)).tolist()


def plain():
    """Samplers, data sets of draws and weighted targets under torch's own loader."""
    sampler = flowdata.FlowSampler(WEIGHTS, seed=SEED)
    loader = DataLoader(range(ROWS), 4, sampler=sampler, num_workers=2)
    assert [rows_in(loader) for _ in range(2)] == [planned(0), planned(1)]
    resumed = flowdata.FlowSampler(WEIGHTS, seed=SEED)
    resumed.load_state_dict(sampler.state_dict(position=8))
    assert rows_in(DataLoader(range(ROWS), 4, sampler=resumed)) == planned(1)[8:]

    items = flowdata.FlowDataset(range(ROWS), WEIGHTS, seed=SEED)
    around = Subset(items, range(ROWS))
    for data in (items, around):
        begun = items.epoch + (data is around)
        assert rows_in(DataLoader(data, 4)) == planned(begun)
    items.set_epoch(5)
    again = flowdata.FlowDataset(range(ROWS), WEIGHTS)
    again.load_state_dict(items.state_dict())
    assert rows_in(DataLoader(again, 4)) == planned(5)

    labels = torch.arange(ROWS) % 2
    data, collate = flowdata.reweight.reweight(
        list(zip(FEATURES, labels, strict=True)), WEIGHTS, normalize=None
    )
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for inputs, targets in DataLoader(data, ROWS, collate_fn=collate):
        losses = torch.nn.functional.cross_entropy(model(inputs), labels, reduction="none")
        loss = torch.nn.functional.cross_entropy(model(inputs), targets)
        loss.backward()
        optimizer.step()
        expected = (losses * torch.tensor(WEIGHTS)).mean().item()
        assert abs(loss.item() - expected) < 1e-5


def accelerate():
    """A sampler in a prepared loader; its state goes on in another."""
    from accelerate import Accelerator

    sampler = flowdata.FlowSampler(WEIGHTS, seed=SEED)
    loader = Accelerator(cpu=True).prepare(DataLoader(range(ROWS), 4, sampler=sampler))
    for epoch in range(2):
        loader.set_epoch(epoch)
        assert rows_in(loader) == planned(epoch)
    resumed = flowdata.FlowSampler(WEIGHTS, seed=SEED)
    resumed.load_state_dict(sampler.state_dict(position=8))
    rest = Accelerator(cpu=True).prepare(DataLoader(range(ROWS), 4, sampler=resumed))
    rest.set_epoch(1)
    assert rows_in(rest) == planned(1)[8:]


def lightning():
    """A rank sampler and FlowCallback; a second run goes on from the first one's checkpoint."""
    import lightning
    from lightning.pytorch.callbacks import ModelCheckpoint

    from flowdata.frameworks.lightning import FlowCallback

    drawn = []

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(3, 1)

        def training_step(self, rows, _):
            drawn.extend(rows.tolist())
            return self.layer(FEATURES[rows]).mean()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    with tempfile.TemporaryDirectory() as folder:
        for steps, checkpoint in ((8, None), (12, f"{folder}/step=8.ckpt")):
            sampler = flowdata.DistributedFlowSampler(WEIGHTS, seed=SEED, num_replicas=1, rank=0)
            trainer = lightning.Trainer(
                accelerator="cpu",
                max_steps=steps,
                callbacks=[
                    FlowCallback(),
                    ModelCheckpoint(folder, "{step}", every_n_train_steps=8),
                ],
                logger=False,
                enable_progress_bar=False,
                enable_model_summary=False,
            )
            loader = DataLoader(range(ROWS), 4, sampler=sampler)
            trainer.fit(Module(), loader, ckpt_path=checkpoint)
    assert drawn == planned(0) + planned(1)


def trainer():
    """A FlowDataset under the transformers Trainer."""
    from transformers import Trainer, TrainingArguments

    drawn = []

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(3, 1)

        def forward(self, row):
            drawn.extend(row.tolist())
            return {"loss": self.layer(FEATURES[row]).mean()}

    rows = [{"row": row} for row in range(ROWS)]
    with tempfile.TemporaryDirectory() as folder:
        for steps, checkpoint in ((8, None), (12, True)):
            arguments = TrainingArguments(
                folder,
                max_steps=steps,
                per_device_train_batch_size=4,
                train_sampling_strategy="sequential",
                save_steps=8,
                report_to="none",
                use_cpu=True,
                disable_tqdm=True,
            )
            data = flowdata.FlowDataset(rows, WEIGHTS, seed=SEED)
            Trainer(Model(), arguments, train_dataset=data).train(resume_from_checkpoint=checkpoint)
    assert drawn == planned(0) + planned(1)


{"plain": plain, "accelerate": accelerate, "lightning": lightning, "trainer": trainer}[SCENARIO]()
missing = set(names.split(",")) - found
assert not missing, f"{missing} are nowhere in {PACKAGE}: what relies on them never finds them"
