"""Films of the demo world, made by the pack as a workflow makes them: MODEL, CONDITIONING, SAMPLER, VAE of the host."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import comfy.samplers
import torch
from framepack_pack.framepack_core.comfy_host.checkpoint_set import CheckpointSet, load_checkpoint_set
from framepack_pack.framepack_core.comfy_host.checkpoints import load_transformer
from framepack_pack.framepack_core.comfy_host.conditioning import RANGE_KEY, Conditioning
from framepack_pack.framepack_core.comfy_host.film_decoding import decode_frames
from framepack_pack.framepack_core.comfy_host.frames import encode_start
from framepack_pack.framepack_core.comfy_host.section_denoiser import (
    Sampling,
    check_sampling,
    sample_sections,
    unipc_sampler,
)
from framepack_pack.framepack_core.comfy_host.text_encoding import encode_prompt
from framepack_pack.framepack_core.constants import GUIDANCE, LATENT_WINDOW_SIZE
from framepack_pack.framepack_core.history import History, new_history
from framepack_pack.framepack_core.prompt_ranges import PromptRange
from framepack_pack.framepack_core.schedule import section_sigmas
from framepack_pack.framepack_core.section_plan import Direction, plan_backward, plan_forward
from framepack_pack.tools.demo_world.captions import captions
from framepack_pack.tools.demo_world.render import render
from framepack_pack.tools.demo_world.sampling import random_scenes
from framepack_pack.tools.demo_world.scene import Scenes
from torch import Tensor

SIZE = 128  # pixels, as the demo checkpoint was trained
DEFAULT_WEIGHTS = "default"
_PLANS = {Direction.BACKWARD: plan_backward, Direction.FORWARD: plan_forward}

Prompts = list[list[str]]
"""prompts[section][film]"""


class Order(NamedTuple):
    """How films are to be made; the defaults are the sampler node's."""

    direction: Direction = Direction.BACKWARD
    steps: int = 25
    cfg: float = 1.0
    sampler: str = ""  # one of the host's by name; empty: FramePack UniPC
    weight_dtype: str = DEFAULT_WEIGHTS
    has_start: bool = True
    has_end: bool = False
    by_hand: bool = False  # nodes section by section instead of the loop
    seed: int = 0


class Sampled(NamedTuple):
    """B films as latents, and what they cost."""

    history: History
    start_round_trip: Tensor | None  # [B, H, W, 3] the start images through the VAE alone
    model_calls: int  # runs of the transformer's last block, for all films at once
    seconds: float


class Tools:
    """A loaded checkpoint set, with what is worth keeping between films: texts encoded, weights of other dtypes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.checkpoint: CheckpointSet = load_checkpoint_set(folder)
        self._models: dict[str, Any] = {DEFAULT_WEIGHTS: self.checkpoint.model}
        self._texts: dict[str, Conditioning] = {}

    def model(self, weight_dtype: str) -> Any:
        """MODEL with its weights in this type of Load FramePack Model."""
        if weight_dtype not in self._models:
            self._models[weight_dtype] = load_transformer(self.folder / "transformer.safetensors", weight_dtype)
        return self._models[weight_dtype]

    def encode(self, text: str) -> Conditioning:
        """CONDITIONING of one prompt."""
        if text not in self._texts:
            self._texts[text] = encode_prompt(self.checkpoint.clip, text)
        return self._texts[text]


def unchanged(value: Any) -> Any:
    """The default of every change to MODEL, History or prompts."""
    return value


def draw_films(count: int, sections: int, seed: int) -> tuple[Scenes, Prompts]:
    """Held-out films, each with a full caption per section whose wording is drawn; a seed gives the same again."""
    generator = torch.Generator().manual_seed(seed)
    scenes = random_scenes(count, sections, generator, for_tests=True)
    return scenes, [captions(scenes, section, generator, full=True) for section in range(sections)]


def sample_films(
    tools: Tools, scenes: Scenes, prompts: Prompts, order: Order, patch: Callable[[Any], Any] = unchanged
) -> Sampled:
    """All films as one batch. patch: MODEL to MODEL."""
    model = patch(tools.model(order.weight_dtype))
    history, start_round_trip = empty_history(tools, scenes, order)
    positive = section_prompts(tools, prompts)
    negative = None if order.cfg == 1.0 else section_prompts(tools, [[""]])
    sampler = comfy.samplers.sampler_object(order.sampler) if order.sampler else unipc_sampler()
    sampling = Sampling(sampler, section_sigmas(history, order.steps), order.cfg, 0.0)
    sample = sample_by_hand if order.by_hand else sample_by_loop
    with _model_calls(model) as calls:
        begun = time.perf_counter()
        history = sample(model, positive, negative, history, sampling)
        seconds = time.perf_counter() - begun  # the latents are on the CPU, so the device is done
    return Sampled(history, start_round_trip, len(calls), seconds)


def decode_films(tools: Tools, history: History) -> Tensor:
    """What FramePack Decode gives, [B, F, H, W, 3]."""
    return decode_frames(tools.checkpoint.vae, history).unflatten(0, (history.shape[0], -1))


def true_films(_: Tools, scenes: Scenes) -> Tensor:
    """The world's own films, [B, F, H, W, 3]."""
    films = [render(scenes[film : film + 1], range(scenes.frames), SIZE, SIZE) for film in range(len(scenes))]
    return torch.cat(films)  # one by one: rendering takes much more memory than its result


def vae_round_trip(tools: Tools, scenes: Scenes) -> Tensor:
    """The world's own films through the VAE alone, [B, F, H, W, 3]: what no transformer can surpass."""
    vae, films = tools.checkpoint.vae, []
    for film in range(len(scenes)):
        frames = render(scenes[film : film + 1], range(scenes.frames), SIZE, SIZE)[0]
        films.append(vae.decode(vae.encode(frames)))
    return torch.cat(films)


def empty_history(tools: Tools, scenes: Scenes, order: Order) -> tuple[History, Tensor | None]:
    """History of a batch of films, and their start images as the VAE alone gives them back."""
    plan = _PLANS[order.direction](scenes.sections, LATENT_WINDOW_SIZE)
    vae = tools.checkpoint.vae
    if not order.has_start:
        history = new_history(plan, order.seed, SIZE, SIZE)
        return history._replace(shape=(len(scenes), *history.shape[1:])), None
    pictures = render(scenes, [0, scenes.frames - 1], SIZE, SIZE)  # [B, 2, H, W, 3]
    start = encode_start(pictures[:, 0], vae, tools.checkpoint.clip_vision, SIZE, SIZE)
    end = encode_start(pictures[:, 1], vae, None, SIZE, SIZE).latent if order.has_end else None
    embeds = start.vision.last_hidden_state
    history = new_history(plan, order.seed, SIZE, SIZE, start.latent, end, embeds)
    return history, vae.decode(start.latent)[:, 0]


def section_prompts(tools: Tools, prompts: Prompts) -> Conditioning:
    """One entry a section whose rows are the films' prompts; a single list of prompts holds for the whole film.

    Shorter prompts are padded and masked, which the model treats as absent.
    """
    conditioning: Conditioning = []
    for section, texts in enumerate(prompts):
        entries = [tools.encode(text)[0] for text in texts]
        values: dict[str, Any] = {"guidance": GUIDANCE}
        values["pooled_output"] = torch.cat([entry[1]["pooled_output"] for entry in entries])  # [B, W]
        lengths = [entry[0].shape[1] for entry in entries]
        rows = [torch.nn.functional.pad(entry[0], (0, 0, 0, max(lengths) - entry[0].shape[1])) for entry in entries]
        if min(lengths) < max(lengths):
            values["attention_mask"] = torch.arange(max(lengths)).lt(torch.tensor(lengths)[:, None]).long()  # [B, L]
        if len(prompts) > 1:
            values[RANGE_KEY] = PromptRange(section, section + 1, "sections")
        conditioning.append([torch.cat(rows), values])
    return conditioning


def sample_by_loop(
    model: Any, positive: Conditioning, negative: Conditioning | None, history: History, sampling: Sampling
) -> History:
    """What FramePack Sampler does."""
    check_sampling(model, positive, negative, history, sampling.cfg)
    return sample_sections(model, positive, negative, history, sampling, len(history.sections))


def sample_by_hand(
    model: Any, positive: Conditioning, negative: Conditioning | None, history: History, sampling: Sampling
) -> History:
    """The nodes that a workflow wired section by section holds: Apply History, core's sampling, Append Section."""
    from comfy_extras import nodes_custom_sampler
    from framepack_pack.nodes.history import FramePackAppendSection, FramePackApplyHistory

    while history.next_section is not None:
        section_positive, section_negative, noise, latent = FramePackApplyHistory.execute(
            positive, history, negative
        ).args
        if section_negative is None:
            section_negative = section_positive
        cfg_guider = nodes_custom_sampler.CFGGuider()
        guider = _values(cfg_guider.execute(model, section_positive, section_negative, sampling.cfg))[0]
        advanced = nodes_custom_sampler.SamplerCustomAdvanced()
        samples = _values(advanced.execute(noise, guider, sampling.sampler, sampling.sigmas.clone(), latent))[0]
        history = FramePackAppendSection.execute(history, samples).args[0]
    return history


def _values(node_output: Any) -> Any:
    return getattr(node_output, "args", node_output)


@contextmanager
def _model_calls(model: Any) -> Iterator[list[None]]:
    """A list that grows with every run of the transformer's last block: what a step cache skips does not reach it."""
    calls: list[None] = []
    last_block = model.model.diffusion_model.single_transformer_blocks[-1]
    hook = last_block.register_forward_hook(lambda *_: calls.append(None))
    try:
        yield calls
    finally:
        hook.remove()
