"""Measures where this pack differs from the original FramePack by choice: one line per effect, on the CPU.

    COMFYUI_PATH=/path/to/ComfyUI .venv/bin/python tools/measure_numerics.py

All weights are random and tiny: a line says how large a difference is next to rounding and to its like, not what it
does to a film of the trained model. docs/numerics.md quotes the output.
"""

import importlib
import math
import os
import sys
import tempfile
import types
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))
from host_attach import ROOT, attach_host

sys.path.insert(0, str(ROOT / "tests" / "core"))


def main() -> None:
    attach_host(Path(os.environ.get("COMFYUI_PATH") or sys.exit("name a ComfyUI folder in COMFYUI_PATH")), cpu=True)
    print(f"torch {torch.__version__}, ComfyUI {importlib.import_module('comfyui_version').__version__}, CPU")
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        for part in (transformer, unipc, history_scale, crop):
            part()
        core("tiny_checkpoint").write_tiny_checkpoint_set(Path(folder))
        tiny = core("comfy_host.checkpoint_set").load_checkpoint_set(Path(folder))
        for hosted in (posterior, prompt_weights, vision, cross_fade, end_image):
            hosted(tiny)


def core(name: str) -> Any:
    return importlib.import_module(f"framepack_pack.framepack_core.{name}")


def show(effect: str, **numbers: float) -> None:
    print(f"{effect}: " + ", ".join(f"{name.replace('_', ' ')} {number:.2g}" for name, number in numbers.items()))


def relative(got: Tensor, expected: Tensor) -> float:
    return float((got.float() - expected.float()).norm() / expected.float().norm())


def transformer() -> None:
    """One forward of 2 + 2 blocks, beside diffusers' class with the same weights."""
    m = importlib.import_module("model_inputs")
    given = m.inputs(10, 14, "backward 2", timestep=884.0)._replace(guidance=torch.tensor([9984.0]))
    reference = m.oracle()
    exact, half = m.ours(reference), m.ours(reference, torch.bfloat16)
    expected, rounded = m.run_ours(exact, given), m.run_ours(half, given)
    # 13 valid prompt tokens, which the oracle gets padded to 20
    show("refiner on valid tokens only, float32", against_padded=relative(expected, m.run_oracle(reference, given)))
    for module in half.modules():
        if isinstance(module, nn.RMSNorm):
            module.forward = partial(rounded_twice, module)
    twice = relative(m.run_ours(half, given), rounded)
    show("RMSNorm rounded twice, bf16", against_ours=twice, bf16_against_float32=relative(rounded, expected))
    indices = given.frame_indices._replace(history_1x=given.frame_indices.history_1x[1:])
    bare = given._replace(frame_indices=indices, history_1x=given.history_1x[:, :, 1:], image_embeds=None)
    given.history_1x[:, :, :1] = 0
    zeros = m.run_ours(exact, given._replace(image_embeds=torch.zeros_like(given.image_embeds)))
    show("no start and image tokens", against_zeros_in_their_place=relative(m.run_ours(exact, bare), zeros))


def rounded_twice(norm: nn.RMSNorm, x: Tensor) -> Tensor:
    """The original's: normalised in float32, rounded, times the weight, rounded again."""
    return (x * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + norm.eps)).to(x.dtype) * norm.weight


def unipc() -> None:
    """25 steps through the posterior mean of a Gaussian, the solver's scalars in both precisions."""
    ours = core("unipc")

    def model(x: Tensor, sigma: Tensor) -> Tensor:
        a, noise = 1 - sigma.view(-1, 1), sigma.view(-1, 1) ** 2
        return 0.7 + a * 0.25 / (a**2 * 0.25 + noise) * (x - a * 0.7)

    x, sigmas = torch.randn(1, 100_000, generator=torch.manual_seed(0)), core("schedule").flow_sigmas(25, 7.0)
    double = ours.sample_flow_unipc(model, x, sigmas)
    kept = ours.math, ours.torch
    single = {f.__name__: lambda value, f=f: float(np.float32(f(np.float32(value)))) for f in (math.log, math.expm1)}
    ours.math = types.SimpleNamespace(**single)
    ours.torch = types.SimpleNamespace(**{**vars(torch), "float64": torch.float32})
    rough = ours.sample_flow_unipc(model, x, sigmas)
    ours.math, ours.torch = kept
    show("UniPC scalars in float32", relative=relative(rough, double), largest=float((rough - double).abs().max()))


def history_scale() -> None:
    x, scale = torch.randn(1_000_000, generator=torch.manual_seed(0)), core("constants").LATENT_SCALE
    back = x / scale * scale
    changed = float((back.bfloat16() != x.bfloat16()).float().mean())
    show("history stored unscaled", largest=float(((back - x) / x).abs().max()), share_changed_in_bf16=changed)


def crop() -> None:
    """The original hands Pillow a box of fractions, ours is whole pixels."""
    fit, bucket = core("comfy_host.frames").fit_image, core("buckets").nearest_bucket
    sizes = [(height, width) for height in range(301, 1500, 97) for width in range(301, 1500, 89)]
    different = 0
    for height, width in sizes:
        picture = Image.effect_noise((width, height), 80).convert("RGB")
        high, wide = bucket(height, width, 320)
        scale = max(wide / width, high / height)
        large = picture.resize((round(width * scale), round(height * scale)), Image.Resampling.LANCZOS)
        left, top = (large.width - wide) / 2, (large.height - high) / 2
        original = np.asarray(large.crop((left, top, left + wide, top + high)))  # type: ignore[arg-type]
        ours = fit(torch.from_numpy(np.asarray(picture).astype(np.float32) / 255).unsqueeze(0), high, wide)
        different += int((original != (ours[0].numpy() * 255).round()).sum())
    print(f"crop at whole pixels: {len(sizes)} pictures, {different} values differ")


def posterior(tiny: Any) -> None:
    regulariser = tiny.vae.first_stage_model.regularization
    mode, regulariser.sample = tiny.vae.encode(picture_of(96, 64)), True
    torch.manual_seed(0)
    sampled, regulariser.sample = tiny.vae.encode(picture_of(96, 64)), False
    show("VAE posterior sampled, not its mode", relative=relative(sampled, mode))


def prompt_weights(tiny: Any) -> None:
    for prompt in ("a cat walks", "a (cat:1.5) walks"):
        tokens = [tiny.clip.tokenize(prompt, disable_weights=off) for off in (True, False)]
        plain, weighted = (tiny.clip.encode_from_tokens_scheduled(t)[0][0].mean(dim=1) for t in tokens)
        show(f"weights read in '{prompt}'", mean_feature=relative(weighted, plain))


def vision(tiny: Any) -> None:
    """The host's bicubic filter against Pillow's at the released size, its LayerNorm eps against SigLIP's."""
    picture, half = picture_of(640, 608), [0.5] * 3
    ours = importlib.import_module("comfy.clip_vision").clip_preprocess(picture, 384, half, half, crop=False)
    pillow = Image.fromarray((picture[0].numpy() * 255).round().astype(np.uint8))
    square = np.asarray(pillow.resize((384, 384), Image.Resampling.BICUBIC)).astype(np.float32)
    levels = ((ours[0] + 1) * 127.5 - torch.from_numpy(square).permute(2, 0, 1)).abs()
    show("CLIP vision's picture, levels of 255", mean=float(levels.mean()), largest=float(levels.max()))
    usual = tiny.clip_vision.encode_image(picture, crop=False).last_hidden_state
    for module in tiny.clip_vision.model.modules():
        module.eps = 1e-6
    exact = tiny.clip_vision.encode_image(picture, crop=False).last_hidden_state
    show("CLIP vision LayerNorm eps 1e-5, not 1e-6", features=relative(usual, exact))


def cross_fade(tiny: Any) -> None:
    film = core("history").new_history(core("section_plan").plan_backward(3, 9), 0, 64, 64)
    film = core("generate").generate(film, lambda _section, _packed, noise: 2 * noise)
    latents, plan = core("history").film_latents(film), core("decoding").plan_sections(film)
    first = torch.cat(list(core("decoding").decode_film(latents, plan, tiny.vae.decode)), dim=1)
    kept, tiny.vae.process_output = tiny.vae.process_output, lambda image: image.add_(1).div_(2)
    last = torch.cat(list(core("decoding").decode_film(latents, plan, tiny.vae.decode)), dim=1).clamp(0, 1)
    tiny.vae.process_output = kept
    levels = (first - last).abs() * 255
    share = float((levels > 0).float().mean())
    show("cross-fade after the clamp, levels of 255", share_changed=share, largest=float(levels.max()))


def end_image(tiny: Any) -> None:
    """Three sections whose end image leaves the history after the first section, or stays."""
    node = importlib.import_module("framepack_pack.nodes.sampler").FramePackSampler
    start, end = (tiny.vae.encode(picture_of(64, 64, flipped)) for flipped in (False, True))
    embeds = tiny.clip_vision.encode_image(picture_of(64, 64), crop=False).last_hidden_state
    positive = core("comfy_host.text_encoding").encode_prompts(tiny.clip, "a cat walks", 10.0)

    def sample(history: Any, sections: int = 0) -> tuple[Any, dict]:
        return node.execute(tiny.model, positive, history, 8, 1.0, 0.0, 0.0, sections).args

    history = core("history").new_history(core("section_plan").plan_backward(3, 9), 7, 64, 64, start, end, embeds)
    stays = sample(history)[1]["samples"]
    leaves = sample(sample(history, 1)[0]._replace(end_latent=None))[1]["samples"]
    without = sample(history._replace(end_latent=None))[1]["samples"]
    show("end image seen by the first section only", film=relative(leaves, stays), no_end=relative(without, stays))


def picture_of(height: int, width: int, flipped: bool = False) -> Tensor:
    """Smooth colours with some grain, [1, height, width, 3] in steps of 1/255."""
    rows, columns = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
    grain = torch.rand(height, width, generator=torch.manual_seed(0)) * 0.2 + 0.4
    picture = torch.stack([rows, columns, grain], dim=-1).unsqueeze(0)
    return ((picture.flip(1) if flipped else picture) * 255).round() / 255


if __name__ == "__main__":
    main()
