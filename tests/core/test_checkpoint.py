"""What a checkpoint file is, told from its header."""

import json

import pytest
import torch
from framepack_pack.framepack_core.model.checkpoint import (
    WHERE_TO_GET,
    Header,
    check_header,
    describe,
    direction_of,
    find_files,
    framepack_prefix,
    read_header,
)
from framepack_pack.framepack_core.model.config import ANY_DIRECTION, METADATA_KEY, metadata_of
from framepack_pack.framepack_core.model.transformer import FramePackTransformer
from framepack_pack.framepack_core.section_plan import Direction
from model_inputs import CONFIG
from safetensors.torch import save_file

SHARD = "diffusion_pytorch_model-{:05d}-of-00003.safetensors"

KINDS = {
    "HunyuanVideo": {"txt_in.individual_token_refiner.blocks.0.norm1.weight": (8,), "img_in.proj.weight": (8, 16)},
    "HunyuanVideo I2V": {"txt_in.individual_token_refiner.blocks.0.norm1.weight": (8,), "img_in.proj.weight": (8, 33)},
    "HunyuanVideo (diffusers names)": {"context_embedder.token_refiner.x": (1,), "single_transformer_blocks.0.x": (1,)},
    "Wan": {"blocks.0.cross_attn.q.weight": (8,), "patch_embedding.weight": (8,)},
    "SDXL": {"model.diffusion_model.input_blocks.0.0.weight": (8,), "model.diffusion_model.label_emb.0.0.weight": (8,)},
    "a LoRA": {"lora_unet_transformer_blocks_0_attn_to_q.lora_up.weight": (8,)},
    "Flux": {"double_blocks.0.img_attn.qkv.weight": (8,), "single_blocks.0.linear1.weight": (8,)},
    "a VAE": {"decoder.conv_in.conv.weight": (8,)},
}


@pytest.fixture(scope="module")
def state_dict():
    return FramePackTransformer(CONFIG).state_dict()


@pytest.fixture
def shards(state_dict, tmp_path):
    """A folder of three shards."""
    keys = sorted(state_dict)
    for number in range(3):
        part = {key: state_dict[key] for key in keys[number::3]}
        save_file(part, tmp_path / SHARD.format(number + 1), metadata_of(CONFIG))
    return tmp_path


def names(files):
    return [file.name for file in files]


def test_a_file_is_itself(shards):
    file = shards / "framepack.safetensors"
    save_file({"x": torch.zeros(1)}, file)
    assert find_files(file) == [file]


def test_shard_folder_index_and_snapshot_give_all_shards(shards, tmp_path_factory):
    expected = [SHARD.format(number) for number in (1, 2, 3)]
    assert names(find_files(shards)) == expected
    assert names(find_files(shards / SHARD.format(2))) == expected
    index = shards / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {f"tensor {i}": SHARD.format(i % 3 + 1) for i in range(9)}}))
    assert names(find_files(index)) == expected
    assert names(find_files(shards)) == expected
    repository = tmp_path_factory.mktemp("models--lllyasviel--FramePackI2V_HY")
    (repository / "snapshots").mkdir()
    shards.rename(repository / "snapshots" / "0123abcd")
    assert names(find_files(repository)) == expected


def test_shards_hold_the_whole_model(shards):
    assert check_header(read_header(find_files(shards)), "shards") == CONFIG


def test_a_missing_shard_is_named(shards):
    (shards / SHARD.format(2)).unlink()
    with pytest.raises(FileNotFoundError, match="lacks 1 of 3 shards: diffusion_pytorch_model-00002-of-00003"):
        find_files(shards)


def test_folders_without_a_checkpoint_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no .safetensors file"):
        find_files(tmp_path)
    with pytest.raises(FileNotFoundError, match="no FramePack checkpoint at"):
        find_files(tmp_path / "gone")
    for name in ("a", "b"):
        save_file({"x": torch.zeros(1)}, tmp_path / f"{name}.safetensors")
    with pytest.raises(FileNotFoundError, match="several checkpoints .a.safetensors, b.safetensors"):
        find_files(tmp_path)


def test_a_truncated_file_is_named(shards):
    file = shards / SHARD.format(1)
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(
        ValueError, match="00001-of-00003.safetensors is not a complete safetensors file.*fetch it again"
    ):
        read_header([file])


def test_a_text_page_is_named(tmp_path):
    page = tmp_path / "model.safetensors"
    page.write_text("<html>404</html>" * 100)
    with pytest.raises(ValueError, match="model.safetensors is not a complete safetensors file"):
        read_header([page])


def test_one_shard_alone_lacks_tensors(shards):
    with pytest.raises(ValueError, match="lacks|not a FramePack transformer"):
        check_header(read_header([shards / SHARD.format(1)]), "one shard")


def test_missing_tensors_are_counted(state_dict, tmp_path):
    kept = {key: tensor for key, tensor in state_dict.items() if "transformer_blocks.1.attn.to_q" not in key}
    save_file(kept, tmp_path / "cut.safetensors", metadata_of(CONFIG))
    with pytest.raises(
        ValueError, match="cut lacks 4 of a FramePack .* first single_transformer_blocks.1.attn.to_q.bias"
    ):
        check_header(read_header([tmp_path / "cut.safetensors"]), "cut")


@pytest.mark.parametrize(("kind", "shapes"), KINDS.items())
def test_other_models_are_named(kind, shapes, tmp_path):
    assert describe(shapes) == kind
    save_file({key: torch.zeros(shape) for key, shape in shapes.items()}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError) as refusal:
        check_header(read_header([tmp_path / "other.safetensors"]), "other.safetensors")
    assert str(refusal.value) == f"other.safetensors is {kind}, not a FramePack transformer. {WHERE_TO_GET}"


def test_unknown_files_name_a_tensor():
    assert describe({"something.weight": (1,)}) == "an unknown checkpoint (1 tensors, first something.weight)"


def test_prefixed_checkpoints_are_found(state_dict):
    assert framepack_prefix(state_dict) == ""
    assert framepack_prefix({f"model.diffusion_model.{key}": 0 for key in state_dict}) == "model.diffusion_model."
    assert framepack_prefix({"x_embedder.proj.weight": 0}) is None


@pytest.mark.parametrize(
    ("said", "name", "direction"),
    [
        (None, "x.safetensors", None),
        (None, "FramePackI2V_HY.safetensors", Direction.BACKWARD),
        (None, "FramePack_F1_I2V_HY.safetensors", Direction.FORWARD),
        (ANY_DIRECTION, "FramePack-F1/demo_checkpoint/transformer.safetensors", None),
        ("forward", "FramePackI2V_HY.safetensors", Direction.FORWARD),
    ],
)
def test_metadata_tells_the_direction_before_the_name(said, name, direction):
    assert direction_of(Header({}, metadata_of(CONFIG, said), {}), name) is direction


def test_metadata_without_a_direction_says_nothing_of_it():
    assert "direction" not in json.loads(metadata_of(CONFIG)[METADATA_KEY])
    assert direction_of(Header({}, {}, {}), "FramePackI2V_HY.safetensors") is Direction.BACKWARD
