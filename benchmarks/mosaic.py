"""The same samples in the format of mosaicml-streaming, where that is installed."""

import importlib.machinery
import os
import sys
import types
from pathlib import Path
from typing import Any

INSTALL = (
    "pip install --no-deps mosaicml-streaming; "
    "pip install brotli zstd python-snappy catalogue boto3"
)
"""It asks for an older transformers and for torchvision, neither of which its base needs."""

BUCKET = "mds"


def library() -> Any:
    """``streaming.base``; None where it is not installed.

    Its package is called as a script of this folder, and imports torchvision for its vision data
    sets: so the package is found without this folder, and only its base is imported.
    """
    if "streaming.base" not in sys.modules:
        here = str(Path(__file__).parent)
        path = [entry for entry in sys.path if entry != here]
        spec = importlib.machinery.PathFinder.find_spec("streaming", path)
        if spec is None or spec.submodule_search_locations is None:
            return None
        package = types.ModuleType("streaming")
        package.__path__ = list(spec.submodule_search_locations)
        sys.modules["streaming"] = package
    import streaming.base  # type: ignore[import-not-found]

    return streaming.base


def write_shards(folder: Path, samples: list[tuple[bytes, int]], bytes_a_shard: int) -> None:
    """Samples of a JPEG and a class."""
    columns = {"jpg": "bytes", "cls": "int"}
    writer = library().MDSWriter
    with writer(out=str(folder / BUCKET), columns=columns, size_limit=bytes_a_shard) as shards:
        for picture, number in samples:
            shards.write({"jpg": picture, "cls": number})


def dataset(url: str, local: str, *, batch_size: int, buffer: int) -> Any:
    """Its data set over our server.

    It has no downloader for plain HTTP; its S3 one asks any endpoint by HEAD and GET, in single
    ranges. Shuffled in blocks of ``buffer`` samples, or else it mixes (and so waits for) more
    shards than the others.
    """
    os.environ |= {
        "S3_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": "none",
        "AWS_SECRET_ACCESS_KEY": "none",
        "AWS_DEFAULT_REGION": "none",
    }
    library().util.clean_stale_shared_memory()
    data = library().StreamingDataset(
        remote=f"s3://{BUCKET}",
        local=local,
        shuffle=True,
        shuffle_block_size=buffer,
        batch_size=batch_size,
    )
    for stream in data.streams:
        # Workers that are forked would share this process' connection, and take one another's
        # answers (mosaicml-streaming 0.13, with keep-alive).
        stream._downloader.clean_up()  # noqa: SLF001
    return data
