"""Write a folder of assets for the language benchmark: made-up texts, and a model of two layers.

Arguments: the folder of the benchmarks, and that of the assets.
"""

import json
import struct
import sys
import zlib
from itertools import cycle, islice
from pathlib import Path

WORDS = "the quiet garden of her sister was seldom seen by any visitor who walked from town"
GENERATORS = """
def made(number):
    def generate(random, difficulty):
        first, second = random.randrange(900), random.randrange(900)
        question = f"{number}: how much are {first} and {second}?"
        return {"question": question, "metadata": {"answer_cot": f"{first + second} apples"}}
    return generate


for number in range(BEGIN, BEGIN + 50):
    globals()[f"generate_{number}"] = made(number)
"""
FAMILY = """
class NAMEConfig:
    def __init__(self, seed, size, **options):
        self.seed, self.size = seed, size


class NAMEDataset:
    def __init__(self, config):
        self.seed = config.seed

    def __getitem__(self, place):
        return {"question": f"What is {place}?", "answer": self.seed + place}
"""


def sentence(number: int) -> str:
    """One of 40 to 140 characters."""
    return " ".join(islice(cycle(WORDS.split()), number % 16, number % 16 + 12)) + f" {number}."


def novel(number: int) -> bytes:
    """A vector of lines as R compresses it: paragraphs of six sentences each."""
    lines = []
    for begin in range(1000 * number, 1000 * number + 60, 6):
        lines += [sentence(part) for part in range(begin, begin + 6)] + [""]
    content = struct.pack(">ii", 16, len(lines))
    for line in map(str.encode, lines):
        content += struct.pack(">ii", 9 | 64 << 12, len(line)) + line
    return struct.pack(">i", len(content)) + zlib.compress(content)


def write_model(folder: Path) -> None:
    """A language model of letters, whose token 0 is in no text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: place for place, token in enumerate(["<end>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>").save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=512,
        initializer_range=0.3,
        eos_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(folder)


def main(benchmarks: str, folder: str) -> None:
    """Write all of them, where `assets.fetch` looks for them."""
    sys.path.insert(0, benchmarks)
    import torch
    from assets import CHATTERBOT_CHATS
    from skills import FAMILIES

    target = Path(folder)

    def write(name: str, content: str) -> None:
        path = target / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)

    for package in CHATTERBOT_CHATS:
        topic = Path(package.member).stem
        chats = [[f"What of {topic} {number}?", f"Say {number}."] for number in range(8)]
        write(f"chatterbot-corpus/{topic}.yml", json.dumps({"conversations": chats}))
    for begin in (0, 50):
        file = f"reasoning-gym/generators_{begin:02d}_{begin + 49}.py"
        write(file, GENERATORS.replace("BEGIN", str(begin)))
    write("reasoning-gym/utils.py", "")
    write("reasoning-gym/dataset.py", "class ProceduralDataset:\n    pass\n")
    for family in FAMILIES.values():
        write(f"reasoning-gym/{family.file}", FAMILY.replace("NAME", family.classes))
    (target / "r-cran-janeaustenr").mkdir()
    (target / "r-cran-janeaustenr/Rdata.rdb").write_bytes(b"".join(map(novel, range(6))))
    torch.manual_seed(0)
    write_model(target / "smollm2-135m-instruct")


if __name__ == "__main__":
    main(*sys.argv[1:])
