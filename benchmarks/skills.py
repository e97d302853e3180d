"""Skills: small tasks of reasoning-gym that a model was not tuned on, as multiple choice."""

import functools
import importlib.util
import sys
import types
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from assets import REASONING_GYM, Package, fetch
from texts import Question

_PARENT = "reasoning_gym"
_FILES = {
    "dataset.py": "480caacca5b12865e13bac68937687a799977e040ace5ae0496e71c1d77971e6",
    "arithmetic/chain_sum.py": "7e811214e9e31aa67eeb5490a0cf8eb275fceab609c4523bb38ceec9f8dbcb9f",
    "arithmetic/basic_arithmetic.py": (
        "9eb222cd9393ee7ce9e60e3cb2d00ba2da038aa0737f9fe46b866b3a6a682934"
    ),
    "arithmetic/decimal_chain_sum.py": (
        "1a4b13aceb3fc50dce3921f109b9d5b0d53aaa9c6eafc7acb01dd2988c15cc3e"
    ),
    "arithmetic/fraction_simplification.py": (
        "54a6641f90029f4c2a396e577d62ba950e141fa208072055fa20940ad64678ab"
    ),
    "arithmetic/calendar_arithmetic.py": (
        "ad06cec5be9c14889c4860482218aecba128815b1357a1ee410b3aac4be54120"
    ),
    "arithmetic/leg_counting.py": (
        "6b530e05a8c6725406f9d32f583f7da0531b50ed06c702beb04874f88c72dcd7"
    ),
    "cognition/number_sequences.py": (
        "55e52b526312c06e57872d25b9ae250ddb7ec2723f35f7fcc7795cf17594f68d"
    ),
    "algorithmic/number_filtering.py": (
        "ce86534027aad338ce6732efa1a78b58b4e27bce411ec65df9ab64a4fb198001"
    ),
    "algorithmic/rotate_matrix.py": (
        "264be4a9224025935878fbefa458bc6a364ef31f97bc9e8cc051824977591579"
    ),
    "algorithmic/palindrome_generation.py": (
        "6823b3787d901f0135c6483546b416d49f107046432eebb14749b67f73d2f7de"
    ),
}
_PACKAGES = tuple(
    Package("PyPI", "reasoning-gym==0.1.25", f"{_PARENT}/{name}", sha256)
    for name, sha256 in _FILES.items()
)


@dataclass(frozen=True)
class Family:
    """A generator of reasoning-gym: its file, the names of its classes, and how large tasks are."""

    file: str
    classes: str
    options: tuple[tuple[str, Any], ...] = ()


FAMILIES = {
    "sums": Family("chain_sum.py", "ChainSum"),
    "arithmetic": Family("basic_arithmetic.py", "BasicArithmetic"),
    "decimals": Family("decimal_chain_sum.py", "DecimalChainSum"),
    "fractions": Family("fraction_simplification.py", "FractionSimplification"),
    "calendar": Family("calendar_arithmetic.py", "CalendarArithmetic"),
    "legs": Family("leg_counting.py", "LegCounting", (("max_animals", 4),)),
    "sequences": Family("number_sequences.py", "NumberSequence"),
    "filtering": Family("number_filtering.py", "NumberFiltering", (("max_numbers", 5),)),
    "matrices": Family("rotate_matrix.py", "RotateMatrix", (("max_n", 3),)),
    "palindromes": Family("palindrome_generation.py", "Palindrome"),
}


SEEDS_APART = 10_000
"""An item of a generator is that of (seed + its number)."""


def skills(family: str, count: int, seed: int) -> list[Question]:
    """Questions of a family with three wrong answers: right ones of other questions of it."""
    made = FAMILIES[family]
    module = _modules()[made.file]
    config = _class(module, made.classes, "Config")(
        **dict(made.options), seed=SEEDS_APART * seed, size=8 * count + 32
    )
    dataset = _class(module, made.classes, "Dataset")(config)
    items = [dataset[place] for place in range(config.size)]
    pairs = [(item["question"].strip(), str(item["answer"]).strip()) for item in items]
    answers = list(dict.fromkeys(answer for _, answer in pairs))
    random = Random(seed)
    return [
        Question(
            question,
            answer,
            tuple(random.sample([other for other in answers if other != answer], 3)),
        )
        for question, answer in pairs[:count]
    ]


def _class(module: types.ModuleType, name: str, kind: str) -> Any:
    """Its own class of a kind; BasicArithmeticDatasetConfig is one, too."""
    return getattr(module, f"{name}{kind}", None) or getattr(module, f"{name}Dataset{kind}")


@functools.cache
def _modules() -> dict[str, types.ModuleType]:
    """The files of the families; what they import of the package around them is stood in for.

    The package imports eleven others. Its generators need a base class, and register themselves
    with curricula, which are not used here.
    """
    files = {package.member: fetch(package) for package in _PACKAGES}
    _stand_in(_PARENT)
    if f"{_PARENT}.utils" not in sys.modules:
        _load(f"{_PARENT}.utils", fetch(REASONING_GYM[-1]))
    dataset = _load(f"{_PARENT}.dataset", files.pop(f"{_PARENT}/dataset.py"))
    _stand_in(f"{_PARENT}.coaching")
    factory = _stand_in(f"{_PARENT}.factory")
    factory.ProceduralDataset = dataset.ProceduralDataset  # type: ignore[attr-defined]
    found = {}
    for member, file in files.items():
        package = member.removesuffix(".py").replace("/", ".")
        _stand_in(package.rpartition(".")[0])
        found[file.name] = _load(package, file)
    return found


class _Anything(types.ModuleType):
    """A module in which every name is a class that takes anything, and does nothing."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {"__init__": lambda *_, **__: None})


def _stand_in(name: str) -> types.ModuleType:
    module = sys.modules.setdefault(name, _Anything(name))
    if not hasattr(module, "__path__"):
        module.__path__ = []
    return module


def _load(name: str, file: Path) -> types.ModuleType:
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
