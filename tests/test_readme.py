"""Every Python example of the README and of the guides runs; what they print is what is shown."""

import itertools
import os
import re
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
import text_models
import torch
import torch.distributed as dist
import webdataset as wds
from frameworks_language import make_model, make_tokenizer
from guides import FURTHER, GUIDES, README, ROOT, Block, blocks, name_of
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset
from vision_language import llava_processor, many_llava, picture

import flowdata

pytestmark = pytest.mark.slow

SHARDED = 900
SAYS = "{% for m in messages %}{{ m.content }} {% endfor %}"
WITH_EXAMPLES = [
    page
    for page in (*GUIDES, *FURTHER)
    # Those on engines run on a cluster, in tests/scoring/engines/test_ray.py.
    if any(block.language == "python" for block in blocks(page)) and page.parent.name != "engines"
]
NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")
LEFT_OUT = "..."


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU())
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


def pad(rows):
    return {
        name: torch.tensor([(row[name] + [fill] * 4)[:4] for row in rows])
        for name, fill in (("input_ids", 0), ("labels", -100))
    }


def write_digit_shards(digits):
    with wds.ShardWriter("digits-%02d.tar", maxcount=200, verbose=0) as shards:
        for number, (image, label) in enumerate(
            zip(digits.data[:SHARDED], digits.target, strict=False)
        ):
            image = (image / 16).astype("float32")
            shards.write({"__key__": f"{number:04d}", "npy": image, "cls": int(label)})


@pytest.fixture
def one_process_group(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture
def names(tmp_path, monkeypatch):
    """What the guides take for given: a model, data, a language model, shards; in a new folder."""
    monkeypatch.chdir(tmp_path)
    # A guide switches guards off and on: whatever they were is put back.
    monkeypatch.setenv("FLOWDATA_GUARDS", os.environ.get("FLOWDATA_GUARDS", ""))
    torch.manual_seed(0)
    digits = load_digits()
    images = torch.from_numpy(digits.data).float() / 16
    data = TensorDataset(images, torch.from_numpy(digits.target))
    # A model that knows the task as well as a pre-trained one: its losses are not all alike.
    model = Network()
    for _ in range(5):
        train(model, DataLoader(data, batch_size=32, shuffle=True))
    write_digit_shards(digits)
    tokenizer = make_tokenizer()
    tokenizer.chat_template = SAYS
    tokenized = [
        {"input_ids": [5, 6, 7, 8], "labels": [-100, -100, 7, 8]},
        {"input_ids": [5, 6, 7], "labels": [-100, 6, 7]},
    ]
    language_model = make_model(len(tokenizer))
    theirs = datasets.Dataset.from_list(tokenized).add_column("sequence_weights", [0.5, 1.0])
    theirs.save_to_disk("their-run")
    return {
        "datasets": datasets,
        "flowdata": flowdata,
        "np": np,
        "torch": torch,
        "F": F,
        "DataLoader": DataLoader,
        "model": model,
        "data": data,
        "augmented": data,
        "language_model": language_model,
        "small_model": language_model,
        "tokenizer": tokenizer,
        "questions": [{"question": f"row{row} and", "answer": "so on"} for row in range(4)],
        "tokenized": tokenized,
        "vision_model": many_llava(0)[0],
        "processor": llava_processor(),
        "encoder_decoder": text_models.made(text_models.bart),
        "token_classifier": text_models.made(text_models.LABELLED["BERT, tokens"]),
        "sentences": text_models.label_rows(5, 6),
        "pictures": [(picture(n), "w7 w8", "w9 w10 w11") for n in range(4)],
        "pad": pad,
        "language_table": flowdata.score(language_model, tokenized, flowdata.CausalLM()),
        "keys": list(range(len(data))),
        "rows": datasets.Dataset.from_dict({"key": [0, 1], "labels": [1, 2]}).to_iterable_dataset(),
    }


def run_example(block: Block, page: Path, names: dict) -> None:
    # Lines of a traceback are those of the page.
    code = "\n" * (block.line - 1) + block.text
    exec(compile(code, name_of(page), "exec"), names)


def samples_of(loader: DataLoader) -> int:
    """How many samples a loader of a guide owes: of a stream that has loaded a state, the rest."""
    done = 320 if isinstance(loader.dataset, flowdata.FlowShards) else 0
    return len(loader.sampler if loader.sampler and not done else loader.dataset) - done


def check_map_style(names):
    assert names["sampler"].state_dict()["position"] == 320
    assert len(names["before"]) == len(names["after"])
    assert isinstance(names["after"], torch.utils.data.DistributedSampler)
    for packed in ("packed", "weighted"):
        for batch in names[packed]:
            assert names["language_model"](**batch).loss.isfinite()


def check_reweight(names):
    batch = names["data_collator"](list(names["train_dataset"]))
    assert [w.item() for w in batch["labels"].weights] == pytest.approx(
        names["weights"].values[:2].tolist()
    )
    assert names["loss"].isfinite()


def check_scoring(names):
    assert not torch.equal(names["kept"].head.weight, names["model"].head.weight)
    for name, value in names["old_norms"]["body.1"].items():
        assert torch.equal(names["kept"].state_dict()[f"body.1.{name}"], value)
    assert "cross_fitted" in names["table"].provenance.options
    assert np.isfinite(names["table"].losses).all()


def check_streaming(names):
    assert 0 < sum(1 for _ in names["pipeline"]) < 2 * SHARDED


def check_packing(names):
    packs, table = names["packs"], names["table"]
    [batch] = DataLoader(packs, len(packs), collate_fn=names["collate"])
    expected = table.losses[np.concatenate(packs.plan.at_epoch(1)[:])].mean()
    tokens = table.n_tokens.mean() * len(packs.plan.plan)
    loss = names["language_model"](**batch, num_items_in_batch=tokens).loss
    assert loss.item() == pytest.approx(expected, rel=1e-4)


CHECKS = {
    "map_style": check_map_style,
    "PACKING": check_packing,
    "reweight": check_reweight,
    "scoring": check_scoring,
    "streaming": check_streaming,
}


@pytest.mark.usefixtures("one_process_group")
@pytest.mark.parametrize("page", WITH_EXAMPLES, ids=name_of)
def test_every_example_of_a_guide_runs_and_its_loaders_train(page, names, capsys):
    for block in blocks(page):
        if block.language != "python":
            continue
        run_example(block, page, names)
        if re.search(r"^loader = .*batch_size", block.text, re.M) and "optimizer" not in block.text:
            loader = names["loader"]
            if isinstance(loader.dataset, flowdata.FlowShards) and "load_state" not in block.text:
                continue
            assert train(names["model"], loader) == samples_of(loader)
    subject = page.parent.name if page.name == "README.md" else page.stem
    CHECKS.get(subject, lambda names: None)(names)
    if page.parent.name == "core":
        assert "effective sample size" in capsys.readouterr().out


def assert_printed(shown: str, printed: str) -> None:
    """The lines shown were printed in this order; numbers to ten percent, as processors differ."""
    lines = iter(printed.splitlines())
    for line in shown.splitlines():
        if line.strip() != LEFT_OUT:
            assert any(is_like(line, found) for found in lines), f"{line!r} is not in:\n{printed}"


def is_like(line: str, found: str) -> bool:
    if NUMBER.sub("#", line).split() != NUMBER.sub("#", found).split():
        return False
    pairs = zip(NUMBER.findall(line), NUMBER.findall(found), strict=True)
    values = ((one.replace(",", ""), other.replace(",", "")) for one, other in pairs)
    return all(float(one) == pytest.approx(float(other), rel=0.1) for one, other in values)


def results(page: Path, language: str):
    """(example, what is shown to be its result) for each example that shows one."""
    every = blocks(page)
    return [
        (block, after.text)
        for block, after in itertools.pairwise(every)
        if (block.language, after.language) == (language, "text")
    ]


def test_the_first_quick_start_prints_what_is_shown(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    try:
        [(example, shown)] = results(README, "python")
        assert [example] == [block for block in blocks(README) if block.language == "python"]
        run_example(example, README, {})
    finally:
        torch.set_num_threads(threads)
    assert_printed(shown, capsys.readouterr().out)


def test_the_second_quick_start_prints_what_is_shown(tmp_path, smollm2):
    for folder in (".assets", "tests"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    assert smollm2.parent == ROOT / ".assets"
    [(example, shown)] = results(README, "sh")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["sh", "-ec", example.text],
        cwd=tmp_path,
        env=os.environ | {"PATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert_printed(shown, done.stdout)
