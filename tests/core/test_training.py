"""Training: examples are what inference packs, runs go on bit for bit, and a tiny model learns to do as it is told."""

import json

import pytest
import torch
from framepack_pack.framepack_core.constants import LATENT_SCALE
from framepack_pack.framepack_core.generate import generate
from framepack_pack.framepack_core.history import new_history
from framepack_pack.framepack_core.model.config import FramePackConfig, metadata_of, read_config
from framepack_pack.framepack_core.model.transformer import FramePackTransformer
from framepack_pack.framepack_core.packing import pack_history
from framepack_pack.framepack_core.schedule import flow_sigmas
from framepack_pack.framepack_core.section_plan import Direction, usual_paddings
from framepack_pack.framepack_core.training import operations
from framepack_pack.framepack_core.training.clips import Prompts, check_prompts, new_clips
from framepack_pack.framepack_core.training.initialise import initialise, trains_from_scratch
from framepack_pack.framepack_core.training.loop import compile_blocks, every, new_run, train
from framepack_pack.framepack_core.training.muon import Muon, orthogonalise
from framepack_pack.framepack_core.training.objective import (
    Objective,
    draw_sigmas,
    flow_loss,
    relative_flow_loss,
    velocity_error,
)
from framepack_pack.framepack_core.training.optimizer import Optimizers, Rates, Schedule, is_block_matrix
from framepack_pack.framepack_core.training.run_files import averaged_weights, load_run, save_run
from framepack_pack.framepack_core.training.sampling import Text, model_denoise
from framepack_pack.framepack_core.training.sections import (
    Cut,
    Drawing,
    Given,
    Layout,
    add_drift,
    draw_batches,
    draw_cut,
    film_so_far,
    make_batch,
    pack_there,
    usual_layouts,
)
from framepack_pack.framepack_core.training.weight_average import WeightAverage
from safetensors.torch import load_file, save_file
from torch import nn

SIZES = FramePackConfig(
    num_attention_heads=2,
    attention_head_dim=32,
    num_layers=1,
    num_single_layers=1,
    num_refiner_layers=1,
    mlp_dim=128,
    text_embed_dim=8,
    pooled_projection_dim=8,
    image_proj_dim=6,
    rope_axes_dim=(8, 12, 12),
)
FP32 = Objective(dtype=torch.float32)
WINDOW, SECTIONS = 3, 6
GROUPS = ("history_1x", "history_2x", "history_4x")


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    """Tensors are tiny here: more threads only wait for each other, 17 times longer on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


CPU = torch.device("cpu")


def tiny_model(seed=0):
    model = FramePackTransformer(SIZES, operations=operations)
    initialise(model, seed)
    return model


def random_clips(window=WINDOW, sections=SECTIONS, count=3):
    """Clips with a still at every border, all numbers different, of unequal length; section k of clip n is row k."""
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(count, 16, 1 + window * sections, 4, 6, generator=generator)
    return new_clips(
        latents=latents,
        texts=torch.arange(1, sections + 1).repeat(count, 1).unsqueeze(-1),
        vision=torch.randn(count, sections + 1, 4, SIZES.image_proj_dim, generator=generator),
        window=window,
        stills=torch.randn(count, sections + 1, 16, 4, 6, generator=generator),
        sections=torch.tensor([sections, sections, sections - 2][:count]),
    )


def prompt_table(rows=SECTIONS + 1, lengths=None):
    generator = torch.Generator().manual_seed(2)
    lengths = torch.full((rows,), 3) if lengths is None else torch.tensor(lengths)
    return Prompts(
        torch.randn(rows, int(lengths.max()), 8, generator=generator),
        torch.randn(rows, 8, generator=generator),
        lengths,
        0,
    )


def layouts(direction, sections=SECTIONS, window=WINDOW):
    return usual_layouts(direction, sections, window)


def both_ways(sections=SECTIONS, window=WINDOW, **settings):
    return Drawing(tuple(layouts(direction, sections, window) for direction in Direction), **settings)


def seen_by_inference(clips, layout, clip, begin, given):
    """What pack_history gives in a film whose sections so far came out as in the clip."""
    plan, section = layout
    truth = clips.latents[clip : clip + 1, :, 1 + begin * plan.window :]
    history = new_history(
        plan,
        seed=0,
        width=48,
        height=32,
        start_latent=clips.stills[clip, begin][None, :, None] if given.start else None,
        end_latent=clips.stills[clip, begin + len(plan.sections)][None, :, None] if given.end else None,
    )

    def denoise(making, packed, noise):
        frames = making.target.frames
        return truth[:, :, frames.start : frames.stop]

    return pack_history(generate(history, denoise, section.number), section)


@pytest.mark.parametrize("window", [WINDOW, 9])
@pytest.mark.parametrize(
    ("direction", "given"),
    [
        (Direction.BACKWARD, Given()),
        (Direction.BACKWARD, Given(end=True)),
        (Direction.BACKWARD, Given(start=False)),
        (Direction.FORWARD, Given()),
        (Direction.FORWARD, Given(start=False)),
    ],
)
def test_every_example_is_packed_as_inference_packs_it(direction, given, window):
    clips, prompts = random_clips(window), prompt_table()
    for layout in layouts(direction, window=window):
        most = SECTIONS - len(layout.plan.sections)
        cut = Cut(torch.tensor([1, 0]), torch.tensor([0, most]), torch.tensor([0, 0]))
        batch = make_batch(clips, prompts, layout, cut, given)
        for row, (clip, begin) in enumerate([(1, 0), (0, most)]):
            expected = seen_by_inference(clips, layout, clip, begin, given)
            assert batch.conditions.packed.indices == expected.indices
            for group in GROUPS:
                assert torch.equal(getattr(batch.conditions.packed, group)[row], getattr(expected, group)[0])
            place = layout.plan.place(layout.section)
            first = 1 + (begin + place) * window
            assert torch.equal(batch.latents[row], clips.latents[clip, :, first : first + window])
            assert torch.equal(batch.conditions.context[row], prompts.features[1 + begin + place])
            assert torch.equal(batch.conditions.pooled[row], prompts.pooled[1 + begin + place])
            if given.start:
                assert torch.equal(batch.conditions.image_embeds[row], clips.vision[clip, begin])
            else:
                assert batch.conditions.image_embeds is None


def test_layouts_are_those_of_films_of_every_length():
    backward = layouts(Direction.BACKWARD, 5, 9)
    seen = {(len(x.plan.sections), x.section.number, (x.section.target.indices.start - 1) // 9) for x in backward}
    assert seen == {(n, k, padding) for n in range(1, 6) for k, padding in enumerate(usual_paddings(n))}
    assert len(backward) == 15
    forward = layouts(Direction.FORWARD, 5, 9)
    assert [layout.section.number for layout in forward] == [0, 1, 2, 3, 4]


def test_a_dropped_prompt_is_the_empty_one_and_the_image_stays():
    clips, prompts = random_clips(), prompt_table(lengths=[2] + [3] * SECTIONS)
    layout = layouts(Direction.FORWARD)[1]
    cut = draw_cut(clips, prompts, layout, 4, torch.Generator().manual_seed(0))
    conditions = make_batch(clips, prompts, layout, cut, Given(text=False)).conditions
    assert torch.equal(conditions.context, prompts.features[:1, :2].expand(4, -1, -1))
    assert torch.equal(conditions.pooled, prompts.pooled[:1].expand(4, -1))
    assert conditions.image_embeds is not None
    assert conditions.packed.history_1x.shape[2] == 2


def test_cuts_lie_in_their_clip_and_prompts_of_a_batch_are_equally_long():
    clips, prompts = random_clips(), prompt_table(lengths=[1, 2, 3, 2, 3, 2, 3])
    generator = torch.Generator().manual_seed(0)
    begins_of_short_clip, lengths = set(), set()
    for layout in layouts(Direction.BACKWARD) * 20:
        cut = draw_cut(clips, prompts, layout, 8, generator)
        assert ((cut.begins + len(layout.plan.sections)) <= clips.sections[cut.clips]).all()
        rows = clips.texts[cut.clips, cut.begins + layout.plan.place(layout.section), cut.wordings]
        length = set(prompts.lengths[rows].tolist())
        assert len(length) == 1
        lengths |= length
        begins_of_short_clip |= set(cut.begins[cut.clips == 2].tolist())
    assert lengths == {2, 3}
    assert begins_of_short_clip == set(range(SECTIONS - 2))


def test_cuts_are_spread_evenly_whatever_the_lengths_of_prompts():
    clips = random_clips()
    prompts = prompt_table(lengths=[1, 2, 2, 2, 2, 2, 5])
    layout = layouts(Direction.FORWARD)[0]
    generator = torch.Generator().manual_seed(0)
    cuts = [draw_cut(clips, prompts, layout, 1, generator) for _ in range(3000)]
    counts = torch.bincount(torch.cat([cut.begins * 3 + cut.clips for cut in cuts]), minlength=3 * SECTIONS)
    usable = counts[counts > 0]
    assert len(usable) == 16  # 6 + 6 + 4 sections
    assert usable.min() > 120
    assert usable.max() < 260  # 187.5 each, 13.3 standard deviation


def test_without_stills_films_begin_where_their_clip_does():
    full = random_clips()
    clips = new_clips(full.latents, full.texts, full.vision[:, :1], WINDOW)
    layout = layouts(Direction.BACKWARD)[2]
    cut = draw_cut(clips, prompt_table(), layout, 16, torch.Generator().manual_seed(0))
    assert not cut.begins.any()
    history = film_so_far(clips, layout, cut, Given())
    assert torch.equal(history.start_latent, clips.latents[cut.clips, :, :1])


def test_drift_touches_only_what_was_made():
    clips = random_clips()
    layout = layouts(Direction.BACKWARD)[4]  # 3 sections, the second one made
    cut = Cut(torch.arange(3).repeat(40), torch.zeros(120, dtype=torch.int64), torch.zeros(120, dtype=torch.int64))
    history = film_so_far(clips, layout, cut, Given(end=True))
    noisy = add_drift(history, 0.5, 0.1, torch.Generator().manual_seed(0))
    clean_pack, noisy_pack = pack_there(history, layout.section, CPU), pack_there(noisy, layout.section, CPU)
    assert torch.equal(noisy.start_latent, history.start_latent)
    assert torch.equal(noisy.end_latent, history.end_latent)
    assert torch.equal(noisy_pack.history_4x, clean_pack.history_4x)  # only the end image and zeros are that far
    assert (clean_pack.history_4x[:, :, 1:] == 0).all()
    change = (noisy_pack.history_1x - clean_pack.history_1x)[:, :, 1] * LATENT_SCALE
    assert not (noisy_pack.history_1x - clean_pack.history_1x)[:, :, 0].any()
    level = change.flatten(1).std(dim=1)
    assert 40 < int((level > 0).sum()) < 80
    assert 0.05 < float(level.max()) < 0.11


def test_a_step_draws_both_directions_and_drops_conditions():
    clips, prompts = random_clips(), prompt_table(lengths=[2] + [3] * SECTIONS)
    run = new_run(tiny_model())
    drawing = both_ways(batch=2, batches=2, drop_text=0.25, drop_start=0.25, give_end=0.5)
    drawn = [draw_batches(clips, prompts, drawing, run.generators) for _ in range(60)]
    starts = [[batch.conditions.packed.indices.section[0] for batch in step] for step in drawn]
    assert {max(step) for step in starts} == {20}  # the forward one
    assert {1 + WINDOW * padding for padding in range(4)} == {min(step) for step in starts}
    assert 15 < sum(first == 20 for first, _ in starts) < 45
    conditions = [batch.conditions for step in drawn for batch in step]
    without_image = [c for c in conditions if c.image_embeds is None]
    assert 15 < len(without_image) < 50
    assert all(c.packed.history_1x.shape[2] == 1 for c in without_image)
    assert 15 < sum(c.context.shape[1] == 2 for c in conditions) < 50


def test_batches_of_text_alone_show_a_first_made_section_nothing_but_its_prompt():
    clips, prompts = random_clips(), prompt_table(lengths=[2] + [3] * SECTIONS)
    drawing = both_ways(batch=2, batches=2, drop_text=1.0, text_alone=0.5)
    generators = new_run(tiny_model()).generators
    drawn = [batch.conditions for _ in range(60) for batch in draw_batches(clips, prompts, drawing, generators)]
    alone = [conditions for conditions in drawn if conditions.context.shape[1] == 3]
    assert 40 < len(alone) < 80
    for conditions in alone:
        assert conditions.image_embeds is None
        assert not any(getattr(conditions.packed, group).any() for group in GROUPS)


def test_clips_and_prompts_that_do_not_fit_are_refused():
    clips = random_clips()
    with pytest.raises(
        ValueError, match=r"Clips have 1 to 1 sections in 19 latent frames; each needs at least 1 of 20"
    ):
        new_clips(clips.latents, clips.texts, clips.vision, 20, clips.stills, torch.ones(3, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"do not agree: .*vision \(3, 7, 4, 6\), stills \(3, 1, 16, 4, 6\)"):
        new_clips(clips.latents, clips.texts, clips.vision, WINDOW)
    with pytest.raises(ValueError, match=r"latents have shape \(3, 4,"):
        new_clips(clips.latents[:, :4], clips.texts, clips.vision, WINDOW)
    with pytest.raises(ValueError, match="Prompts have 0 to 3 tokens"):
        check_prompts(prompt_table(lengths=[0, 3, 3, 3, 3, 3, 3]), clips)
    with pytest.raises(ValueError, match="outside the 3 rows"):
        check_prompts(prompt_table(rows=3), clips)
    with pytest.raises(ValueError, match="No clip has 7 sections; the longest has 6"):
        draw_cut(clips, prompt_table(), layouts(Direction.FORWARD, 7)[-1], 2, torch.Generator())


class Answer(nn.Module):
    """Knows latents and noise, and answers with the true velocity plus an error; keeps what it was fed."""

    def __init__(self, noise, latents, error):
        super().__init__()
        self.velocity = noise - latents + error
        self.fed = {}

    def forward(self, *inputs, **conditions):
        self.fed = {**dict(zip(("x", "timestep", "context", "y", "guidance"), inputs, strict=True)), **conditions}
        return self.velocity


def test_the_loss_is_the_error_of_the_velocity_in_scaled_latents():
    clips, prompts = random_clips(), prompt_table()
    layout = layouts(Direction.FORWARD)[2]
    cut = draw_cut(clips, prompts, layout, 3, torch.Generator().manual_seed(0))
    batch = make_batch(clips, prompts, layout, cut, Given())
    noise, sigma = torch.randn(batch.latents.shape), torch.tensor([0.0, 0.25, 1.0])
    latents = batch.latents * LATENT_SCALE
    model = Answer(noise, latents, error=torch.tensor([0.0, 1.0, 2.0]).view(-1, 1, 1, 1, 1))
    losses = velocity_error(model, batch, sigma, noise, torch.float32)
    assert torch.allclose(losses, torch.tensor([0.0, 1.0, 4.0]), atol=1e-5)
    assert torch.equal(model.fed["x"][0], latents[0])
    assert torch.equal(model.fed["x"][2], noise[2])
    assert torch.allclose(model.fed["x"][1], 0.25 * noise[1] + 0.75 * latents[1])
    assert model.fed["timestep"].tolist() == [0.0, 250.0, 1000.0]
    assert model.fed["guidance"].tolist() == [10000.0] * 3
    for group in GROUPS:
        assert torch.equal(model.fed[group], getattr(batch.conditions.packed, group) * LATENT_SCALE)


def test_noise_levels_are_spread_and_shifted():
    sigmas = draw_sigmas(1000, 3.0, torch.Generator().manual_seed(0))
    assert float(sigmas.min()) >= 0
    assert float(sigmas.max()) <= 1
    u = sigmas / (3 - 2 * sigmas)
    assert torch.allclose(u, (torch.arange(1000) + 0.5) / 1000, atol=6e-4)


def test_initial_weights_are_silent_and_the_coarse_embedders_are_averages():
    model, again = tiny_model(), tiny_model()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    assert not torch.equal(model.x_embedder.proj.weight, tiny_model(1).x_embedder.proj.weight)
    weights = model.state_dict()
    zero = {name for name, value in weights.items() if name.endswith(".weight") and not value.any()}
    assert zero == {
        "transformer_blocks.0.norm1.linear.weight",
        "transformer_blocks.0.norm1_context.linear.weight",
        "single_transformer_blocks.0.norm.linear.weight",
        "context_embedder.token_refiner.refiner_blocks.0.norm_out.linear.weight",
        "norm_out.linear.weight",
        "proj_out.weight",
        "time_text_embed.guidance_embedder.linear_2.weight",
    }
    block = torch.randn(1, 16, 1, 2, 2)
    fine = model.x_embedder(block)
    for rate in (1, 2, 4):
        assert torch.allclose(model.clean_x_embedder(block.repeat(1, 1, rate, rate, rate), rate), fine, atol=1e-5)


def test_training_layers_compute_what_the_plain_ones_do():
    trained = tiny_model()
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)) * 0.1)
    plain = FramePackTransformer(SIZES)
    plain.load_state_dict(trained.state_dict())
    clips, prompts = random_clips(), prompt_table()
    layout = layouts(Direction.BACKWARD)[4]
    batch = make_batch(
        clips, prompts, layout, draw_cut(clips, prompts, layout, 2, torch.Generator().manual_seed(0)), Given()
    )
    sigma, noise = torch.tensor([0.3, 0.9]), torch.randn(batch.latents.shape)
    with torch.no_grad():
        error = velocity_error(trained, batch, sigma, noise, torch.float32)
        expected = velocity_error(plain, batch, sigma, noise, torch.float32)
        coarse = velocity_error(trained, batch, sigma, noise, torch.bfloat16)
        in_bf16 = velocity_error(plain.to(torch.bfloat16), batch, sigma, noise, torch.bfloat16)
    assert torch.allclose(error, expected, rtol=1e-5)
    assert not torch.equal(error, coarse)
    assert torch.allclose(coarse, in_bf16, rtol=2e-2)


def test_gradients_in_bf16_reach_float32_weights():
    run = new_run(tiny_model())
    clips, prompts, drawing = random_clips(), prompt_table(), both_ways(batch=2)
    for batch in draw_batches(clips, prompts, drawing, run.generators):
        flow_loss(run.model, batch, Objective(), run.generators.noise).backward()
    gradient = run.parameters["proj_out.weight"].grad
    assert gradient.dtype == torch.float32
    assert gradient.any()


def test_the_relative_loss_has_the_gradient_divided_by_the_loss():
    clips, prompts = random_clips(), prompt_table()
    run = new_run(tiny_model())
    batch = draw_batches(clips, prompts, both_ways(batch=2, batches=1), run.generators)[0]
    values, gradients = [], []
    for form in (flow_loss, relative_flow_loss):
        value = form(run.model, batch, FP32, torch.Generator().manual_seed(1))
        value.backward()
        values.append(value.detach())
        gradients.append(run.model.proj_out.weight.grad.clone())
        run.model.zero_grad()
    torch.testing.assert_close(values[1], values[0].log())
    torch.testing.assert_close(gradients[1], gradients[0] / values[0], rtol=1e-4, atol=1e-6)
    assert gradients[0].any()


@pytest.mark.parametrize("shape", [(3, 40, 40), (2, 24, 64), (2, 64, 24)])
def test_orthogonalised_matrices_keep_their_directions(shape):
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonalise(matrices))
    assert values.shape[-1] == min(shape[1:])
    u, _, vh = torch.linalg.svd(matrices, full_matrices=False)
    overlap = torch.diagonal(u.mT @ orthogonalise(matrices) @ vh.mT, dim1=1, dim2=2)
    assert (overlap[:, : min(shape[1:]) // 2] > 0.6).all()
    assert values.max() < 1.3


def test_muon_moves_by_its_rate_and_pulls_to_zero():
    weight = nn.Parameter(torch.eye(8, 4) * 5)
    still = nn.Parameter(torch.ones(8, 4))
    optimizer = Muon([weight, still], lr=0.1, weight_decay=0.5)
    weight.grad = torch.eye(8, 4) * 1e-2
    optimizer.step()
    moved = torch.diagonal(weight.detach())
    expected = 5 * (1 - 0.1 * 0.5) - 0.1 * 2**0.5 * torch.diagonal(orthogonalise(torch.eye(8, 4)[None])[0])
    assert torch.allclose(moved, expected, atol=1e-3)  # the size of the gradient hardly counts
    assert torch.equal(still, torch.ones(8, 4))
    kernel = nn.Parameter(weight.detach().view(8, 2, 2).clone())
    matrix = nn.Parameter(weight.detach().clone())
    matrix.grad = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
    kernel.grad = matrix.grad.view(8, 2, 2)
    Muon([kernel, matrix]).step()
    assert torch.allclose(kernel.view(8, 4), matrix, atol=1e-6)
    with pytest.raises(ValueError, match=r"not for a parameter of shape \(3,\)"):
        Muon([nn.Parameter(torch.ones(3))])


def test_blocks_matrices_go_to_muon_and_everything_is_updated_once():
    parameters = dict(tiny_model().named_parameters())
    optimizers = Optimizers(parameters)
    by_kind = {type(optimizer).__name__: set(names) for names, _, optimizer in optimizers.members}
    assert by_kind["Muon"] == {n for n, p in parameters.items() if is_block_matrix(n, p)}
    assert "single_transformer_blocks.0.proj_out.weight" in by_kind["Muon"]
    assert {"proj_out.weight", "clean_x_embedder.proj_4x.weight"} <= by_kind["AdamW"]
    assert by_kind["Muon"] | by_kind["AdamW"] == set(parameters)
    assert not by_kind["Muon"] & by_kind["AdamW"]


def test_the_schedule_rises_stays_and_falls_to_zero():
    schedule = Schedule(steps=100, warm_up=10, decay=0.4)
    assert [schedule.factor(step) for step in (0, 4, 9, 30, 60)] == [0.1, 0.5, 1.0, 1.0, 1.0]
    assert schedule.factor(80) == pytest.approx(0.5)
    assert schedule.factor(99) == pytest.approx(0.025)
    assert schedule.factor(100) == 0.0
    assert Schedule(steps=10, warm_up=0, decay=0.0).factor(9) == 1.0


def test_averages_follow_and_are_lent_to_the_model():
    parameters = {"w": nn.Parameter(torch.zeros(2))}
    average = WeightAverage(parameters, decay=0.75)
    with torch.no_grad():
        parameters["w"].fill_(1.0)
    average.update(parameters, 1)
    assert torch.allclose(average.values["w"], torch.full((2,), 1 - 2 / 11))
    for step in (1000, 1001):
        average.update(parameters, step)
    assert torch.allclose(average.values["w"], torch.full((2,), 1 - 2 / 11 * 0.75**2))
    with average.applied(parameters):
        assert torch.equal(parameters["w"], average.values["w"])
    assert torch.equal(parameters["w"], torch.ones(2))
    assert parameters["w"].requires_grad


def small_training(seed=0, **choices):
    """A run on random clips with everything that draws: both directions, drops, drift."""
    clips, prompts = random_clips(), prompt_table(lengths=[2] + [3] * SECTIONS)
    run = new_run(tiny_model(), seed, **choices)
    drawing = both_ways(batch=2, batches=2, drop_text=0.3, drop_start=0.3, give_end=0.5)
    return (
        run,
        lambda: draw_batches(clips, prompts, drawing, run.generators),
        lambda model, batch: flow_loss(model, batch, FP32, run.generators.noise),
    )


SIX = Schedule(steps=6, warm_up=2, decay=0.5)


def run_tensors(run, path):
    save_run(run, path)
    return load_file(path)


def test_three_steps_and_three_more_from_a_file_are_six(tmp_path):
    whole, *parts = small_training()
    assert train(whole, *parts, SIX)
    first, *parts = small_training()
    assert not train(first, *parts, SIX, until=3)
    save_run(first, tmp_path / "runs" / "half.safetensors")
    second, *parts = small_training(seed=99)
    load_run(second, tmp_path / "runs" / "half.safetensors")
    assert second.step == 3
    assert train(second, *parts, SIX)
    expected, got = run_tensors(whole, tmp_path / "a.safetensors"), run_tensors(second, tmp_path / "b.safetensors")
    assert expected.keys() == got.keys()
    assert all(torch.equal(expected[key], got[key]) for key in expected)
    assert {key.split("/")[0] for key in got} == {"model", "average", "optimizer", "generator"}
    other = run_tensors(first, tmp_path / "c.safetensors")
    assert not torch.equal(other["model/proj_out.weight"], got["model/proj_out.weight"])


def test_only_the_chosen_parameters_train(tmp_path):
    before = tiny_model().state_dict()
    run, *parts = small_training(trains=lambda name: ".to_q." in name, uses_muon=lambda name, parameter: False)
    with torch.no_grad():  # from zero, gates and output would let no gradient through
        for parameter in run.model.parameters():
            if not parameter.any():
                parameter.fill_(0.02)
    before = {name: value.clone() for name, value in run.model.state_dict().items()}
    train(run, *parts, SIX)
    changed = {name for name, value in run.model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == set(run.parameters)
    assert changed
    assert all(".to_q." in name for name in changed)
    kinds = {key.split("/")[1] for key in run_tensors(run, tmp_path / "a.safetensors") if key.startswith("model/")}
    assert kinds == changed
    with pytest.raises(ValueError, match="No parameter of this model would train"):
        new_run(tiny_model(), trains=lambda name: False)


def test_training_stops_when_its_time_is_over():
    run, *parts = small_training()
    seen = []
    assert not train(run, *parts, Schedule(steps=10**6), seconds=0.3, callbacks=[lambda r, v: seen.append(float(v))])
    assert 1 <= run.step == len(seen) < 1000
    assert all(0.1 < value < 20 for value in seen)
    assert run.seconds > 0.2


def test_callbacks_can_be_rare():
    run, *parts = small_training()
    seen = []
    train(run, *parts, SIX, callbacks=[every(2, lambda run, value: seen.append(run.step))])
    assert seen == [2, 4, 6]


def test_broken_weights_do_not_overwrite_a_good_file(tmp_path):
    run, *_ = small_training()
    path = tmp_path / "run.safetensors"
    save_run(run, path)
    good = path.read_bytes()
    with torch.no_grad():
        run.parameters["proj_out.bias"][0] = float("nan")
    with pytest.raises(ValueError, match=r"After step 0 proj_out.bias holds NaN.*run.safetensors was not written"):
        save_run(run, path)
    assert path.read_bytes() == good
    assert [file.name for file in tmp_path.iterdir()] == ["run.safetensors"]


def test_files_of_other_runs_are_refused(tmp_path):
    run, *_ = small_training()
    save_file({"x": torch.zeros(1)}, tmp_path / "plain.safetensors")
    with pytest.raises(ValueError, match="plain.safetensors is not a training run"):
        load_run(run, tmp_path / "plain.safetensors")
    part, *_ = small_training(trains=trains_from_scratch)
    save_run(part, tmp_path / "part.safetensors")
    with pytest.raises(
        ValueError, match=r"part.safetensors trained other parameters: time_text_embed.guidance_embedder"
    ):
        load_run(run, tmp_path / "part.safetensors")


def test_averaged_weights_make_a_checkpoint():
    run, *parts = small_training(trains=trains_from_scratch)
    train(run, *parts, SIX)
    weights = averaged_weights(run, torch.bfloat16)
    assert {value.dtype for value in weights.values()} == {torch.bfloat16}
    shapes = {name: tuple(value.shape) for name, value in weights.items()}
    assert read_config(shapes, metadata_of(SIZES)) == SIZES
    assert torch.equal(weights["proj_out.weight"], run.average.values["proj_out.weight"].bfloat16())
    assert json.loads(metadata_of(SIZES)["framepack_config"])["rope_axes_dim"] == [8, 12, 12]


def test_compiled_blocks_keep_their_names_and_their_loss():
    run, batches, loss = small_training()
    names, step = list(run.parameters), batches()
    state = run.generators.noise.get_state()
    expected = loss(run.model, step[0])
    run.generators.noise.set_state(state)
    compile_blocks(run.model, backend="aot_eager", fullgraph=True)
    got = loss(run.model, step[0])
    assert torch.allclose(got, expected, rtol=1e-5)
    assert list(run.model.state_dict()) == names


# --- learning: uniform films whose level each section's prompt tells

LEVELS = (-1.5, -0.5, 0.5, 1.5)
PATTERN = torch.tensor([1.0, -1.0] * 8).view(1, 16, 1, 1, 1)


def told_clips(count=64, window=2, sections=3):
    """Section k is everywhere LEVELS[row - 1] times PATTERN, scaled; the first image has a level of its own."""
    generator = torch.Generator().manual_seed(0)
    texts = torch.randint(1, 5, (count, sections, 1), generator=generator)
    levels = torch.tensor(LEVELS)[texts.squeeze(-1) - 1].repeat_interleave(window, dim=1)
    levels = torch.cat([torch.rand(count, 1, generator=generator) * 2 - 1, levels], dim=1)  # [N, T]
    latents = (levels.view(count, 1, -1, 1, 1) * PATTERN).expand(-1, -1, -1, 4, 4) / LATENT_SCALE
    vision = levels[:, :1].view(count, 1, 1, 1).expand(-1, -1, 2, SIZES.image_proj_dim)
    return new_clips(latents.contiguous(), texts, vision.contiguous(), window)


def told_prompts():
    features = torch.eye(5, 8).unsqueeze(1).repeat(1, 2, 1) * 3
    return Prompts(features, features[:, 0].clone(), torch.full((5,), 2), 0)


@pytest.fixture(scope="module")
def learned():
    """(losses, model with averaged weights) after some seconds."""
    clips, prompts = told_clips(), told_prompts()
    check_prompts(prompts, clips)
    run = new_run(tiny_model(), trains=trains_from_scratch, decay=0.98, rates=Rates(adamw=4e-3))
    drawing = both_ways(sections=3, window=2, batch=16, batches=2)
    losses = []
    train(
        run,
        lambda: draw_batches(clips, prompts, drawing, run.generators),
        lambda model, batch: flow_loss(model, batch, FP32, run.generators.noise),
        Schedule(steps=200, warm_up=10),
        callbacks=[lambda run, value: losses.append(float(value))],
    )
    run.average.copy_to(run.parameters)
    return losses, run.model.eval()


def film_levels(model, direction, order, start=True, negative=None, cfg=1.0):
    """Mean level of each section of a film that was asked to have the levels LEVELS[k] for k in order."""
    prompts, films = told_prompts(), 4
    layout: Layout = usual_layouts(direction, 3, 2)[-1]
    plan = layout.plan
    begin = torch.linspace(-0.8, 0.8, films).view(-1, 1, 1, 1, 1) * PATTERN.expand(-1, -1, -1, 4, 4)
    history = new_history(plan, 7, 32, 32, start_latent=begin / LATENT_SCALE if start else None)

    def text(section):
        row = 1 + order[plan.place(section)]
        return Text(prompts.features[row : row + 1], prompts.pooled[row : row + 1])

    vision = begin[:, :1, 0, :1, 0].expand(-1, 2, SIZES.image_proj_dim) if start else None
    against = Text(prompts.features[:1], prompts.pooled[:1]) if negative else None
    denoise = model_denoise(model, text, flow_sigmas(6, 3.0), vision, against, cfg)
    made = generate(history, denoise).sections
    return torch.stack([(section * LATENT_SCALE * PATTERN).mean(dim=(1, 2, 3, 4)) for section in made], dim=1)


def test_the_loss_falls(learned):
    losses, _ = learned
    assert sum(losses[:5]) / 5 > 1.0
    assert sum(losses[-20:]) / 20 < 0.3


@pytest.mark.parametrize("direction", list(Direction))
@pytest.mark.parametrize("start", [True, False], ids=["image", "text"])
def test_trained_sections_do_what_their_own_prompt_says(learned, direction, start):
    for order in ((0, 3, 1), (2, 0, 3)):
        levels = film_levels(learned[1], direction, order, start)
        nearest = (levels.unsqueeze(-1) - torch.tensor(LEVELS)).abs().argmin(dim=-1)
        assert (nearest == torch.tensor(order)).all(), levels


def test_real_guidance_pushes_away_from_the_empty_prompt(learned):
    plain = film_levels(learned[1], Direction.FORWARD, (3, 3, 3))
    pushed = film_levels(learned[1], Direction.FORWARD, (3, 3, 3), negative=True, cfg=1.5)
    assert float((pushed - plain).mean()) > 0.1
    with pytest.raises(ValueError, match=r"cfg is 2.0, which needs a negative prompt"):
        model_denoise(learned[1], lambda section: None, flow_sigmas(2, 3.0), cfg=2.0)
