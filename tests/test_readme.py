"""Every Python example of the README runs, in its order, in one name space."""

import re
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import webdataset as wds
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset
from transformers import AutoModelForCausalLM, AutoTokenizer

import flowdata

README = Path(__file__).parents[1] / "README.md"
EXAMPLES = re.findall(r"^```python\n(.*?)^```", README.read_text(encoding="utf-8"), re.M | re.S)


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(64, 32), nn.ReLU())
        self.head = nn.Linear(32, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(images))


def train(model: nn.Module, loader: DataLoader) -> int:
    """A user's loop; returns the number of samples it saw."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    seen = 0
    for images, labels in loader:
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
        seen += len(labels)
    return seen


@pytest.fixture
def one_process_group(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def pad(rows):
    return {
        name: torch.tensor([(row[name] + [fill] * 4)[:4] for row in rows])
        for name, fill in (("input_ids", 0), ("labels", -100))
    }


def write_digit_shards(digits):
    with wds.ShardWriter("digits-%02d.tar", maxcount=200, verbose=0) as shards:
        for number, (image, label) in enumerate(
            zip(digits.data[:900], digits.target, strict=False)
        ):
            image = (image / 16).astype("float32")
            shards.write({"__key__": f"{number:04d}", "npy": image, "cls": int(label)})


@pytest.mark.slow
@pytest.mark.usefixtures("one_process_group")
def test_every_example_runs_and_its_loader_trains(tmp_path, monkeypatch, capsys, smollm2):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    digits = load_digits()
    images = torch.from_numpy(digits.data).float() / 16
    data = TensorDataset(images, torch.from_numpy(digits.target))
    # A model that knows the task as well as a pre-trained one: its losses are not all alike.
    model = Network()
    for _ in range(5):
        train(model, DataLoader(data, batch_size=32, shuffle=True))

    names = {
        "model": model,
        "data": data,
        "language_model": AutoModelForCausalLM.from_pretrained(smollm2),
        "tokenizer": AutoTokenizer.from_pretrained(smollm2),
        "questions": [
            {"question": f"What is {n} plus {n}?", "answer": f" It is {n + n}."} for n in range(4)
        ],
    }
    names["tokenized"] = [
        {"input_ids": [5, 6, 7, 8], "labels": [-100, -100, 7, 8]},
        {"input_ids": [5, 6, 7], "labels": [-100, 6, 7]},
    ]
    names["pad"] = pad
    write_digit_shards(digits)
    trained = []
    for example in EXAMPLES:
        exec(compile(example, str(README), "exec"), names)
        if "loader = " in example:
            dataset = names["loader"].dataset
            # The stream has loaded a state.
            done = 320 if isinstance(dataset, flowdata.FlowShards) else 0
            assert train(names["model"], names["loader"]) == len(dataset) - done
            trained.append(type(names["loader"].dataset).__name__)
    assert trained == [
        "TensorDataset",
        "TensorDataset",
        "FlowDataset",
        "FlowShards",
        "WeighedRows",
    ]
    assert "effective sample size" in capsys.readouterr().out
    batch = names["data_collator"]([names["train_dataset"][row] for row in range(2)])
    assert names["language_model"](**batch).loss.isfinite()
    assert 0 < sum(1 for _ in names["pipeline"]) < 2 * 900
    assert names["sampler"].state_dict()["position"] == 320


def test_every_file_the_readme_shows_exists():
    shown = re.findall(r"\]\((?!https?:)([^)]+)\)", README.read_text(encoding="utf-8"))
    assert shown
    assert [path for path in shown if not (README.parent / path).exists()] == []
