"""What a checkpoint is, told from its headers alone, before any weight is read."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open

from ..section_plan import Direction
from .config import ANY_DIRECTION, METADATA_KEY, FramePackConfig, read_config
from .transformer import FramePackTransformer

MARKERS = ("clean_x_embedder.proj.weight", "x_embedder.proj.weight")
PREFIXES = ("", "model.diffusion_model.")
SOURCE_METADATA = "framepack_quantised"  # JSON: format, file of origin, tensors with a merged LoRA
WHERE_TO_GET = "A FramePack transformer is FramePackI2V_HY or FramePack_F1_I2V_HY (Kijai/HunyuanVideo_comfy)."


class Header(NamedTuple):
    """Names, shapes and dtypes (as "BF16") of all tensors in a checkpoint's files, and their metadata."""

    shapes: dict[str, tuple[int, ...]]
    metadata: dict[str, str]
    dtypes: dict[str, str]


def find_files(path: Path) -> list[Path]:
    """Files of a checkpoint that is given as a file, one of its shards, a shard index or folder, or an HF snapshot.

    Raises FileNotFoundError naming a missing shard, or a folder without a checkpoint.
    """
    if path.name.endswith(".index.json"):
        return _indexed_files(path)
    if path.is_file():
        return _complete([path])
    if not path.is_dir():
        raise FileNotFoundError(f"There is no FramePack checkpoint at {path}.")
    indices = sorted(path.glob("*.safetensors.index.json"))
    if indices:
        return _indexed_files(indices[0])
    files = sorted(path.glob("*.safetensors"))
    if files:
        return _complete(files)
    inner = [folder for folder in (path / "transformer", *sorted(path.glob("snapshots/*"))) if folder.is_dir()]
    if not inner:
        raise FileNotFoundError(f"The folder {path} holds no .safetensors file and no snapshot of one.")
    return find_files(max(inner, key=lambda folder: folder.stat().st_mtime))


def read_header(files: list[Path]) -> Header:
    """Header over all files. Raises ValueError for a file that is cut off or is not safetensors."""
    shapes: dict[str, tuple[int, ...]] = {}
    metadata: dict[str, str] = {}
    dtypes: dict[str, str] = {}
    for file in files:
        if file.suffix == ".gguf":
            raise ValueError(
                f"{file.name} is GGUF, which is quantised already; open it with the GGUF pack's Unet Loader."
            )
        try:
            with safe_open(file, framework="pt") as opened:
                metadata.update(opened.metadata() or {})
                for key in opened.keys():  # noqa: SIM118  # safe_open is not a mapping
                    tensor = opened.get_slice(key)
                    shapes[key], dtypes[key] = tuple(tensor.get_shape()), tensor.get_dtype()
        except SafetensorError as error:
            raise ValueError(
                f"{file.name} is not a complete safetensors file ({error}); it is {file.stat().st_size:,} bytes. "
                "The download was probably cut off: fetch it again."
            ) from error
    return Header(shapes, metadata, dtypes)


def framepack_prefix(keys: Mapping[str, object]) -> str | None:
    """Prefix under which the keys are a FramePack transformer's, None when they are not."""
    for prefix in PREFIXES:
        if all(prefix + marker in keys for marker in MARKERS):
            return prefix
    return None


def check_header(header: Header, name: str) -> FramePackConfig:
    """Sizes of a FramePack checkpoint. Raises ValueError naming what the file is, or which tensors it lacks."""
    prefix = framepack_prefix(header.shapes)
    if prefix is None:
        raise ValueError(f"{name} is {describe(header.shapes)}, not a FramePack transformer. {WHERE_TO_GET}")
    try:
        config = read_config(header.shapes, header.metadata, prefix)
    except KeyError as error:
        raise ValueError(f"{name} lacks the tensor {error.args[0]}; a shard or a part of it is missing.") from error
    missing = sorted(key for key in tensor_names(config) if prefix + key not in header.shapes)
    if missing:
        raise ValueError(
            f"{name} lacks {len(missing)} of a FramePack transformer's tensors, first {missing[0]}; "
            "a shard is missing or the file was converted badly."
        )
    return config


def direction_of(header: Header, name: str) -> Direction | None:
    """The direction a checkpoint was made for, told by its metadata or else its name; None for any or unknown."""
    said = json.loads(header.metadata.get(METADATA_KEY, "{}")).get("direction")
    if said is None:
        return known_direction(name)
    return None if said == ANY_DIRECTION else Direction(said)


def known_direction(name: str) -> Direction | None:
    """The direction a released checkpoint was made for, told by its file or folder names; None for other names."""
    name = name.lower().replace("_", "").replace("-", "")
    if "framepackf1" in name:
        return Direction.FORWARD
    return Direction.BACKWARD if "framepacki2v" in name else None


def tensor_names(config: FramePackConfig) -> list[str]:
    """Names of all tensors of a transformer of this size."""
    with torch.device("meta"):
        return list(FramePackTransformer(config).state_dict())


def describe(keys: Mapping[str, tuple[int, ...]]) -> str:
    """A guess in words at what a state dict is."""
    for words, recognises in _KINDS:
        if recognises(keys):
            return words
    first = next(iter(keys), "none")
    return f"an unknown checkpoint ({len(keys)} tensors, first {first})"


def _has(*parts: str):
    return lambda keys: all(any(part in key for key in keys) for part in parts)


def _image_channels(keys: Mapping[str, tuple[int, ...]]) -> int:
    return next((shape[1] for key, shape in keys.items() if key.endswith("img_in.proj.weight")), 0)


_HUNYUAN = _has("txt_in.individual_token_refiner")

# most specific first
_KINDS = (
    ("a LoRA", _has(".lora_up.")),
    ("a LoRA", _has(".lora_B.")),
    ("a LoRA (LoHa or LoKr)", lambda keys: any(".hada_w1" in key or ".lokr_w" in key for key in keys)),
    ("HunyuanVideo I2V", lambda keys: _HUNYUAN(keys) and _image_channels(keys) > 16),
    ("HunyuanVideo", _HUNYUAN),
    ("HunyuanVideo (diffusers names)", _has("context_embedder.token_refiner", "single_transformer_blocks.")),
    ("Flux", _has("double_blocks.", "single_blocks.")),
    ("Wan", _has("blocks.0.cross_attn", "patch_embedding")),
    ("SDXL", _has("input_blocks.", "label_emb")),
    ("Stable Diffusion 1.5 or 2", _has("input_blocks.")),
    ("a VAE", _has("decoder.conv_in.")),
    ("a LLaMA text encoder", _has("model.layers.0.self_attn")),
    ("a CLIP text encoder", _has("text_model.encoder.")),
    ("a vision encoder", _has("vision_model.encoder.")),
)


def _indexed_files(index: Path) -> list[Path]:
    with index.open(encoding="utf-8") as file:
        names = sorted(set(json.load(file)["weight_map"].values()))
    return _existing([index.parent / name for name in names])


def _complete(files: list[Path]) -> list[Path]:
    """All shards of the first file's set, or the only file."""
    stem, part, total = files[0].stem.rpartition("-of-")
    if not part or not total.isdigit():
        if len(files) > 1:
            names = ", ".join(file.name for file in files[:3])
            raise FileNotFoundError(f"{files[0].parent} holds several checkpoints ({names}, ...); choose one file.")
        return files
    base = stem.rsplit("-", 1)[0]
    return _existing(
        [files[0].with_name(f"{base}-{n:0{len(total)}d}-of-{total}.safetensors") for n in range(1, int(total) + 1)]
    )


def _existing(files: list[Path]) -> list[Path]:
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise FileNotFoundError(
            f"{files[0].parent} lacks {len(missing)} of {len(files)} shards: {', '.join(missing)}. Download them again."
        )
    return files
