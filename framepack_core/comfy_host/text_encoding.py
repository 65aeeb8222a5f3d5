"""Prompts to CONDITIONING as the original encodes them: raw text, at most 256 tokens, guidance 10."""

import logging
from collections.abc import Collection
from typing import Any

from comfy.text_encoders.hunyuan_video import HunyuanVideoTokenizer

from ..constants import MAX_PROMPT_TOKENS, TEMPLATE_TOKENS
from ..known_words import known_text
from ..prompt_ranges import parse_prompts
from .conditioning import RANGE_KEY, Conditioning, set_values

logger = logging.getLogger(__name__)

_LLAMA = "llama"
_NEWLINES = 271  # "\n\n", which ends every header of the LLaMA chat template
_NEWLINES_AT = (4, TEMPLATE_TOKENS - 1)


def encode_prompts(clip: Any, text: str, guidance: float) -> Conditioning:
    """Entries for all prompts of the text, tagged with their ranges, each distinct text encoded once.

    Raises ValueError for text that parse_prompts refuses, a CLIP that is not HunyuanVideo's, and a host
    whose LLaMA tokenizer gives wrong tokens.
    """
    encoded: dict[str, Conditioning] = {}
    conditioning: Conditioning = []
    for prompt in parse_prompts(text):
        if prompt.text not in encoded:
            encoded[prompt.text] = encode_prompt(clip, prompt.text)
        values: dict[str, Any] = {"guidance": guidance}
        if prompt.range is not None:
            values[RANGE_KEY] = prompt.range
        conditioning += set_values(encoded[prompt.text], values)
    return conditioning


def encode_prompt(clip: Any, text: str) -> Conditioning:
    """One prompt. Brackets are plain text here: the original knows no prompt weights."""
    tokens = clip.tokenize(text, disable_weights=True)
    if _LLAMA not in tokens:
        raise ValueError(
            f"This CLIP has the encoders {', '.join(tokens)}; FramePack needs clip_l and llava_llama3, "
            "loaded together with DualCLIPLoader, type hunyuan_video."
        )
    check_tokens([int(pair[0]) for pair in tokens[_LLAMA][0][:TEMPLATE_TOKENS]])
    tokens[_LLAMA] = [cut_tokens(tokens[_LLAMA][0])]
    return clip.encode_from_tokens_scheduled(tokens)


class KnownWordsTokenizer(HunyuanVideoTokenizer):
    """The host's tokenizer for an encoder that knows few words: leaves the others out and says so, a line a prompt."""

    def __init__(self, tokenizer: HunyuanVideoTokenizer, known_words: Collection[str]) -> None:
        vars(self).update(vars(tokenizer))  # already read from its files
        self.known_words = frozenset(known_words)

    def tokenize_with_weights(self, text: str, *args: Any, **kwargs: Any) -> dict[str, list]:
        known, unknown = known_text(text, self.known_words)
        if unknown:
            logger.warning(
                "The text encoder does not know %s and ignores it; it knows: %s.",
                ", ".join(f'"{word}"' for word in unknown),
                ", ".join(sorted(self.known_words)),
            )
        return super().tokenize_with_weights(known, *args, **kwargs)


def check_tokens(template: list[int]) -> None:
    """Raises ValueError when the template's tokens are not where LLaMA 3 puts them.

    ComfyUI up to 0.3.75 with transformers 5 splits the template wrongly and says nothing.
    """
    if len(template) < TEMPLATE_TOKENS or any(template[at] != _NEWLINES for at in _NEWLINES_AT):
        raise ValueError(
            "The LLaMA tokenizer of this ComfyUI gives wrong tokens, so prompts would not be understood. "
            "Install transformers below 5 (pip install 'transformers<5') or update ComfyUI."
        )


def cut_tokens(pairs: list[tuple]) -> list[tuple]:
    """At most 256 prompt tokens after the template, as the original truncates.

    The host drops the last token when it finds no end-of-turn token, so one filler is left for it to drop;
    attention is causal, so the filler changes nothing before it.
    """
    most = TEMPLATE_TOKENS + MAX_PROMPT_TOKENS
    if len(pairs) <= most:
        return pairs
    logger.warning(
        "A prompt has %d tokens; FramePack reads %d and drops the rest.",
        len(pairs) - TEMPLATE_TOKENS,
        MAX_PROMPT_TOKENS,
    )
    return [*pairs[:most], pairs[most - 1]]
