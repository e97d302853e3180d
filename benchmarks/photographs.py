"""Shards of photographs, of real size, with loss tables, for the streaming benchmark."""

import io
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from flowdata import LossTable
from flowdata.tar.indexing import index_shards

SHARDS, MANY = 16, 64
"""Shards of most figures; and of those in which the beginning of an epoch shall count for less."""
DRAWN = 0.5
SHARES = (0.05, 0.2, DRAWN, 1.0)
"""Shares of an epoch that are drawn, each by a loss table of its own: mean weights over largest."""


def write_shards(folder: Path, samples: int) -> list[tuple[bytes, int]]:
    """Shards of samples with a JPEG and a class, and their loss tables; the first ones' samples."""
    images = jpegs(np.random.default_rng(0), min(1000, SHARDS * samples))
    written = []
    for shard in tqdm(range(MANY), desc="shards"):
        numbers = range(samples)
        pictures = [images[(shard * 7919 + sample * 31) % len(images)] for sample in numbers]
        write_shard(folder, shard, pictures)
        if shard < SHARDS:
            written += [(picture, sample % 10) for sample, picture in enumerate(pictures)]
    for shards in (SHARDS, MANY):
        index = index_shards(urls_in(str(folder), shards), progress=False)
        for share in SHARES:
            losses = losses_of_mean_weight(len(index), share)
            LossTable.from_losses(losses, index=index).save(losses_in(folder, share, shards))
    return written


def write_shard(folder: Path, shard: int, pictures: Sequence[bytes]) -> None:
    """One shard of samples with a picture and a class."""
    with tarfile.open(folder / f"{shard:02d}.tar", "w") as tar:
        for sample, picture in enumerate(pictures):
            for ext, data in (("jpg", picture), ("cls", str(sample % 10).encode())):
                member = tarfile.TarInfo(f"{shard:02d}-{sample:05d}.{ext}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))


def jpegs(random: np.random.Generator, count: int) -> list[bytes]:
    """Crops of real photographs."""
    import matplotlib
    import sklearn.datasets
    from PIL import Image

    pictures = [Image.fromarray(image) for image in sklearn.datasets.load_sample_images().images]
    data = Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg"
    pictures.append(Image.open(data).convert("RGB"))
    made = []
    for place in range(count):
        picture = pictures[place % len(pictures)]
        width = int(random.integers(300, min(picture.width, picture.height * 4 // 3)))
        height = width * 3 // 4
        left = int(random.integers(0, picture.width - width + 1))
        top = int(random.integers(0, picture.height - height + 1))
        crop = picture.crop((left, top, left + width, top + height)).resize((400, 300))
        file = io.BytesIO()
        crop.save(file, format="JPEG", quality=92)
        made.append(file.getvalue())
    return made


def losses_of_mean_weight(rows: int, share: float) -> np.ndarray[Any, Any]:
    """Losses whose weights at temperature 1 are spread, with this mean over the largest."""
    weights = np.random.default_rng(1).beta(0.9, 1.1, rows)
    weights = np.clip(weights / weights.max(), 1e-9, 1)
    low, high = 0.0, 100.0
    for _ in range(60):  # The mean falls as the power grows.
        power = (low + high) / 2
        low, high = (power, high) if np.mean(weights**power) > share else (low, power)
    losses: np.ndarray[Any, Any] = -power * np.log(weights)
    return losses


def losses_in(folder: Path | str, share: float, shards: int = SHARDS) -> Path:
    """The loss table by which this share of so many shards is drawn."""
    return Path(folder) / f"losses-{share:g}-{shards}.parquet"


def urls_in(place: str, shards: int = SHARDS) -> str:
    """So many shards below a folder or a server."""
    return f"{place.rstrip('/')}/{{00..{shards - 1:02d}}}.tar"
