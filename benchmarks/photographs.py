"""Shards of photographs, of real size, with a loss table, for the streaming benchmark."""

import io
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from flowdata import LossTable
from flowdata.tar.indexing import index_shards

SHARDS = 20
ACCEPTED = 0.45
"""Mean weight over the largest."""


def write_shards(folder: Path, samples: int) -> None:
    """Shards of samples with a JPEG and a class, and their loss table."""
    images = jpegs(np.random.default_rng(0), 1000)
    for shard in tqdm(range(SHARDS), desc="shards"):
        with tarfile.open(folder / f"{shard:02d}.tar", "w") as tar:
            for sample in range(samples):
                picture = images[(shard * 7919 + sample * 31) % len(images)]
                for ext, data in (("jpg", picture), ("cls", str(sample % 10).encode())):
                    member = tarfile.TarInfo(f"{shard:02d}-{sample:05d}.{ext}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
    index = index_shards(urls_in(str(folder)), progress=False)
    losses = losses_of_mean_weight(len(index))
    LossTable.from_losses(losses, index=index).save(folder / "losses.parquet")


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


def losses_of_mean_weight(rows: int) -> np.ndarray[Any, Any]:
    """Losses whose weights at temperature 1 are evenly spread, with mean 0.45 of the largest."""
    weights = np.random.default_rng(1).beta(0.9, 1.1, rows)
    weights /= weights.max()
    return -np.log(np.clip(weights ** (np.log(ACCEPTED) / np.log(weights.mean())), 1e-12, 1))


def urls_in(place: str) -> str:
    """The shards below a folder or a server."""
    return f"{place.rstrip('/')}/{{00..{SHARDS - 1:02d}}}.tar"
