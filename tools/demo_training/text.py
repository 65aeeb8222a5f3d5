"""Captions to the features that the host's CLIP gives, thousands in a second.

The host tokenizes and encodes one prompt at a time. Here each word is tokenized once, through the host, and prompts of
one length go through its two encoders together. Letters: M captions, L tokens, E P widths.
"""

import random
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...framepack_core.comfy_host.text_encoding import encode_prompt
from ...framepack_core.constants import TEMPLATE_TOKENS
from ...framepack_core.training.clips import Prompts

_PIECE = re.compile(r"\s?\w+|[^\w\s]")
_ANCHOR = "a"  # a word in front, so that a piece is tokenized as it is inside a sentence
_CHECKED = 16  # captions that are also encoded the host's own way
_TOLERANCE = 2e-3  # of the largest feature: sums of another order, at worst in TF32


class _Ids(NamedTuple):
    """Token numbers of one text, without the template, start, end and padding."""

    llama: tuple[int, ...]
    clip_l: tuple[int, ...]


class CaptionEncoder:
    """Encodes captions as clip.encode_from_tokens_scheduled does. Raises ValueError where it finds that it does not."""

    def __init__(self, clip: Any, device: torch.device | str) -> None:
        self.clip, self.device = clip, torch.device(device)
        llama, clip_l = self._host_ids("")
        anchor = self._host_ids(_ANCHOR)
        self.before = llama[:TEMPLATE_TOKENS]
        self.behind = llama[TEMPLATE_TOKENS:]
        self.end_token = clip_l[1]  # of start, end, padding
        self.start_token = clip_l[0]
        self.positions = len(clip_l)
        self.anchor = self._content(anchor)
        self.pieces: dict[tuple[str, bool], _Ids] = {}
        context = encode_prompt(clip, _ANCHOR)[0][0]  # [1, L, E]
        self.dropped = len(anchor[0]) - TEMPLATE_TOKENS - context.shape[1]  # tokens cut off behind the prompt

    def encode(self, captions: Sequence[str], batch: int = 4096) -> Prompts:
        """Features of these captions in this order and, in the last row, of the empty prompt."""
        texts = [*captions, ""]
        ids = [self.tokens(text) for text in texts]
        self._check_tokens(texts, ids)
        lengths = torch.tensor([len(self.behind) + len(each.llama) - self.dropped for each in ids])
        features = pooled = None
        self.clip.cond_stage_model.to(self.device)
        for rows in _groups(ids, batch):
            context, vectors = self._encode_rows([ids[row] for row in rows])
            if features is None or pooled is None:
                features = context.new_zeros(len(texts), int(lengths.max()), context.shape[-1])
                pooled = vectors.new_zeros(len(texts), vectors.shape[-1])
            where = torch.tensor(rows, device=self.device)
            features[where, : context.shape[1]] = context
            pooled[where] = vectors
        assert features is not None  # the empty prompt is always there
        assert pooled is not None
        prompts = Prompts(features, pooled, lengths, empty=len(texts) - 1)
        self._check_features(texts, prompts)
        return prompts

    def tokens(self, text: str) -> _Ids:
        """Token numbers of a text, put together from those of its words."""
        found = [self._piece(piece, number == 0) for number, piece in enumerate(_PIECE.findall(text))]
        return _Ids(*(tuple(token for piece in found for token in piece[encoder]) for encoder in (0, 1)))

    def _piece(self, piece: str, is_first: bool) -> _Ids:
        key = (piece, is_first)
        if key not in self.pieces:
            whole = self._content(self._host_ids(piece if is_first else _ANCHOR + piece))
            skipped = _Ids((), ()) if is_first else self.anchor
            self.pieces[key] = _Ids(whole.llama[len(skipped.llama) :], whole.clip_l[len(skipped.clip_l) :])
        return self.pieces[key]

    def _host_ids(self, text: str) -> tuple[list[int], list[int]]:
        """All token numbers of the two encoders."""
        tokens = self.clip.tokenize(text, disable_weights=True)
        if len(tokens["l"]) != 1 or len(tokens["llama"]) != 1:
            raise ValueError(f"The caption {text!r} is longer than the text encoders take; use shorter captions.")
        return [int(pair[0]) for pair in tokens["llama"][0]], [int(pair[0]) for pair in tokens["l"][0]]

    def _content(self, ids: tuple[list[int], list[int]]) -> _Ids:
        llama, clip_l = ids
        return _Ids(
            tuple(llama[TEMPLATE_TOKENS : len(llama) - len(self.behind)]),
            tuple(clip_l[1 : clip_l.index(self.end_token)]),
        )

    @torch.no_grad()
    def _encode_rows(self, ids: list[_Ids]) -> tuple[Tensor, Tensor]:
        """Texts of one length each in both encoders -> features [m, L, E] and pooled [m, P], float32."""
        model = self.clip.cond_stage_model
        llama = torch.tensor([[*self.before, *each.llama, *self.behind] for each in ids], device=self.device)
        padding = [self.end_token] * (self.positions - 1 - len(ids[0].clip_l))
        clip_l = torch.tensor([[self.start_token, *each.clip_l, *padding] for each in ids], device=self.device)
        hidden = _run(model.llama, llama, llama.shape[1])[1].float()  # the layer that LLAMAModel taps
        pooled = _run(model.clip_l, clip_l, len(ids[0].clip_l) + 2)[3].float()
        return hidden[:, TEMPLATE_TOKENS : llama.shape[1] - self.dropped], pooled

    def _check_tokens(self, texts: Sequence[str], ids: Sequence[_Ids]) -> None:
        for row in _sample(len(texts)):
            host = self._content(self._host_ids(texts[row]))
            if host != ids[row]:
                raise ValueError(f"Tokens of {texts[row]!r} are {ids[row]} word by word, but the host gives {host}.")

    def _check_features(self, texts: Sequence[str], prompts: Prompts) -> None:
        for row in _sample(len(texts)):
            context, values = encode_prompt(self.clip, texts[row])[0]
            own = prompts.features[row : row + 1, : int(prompts.lengths[row])]
            if context.shape != own.shape or "attention_mask" in values:
                raise ValueError(
                    f"The host encodes {texts[row]!r} to {tuple(context.shape)}, a batch gives {tuple(own.shape)}."
                )
            pairs = ((context, own), (values["pooled_output"], prompts.pooled[row : row + 1]))
            error = max(float((host.to(ours) - ours).abs().max() / host.abs().max()) for host, ours in pairs)
            if error > _TOLERANCE:
                raise ValueError(f"Features of {texts[row]!r} differ from the host's by {error:.1e} of their largest.")


def _run(encoder: Any, ids: Tensor, used: int) -> tuple[Tensor, ...]:
    """One of the host's encoders on token numbers [m, L], `used` of which count in each row."""
    embedded = encoder.transformer.get_input_embeddings()(ids, out_dtype=torch.float32)
    return encoder.transformer(
        None,
        torch.ones_like(ids) if encoder.enable_attention_masks else None,
        embeds=embedded,
        num_tokens=[used] * len(ids),
        intermediate_output=encoder.layer_idx,
        final_layer_norm_intermediate=encoder.layer_norm_hidden_state,
        dtype=torch.float32,
        embeds_info=[],
    )


def _groups(ids: Iterable[_Ids], batch: int) -> Iterable[list[int]]:
    """Rows whose texts have as many tokens in both encoders, at most `batch` together."""
    alike: dict[tuple[int, int], list[int]] = defaultdict(list)
    for row, each in enumerate(ids):
        alike[len(each.llama), len(each.clip_l)].append(row)
    for rows in alike.values():
        yield from (rows[begin : begin + batch] for begin in range(0, len(rows), batch))


def _sample(count: int) -> list[int]:
    """Some rows, the last one always."""
    return [*random.Random(0).sample(range(count), min(count, _CHECKED)), count - 1]
