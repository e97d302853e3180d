"""A shard of small images with a class each, as webdataset's own tests read."""

import gzip
import io
import json
import tarfile

import numpy as np
import PIL.Image


def write_images(path, samples):
    """A compressed shard of so many samples, each an image of one colour and its number."""
    with tarfile.open(path, "w:gz") as tar:
        for number in range(samples):
            fields = {
                "png": png(number),
                "cls": str(number).encode(),
                "wnid": f"n{number}".encode(),
                "json": json.dumps({"number": number}).encode(),
                "txt.gz": gzip.compress(b"hello\n"),
            }
            for ending, content in fields.items():
                member = tarfile.TarInfo(f"{number:04d}.{ending}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


def png(number):
    content = io.BytesIO()
    PIL.Image.fromarray(np.full((5, 4, 3), number, dtype=np.uint8)).save(content, "png")
    return content.getvalue()
