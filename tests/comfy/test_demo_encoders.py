"""The demo checkpoint's encoders through CLIP and CLIP_VISION: apart what differs, the same what means the same."""

import copy
import hashlib
import inspect
import logging
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import pytest
import torch
from framepack_pack.framepack_core.comfy_host import checkpoint_set
from framepack_pack.framepack_core.comfy_host.text_encoding import encode_prompt, encode_prompts
from framepack_pack.nodes.prompts import FramePackSectionPrompts
from framepack_pack.tools.demo_training.encoders import WIDTH, write_encoders
from framepack_pack.tools.demo_world.captions import captions, motion_phrases, vocabulary
from framepack_pack.tools.demo_world.render import render
from framepack_pack.tools.demo_world.sampling import random_scenes
from framepack_pack.tools.demo_world.scene import COLOURS, MOTIONS, SHAPES
from safetensors import safe_open

TEXT = "a big green star moves right on a white background"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("encoders") / "made on demand"
    write_encoders(path, 0)
    return path


@pytest.fixture(scope="module")
def clip(folder):
    with torch.inference_mode():
        return checkpoint_set.load_text_encoders(folder / "clip_l.safetensors", folder / "llama.safetensors")


@pytest.fixture(scope="module")
def clip_vision(folder):
    with torch.inference_mode():
        return checkpoint_set.load_clip_vision(folder / "clip_vision.safetensors")


def encode(clip, text):
    """Token features [L, D] and pooled features [D]."""
    ((features, values),) = encode_prompt(clip, text)
    return features[0], values["pooled_output"][0]


def distance(first, second):
    """Of two features, relative to their mean length."""
    return float((first - second).norm() / (first.norm() + second.norm()) * 2)


def digests(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def test_three_small_files_that_depend_on_the_seed_alone(folder, tmp_path):
    write_encoders(tmp_path / "again", 0)
    write_encoders(tmp_path / "other", 1)
    assert set(digests(folder)) == {"clip_l.safetensors", "llama.safetensors", "clip_vision.safetensors"}
    assert sum(path.stat().st_size for path in folder.iterdir()) < 0.8e6
    assert digests(tmp_path / "again") == digests(folder)
    assert all(digests(tmp_path / "other")[name] != digest for name, digest in digests(folder).items())


def test_tables_are_whole_in_the_hosts_classes_and_zero_where_the_file_has_no_row(clip, folder):
    tables = {
        "clip_l": clip.cond_stage_model.clip_l.transformer.text_model.embeddings.token_embedding.weight,
        "llama": clip.cond_stage_model.llama.transformer.model.embed_tokens.weight,
    }
    for name, table in tables.items():
        with safe_open(folder / f"{name}.safetensors", framework="pt") as file:
            (rows_key,) = (key for key in file.keys() if key.endswith(".rows"))  # noqa: SIM118
            numbers = file.get_tensor(rows_key).long()
            rows = file.get_tensor(rows_key.replace(".rows", ".weight"))
        assert table.shape == ({"clip_l": 49408, "llama": 128320}[name], WIDTH)
        assert torch.equal(table[numbers].cpu().to(rows.dtype), rows)
        assert torch.count_nonzero(table) == torch.count_nonzero(rows)


def test_every_caption_has_a_row_for_each_of_its_tokens(clip):
    scenes = random_scenes(200, 2, torch.Generator().manual_seed(5))
    texts = captions(scenes, 1, torch.Generator().manual_seed(6))
    tables = {
        "l": clip.cond_stage_model.clip_l.transformer.text_model.embeddings.token_embedding.weight,
        "llama": clip.cond_stage_model.llama.transformer.model.embed_tokens.weight,
    }
    for text in texts:
        for name, batches in clip.tokenize(text).items():
            numbers = [pair[0] for pair in batches[0] if pair[0] < 49406 or name == "llama"]
            assert tables[name][numbers].abs().sum(1).all(), (name, text)


def test_a_second_copy_of_the_weights_is_whole_too(clip, folder):
    load, arguments = clip.patcher.cached_patcher_init
    extra = {"disable_dynamic": True} if "disable_dynamic" in inspect.signature(type(clip).clone).parameters else {}
    table = load(*arguments, **extra).model.llama.transformer.model.embed_tokens.weight
    assert torch.equal(table, clip.cond_stage_model.llama.transformer.model.embed_tokens.weight)


def test_features_are_of_unit_size_and_finite(clip):
    for text in (TEXT, "", "a", ".", "1 ~ 2 ~ 3", TEXT.upper()):
        features, pooled = encode(clip, text)
        assert features.shape[1:] == pooled.shape == (WIDTH,)
        assert torch.isfinite(features).all(), text
        assert torch.isfinite(pooled).all(), text
    features, pooled = encode(clip, TEXT)
    assert features.shape[0] == len(TEXT.split()) + 1  # a token a word, and the end of the turn
    assert ((features.std(1) > 0.8) & (features.std(1) < 1.5)).all()
    assert 0.5 < pooled.std() < 2


def test_every_two_words_are_apart(clip):
    words = [word for word in vocabulary() if word != "grassy"]  # two tokens, of which the first is that of "grass"
    features = {word: encode(clip, f"a big {word} moves") for word in words}
    for first, second in combinations(words, 2):
        tokens, pooled = zip(features[first], features[second], strict=True)
        assert distance(tokens[0][2], tokens[1][2]) > 0.7, (first, second)
        assert distance(*pooled) > 0.2, (first, second)


@pytest.mark.parametrize("words", [COLOURS, SHAPES, [motion_phrases(motion)[0][0] for motion in MOTIONS]])
def test_whole_prompts_differ_in_their_pooled_features(clip, words):
    kinds = {COLOURS: "a big {} star spins on white", SHAPES: "a red {} spins on white"}
    template = kinds.get(tuple(words), "a red star {} on a white background")
    pooled = [encode(clip, template.format(word))[1] for word in words]
    assert min(distance(*pair) for pair in combinations(pooled, 2)) > 0.25


def test_a_word_is_mostly_itself_and_knows_the_words_before_it(clip):
    features = encode(clip, "a big red star moves right")[0]
    others = encode(clip, "a small blue ball moves right")[0]
    swapped = encode(clip, "a big star red moves right")[0]
    longer = encode(clip, "a big red star moves right on a beach")[0]
    for at in (4, 5):  # moves, right
        assert 0.2 < distance(features[at], others[at]) < 0.6
        assert distance(features[at], swapped[at]) > 0.03
        torch.testing.assert_close(features[at], longer[at])  # causal


def test_capitals_and_the_place_in_the_line_change_nothing(clip):
    spins, pooled = encode(clip, "spins around")
    for text in ("Spins around", "SPINS AROUND"):
        other, other_pooled = encode(clip, text)
        assert torch.equal(spins, other)
        assert torch.equal(pooled, other_pooled)
    inner = encode(clip, "a star spins around")[0]
    assert distance(spins[0], inner[2]) < 0.6, "the same token in another context"


def test_pictures_differ_where_colour_shape_and_place_do(clip_vision):
    scenes = random_scenes(16, 1, torch.Generator().manual_seed(1))
    scenes = replace(scenes, size=torch.ones_like(scenes.size), start=torch.full_like(scenes.start, 0.4))

    def look(**changes):  # [B, 16, D]
        values = {name: torch.full_like(getattr(scenes, name), value) for name, value in changes.items()}
        frames = render(replace(scenes, **values), [0], 128, 128)[:, 0]
        return clip_vision.encode_image(frames, crop=False).last_hidden_state

    def apart(first, second):  # [B], of the token that differs most
        return ((first - second).norm(dim=-1) / WIDTH**0.5).amax(1)

    seen = look()
    assert seen.shape == (16, 16, WIDTH)
    assert torch.isfinite(seen).all()
    assert 0.5 < seen.std() < 2
    kinds = {
        "colour": [look(colour=number) for number in range(len(COLOURS))],
        "shape": [look(shape=number) for number in range(len(SHAPES))],
        "start": [look(start=place) for place in (0.3, 0.5, 0.7)],
    }
    for kind, looks in kinds.items():
        distances = torch.stack([apart(*pair) for pair in combinations(looks, 2)])
        assert distances.min() > 0.1, kind
        assert distances.median() > 0.4, kind


def test_unknown_words_are_left_out_with_one_line(clip, caplog):
    with caplog.at_level(logging.WARNING):
        known = encode(clip, TEXT)
        assert not caplog.records
        with_unknown = encode(clip, "a big shiny green star moves zebra right on a white background")
    (record,) = caplog.records
    assert '"shiny", "zebra"' in record.getMessage()
    assert all(f" {word}" in record.getMessage() for word in vocabulary())
    assert all(torch.equal(first, second) for first, second in zip(known, with_unknown, strict=True))


def test_unknown_words_are_left_out_everywhere(clip, caplog):
    from comfy_extras.nodes_hunyuan import TextEncodeHunyuanVideo_ImageToVideo

    from nodes import CLIPTextEncode

    picture = type("VisionOutput", (), {"mm_projected": torch.zeros(1, 4, WIDTH)})()
    ways = {
        "clip text encode": lambda clip, text: CLIPTextEncode().encode(clip, text)[0],
        "image to video": lambda clip, text: TextEncodeHunyuanVideo_ImageToVideo.execute(clip, picture, text, 2)[0],
        "section prompts": lambda clip, text: FramePackSectionPrompts.execute(clip, text, 10.0).args[0],
        "a clone": lambda clip, text: encode_prompts(clip.clone(), text, 10.0),
        "a copy": lambda clip, text: encode_prompts(copy.copy(clip), text, 10.0),
    }
    for name, way in ways.items():
        caplog.clear()
        weighted = "a red ball" if name == "image to video" else "a (red:1.3) ball"  # the host cannot weigh there
        known, unknown = (way(clip, text) for text in (f"{weighted},\nmoves", f"{weighted} zebra,\nmoves"))
        assert torch.equal(known[0][0], unknown[0][0]), name
        assert torch.equal(known[0][1]["pooled_output"], unknown[0][1]["pooled_output"]), name
        assert len([record for record in caplog.records if "zebra" in record.getMessage()]) == 1, name


def test_weights_still_count(clip):
    plain, weighted, strong = (
        clip.encode_from_tokens_scheduled(clip.tokenize(text))[0][0]
        for text in ("a (red:1.2) ball", "a (zebra red:1.2) ball", "a (red zebra:1.6) ball")
    )
    assert torch.equal(plain, weighted)
    assert distance(plain, strong) > 0.05


def test_other_tokenizers_stay_the_hosts(tiny):
    assert tiny.clip.tokenizer.tokenize_with_weights("zebra")["llama"][0][95:-1], "the tiny set knows every word"
