"""Measures where this pack differs from the original FramePack by choice: one line per effect, on the CPU.

    COMFYUI_PATH=/path/to/ComfyUI .venv/bin/python tools/measure_numerics.py

All weights are random and tiny, so a line says how large a difference is next to others of its kind (float32 and
bf16 rounding), not what it does to a film of the trained model. docs/numerics.md quotes the output.
"""

import importlib
import math
import os
import sys
import tempfile
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[1]
PROMPT, WEIGHTED = "a cat walks through grass", "a (cat:1.5) walks through grass"


def main() -> None:
    host = os.environ.get("COMFYUI_PATH")
    if not host:
        sys.exit("name a ComfyUI folder in COMFYUI_PATH")
    attach(Path(host))
    from framepack_pack.framepack_core.comfy_host.checkpoint_set import load_checkpoint_set
    from framepack_pack.framepack_core.tiny_checkpoint import write_tiny_checkpoint_set

    print(f"torch {torch.__version__}, ComfyUI {importlib.import_module('comfyui_version').__version__}, CPU")
    for part in (transformer, unipc, history_scale, crop, temporal_tiles):
        part()
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        write_tiny_checkpoint_set(Path(folder))
        tiny = load_checkpoint_set(Path(folder))
        for hosted in (posterior, prompt_weights, vision, fade, film):
            hosted(tiny)


def attach(host: Path) -> None:
    """Make the pack, the inputs of the core tests and the host importable, the host on the CPU."""
    pack = types.ModuleType("framepack_pack")
    pack.__path__ = [str(ROOT)]
    sys.modules[pack.__name__] = pack
    sys.path[:1] = [str(host), str(ROOT / "tests" / "core")]  # not our tools/ folder
    sys.argv = sys.argv[:1]
    importlib.import_module("comfy.cli_args").args.cpu = True


def show(effect: str, **numbers: float) -> None:
    print(f"{effect}: " + ", ".join(f"{name.replace('_', ' ')} {number:.2g}" for name, number in numbers.items()))


def relative(got: Tensor, expected: Tensor) -> float:
    return float((got.float() - expected.float()).norm() / expected.float().norm())


def transformer() -> None:
    """One forward of a 2+2 block transformer, beside diffusers' class with the same weights."""
    import model_inputs as m

    given = m.inputs(10, 14, "backward 2", timestep=883.495)  # 13 valid prompt tokens, padded to 20 for the oracle
    reference = m.oracle()
    exact, half = m.ours(reference), m.ours(reference, torch.bfloat16)
    expected, rounded = m.run_ours(exact, given), m.run_ours(half, given)
    show(
        "refiner on valid tokens only (float32)",
        against_padded_and_masked=relative(expected, m.run_oracle(reference, given)),
    )
    bf16 = given._replace(timestep=torch.tensor([884.0]), guidance=torch.tensor([9984.0]))
    noise = relative(rounded, m.run_ours(exact, bf16))
    theirs = relative(rounded, m.run_oracle(m.oracle().to(torch.bfloat16), given))
    show("bf16 rounding of one forward", against_float32=noise, against_diffusers_in_bf16=theirs)
    show(
        "scalars not rounded to bf16",
        guidance_10000_instead_of_9984=relative(
            m.run_ours(exact, bf16._replace(guidance=given.guidance)), m.run_ours(exact, bf16)
        ),
        timestep_883_495_instead_of_884=relative(
            m.run_ours(exact, bf16._replace(timestep=given.timestep)), m.run_ours(exact, bf16)
        ),
    )
    half.proj_out.forward = lambda x: nn.functional.linear(x.bfloat16(), half.proj_out.weight, half.proj_out.bias)
    show("output projection in bf16 instead of float32", against_ours=relative(m.run_ours(half, given), rounded))
    del half.proj_out.forward
    for module in half.modules():
        if isinstance(module, nn.RMSNorm):
            module.forward = two_roundings(module)
    show(
        "RMSNorm rounded twice instead of once (bf16)",
        against_ours=relative(m.run_ours(half, given), rounded),
        bf16_rounding_itself=noise,
    )
    indices = given.frame_indices._replace(history_1x=given.frame_indices.history_1x[1:])
    bare = given._replace(frame_indices=indices, history_1x=given.history_1x[:, :, 1:], image_embeds=None)
    zeros = given._replace(image_embeds=torch.zeros_like(given.image_embeds))
    zeros.history_1x[:, :, :1] = 0
    show(
        "text to video without start and image tokens",
        against_zeros_in_their_place=relative(m.run_ours(exact, bare), m.run_ours(exact, zeros)),
    )


def two_roundings(norm: nn.RMSNorm) -> Callable[[Tensor], Tensor]:
    """The original's: normalised in float32, rounded, then times the bf16 weight, rounded again."""

    def forward(x: Tensor) -> Tensor:
        spread = x.float().pow(2).mean(-1, keepdim=True)
        return (x * torch.rsqrt(spread + norm.eps)).to(norm.weight.dtype) * norm.weight

    return forward


def unipc() -> None:
    """25 steps through the posterior mean of a Gaussian, with the solver's scalars in both precisions."""
    from framepack_pack.framepack_core import unipc as ours
    from framepack_pack.framepack_core.schedule import flow_sigmas

    def model(x: Tensor, sigma: Tensor) -> Tensor:
        a = 1 - sigma.view(-1, 1)
        return 0.7 + a * 0.25 / (a**2 * 0.25 + sigma.view(-1, 1) ** 2) * (x - a * 0.7)

    def in_float32(function: Callable[[float], float]) -> Callable[[float], float]:
        return lambda value: float(np.float32(function(float(np.float32(value)))))

    x, sigmas = torch.randn(1, 100_000, generator=torch.Generator().manual_seed(0)), flow_sigmas(25, 7.0)
    double = ours.sample_flow_unipc(model, x, sigmas)
    kept = ours.math, ours.torch
    ours.math = types.SimpleNamespace(log=in_float32(math.log), expm1=in_float32(math.expm1))
    ours.torch = types.SimpleNamespace(
        tensor=torch.tensor, arange=torch.arange, linalg=torch.linalg, float64=torch.float32
    )
    single = ours.sample_flow_unipc(model, x, sigmas)
    ours.math, ours.torch = kept
    show(
        "UniPC coefficients in float32 instead of float64",
        relative=relative(single, double),
        largest=float((single - double).abs().max()),
    )


def history_scale() -> None:
    from framepack_pack.framepack_core.constants import LATENT_SCALE

    x = torch.randn(1_000_000, generator=torch.Generator().manual_seed(0))
    back = (x / LATENT_SCALE) * LATENT_SCALE
    show(
        "history divided and multiplied by the VAE's scale",
        largest_relative=float(((back - x) / x).abs().max()),
        share_changed_in_float32=float((back != x).float().mean()),
        share_changed_in_bf16=float((back.bfloat16() != x.bfloat16()).float().mean()),
    )


def crop() -> None:
    """The original hands Pillow a box of fractions; ours is whole pixels."""
    from framepack_pack.framepack_core.buckets import nearest_bucket
    from framepack_pack.framepack_core.comfy_host.frames import fit_image

    different = 0
    sizes = [(height, width) for height in range(301, 1500, 97) for width in range(301, 1500, 89)]
    for height, width in sizes:
        picture = Image.effect_noise((width, height), 80).convert("RGB")
        high, wide = nearest_bucket(height, width, 320)
        scale = max(wide / width, high / height)
        large = picture.resize((round(width * scale), round(height * scale)), Image.Resampling.LANCZOS)
        left, top = (large.width - wide) / 2, (large.height - high) / 2
        original = np.asarray(large.crop((left, top, left + wide, top + high)))
        ours = fit_image(torch.from_numpy(np.asarray(picture).astype(np.float32) / 255).unsqueeze(0), high, wide)
        different += int((original != (ours[0].numpy() * 255).round()).sum())
    show("crop at whole pixels", pictures=len(sizes), values_that_differ=different)


def temporal_tiles() -> None:
    from diffusers import AutoencoderKLHunyuanVideo

    torch.manual_seed(0)
    vae = AutoencoderKLHunyuanVideo(block_out_channels=(32, 32, 32, 64), layers_per_block=1).eval()
    latents = torch.randn(1, 16, 18, 8, 8)
    with torch.inference_mode():
        tiled = vae.decode(latents).sample
        vae.use_framewise_decoding = False
        whole = vae.decode(latents).sample
    show("18 latents decoded whole instead of in diffusers' tiles of 5", frames=relative(whole, tiled))


def posterior(tiny: Any) -> None:
    picture = picture_of(96, 64)
    regulariser = tiny.vae.first_stage_model.regularization
    mode = tiny.vae.encode(picture)
    torch.manual_seed(0)
    regulariser.sample = True
    sampled = tiny.vae.encode(picture)
    regulariser.sample = False
    show("VAE posterior sampled instead of its mode", relative=relative(sampled, mode))


def prompt_weights(tiny: Any) -> None:
    for words, prompt in (("without brackets", PROMPT), ("with (cat:1.5)", WEIGHTED)):
        plain, weighted = (
            tiny.clip.encode_from_tokens_scheduled(tiny.clip.tokenize(prompt, disable_weights=off))[0][0]
            for off in (True, False)
        )
        show(f"prompt weights read, prompt {words}", mean_feature=relative(weighted.mean(dim=1), plain.mean(dim=1)))


def vision(tiny: Any) -> None:
    """The host's bicubic filter against Pillow's at the released size, and its LayerNorm eps against SigLIP's."""
    import comfy.clip_vision

    picture = picture_of(640, 608)
    ours = comfy.clip_vision.clip_preprocess(picture, 384, [0.5] * 3, [0.5] * 3, crop=False)
    pillow = Image.fromarray((picture[0].numpy() * 255).astype(np.uint8)).resize((384, 384), Image.Resampling.BICUBIC)
    theirs = torch.from_numpy(np.asarray(pillow).astype(np.float32) / 127.5 - 1).permute(2, 0, 1)
    levels = (ours[0] - theirs).abs() * 127.5
    show("picture for CLIP vision against Pillow's", mean_levels=float(levels.mean()), largest=float(levels.max()))

    usual = tiny.clip_vision.encode_image(picture, crop=False).last_hidden_state
    for module in tiny.clip_vision.model.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = 1e-6
    exact = tiny.clip_vision.encode_image(picture, crop=False).last_hidden_state
    show("CLIP vision LayerNorm eps 1e-5 instead of 1e-6", features=relative(usual, exact))


def fade(tiny: Any) -> None:
    from framepack_pack.framepack_core.decoding import decode_film
    from framepack_pack.framepack_core.generate import generate
    from framepack_pack.framepack_core.history import new_history
    from framepack_pack.framepack_core.section_plan import plan_backward

    film = generate(new_history(plan_backward(3, 9), 0, 64, 64), lambda _section, _packed, noise: 2 * noise)
    clamped = torch.cat(list(decode_film(film, tiny.vae.decode)), dim=1)
    kept, tiny.vae.process_output = tiny.vae.process_output, lambda image: (image + 1) / 2
    late = torch.cat(list(decode_film(film, tiny.vae.decode)), dim=1).clamp(0, 1)
    tiny.vae.process_output = kept
    levels = (clamped - late).abs() * 255
    show(
        "cross-fade after clamping instead of before",
        share_of_values_changed=float((levels > 0).float().mean()),
        mean_levels=float(levels.mean()),
        largest=float(levels.max()),
    )


def film(tiny: Any) -> None:
    """Three sections with an end image, which leaves the history after the first section or stays."""
    from framepack_pack.framepack_core.comfy_host.text_encoding import encode_prompts
    from framepack_pack.framepack_core.history import new_history
    from framepack_pack.framepack_core.section_plan import plan_backward
    from framepack_pack.nodes.sampler import FramePackSampler

    start, end = (tiny.vae.encode(picture_of(64, 64, flipped)) for flipped in (False, True))
    embeds = tiny.clip_vision.encode_image(picture_of(64, 64), crop=False).last_hidden_state
    positive = encode_prompts(tiny.clip, PROMPT, 10.0)
    widgets = {"steps": 8, "cfg": 1.0, "guidance_rescale": 0.0, "shift": 0.0}

    def sample(history: Any, sections: int) -> tuple[Any, dict]:
        return FramePackSampler.execute(tiny.model, positive, history, max_sections=sections, **widgets).args

    history = new_history(plan_backward(3, 9), 7, 64, 64, start, end, embeds)
    stays = sample(history, 0)[1]["samples"]
    leaves = sample(sample(history, 1)[0]._replace(end_latent=None), 0)[1]["samples"]
    without = sample(history._replace(end_latent=None), 0)[1]["samples"]
    show(
        "end image seen by all sections instead of the first",
        film=relative(leaves, stays),
        film_without_end_image=relative(without, stays),
    )


def picture_of(height: int, width: int, flipped: bool = False) -> Tensor:
    """Smooth colours with some grain, [1, height, width, 3] in steps of 1/255."""
    rows, columns = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
    grain = torch.rand(height, width, generator=torch.Generator().manual_seed(0)) * 0.2
    picture = torch.stack([rows, columns, grain + 0.4], dim=-1).unsqueeze(0)
    return ((picture.flip(1) if flipped else picture) * 255).round() / 255


if __name__ == "__main__":
    main()
