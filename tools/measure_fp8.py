"""Relative L2 of 8-bit products in a small transformer with random weights, and the memory that quantising takes.

    .venv/bin/python tools/measure_fp8.py                                 the products, emulated in float32 on a CPU
    COMFYUI_PATH=ComfyUI .venv/bin/python tools/measure_fp8.py --memory   resident memory of loading 2 GB quantised

Width 512, 4 double and 8 single blocks, one section of 32x32 latents; one in a thousand channels is ten times as
large, as in trained networks. Random weights can rank the recipes; they say nothing about pictures.
"""

# ruff: noqa: E402  # the pack gets its name first

import argparse
import sys
import tempfile
from pathlib import Path

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "scripts")]
from host_attach import attach_host, name_pack

name_pack()

from framepack_pack.framepack_core.model import operations
from framepack_pack.framepack_core.model.config import FramePackConfig
from framepack_pack.framepack_core.model.fp8 import FP8, FP8_MAX, dequantise_rows, quantise_rows_eager
from framepack_pack.framepack_core.model.quantisation import ROWWISE, is_block_layer
from framepack_pack.framepack_core.model.transformer import FramePackTransformer

CONFIG = FramePackConfig(
    num_attention_heads=4, num_layers=4, num_single_layers=8, mlp_dim=2048, text_embed_dim=256,
    pooled_projection_dim=64, image_proj_dim=128,
)  # fmt: skip


def rowwise(x: Tensor) -> Tensor:
    return dequantise_rows(quantise_rows_eager(x), torch.float32)


def tensorwise(x: Tensor) -> Tensor:
    scale = x.abs().max() / FP8_MAX
    return (x / scale).to(FP8).float() * scale


def unscaled(x: Tensor) -> Tensor:
    return x.clamp(-FP8_MAX, FP8_MAX).to(FP8).float()


def plain(x: Tensor) -> Tensor:
    return x


RECIPES = {  # of the weights, of the activations
    "fp8 weights by rows, activations float32": (rowwise, plain),
    "fp8 row-wise (ours)": (rowwise, rowwise),
    "fp8 tensor-wise, both with a scale of their own": (tensorwise, tensorwise),
    "fp8 tensor-wise weights, activations without scale (the host's)": (tensorwise, unscaled),
    "fp8 without scales (the host's fp8_e4m3fn_fast)": (unscaled, unscaled),
}


def measure_products() -> None:
    from benchmark.setting import module_inputs, new_film, random_weights

    weights = dict(random_weights(CONFIG, torch.device("cpu"), torch.float32))
    outliers = torch.rand(CONFIG.width, generator=torch.Generator().manual_seed(5)) < 1e-3 * 4
    for key, weight in weights.items():
        if key.endswith(("ff.net.2.weight", "proj_out.weight")) and weight.shape[0] == CONFIG.width:
            weight[outliers] *= 10
    inputs = module_inputs(CONFIG, new_film(CONFIG, 256, 256), 12)
    expected = run(weights, inputs)
    half = {key: value.to(torch.bfloat16) if torch.is_tensor(value) else value for key, value in inputs.items()}
    bf16 = run({key: weight.to(torch.bfloat16) for key, weight in weights.items()}, half)
    print(f"bf16: {relative_l2(bf16, expected):.2e}")
    for name, (of_weights, of_activations) in RECIPES.items():
        quantised = {
            key: of_weights(w) if is_block_layer(key.removesuffix(".weight")) else w for key, w in weights.items()
        }
        print(f"{name}: {relative_l2(run(quantised, inputs, of_activations), expected):.2e}")


def run(weights: dict[str, Tensor], inputs: dict, of_activations=plain) -> Tensor:
    with torch.device("meta"):
        model = FramePackTransformer(CONFIG)
    model.load_state_dict(weights, assign=True)
    for name, layer in model.named_modules():
        if is_block_layer(name) and isinstance(layer, operations.Linear):
            layer.register_forward_pre_hook(lambda _, given: (of_activations(given[0]),))
    with torch.inference_mode():
        return model(**inputs)


def relative_l2(got: Tensor, expected: Tensor) -> float:
    return float((got.float() - expected).norm() / expected.norm())


def measure_memory() -> None:
    """Full width, few blocks: the share of the largest tensor is as in the released model or larger."""
    import os

    from benchmark.meters import host_memory
    from benchmark.setting import random_weights
    from framepack_pack.framepack_core.atomic_files import stream_atomically
    from framepack_pack.framepack_core.model.config import metadata_of

    attach_host(Path(os.environ["COMFYUI_PATH"]), cpu=True)
    from framepack_pack.framepack_core.comfy_host.quantised_weights import quantised_state_dict, read_weights

    config = FramePackConfig(num_layers=1, num_single_layers=3, num_refiner_layers=1)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "bf16.safetensors"
        stream_atomically(file, random_weights(config, torch.device("cpu"), torch.bfloat16), metadata_of(config))
        before = host_memory()
        state_dict = quantised_state_dict(read_weights([file], ""), {}, ROWWISE)
        held = sum(tensor.nbytes for tensor in state_dict.values()) / 2**30
        print(
            f"file {file.stat().st_size / 2**30:.2f} GiB, quantised {held:.2f} GiB, "
            f"before {before}, after {host_memory()}"
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--memory", action="store_true")
    measure_memory() if parser.parse_args().memory else measure_products()
