"""Small models of text of many families, rows of uneven length for them, and their own losses."""

import numpy as np
import torch
import transformers as tr

VOCABULARY = 97
ROWS = 40

_SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    # So that the losses of random models differ.
    "initializer_range": 0.5,
}
_GROUPED = {**_SIZES, "num_key_value_heads": 2, "head_dim": 8}
_EXPERTS = {**_GROUPED, "intermediate_size": 32, "sliding_window": 4}
_BART = {
    "vocab_size": VOCABULARY,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "init_std": 0.5,
}
_T5 = {
    "vocab_size": VOCABULARY,
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 48,
    "num_layers": 2,
    "num_heads": 4,
    "initializer_factor": 1.5,
    "decoder_start_token_id": 0,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 20,
}
_MAMBA = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 8}
_XLNET = {
    "vocab_size": VOCABULARY,
    "d_model": 32,
    "n_layer": 2,
    "n_head": 4,
    "d_inner": 48,
    "initializer_range": 0.5,
}


def qwen3_moe(**options):
    return tr.Qwen3MoeForCausalLM(
        tr.Qwen3MoeConfig(
            **_GROUPED,
            num_experts=4,
            num_experts_per_tok=2,
            moe_intermediate_size=32,
            **options,
        )
    )


CAUSAL = {
    "Llama": lambda: tr.LlamaForCausalLM(tr.LlamaConfig(**_SIZES)),
    "Qwen3": lambda: tr.Qwen3ForCausalLM(tr.Qwen3Config(**_GROUPED)),
    "Gemma 3": lambda: tr.Gemma3ForCausalLM(
        tr.Gemma3TextConfig(
            **_GROUPED,
            sliding_window=4,
            final_logit_softcapping=2.0,
            layer_types=["sliding_attention", "full_attention"],
        )
    ),
    "gpt-oss": lambda: tr.GptOssForCausalLM(
        tr.GptOssConfig(**_EXPERTS, num_local_experts=4, num_experts_per_tok=2)
    ),
    "Qwen3 of experts": qwen3_moe,
    "Mamba": lambda: tr.MambaForCausalLM(tr.MambaConfig(**_MAMBA, initializer_range=0.5)),
    "Mamba 2": lambda: tr.Mamba2ForCausalLM(
        tr.Mamba2Config(
            **_MAMBA, num_heads=4, head_dim=16, n_groups=2, chunk_size=16, initializer_range=0.5
        )
    ),
}


def t5_with_tokenizer(words):
    """A model of the words of a text, and letters."""
    pieces = [(f"▁{word}", -2.0) for word in words] + [("▁", -3.0)] + [(c, -5.0) for c in "abcxyz"]
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    tokenizer = tr.T5Tokenizer(vocab=[*special, *pieces], extra_ids=3)
    config = tr.T5Config(**{**_T5, "vocab_size": len(tokenizer)})
    return made(lambda: tr.T5ForConditionalGeneration(config)), tokenizer


def bert2bert():
    sizes = tr.BertConfig(**_SIZES)
    config = tr.EncoderDecoderConfig.from_encoder_decoder_configs(sizes, tr.BertConfig(**_SIZES))
    config.decoder_start_token_id, config.pad_token_id = 1, 0
    return tr.EncoderDecoderModel(config)


def whisper():
    return tr.WhisperForConditionalGeneration(
        tr.WhisperConfig(
            **_BART,
            num_mel_bins=8,
            max_source_positions=20,
            max_target_positions=30,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
            decoder_start_token_id=3,
            suppress_tokens=None,
            begin_suppress_tokens=None,
        )
    )


def image_to_text():
    vit = tr.ViTConfig(
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        intermediate_size=48,
        image_size=16,
        patch_size=4,
    )
    config = tr.VisionEncoderDecoderConfig.from_encoder_decoder_configs(
        vit, tr.BertConfig(**_SIZES)
    )
    config.decoder_start_token_id, config.pad_token_id = 1, 0
    return tr.VisionEncoderDecoderModel(config)


def speech_to_text():
    return tr.Speech2TextForConditionalGeneration(
        tr.Speech2TextConfig(
            **_BART,
            max_source_positions=60,
            max_target_positions=30,
            num_conv_layers=1,
            conv_kernel_sizes=(3,),
            conv_channels=16,
            input_feat_per_channel=8,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
            decoder_start_token_id=3,
        )
    )


def bart():
    return tr.BartForConditionalGeneration(tr.BartConfig(**_BART, max_position_embeddings=128))


def mbart(vocabulary=VOCABULARY):
    sizes = {**_BART, "vocab_size": vocabulary, "max_position_embeddings": 128}
    return tr.MBartForConditionalGeneration(tr.MBartConfig(**sizes))


SEQ2SEQ = {
    "T5": lambda: tr.T5ForConditionalGeneration(tr.T5Config(**_T5)),
    "T5 1.1": lambda: tr.T5ForConditionalGeneration(
        tr.T5Config(**_T5, tie_word_embeddings=False, feed_forward_proj="gated-gelu")
    ),
    "LongT5": lambda: tr.LongT5ForConditionalGeneration(
        tr.LongT5Config(
            **_T5,
            local_radius=5,
            global_block_size=4,
            encoder_attention_type="transient-global",
        )
    ),
    "BART": bart,
    "mBART": mbart,
    "Marian": lambda: tr.MarianMTModel(
        tr.MarianConfig(
            **_BART, max_position_embeddings=128, pad_token_id=1, decoder_start_token_id=1
        )
    ),
    "M2M100": lambda: tr.M2M100ForConditionalGeneration(
        tr.M2M100Config(**_BART, max_position_embeddings=128)
    ),
    "LED": lambda: tr.LEDForConditionalGeneration(
        tr.LEDConfig(
            **_BART,
            attention_window=8,
            max_encoder_position_embeddings=128,
            max_decoder_position_embeddings=128,
        )
    ),
    "T5Gemma": lambda: tr.T5GemmaForConditionalGeneration(
        tr.T5GemmaConfig(
            encoder={**_GROUPED, "sliding_window": 4},
            decoder={**_GROUPED, "sliding_window": 4, "cross_attention_hidden_size": 32},
            vocab_size=VOCABULARY,
        )
    ),
    "BERT to BERT": bert2bert,
    "Whisper": whisper,
    "Speech2Text": speech_to_text,
    "ViT to BERT": image_to_text,
}

LABELLED = {
    "BERT, tokens": lambda: tr.BertForTokenClassification(tr.BertConfig(**_SIZES, num_labels=5)),
    "BERT, masks": lambda: tr.BertForMaskedLM(tr.BertConfig(**_SIZES)),
    "RoBERTa, masks": lambda: tr.RobertaForMaskedLM(tr.RobertaConfig(**_SIZES, pad_token_id=1)),
    "DeBERTa, tokens": lambda: tr.DebertaV2ForTokenClassification(
        tr.DebertaV2Config(
            **_SIZES,
            num_labels=5,
            relative_attention=True,
            pos_att_type=["c2p", "p2c"],
            position_biased_input=False,
        )
    ),
    "ModernBERT, masks": lambda: tr.ModernBertForMaskedLM(
        tr.ModernBertConfig(
            **_SIZES,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
            cls_token_id=1,
            sep_token_id=2,
            local_attention=8,
        )
    ),
    "Longformer, tokens": lambda: tr.LongformerForTokenClassification(
        tr.LongformerConfig(**_SIZES, num_labels=5, attention_window=8, pad_token_id=1)
    ),
    "XLNet, tokens": lambda: tr.XLNetForTokenClassification(tr.XLNetConfig(**_XLNET, num_labels=5)),
    "Llama, tokens": lambda: tr.LlamaForTokenClassification(tr.LlamaConfig(**_SIZES, num_labels=5)),
}


def bert(**options):
    return tr.BertForSequenceClassification(tr.BertConfig(**_SIZES, **options))


SEQUENCES = {
    "classes": (lambda: bert(num_labels=4), "class"),
    "several labels": (
        lambda: bert(num_labels=4, problem_type="multi_label_classification"),
        "flags",
    ),
    "numbers": (lambda: bert(num_labels=4, problem_type="regression"), "numbers"),
    "Llama": (
        lambda: tr.LlamaForSequenceClassification(
            tr.LlamaConfig(**_SIZES, num_labels=4, pad_token_id=0)
        ),
        "class",
    ),
    # It takes the last token, padding or not.
    "XLNet": (
        lambda: tr.XLNetForSequenceClassification(tr.XLNetConfig(**_XLNET, num_labels=4)),
        "class",
    ),
}


def made(make):
    torch.manual_seed(0)
    return make().eval()


def causal_rows(number=ROWS, seed=0):
    random = np.random.default_rng(seed)
    rows = []
    for length in random.integers(3, 60, size=number).tolist():
        ids = random.integers(0, VOCABULARY, size=length)
        labels = np.where(np.arange(length) < length // 3, -100, ids)
        rows.append({"input_ids": ids.tolist(), "labels": labels.tolist()})
    return rows


def pair_rows(number=ROWS, seed=1):
    """Sources and targets; some labels before the last one are not scored."""
    random = np.random.default_rng(seed)
    rows = []
    for source, target in random.integers(1, (60, 20), size=(number, 2)).tolist():
        labels = random.integers(4, VOCABULARY, size=target)
        out = (random.random(target) < 0.2) & (np.arange(target) < target - 1)
        ids = random.integers(4, VOCABULARY, size=source)
        rows.append({"input_ids": ids.tolist(), "labels": np.where(out, -100, labels).tolist()})
    return rows


def sound_rows(number=ROWS, seed=2):
    sounds = torch.randn(number, 8, 40, generator=torch.Generator().manual_seed(seed))
    return [
        {"input_features": sound, "labels": row["labels"]}
        for sound, row in zip(sounds, pair_rows(number), strict=True)
    ]


def media_rows(name, number=ROWS, seed=2):
    """Rows of a target and what the encoder of such a model reads: sounds of several lengths."""
    if name == "Whisper":
        return sound_rows(number)
    generator = torch.Generator().manual_seed(seed)
    frames = np.random.default_rng(seed).integers(8, 40, size=number).tolist()
    column, shapes = {
        "Speech2Text": ("input_features", [(length, 8) for length in frames]),
        "ViT to BERT": ("pixel_values", [(3, 16, 16)] * number),
    }[name]
    return [
        {column: torch.randn(shape, generator=generator), "labels": row["labels"]}
        for shape, row in zip(shapes, pair_rows(number), strict=True)
    ]


def label_rows(classes, number=ROWS, seed=3):
    random = np.random.default_rng(seed)
    rows = []
    for length in random.integers(2, 60, size=number).tolist():
        labels = random.integers(0, classes, size=length)
        out = (random.random(length) < 0.3) & (np.arange(length) != 1)
        ids = random.integers(5, VOCABULARY, size=length)
        rows.append({"input_ids": ids.tolist(), "labels": np.where(out, -100, labels).tolist()})
    return rows


def sequence_rows(kind, number=ROWS, seed=4):
    random = np.random.default_rng(seed)
    labels = {
        "class": lambda: int(random.integers(0, 4)),
        "flags": lambda: random.integers(0, 2, size=4).astype(float).tolist(),
        "numbers": lambda: random.normal(size=4).tolist(),
    }[kind]
    return [
        {"input_ids": random.integers(5, VOCABULARY, size=length).tolist(), "labels": labels()}
        for length in random.integers(2, 60, size=number).tolist()
    ]


def own_losses(model, rows):
    """The loss of each row alone, as the model computes it."""
    with torch.no_grad():
        return np.array(
            [
                model(
                    **{name: torch.as_tensor(part)[None] for name, part in row.items()}
                ).loss.item()
                for row in rows
            ]
        )
