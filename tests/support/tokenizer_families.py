"""Small fast tokenizers of each family in transformers, and a chat template for them."""

from functools import cache

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

CHATML = (
    "{% for m in messages %}{{'<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{'<|im_start|>assistant\n'}}{% endif %}"
)
CONTROL = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
CORPUS = [
    "def f(x):\n    if x:\n        return 1;\n\n    else:\n\treturn  2\n",
    "The quick brown fox jumps over the lazy dog. Hello, world! user assistant system",
    "héllo wörld ﬁne 日本語 テスト ½ 😀😀 emoji مرحبا ①②",
] * 4
# tiktoken's cl100k: punctuation and the ends of lines after it are one word.
CL100K = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _byte_level(*, trim=False, space=False, split=None, pair=False):
    made = Tokenizer(models.BPE())
    level = pre_tokenizers.ByteLevel(add_prefix_space=space, use_regex=split is None)
    made.pre_tokenizer = (
        level
        if split is None
        else pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(split), "isolated"), level])
    )
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    _train(made, trainers.BpeTrainer, vocab_size=500, initial_alphabet=alphabet)
    made.post_processor = (
        processors.RobertaProcessing(("</s>", 2), ("<s>", 1), trim_offsets=trim)
        if pair
        else processors.ByteLevel(trim_offsets=trim)
    )
    return made


def _metaspace(*, scheme="always", split=True, begin=True):
    made = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=split)
    made.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    _train(made, trainers.BpeTrainer, vocab_size=500, special_tokens=CONTROL + BYTES)
    return _around(made, "<s>", "") if begin else made


def _llama2():
    made = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    made.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    _train(made, trainers.BpeTrainer, vocab_size=500, special_tokens=CONTROL + BYTES)
    return _around(made, "<s>", "")


def _unigram(*, after="", split=True, strip=False):
    made = Tokenizer(models.Unigram())
    made.normalizer = normalizers.Sequence(
        [
            normalizers.NFKC(),
            normalizers.Replace(Regex(" {2,}"), " "),
            *([normalizers.Strip()] if strip else []),
        ]
    )
    made.pre_tokenizer = pre_tokenizers.Metaspace(split=split)
    made.decoder = decoders.Metaspace()
    _train(made, trainers.UnigramTrainer, vocab_size=300, unk_token="<unk>")
    return _around(made, "", after)


def _word_piece(**options):
    made = Tokenizer(models.WordPiece(unk_token="<unk>"))
    made.normalizer = normalizers.BertNormalizer(**options)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    _train(made, trainers.WordPieceTrainer, vocab_size=300)
    return _around(made, "<s>", "</s>")


def _words():
    made = Tokenizer(models.WordLevel(unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    _train(made, trainers.WordLevelTrainer, vocab_size=200)
    return made


def _end_of_word():
    made = Tokenizer(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
    made.normalizer = normalizers.BertNormalizer()
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.BPEDecoder(suffix="</w>")
    _train(made, trainers.BpeTrainer, vocab_size=400, end_of_word_suffix="</w>")
    return made


def _around(made, before, after):
    pieces = " ".join(filter(None, (before, "$A", after)))
    added = [(token, made.token_to_id(token)) for token in (before, after) if token]
    made.post_processor = processors.TemplateProcessing(single=pieces, special_tokens=added)
    return made


def _train(made, trainer, **options):
    options = {"special_tokens": CONTROL, "show_progress": False} | options
    made.train_from_iterator(CORPUS, trainer(**options))


FAMILIES = {
    "byte-level": _byte_level,
    "byte-level, trimmed": lambda: _byte_level(trim=True),
    "byte-level, trimmed, space before": lambda: _byte_level(trim=True, space=True),
    "byte-level, cl100k": lambda: _byte_level(split=CL100K),
    "byte-level, cl100k, trimmed": lambda: _byte_level(trim=True, split=CL100K),
    "roberta": lambda: _byte_level(trim=True, space=True, pair=True),
    "metaspace": _metaspace,
    "metaspace, first": lambda: _metaspace(scheme="first"),
    "metaspace, never, whole": lambda: _metaspace(scheme="never", split=False, begin=False),
    "llama 2": _llama2,
    "unigram": _unigram,
    "unigram, whole": lambda: _unigram(split=False),
    "unigram, stripped": lambda: _unigram(strip=True),
    "t5": lambda: _unigram(after="</s>"),
    "word piece": _word_piece,
    "word piece, cased": lambda: _word_piece(lowercase=False, strip_accents=False),
    "words": _words,
    "gpt 1": _end_of_word,
}


@cache
def family(name, *, strips=False):
    """A tokenizer; with ``strips`` its control tokens take the white space around them."""
    found = PreTrainedTokenizerFast(
        tokenizer_object=FAMILIES[name](), unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )
    if strips:
        found.add_special_tokens(
            {
                "additional_special_tokens": [
                    AddedToken(token, lstrip=True, rstrip=True, special=True)
                    for token in ("<|im_start|>", "<|im_end|>")
                ]
            }
        )
    found.chat_template = CHATML
    return found
