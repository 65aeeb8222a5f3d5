"""The demo checkpoint's encoders: frozen random weights that keep apart what the demo world's films differ in.

Random features of a hundred words and of a few shapes are told apart as well as learned ones; what has to be right is
the scale of each part. LLaMA's tokens are mostly their own word, with some of the words before it; CLIP-L's pooled
output is about the mean of all words; SigLIP's tokens are about the colours of their square of the picture.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from comfy.text_encoders.hunyuan_video import HunyuanVideoTokenizer
from torch import Tensor

from ...framepack_core.atomic_files import write_atomically
from ...framepack_core.comfy_host.text_encoding import check_tokens
from ...framepack_core.constants import TEMPLATE_TOKENS
from ...framepack_core.embedding_rows import ROWS_ENTRY, stored_table
from ...framepack_core.known_words import KNOWN_WORDS_ENTRY
from ...framepack_core.model.config import METADATA_KEY
from ...framepack_core.tiny_checkpoint import (
    CLIP_VOCABULARY,
    LLAMA_HEAD_DIM,
    LLAMA_VOCABULARY,
    EncoderSize,
    Gains,
    Shapes,
    clip_text_shapes,
    draw,
    llama_shapes,
    vision_shapes,
)
from ..demo_world.captions import vocabulary

WIDTH = 64
CLIP_L = EncoderSize(WIDTH, mlp_width=64, layers=2, heads=2)
LLAMA = EncoderSize(WIDTH, mlp_width=32, layers=4, heads=1)  # the prompt embedding is hidden state -3 of >= 4 layers
VISION = EncoderSize(WIDTH, mlp_width=64, layers=2, heads=2)
PATCH_CELLS, CELL_PIXELS = 4, 4  # a token sees 4 x 4 mean colours of 4 x 4 pixels; pictures are of 64 x 64

LLAMA_ROPE_THETA = 500000.0  # as the host's class has it

CLIP_TABLE, LLAMA_TABLE = "text_model.embeddings.token_embedding", "model.embed_tokens"
PUNCTUATION = ".,;:!?"

CLIP_GAINS: Gains = (
    ("token_embedding", math.sqrt(WIDTH)),  # rows of unit variance
    ("position_embedding", 0.1 * math.sqrt(WIDTH)),
    ("q_proj", 0.1),  # near-uniform attention: a mean over the words
    ("out_proj", 3.0),  # the mean of n words is smaller than a word by sqrt(n)
    ("fc2", 0.3),
)
LLAMA_GAINS: Gains = (
    ("embed_tokens", math.sqrt(WIDTH)),
    ("q_proj", 0.5),
    ("k_proj", 0.5),
    ("o_proj", 0.6),
    ("down_proj", 0.3),
)
VISION_GAINS: Gains = (
    ("patch_embedding", 2.0),
    ("position_embedding", 0.5 * math.sqrt(WIDTH)),
    ("out_proj", 0.5),
    ("fc2", 0.3),
)
SHARED_VALUE = 2.0  # of channel 0 in every row of LLaMA's table
NEARNESS, NEAR = 20.0, 2  # greatest part of an attention score that comes from the distance, and at how many tokens


def write_encoders(folder: Path, seed: int) -> None:
    """Writes clip_l, llama and clip_vision `.safetensors` into `folder` (made if absent), 0.7 MB together.

    The bytes depend on the seed and the vocabulary alone. ValueError when the host's tokenizer gives wrong tokens.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = HunyuanVideoTokenizer()
    clip_l = encoder_tensors(clip_text_shapes(CLIP_L), f"{seed}/clip_l", CLIP_GAINS, clip_tokens(tokenizer))
    llama = encoder_tensors(llama_shapes(LLAMA), f"{seed}/llama", LLAMA_GAINS, llama_tokens(tokenizer))
    vision = encoder_tensors(vision_shapes(VISION, PATCH_CELLS), f"{seed}/clip_vision", VISION_GAINS, {})
    look_near(llama)
    see_cells(vision)
    words = {KNOWN_WORDS_ENTRY: vocabulary()}
    write(folder / "clip_l.safetensors", clip_l, CLIP_L, {ROWS_ENTRY: {CLIP_TABLE: CLIP_VOCABULARY}})
    write(folder / "llama.safetensors", llama, LLAMA, {ROWS_ENTRY: {LLAMA_TABLE: LLAMA_VOCABULARY}, **words})
    write(folder / "clip_vision.safetensors", vision, VISION, {})


def write(path: Path, tensors: Mapping[str, Tensor], size: EncoderSize, entries: Mapping[str, Any]) -> None:
    """One encoder's file: fp16, and in the metadata what its shapes cannot tell."""
    halves = {key: value.half() if value.is_floating_point() else value for key, value in tensors.items()}
    write_atomically(path, halves, {METADATA_KEY: json.dumps({"num_attention_heads": size.heads, **entries})})


def encoder_tensors(shapes: Shapes, stream: str, gains: Gains, tokens: Mapping[int, str]) -> dict[str, Tensor]:
    """Random tensors; of the table of tokens, only the rows of these, each drawn under its text."""
    tensors: dict[str, Tensor] = {}
    for key, shape in shapes.items():
        table = key.removesuffix(".weight")
        if table in (CLIP_TABLE, LLAMA_TABLE):
            rows = {number: draw(f"{key}/{text}", (1, WIDTH), stream, gains)[0] for number, text in tokens.items()}
            tensors |= stored_table(table, rows)
        else:
            tensors[key] = draw(key, shape, stream, gains)
    return tensors


def clip_tokens(tokenizer: HunyuanVideoTokenizer) -> dict[int, str]:
    """Number -> text of every token of CLIP-L in a known word. Start and end stay zero: pooled is about the words."""
    numbers = [pair[0] for word in known_signs() for pair in tokenizer.clip_l.tokenize_with_weights(word)[0]]
    texts = tokenizer.clip_l.inv_vocab
    ends = (tokenizer.clip_l.start_token, tokenizer.clip_l.end_token)
    return {number: texts[number] for number in numbers if number not in ends}


def llama_tokens(tokenizer: HunyuanVideoTokenizer) -> dict[int, str]:
    """Number -> text of every token of LLaMA in a known word and in the template around a prompt."""
    prompts = [tokenizer.tokenize_with_weights(word, disable_weights=True)["llama"][0] for word in known_signs()]
    check_tokens([pair[0] for pair in prompts[0][:TEMPLATE_TOKENS]])
    return {number: tokenizer.llama.inv_vocab[number] for prompt in prompts for number, _ in prompt}


def known_signs() -> list[str]:
    """Words as KnownWordsTokenizer hands them to the host's, and punctuation behind one."""
    return [f" {word}" for word in vocabulary()] + [f" a{sign}" for sign in PUNCTUATION]


def look_near(llama: dict[str, Tensor]) -> None:
    """Let each token attend to the few before it rather than to the 95 tokens of the template.

    All rows share the value of channel 0, which queries and keys take into the pairs of channels that RoPE turns. A
    query's pairs are turned back by NEAR tokens, so that whatever the words a score has the part
    NEARNESS * mean(cos(frequency * (distance - NEAR))).
    """
    llama[f"{LLAMA_TABLE}.weight"][:, 0] = SHARED_VALUE
    normed = SHARED_VALUE / math.sqrt((WIDTH - 1 + SHARED_VALUE**2) / WIDTH)  # after RMSNorm
    pairs = LLAMA_HEAD_DIM // 2  # channel n and channel n + 64
    length = math.sqrt(NEARNESS * math.sqrt(LLAMA_HEAD_DIM) / pairs) / normed
    angles = NEAR * LLAMA_ROPE_THETA ** (-torch.arange(pairs) / pairs)
    columns = {
        "q_proj": torch.cat([angles.cos(), -angles.sin()]),
        "k_proj": torch.cat([torch.ones(pairs), torch.zeros(pairs)]),
    }
    for layer in range(LLAMA.layers):
        for projection, column in columns.items():
            llama[f"model.layers.{layer}.self_attn.{projection}.weight"][:, 0] = length * column  # [128, D]


def see_cells(vision: dict[str, Tensor]) -> None:
    """Widen the patch embedding from cells to pixels: each weight becomes the mean over its cell."""
    key = "vision_model.embeddings.patch_embedding.weight"
    for axis in (2, 3):  # [D, 3, 4, 4] to [D, 3, 16, 16]
        vision[key] = vision[key].repeat_interleave(CELL_PIXELS, axis) / CELL_PIXELS
