"""Inputs of a step, made for many levels at once or alone, remembered, joined; and steps that do not wait."""

import contextlib

import pytest
import torch
from framepack_pack.framepack_core.model.step_table import StepTable, join_sections, join_steps
from framepack_pack.framepack_core.model.transformer import StepInputs, crop
from model_inputs import inputs, oracle, ours, run_ours
from torch import Tensor

LEVELS = (1000.0, 836.0, 500.0)


@pytest.fixture(scope="module")
def model():
    return ours(oracle())


def row(given, i: int, length: int):
    """A sample's inputs, its prompt cut to its length."""
    return given._replace(
        **{
            name: value[i : i + 1]
            for name, value in given._asdict().items()
            if isinstance(value, Tensor) and name != "attention_mask"
        },
        attention_mask=None,
    )._replace(context=given.context[i : i + 1, :length])


def make_for(model, given, hold=contextlib.nullcontext):
    def make(timesteps):
        levels = [torch.tensor([timestep]) for timestep in timesteps]
        with torch.no_grad():
            return model.step_inputs(levels, given.guidance, given.y, given.context, given.image_embeds, hold=hold)

    return make


def same(a: StepInputs, b: StepInputs) -> bool:
    return all(torch.equal(x, y) if isinstance(x, Tensor) else x == y for x, y in zip(a, b, strict=True))


def test_many_levels_at_once_give_the_bits_of_each_alone(model):
    make = make_for(model, row(inputs(8, 8), 0, 13))
    assert all(same(together, make([level])[0]) for together, level in zip(make(LEVELS), LEVELS, strict=True))


def test_forward_is_its_parts(model):
    """What a table gives makes the velocity of forward, bit by bit; the timestep changes all of it but the image."""
    given = row(inputs(8, 8, timestep=LEVELS[1]), 0, 13)
    steps = make_for(model, given)(LEVELS)
    with torch.no_grad():
        section = model.section_inputs(given.x, given.frame_indices, given[6:9])
        velocities = [model.velocity(given.x, step, section) for step in steps]
    assert torch.equal(velocities[1], run_ours(model, given))
    assert not torch.equal(velocities[0], velocities[1])
    assert steps[0].vectors.shape == (1, 2 * 12 + 2 * 3 + 2, 128)
    assert not torch.equal(steps[0].vectors, steps[1].vectors)
    assert not torch.equal(steps[0].prompt, steps[1].prompt)
    assert torch.equal(steps[0].image, steps[1].image)


def test_layers_are_held_once_for_all_levels(model):
    held = []

    @contextlib.contextmanager
    def hold(module):
        held.append(module)
        yield module

    make_for(model, row(inputs(8, 8), 0, 13), hold)(LEVELS)
    assert held == [model.time_text_embed, model.context_embedder, model.image_projection, *model.modulations()]
    parameters = {parameter for module in held for parameter in module.parameters()}
    step_weights = sum(parameter.numel() for parameter in parameters)
    assert step_weights > 0.25 * sum(parameter.numel() for parameter in model.parameters())


def made_of(timesteps):
    return [StepInputs(torch.full((1, 2, 4), t), torch.zeros(1, 3, 4), None) for t in timesteps]


def test_a_schedule_is_made_at_its_first_question_and_inventions_alone():
    asked = []

    def make(timesteps):
        asked.append(list(timesteps))
        return made_of(timesteps)

    table = StepTable()
    schedule = [3.0, 2.0, 2.0, 1.0]  # rounding can make two alike
    assert table.look_up("a", 2.0, schedule, make).vectors[0, 0, 0] == 2.0
    assert asked == [[3.0, 2.0, 1.0]]
    assert table.look_up("a", 3.0, schedule, make).vectors[0, 0, 0] == 3.0
    assert table.look_up("a", 2.5, schedule, make).vectors[0, 0, 0] == 2.5
    assert table.look_up("a", 2.5, schedule, make).vectors[0, 0, 0] == 2.5
    assert asked == [[3.0, 2.0, 1.0], [2.5]]
    table.look_up("b", 1.0, schedule, make)
    assert asked[2:] == [[3.0, 2.0, 1.0]]
    table.look_up("a", 1.0, [*schedule, 0.5], make)
    table.look_up("a", 0.5, [*schedule, 0.5], make)
    assert asked[3:] == [[0.5]], "of a longer schedule only what is new"


def test_what_a_section_did_not_use_is_dropped():
    table = StepTable()
    for prompt in ("a", "b"):
        table.look_up(prompt, 2.0, [2.0, 1.0], made_of)
    table.next_section()
    assert len(table) == 2, "both prompts at 2; 1 was made and not used"
    table.look_up("b", 2.0, [2.0], made_of)
    table.next_section()
    assert len(table) == 1
    table.next_section()
    assert len(table) == 0


@pytest.mark.parametrize("lengths", [(13, 13), (13, 20)])
def test_inputs_made_one_by_one_join_to_those_of_the_batch(model, lengths):
    given = inputs(8, 8, lengths=lengths)
    context, valid = crop(given.context, given.attention_mask)
    with torch.no_grad():
        (whole,) = model.step_inputs([given.timestep], given.guidance, given.y, context, given.image_embeds, valid)
    joined = join_steps([make_for(model, row(given, i, length))([836.0])[0] for i, length in enumerate(lengths)])
    assert joined.lengths == whole.lengths == valid
    torch.testing.assert_close(joined.vectors, whole.vectors, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(joined.image, whole.image, atol=1e-5, rtol=1e-5)
    for i, length in enumerate(lengths):
        torch.testing.assert_close(joined.prompt[i, :length], whole.prompt[i, :length], atol=1e-5, rtol=1e-5)
    section = model.section_inputs(given.x, given.frame_indices, given[6:9])
    parts = [
        model.section_inputs(given.x[i : i + 1], given.frame_indices, [g[i : i + 1] for g in given[6:9]])
        for i in (0, 1)
    ]
    torch.testing.assert_close(join_sections(parts).history, section.history, atol=1e-5, rtol=1e-5)
    with torch.no_grad():
        out = model.velocity(given.x, joined, join_sections(parts))
    torch.testing.assert_close(out, run_ours(model, given), atol=1e-4, rtol=1e-4)


def test_one_prompt_serves_a_batch_of_films(model):
    (step,) = make_for(model, row(inputs(8, 8), 0, 13))([836.0])
    batch = inputs(8, 8, lengths=(13, 13))
    with torch.no_grad():
        section = model.section_inputs(batch.x, batch.frame_indices, batch[6:9])
        shared = model.velocity(batch.x, join_steps([step, step]), section)
        copies = model.velocity(batch.x, join_steps([step, step._replace()]), section)
    torch.testing.assert_close(shared, copies, atol=1e-5, rtol=1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_no_step_waits_for_the_device(model):
    given = row(inputs(8, 8), 0, 13)
    given = type(given)(*(value.cuda() if isinstance(value, Tensor) else value for value in given))
    on_card = ours(oracle()).cuda()
    table = StepTable()

    def make(timesteps):
        levels = [given.x.new_full((1,), timestep) for timestep in timesteps]
        return on_card.step_inputs(levels, given.guidance, given.y, given.context, given.image_embeds)

    with torch.no_grad():
        section = on_card.section_inputs(given.x, given.frame_indices, given[6:9])
        on_card.velocity(given.x, table.look_up("a", LEVELS[0], LEVELS, make), section)  # kernels are compiled here
        torch.cuda.set_sync_debug_mode("error")
        try:
            for level in LEVELS[1:]:
                on_card.velocity(given.x, join_steps([table.look_up("a", level, LEVELS, make)]), section)
        finally:
            torch.cuda.set_sync_debug_mode("default")
