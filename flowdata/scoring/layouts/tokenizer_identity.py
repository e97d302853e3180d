"""What of a tokenizer decides which tokens a text becomes, as a hash."""

import json
from typing import Any

import xxhash


def tokenizer_hash(tokenizer: Any) -> str:
    """A hash of all that decides which tokens a text becomes."""
    try:
        state = json.loads(tokenizer.backend_tokenizer.to_str())
    # tokenizers 0.22, Tokenizer.to_str: a plain Exception for parts written in Python.
    except Exception:
        state = tokenizer.get_vocab()
    # Texts are tokenized whole and alone, whatever the tokenizer was last used for.
    state |= {"truncation": None, "padding": None}
    return value_hash([state, tokenizer.special_tokens_map, tokenizer.eos_token_id])


def value_hash(value: Any) -> str:
    """A hash of a value, JSON-able as far as it goes."""
    written = json.dumps(value, sort_keys=True, default=str)
    return xxhash.xxh3_128(written.encode()).hexdigest()
