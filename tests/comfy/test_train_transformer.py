"""The transformer stage of scripts/train_demo.py: films and captions as the sockets see them, and the command."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from framepack_pack.framepack_core.comfy_host.checkpoint_set import load_checkpoint_set
from framepack_pack.framepack_core.comfy_host.frames import encode_start
from framepack_pack.framepack_core.comfy_host.text_encoding import encode_prompt, encode_prompts
from framepack_pack.framepack_core.history import new_history
from framepack_pack.framepack_core.model.config import FramePackConfig
from framepack_pack.framepack_core.model.transformer import FramePackTransformer
from framepack_pack.framepack_core.section_plan import Direction, plan_backward, plan_forward
from framepack_pack.framepack_core.training import operations
from framepack_pack.framepack_core.training.initialise import initialise
from framepack_pack.framepack_core.training.loop import new_run, train
from framepack_pack.framepack_core.training.objective import Objective, flow_loss
from framepack_pack.framepack_core.training.optimizer import Schedule
from framepack_pack.framepack_core.training.sections import CutIndex, draw_batches
from framepack_pack.scripts import train_demo
from framepack_pack.tools.demo_training import measure, transformer, transformer_stage
from framepack_pack.tools.demo_training.dataset import FilmSettings, cached_dataset, make_dataset
from framepack_pack.tools.demo_training.films import WINDOW
from framepack_pack.tools.demo_training.text import CaptionEncoder
from framepack_pack.tools.demo_training.transformer import Training, demo_config, demo_drawing, demo_layouts
from framepack_pack.tools.demo_world.render import render
from framepack_pack.tools.demo_world.scene import join, scene
from sampler_run import sample
from torch._dynamo.testing import CompileCounter

SIZE = 32
SETTINGS = FilmSettings(films=4, sections=(1, 2), wordings=2, size=SIZE)
PARTS = ("vae", "clip_l", "llama", "clip_vision")
CAPTIONS = (
    "a big green star moves right on a white background",
    "A small blue heart is drifting to the left at night.",
    "In front of a grey wall, an orange box spins around",
    "it grows",
)


@pytest.fixture(autouse=True)
def inference_mode():
    """Training needs gradients, so the suite's inference mode is off here."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # small matrices crawl with two on a busy machine
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def encoders(tiny_folder):
    return transformer_stage.load_encoders(tiny_folder, torch.device("cpu"))


@pytest.fixture(scope="module")
def dataset(encoders):
    return make_dataset(SETTINGS, encoders)


def tiny_config() -> FramePackConfig:
    widths = demo_config(32, 32, 36).as_dict()
    return FramePackConfig(**{**widths, "num_attention_heads": 1, "num_single_layers": 1, "mlp_dim": 64})


def two_films():
    """Busy pictures: a plain one makes norms of this random VAE divide by nearly nothing."""
    return join(
        [scene("star", "green", "meadow", ["right"]), scene("heart", "blue", "beach", ["grows"], start=(0.3, 0.6))]
    )


# text


@pytest.mark.parametrize("caption", CAPTIONS)
def test_captions_are_encoded_as_the_host_does(tiny, encoders, caption):
    own = encoders.captions.encode([*CAPTIONS, caption])
    row = CAPTIONS.index(caption)
    context, values = encode_prompt(tiny.clip, caption)[0]
    length = int(own.lengths[row])
    assert context.shape[1] == length
    assert "attention_mask" not in values, "what inference feeds has no mask"
    torch.testing.assert_close(own.features[row : row + 1, :length], context.clone(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(own.pooled[row : row + 1], values["pooled_output"].clone(), rtol=1e-4, atol=1e-4)


def test_the_last_row_is_the_empty_prompt(tiny, encoders):
    own = encoders.captions.encode(CAPTIONS)
    context, values = encode_prompt(tiny.clip, "")[0]
    assert own.empty == len(CAPTIONS)
    assert int(own.lengths[own.empty]) == context.shape[1] > 0
    torch.testing.assert_close(own.features[own.empty, : context.shape[1]], context[0].clone(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(own.pooled[own.empty], values["pooled_output"][0].clone(), rtol=1e-4, atol=1e-4)


def test_captions_of_one_length_are_encoded_together(encoders):
    alone = encoders.captions.encode(CAPTIONS, batch=1)
    together = encoders.captions.encode(CAPTIONS, batch=64)
    assert torch.equal(alone.lengths, together.lengths)
    torch.testing.assert_close(alone.pooled, together.pooled, rtol=1e-4, atol=1e-4)


def test_an_encoder_that_does_not_match_the_host_is_refused(tiny):
    encoder = CaptionEncoder(tiny.clip, "cpu")
    encoder.tokens("a star moves")
    encoder.pieces[" star", False] = encoder.pieces[" moves", False]
    with pytest.raises(ValueError, match="word by word"):
        encoder.encode(["a star moves"])
    encoder = CaptionEncoder(tiny.clip, "cpu")
    encoder.dropped += 1
    with pytest.raises(ValueError, match="The host encodes"):
        encoder.encode(["a star moves"])


# films


@pytest.fixture
def one_go(tiny, monkeypatch):
    """The VAE socket without the pieces of newer hosts, which shift films in time."""
    for part in (tiny.vae.first_stage_model.encoder, tiny.vae.first_stage_model.decoder):
        monkeypatch.setattr(part, "carried", False, raising=False)


@pytest.mark.usefixtures("one_go")
def test_latents_are_those_of_the_vae_socket(tiny, encoders):
    films = two_films()
    own = encoders.coder.encode_scenes(films, SIZE)
    frames = render(films, range(films.frames), SIZE, SIZE)
    with torch.no_grad():
        for film in range(2):
            latents = tiny.vae.encode(frames[film])
            assert float((own.latents[film].float() - latents).norm() / latents.norm()) < 1e-3
            for border in (0, 1):
                image = frames[film, border * 36][None]
                start = encode_start(image, tiny.vae, tiny.clip_vision, SIZE, SIZE)
                still = own.stills[film, border].float()
                assert float((still - start.latent[0, :, 0]).norm() / start.latent.norm()) < 1e-3
                features = start.vision.last_hidden_state[0].float()
                torch.testing.assert_close(own.vision[film, border], features, rtol=1e-4, atol=1e-4)
    assert own.latents.shape == (2, 16, 1 + WINDOW, 4, 4)
    apart = (own.latents[:, :, 0].float() - own.stills[:, 0].float()).norm() / own.stills.float().norm()
    assert apart > 0.1, "the start image is encoded alone, not as a film's first frame"


@pytest.mark.usefixtures("one_go")
def test_films_decode_as_the_vae_socket_does(tiny, encoders):
    latents = encoders.coder.encode_scenes(two_films(), SIZE).latents[:, :, :3]
    own = encoders.coder.decode(latents)
    with torch.no_grad():
        host = torch.cat([tiny.vae.decode(latents[film : film + 1].float()) for film in range(2)])
    assert own.shape == (2, 9, SIZE, SIZE, 3)
    assert float((own - host).abs().mean()) < 1e-3


def test_films_coded_in_pieces_are_the_same(encoders, monkeypatch):
    films = two_films()
    together = encoders.coder.encode_scenes(films, SIZE)
    monkeypatch.setattr(type(encoders.coder), "_films_at_once", lambda *_: 1)
    apart = encoders.coder.encode_scenes(films, SIZE)
    assert float((together.latents - apart.latents).norm() / apart.latents.norm()) < 1e-3


def test_clips_of_two_lengths_in_one_set(dataset):
    clips, prompts = dataset
    assert clips.sections.tolist() == [1, 1, 2, 2]
    assert clips.latents.shape == (4, 16, 1 + 2 * WINDOW, 4, 4)
    assert clips.stills.shape[:2] == clips.vision.shape[:2] == (4, 3)
    assert clips.texts.shape == (4, 2, 2)
    assert (clips.texts[:2, 1] == prompts.empty).all(), "nothing to say about sections that are not there"
    assert (clips.texts[2:] != prompts.empty).all()


def test_a_set_is_read_back_unless_its_settings_or_encoders_changed(
    dataset, encoders, tiny_folder, tmp_path, monkeypatch
):
    path = tmp_path / "films.safetensors"
    for part in PARTS:
        shutil.copy(tiny_folder / f"{part}.safetensors", tmp_path)
    first = cached_dataset(SETTINGS, encoders, tmp_path, path)
    with monkeypatch.context() as patch:
        patch.setattr("framepack_pack.tools.demo_training.dataset.make_dataset", None)
        second = cached_dataset(SETTINGS, encoders, tmp_path, path)
        with pytest.raises(TypeError):
            cached_dataset(FilmSettings(films=2, sections=(1,), size=SIZE), encoders, tmp_path, path)
        (tmp_path / "vae.safetensors").write_bytes(b"another")
        with pytest.raises(TypeError):
            cached_dataset(SETTINGS, encoders, tmp_path, path)
    for mine, table, made in zip(second.clips, first.clips, dataset.clips, strict=True):
        assert torch.equal(mine, table)
        torch.testing.assert_close(mine, made, rtol=1e-4, atol=1e-4)  # convolutions may round otherwise a second time
    assert torch.equal(second.prompts.features, first.prompts.features)
    assert second.prompts.empty == dataset.prompts.empty


# training


def test_the_demo_s_transformer_fits_beside_the_other_parts():
    model = FramePackTransformer(demo_config(64, 64, 64), device="meta")
    size = 2 * sum(parameter.numel() for parameter in model.parameters())
    assert 10_000_000 < size < 10_400_000


def test_layouts_cover_what_films_of_any_length_need():
    def seen(layout):
        """What the transformer is told: positions, and which history is there."""
        made = layout.section.number * WINDOW
        return layout.section.start_index, layout.section.target.indices.start, min(made, 19)

    for direction, plan_of in ((Direction.BACKWARD, plan_backward), (Direction.FORWARD, plan_forward)):
        known = {seen(layout) for layout in demo_layouts(direction, 8)}
        for count in (1, 2, 3, 4, 6, 12, 50):
            plan = plan_of(count, WINDOW)
            missing = {seen(transformer.Layout(plan, section)) for section in plan.sections} - known
            assert not missing, (direction, count)


def test_batches_hold_both_directions_with_and_without_their_conditions(dataset):
    drawing = demo_drawing(Training(batch=2), 2)
    run = new_run(torch.nn.Linear(1, 1))
    index = CutIndex(*dataset)
    kinds = set()
    for _ in range(120):
        for batch in draw_batches(*dataset, drawing, run.generators, index):
            conditions = batch.conditions
            is_forward = conditions.packed.indices.section[0] > 19  # behind its history
            is_empty = torch.equal(conditions.pooled[0], dataset.prompts.pooled[dataset.prompts.empty])
            kinds.add((is_forward, conditions.image_embeds is None, is_empty))
            assert (conditions.image_embeds is None) == (conditions.packed.history_1x.shape[2] == 1)
    assert {(direction, start, False) for direction in (False, True) for start in (True, False)} <= kinds
    assert {(direction, False, True) for direction in (False, True)} <= kinds


def test_the_checkpoint_s_weights_sample_in_bf16(dataset, encoders, tmp_path):
    run = transformer.start_training(tiny_config(), Training(compiles=False), torch.device("cpu"), tmp_path / "none")
    model = transformer.trained_model(run, tiny_config(), torch.bfloat16)
    films = measure.held_out_films(2, 1, encoders, SIZE)
    sampling = measure.Sampling(steps=2, cfg=2.0)
    for direction in Direction:
        history = measure.make_films(model, films, direction, sampling)
        assert history.sections[0].shape == (2, 16, WINDOW, 4, 4)
    for losses in measure.validation_loss(model, films, torch.bfloat16).values():
        assert len(losses) == len(measure.LEVELS)
        # a new model predicts zero: what is left of noise - latents
        assert losses[0] == pytest.approx(losses[-1], rel=1e-3)


def test_training_lowers_the_loss(dataset):
    model = FramePackTransformer(tiny_config(), operations=operations)
    initialise(model)
    run = new_run(model)
    drawing = demo_drawing(Training(batch=2), 2)
    losses = []
    train(
        run,
        lambda: draw_batches(*dataset, drawing, run.generators),
        lambda model, batch: flow_loss(model, batch, Objective(dtype=torch.float32), run.generators.noise),
        Schedule(30, warm_up=5),
        callbacks=[lambda _run, value: losses.append(value.item())],
    )
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])


def test_blocks_compile_for_prompts_of_any_length(dataset):
    """Traced, not translated: that is the same for every device."""
    torch.compiler.reset()
    counter = CompileCounter()
    model = FramePackTransformer(tiny_config(), operations=operations)
    initialise(model)
    transformer.compile_blocks(model, backend=counter, dynamic=True)
    drawing = demo_drawing(Training(batch=2), 2)
    run = new_run(model)
    for _ in range(12):
        for batch in draw_batches(*dataset, drawing, run.generators):
            flow_loss(model, batch, Objective(dtype=torch.float32), run.generators.noise).backward()
    torch.compiler.reset()
    assert counter.frame_count <= 4, "one kind of block each, and a prompt of a single token"


# figures and command


def test_figures_of_the_true_films(encoders):
    """The tiny VAE is random, so the frames are rendered instead of decoded."""
    films = measure.held_out_films(2, 1, encoders, 64)
    frames = render(films.scenes, range(films.scenes.frames), 64, 64)
    figures = measure.judge_films(frames, films)
    assert figures["motion obeyed"] == figures["colour kept"] == figures["shape kept"] == 1
    assert figures["first frame dB"] > 60
    wrong = measure.judge_films(frames.flip(-1) / 2, films)  # other colours
    assert wrong["first frame dB"] < 20
    assert wrong["colour kept"] < 1


def test_the_command_trains_saves_goes_on_and_its_file_makes_films(tiny_folder, tmp_path, monkeypatch, capsys):
    host = Path(sys.modules["comfy.sd"].__file__).parents[1]
    for part in PARTS:
        shutil.copy(tiny_folder / f"{part}.safetensors", tmp_path)
    monkeypatch.setattr(transformer, "demo_config", lambda *_: tiny_config())
    monkeypatch.setattr(transformer_stage, "_TESTED_SECTIONS", 1)
    for steps in (2, 3):
        arguments = ["train_demo", "transformer", "--host", str(host), "--out", str(tmp_path), "--steps", str(steps)]
        sizes = ["--films", "4", "--sections", "1", "2", "--batch", "2", "--size", str(SIZE), "--tested", "1"]
        monkeypatch.setattr(sys, "argv", [*arguments, *sizes, "--sampling-steps", "2"])
        train_demo.main()
        said = capsys.readouterr().out
        figures = json.loads(next(line for line in said.splitlines() if line.startswith("{")))
        assert figures["step"] == steps
        assert f"at step {steps} of {steps}, done" in said
    assert "parameters, at step 2" in said
    assert {"backward", "forward", "backward, VAE alone", "forward, text to video"} <= figures.keys()
    assert len(figures["loss"]["forward"]) == len(figures["loss at"])
    assert len(list(tmp_path.glob("*.png"))) == 4

    with torch.inference_mode():
        checkpoint = load_checkpoint_set(tmp_path)
        assert checkpoint.model.model.diffusion_model.config == tiny_config()
        start = encode_start(
            render(two_films()[:1], [0], SIZE, SIZE)[0], checkpoint.vae, checkpoint.clip_vision, SIZE, SIZE
        )
        positive = encode_prompts(checkpoint.clip, CAPTIONS[0], 10.0)
        for plan_of in (plan_backward, plan_forward):
            history = new_history(
                plan_of(1, WINDOW), 1, SIZE, SIZE, start.latent, image_embeds=start.vision.last_hidden_state
            )
            _, latent = sample(checkpoint, positive, history, steps=2)
            assert latent["samples"].shape == (1, 16, 1 + WINDOW, 4, 4)
