"""Small vision language models, rows of them, and what their forward is given for each row."""

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3TextConfig,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    SiglipVisionConfig,
)

VOCABULARY, IMAGE, VIDEO, BEGIN, END = 120, 119, 118, 117, 116
TEXT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "initializer_range": 0.4,
}
SIGHT = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "patch_size": 4}


def row_of(number, before=()):
    """A row whose text begins with these tokens, which are not scored."""
    random = np.random.default_rng(number)
    ids = [1, *before, *random.integers(5, 100, 9 + number).tolist()]
    silent = len(before) + 3
    return {
        "input_ids": ids,
        "attention_mask": [1] * len(ids),
        "labels": [-100] * silent + ids[silent:],
    }


def pixels(number, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(number))


def llava():
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(num_hidden_layers=3, image_size=8, **SIGHT),
        text_config=LlamaConfig(**TEXT),
        image_token_id=IMAGE,
    )
    rows = []
    for number in range(6):
        images = number % 3
        row = row_of(number, [IMAGE] * 4 * images)
        rows.append(row | ({"pixel_values": pixels(number, images, 3, 8, 8)} if images else {}))
    return LlavaForConditionalGeneration(config), rows


def llava_next():
    config = LlavaNextConfig(
        vision_config=CLIPVisionConfig(num_hidden_layers=3, image_size=8, **SIGHT),
        text_config=LlamaConfig(**TEXT),
        image_token_id=IMAGE,
        image_grid_pinpoints=[[8, 16], [16, 8]],
    )
    model = LlavaNextForConditionalGeneration(config)
    rows = []
    for number in range(3):
        media = {
            "pixel_values": pixels(number, 1, 3, 3, 8, 8),
            "image_sizes": torch.tensor([[8, 16]]),
        }
        rows.append(row_of(number, [IMAGE] * 14) | media)
    return model, rows


def qwen2_vl():
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4}
    config = Qwen2VLConfig(
        text_config=TEXT | {"num_key_value_heads": 2, "rope_parameters": rope},
        vision_config={
            "depth": 2,
            "embed_dim": 32,
            "hidden_size": 32,
            "num_heads": 4,
            "mlp_ratio": 2,
            "patch_size": 4,
        },
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        vision_start_token_id=BEGIN,
        vision_end_token_id=END,
    )
    rows = []
    for number, (height, width) in enumerate([(4, 4), (4, 8), (8, 4), (0, 0)]):
        patches = height * width
        row = row_of(number, [BEGIN, *[IMAGE] * (patches // 4), END] if patches else [])
        row["mm_token_type_ids"] = [int(token == IMAGE) for token in row["input_ids"]]
        if patches:
            row["pixel_values"] = pixels(number, patches, 3 * 2 * 4 * 4)
            row["image_grid_thw"] = torch.tensor([[1, height, width]])
        rows.append(row)
    return Qwen2VLForConditionalGeneration(config), rows


def gemma3():
    text = {"num_key_value_heads": 2, "head_dim": 8, "layer_types": ["full_attention"] * 2}
    config = Gemma3Config(
        text_config=Gemma3TextConfig(**TEXT, **text),
        vision_config=SiglipVisionConfig(num_hidden_layers=2, image_size=16, **SIGHT),
        mm_tokens_per_image=4,
        image_token_id=IMAGE,
        image_token_index=IMAGE,
        boi_token_id=BEGIN,
        eoi_token_id=END,
    )
    rows = []
    for number in range(3):
        row = row_of(number, [BEGIN, *[IMAGE] * 4, END])
        row["token_type_ids"] = [int(token == IMAGE) for token in row["input_ids"]]
        rows.append(row | {"pixel_values": pixels(number, 1, 3, 16, 16)})
    return Gemma3ForConditionalGeneration(config), rows


def idefics3():
    """It wants an axis of samples before that of images."""
    config = Idefics3Config(
        text_config=LlamaConfig(**TEXT),
        vision_config={"num_hidden_layers": 2, "image_size": 16, **SIGHT},
        image_token_id=IMAGE,
        scale_factor=2,
        pad_token_id=0,
    )
    rows = []
    for number in range(3):
        media = {
            "pixel_values": pixels(number, 1, number + 1, 3, 16, 16),
            "pixel_attention_mask": torch.ones(1, number + 1, 16, 16, dtype=torch.long),
        }
        rows.append(row_of(number, [IMAGE] * 4 * (number + 1)) | media)
    return Idefics3ForConditionalGeneration(config), rows


MODELS = {
    "llava": llava,
    "llava next": llava_next,
    "qwen2 vl": qwen2_vl,
    "gemma 3": gemma3,
    "idefics 3": idefics3,
}


def model_and_rows(name):
    torch.manual_seed(0)
    model, rows = MODELS[name]()
    return model.eval(), rows


def many_llava(count=40):
    """Rows of 0 to 3 images between words."""
    model, _ = llava()
    rows = []
    for number in range(count):
        images = number % 4
        before = [token for _ in range(images) for token in (7 + number % 5, *[IMAGE] * 4)]
        row = row_of(number, before)
        rows.append(row | ({"pixel_values": pixels(number, images, 3, 8, 8)} if images else {}))
    return model.eval(), rows


def many_qwen2_vl(count=40):
    """Rows of 0 to 3 images, each of a size of its own."""
    model, _ = qwen2_vl()
    rows = []
    for number in range(count):
        sizes = [(4 + 4 * ((number + k) % 2), 4 + 4 * (number % 3)) for k in range(number % 4)]
        before = [token for h, w in sizes for token in (9, BEGIN, *[IMAGE] * (h * w // 4), END)]
        row = row_of(number, before)
        row["mm_token_type_ids"] = [int(token == IMAGE) for token in row["input_ids"]]
        if sizes:
            patches = sum(h * w for h, w in sizes)
            row["pixel_values"] = pixels(number, patches, 3 * 2 * 4 * 4)
            row["image_grid_thw"] = torch.tensor([[1, h, w] for h, w in sizes])
        rows.append(row)
    return model.eval(), rows


def own_loss(model, row, **options):
    """The loss that the model computes of a row, given as it is."""
    batch = {
        name: value if isinstance(value, torch.Tensor) else torch.tensor([value])
        for name, value in row.items()
    }
    with torch.no_grad():
        return model(**batch, use_cache=False, **options).loss.item()


def picture(number):
    random = np.random.default_rng(number)
    size = (12 + 5 * (number % 4), 10 + 7 * (number % 3), 3)
    return Image.fromarray(random.integers(0, 256, size, dtype=np.uint8))


def word_tokenizer():
    """Word w7 is token 7; that of an image is the model's."""
    ids = {f"w{number}": number for number in range(IMAGE)} | {"<image>": IMAGE}
    words = Tokenizer(models.WordLevel(ids, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="w0")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    return tokenizer


def llava_processor():
    return LlavaProcessor(
        CLIPImageProcessorPil(
            size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8}, do_convert_rgb=True
        ),
        word_tokenizer(),
        patch_size=4,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )
