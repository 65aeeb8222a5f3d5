"""Which steps are computed, by the published figures and the original's formulas, and what a skipped step gives."""

import json
import logging
import math

import pytest
import torch
from framepack_pack.framepack_core.constants import SHIFT_MAX
from framepack_pack.framepack_core.model.transformer import FramePackTransformer
from framepack_pack.framepack_core.schedule import flow_shift, flow_sigmas
from framepack_pack.framepack_core.section_plan import Direction
from framepack_pack.framepack_core.skipping.calibration import MagnitudeRun
from framepack_pack.framepack_core.skipping.first_block import FirstBlockCache
from framepack_pack.framepack_core.skipping.magcache import MagCache, plan_reuse
from framepack_pack.framepack_core.skipping.magnitudes import PUBLISHED_RATIOS, published_table, read_table
from framepack_pack.framepack_core.skipping.run import SKIPPER, SkippingRun, step_at
from framepack_pack.framepack_core.skipping.teacache import TeaCache, rescaled
from model_inputs import CONFIG, inputs, run_ours

BACKWARD, FORWARD = Direction.BACKWARD, Direction.FORWARD

# FP-Studio/FramePack-Studio at 923747a, diffusers_helper/models/mag_cache_ratios.py: measured by others on FramePack
MEASURED_640_25 = [
    1.0, 1.30469, 1.22656, 1.05469, 1.02344, 1.03906, 1.02344, 1.03906, 1.05469, 1.02344, 1.03906, 0.99609, 1.02344,
    1.03125, 1.01562, 1.02344, 1.00781, 1.03906, 0.98828, 1.0, 1.0, 0.98828, 0.94531, 0.93359, 0.78516,
]  # fmt: skip
MEASURED_640_50 = [
    1.0, 1.28906, 1.0, 1.17188, 1.0625, 1.02344, 1.02344, 1.02344, 1.0, 1.04688, 0.99219, 1.00781, 1.01562, 1.00781,
    1.03125, 1.02344, 1.03125, 1.00781, 1.01562, 0.99219, 1.04688, 1.00781, 0.98828, 1.01562, 1.00781, 1.01562, 1.01562,
    1.00781, 1.00781, 1.00781, 1.01562, 1.00781, 1.0, 1.03125, 1.01562, 0.97266, 1.01562, 1.01562, 0.98828, 1.01562,
    0.98828, 0.98828, 1.0, 0.98438, 0.95703, 0.95312, 0.97656, 0.91016, 0.85547, 0.76953,
]  # fmt: skip
MEASURED_384_25 = [
    1.0, 1.58594, 1.0625, 1.03906, 1.02344, 1.0625, 1.04688, 1.04688, 1.03125, 1.02344, 1.01562, 1.00781, 1.01562,
    1.01562, 0.99219, 1.07031, 0.96094, 0.96484, 1.03125, 0.96875, 0.94141, 0.97266, 0.92188, 0.88672, 0.75,
]  # fmt: skip


def levels_of(steps, shift=SHIFT_MAX):
    return tuple(flow_sigmas(steps, shift)[:-1].tolist())


def computed(method, direction=BACKWARD, steps=25):
    reused = method.start(levels_of(steps), direction).reused
    return "".join("." if skipped else "C" for skipped in reused)


@pytest.mark.parametrize(
    ("threshold", "max_skips", "framepack", "f1"),
    [(0.05, 2, 15, 13), (0.1, 2, 13, 13), (0.1, 3, 12, 12), (0.15, 4, 11, 10), (0.24, 6, 9, 10)],
)
def test_magcache_plans_at_25_steps(threshold, max_skips, framepack, f1):
    """The settings of MagCache4FramePack with its own tables; counts from a simulation of its published code."""
    method = MagCache(threshold, max_skips)
    assert (computed(method).count("C"), computed(method, FORWARD).count("C")) == (framepack, f1)


def test_magcache_plans_step_by_step():
    assert computed(MagCache(0.05, 2)) == "CCCCC.C.C.C..C.C.C..C.CCC"
    assert computed(MagCache(0.1, 3), FORWARD) == "CCCCC..C.C..C...C...C.C.C"


def test_first_fifth_and_last_step_are_always_computed():
    assert plan_reuse((1.0,) * 10, 1.0, 99, 2) == (False, False, *[True] * 7, False)
    assert plan_reuse((1.0,) * 3, 1.0, 99, 0) == (False, True, False)
    assert plan_reuse((1.0,), 1.0, 99, 0) == (False,)


def test_threshold_0_skips_nothing_even_where_the_ratio_is_1():
    assert computed(MagCache(0.0, 6)) == "C" * 25


def test_other_schedules_are_interpolated_and_it_is_said(caplog):
    with caplog.at_level(logging.INFO):
        assert computed(MagCache(0.1, 3)).count("C") == 12
        assert not caplog.records
        assert len(computed(MagCache(0.1, 3), steps=40)) == 40
    assert "measured at 25 steps of another schedule and are interpolated for these 40" in caplog.text


@pytest.mark.parametrize(
    ("steps", "shift", "measured"),
    [(50, SHIFT_MAX, MEASURED_640_50), (25, flow_shift(9, 48, 48), MEASURED_384_25)],
    ids=["50 steps", "384 pixels"],
)
def test_interpolation_is_nearer_to_what_was_measured_than_the_nearest_step(steps, shift, measured):
    """MagCache4FramePack takes the nearest step's ratio; the residual's size over sigma is what carries over."""
    table = published_table(BACKWARD)._replace(ratios=tuple(MEASURED_640_25))
    nearest = [MEASURED_640_25[round(step * 24 / (steps - 1))] for step in range(steps)]

    def error(ratios):
        return sum(abs(math.log(a / b)) for a, b in zip(ratios, measured, strict=True))

    assert error(table.ratios_at(levels_of(steps, shift))) < 0.7 * error(nearest)


def test_a_part_of_the_schedule_has_the_ratios_of_that_part():
    table = published_table(FORWARD)
    part = table.ratios_at(table.sigmas[10:])
    assert part[0] == 1.0
    assert part[1:] == pytest.approx(PUBLISHED_RATIOS[FORWARD][11:])


def test_tables_survive_their_text():
    table = published_table(BACKWARD)
    again = read_table(table.text())
    assert again.ratios == table.ratios
    assert again.fits(table.sigmas)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1.0, 1.1", "not JSON"),
        ("[1.0, 1.1]", "'sigmas' and 'ratios'"),
        (json.dumps({"sigmas": [1.0, 0.5], "ratios": [1.0]}), "2 sigmas and 1 ratios"),
        (json.dumps({"sigmas": [1.0], "ratios": [1.0]}), "2 or more"),
        (json.dumps({"sigmas": [0.5, 1.0], "ratios": [1.0, 1.0]}), "must fall"),
        (json.dumps({"sigmas": [1.0, 0.5], "ratios": [1.0, -1.0]}), "holds -1.0"),
        (json.dumps({"sigmas": [1.0, 0.5], "ratios": [1.0, "x"]}), "holds 'x'"),
        ('{"sigmas": [1.0, 0.5], "ratios": [1.0, NaN]}', "holds nan"),
        ('{"sigmas": 1.0, "ratios": null}', "holds None"),
    ],
)
def test_bad_tables_are_refused(text, message):
    with pytest.raises(ValueError, match=f"{message}.*FramePack Calibrate Skipping"):
        read_table(text)


def test_a_noise_level_belongs_to_the_step_that_it_is_reached_in():
    levels = (1.0, 0.8, 0.5, 0.2)
    assert [step_at(levels, sigma) for sigma in (1.0, 0.9, 0.8, 0.80001, 0.6, 0.2, 0.001)] == [0, 0, 1, 1, 1, 3, 3]
    assert step_at(levels, 1.3) == 0, "noise above the schedule, as of churning samplers"


# The runs. A stage adds a vector to the section, so that every residual is known.


class Blocks:
    """Stages that add `first` and then `rest`, in place as fast blocks do, and count how far they were asked to run."""

    def __init__(self):
        self.ran = []

    def __call__(self, section, first, rest):
        self.ran.append("first")
        section += first
        yield section
        self.ran.append("rest")
        section += rest
        yield section


def run_steps(method, calls, levels=None, uuids=("one",), options=None):
    """Outputs of a run: calls holds (step, section, first, rest, modulated) each."""
    levels = levels or levels_of(max(step for step, *_ in calls) + 1)
    run, blocks, outputs = SkippingRun(method, levels, BACKWARD), Blocks(), []
    for step, section, first, rest, modulated in calls:
        run.begin(step)
        stages = blocks(section.clone(), first, rest)
        given = {"uuids": list(uuids), **(options or {})}
        outputs.append(run(section, lambda modulated=modulated: modulated, stages, given).clone())
    return run, blocks, outputs


def section_of(value, rows=1):
    return torch.full((rows, 2, 3), float(value))


def steady(steps, change=0.0):
    """A call a step, whose first block's input and output grow by `change` each step."""
    return [
        (step, section_of(step), section_of(1 + change * step), section_of(2), section_of(1 + change * step))
        for step in range(steps)
    ]


ALWAYS = MagCache(1.0, 99, retention=0.0, table=published_table(BACKWARD)._replace(ratios=(1.0,) * 25))


def test_a_skipped_step_adds_the_last_residual_and_runs_no_block():
    run, blocks, outputs = run_steps(ALWAYS, steady(4))
    assert [output.mean().item() for output in outputs] == [3, 4, 5, 6]
    assert blocks.ran == ["first", "rest"] * 2
    assert run.report() == ("MagCache", 2, 4)
    assert str(run.report()) == "MagCache: computed 2 of 4 steps"


def test_blocks_that_work_in_place_do_not_spoil_the_residual():
    for method in (ALWAYS, TeaCache(9.0, 0.0), FirstBlockCache(9.0, 0.0)):
        run, blocks = SkippingRun(method, levels_of(3), BACKWARD), Blocks()
        for step in range(2):
            run.begin(step)
            section = section_of(10 * step)  # the very tensor that the blocks write into
            out = run(section, lambda: section_of(1), blocks(section, section_of(1), section_of(2)), {})
            assert torch.equal(out, section_of(10 * step + 3)), method.name
        assert run.report().computed == 1


def test_first_block_cache_runs_the_first_block_and_adds_the_rest():
    calls = steady(3)
    calls[1] = (1, section_of(5), section_of(1.01), section_of(7), None)
    _, blocks, outputs = run_steps(FirstBlockCache(0.05, 0.0), calls)
    assert blocks.ran == ["first", "rest", "first", "first", "rest"]
    torch.testing.assert_close(outputs[1], section_of(5 + 1.01 + 2), msg="the rest of step 0 after the first block")


def test_first_block_cache_compares_with_the_last_computed_step():
    """4 % a step: against the step before it would skip for ever, against the computed one every other step."""
    run, _, _ = run_steps(FirstBlockCache(0.06, 0.0), steady(7, change=0.04))
    assert run.computed == {0, 2, 4, 6}


def test_teacache_compares_with_the_step_before():
    """d is 0.031, where the polynomial is 0.052: two skips, then the third step passes 0.15."""
    grow = 1.031 ** torch.arange(8)
    calls = [(step, section_of(0), section_of(1), section_of(1), section_of(grow[step])) for step in range(8)]
    run, _, _ = run_steps(TeaCache(retention=0.0), calls)
    assert run.computed == {0, 3, 6, 7}


@pytest.mark.parametrize(("distance", "change"), [(0.0, 0.0961), (0.0314, 0.0521), (0.12, 0.150)])
def test_teacache_polynomial(distance, change):
    assert rescaled(distance) == pytest.approx(change, abs=5e-4)


@pytest.mark.parametrize("method", [TeaCache(9.0), FirstBlockCache(9.0), MagCache(9.0, 99)])
def test_all_methods_compute_the_first_fifth_and_the_last_step(method):
    run, _, _ = run_steps(method, steady(25))
    assert {0, 1, 2, 3, 4, 24} <= run.computed
    assert len(run.computed) < 20


@pytest.mark.parametrize("method", [TeaCache(0.0, 0.0), FirstBlockCache(0.0, 0.0), MagCache(0.0, 99, 0.0)])
def test_threshold_0_computes_every_step(method):
    assert len(run_steps(method, steady(25))[0].computed) == 25


def test_calls_at_the_same_step_share_one_decision():
    """Heun's: the second call of a step is at the noise level of the next."""
    calls = [
        (step, section_of(0), section_of(9.0**i), section_of(2), None) for i, step in enumerate([0, 1, 1, 2, 2, 3])
    ]
    run, blocks, _ = run_steps(ALWAYS, calls)
    assert run.computed == {0, 3}
    assert blocks.ran.count("rest") == 2
    run, blocks, _ = run_steps(FirstBlockCache(0.1, 0.0), [(0, *calls[0][1:]), *calls[:1], *calls[5:]], levels_of(4))
    assert blocks.ran.count("rest") == 3, "a computed step is computed in all its calls"


@pytest.mark.parametrize("method", [ALWAYS, TeaCache(0.2, 0.0), FirstBlockCache(0.2, 0.0)])
def test_branches_have_residuals_of_their_own_together_or_apart(method):
    positive, negative = section_of(1), section_of(-4)
    first, rest = torch.cat([positive, negative]), torch.cat([2 * positive, 3 * negative])
    batch = [(step, section_of(step, 2), first, rest, first) for step in range(3)]
    _, _, together = run_steps(method, batch, uuids=("positive", "negative"))

    run, blocks, apart = SkippingRun(method, levels_of(3), BACKWARD), Blocks(), []
    for step in range(3):
        run.begin(step)
        rows = []
        for row, uuid in enumerate(("positive", "negative")):
            one, extra = first[row : row + 1], rest[row : row + 1]
            stages = blocks(section_of(step), one, extra)
            rows.append(run(section_of(step), lambda one=one: one, stages, {"uuids": [uuid]}).clone())
        apart.append(torch.cat(rows))
    for a, b in zip(together, apart, strict=True):
        assert torch.equal(a, b)
    assert run.computed == {0, 2}
    assert together[1][0].mean() == 1 + 3
    assert together[1][1].mean() == 1 - 16


def test_skip_layer_guidance_is_a_branch_of_its_own():
    run, blocks = SkippingRun(ALWAYS, levels_of(3), BACKWARD), Blocks()
    outputs = {}
    for step in range(2):
        run.begin(step)
        for add, replaced in ((1, {}), (5, {("double_block", 7): None})):
            options = {"uuids": ["positive"], "patches_replace": {"dit": replaced}}
            outputs[step, add] = run(section_of(0), None, blocks(section_of(0), 0, section_of(add)), options).mean()
    assert (outputs[1, 1], outputs[1, 5]) == (1, 5)
    assert run.report().computed == 1


def test_magnitudes_are_measured_without_skipping():
    run, blocks = MagnitudeRun((1.0, 0.5, 0.2)), Blocks()
    for step, size in enumerate((2.0, 3.0, 1.5)):
        run.begin(step)
        out = run(section_of(7), None, blocks(section_of(7), 0, section_of(size)), {})
        assert out.mean() == 7 + size
        run(section_of(7), None, blocks(section_of(7), 0, section_of(99)), {})  # another entry of the same step
    assert run.table() == ((1.0, 0.5, 0.2), (1.0, 1.5, 0.5))


def test_a_calibration_that_missed_steps_is_refused():
    run = MagnitudeRun((1.0, 0.5))
    with pytest.raises(ValueError, match="for 2 steps; use a sampler that calls the model once a step"):
        run.table()


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return FramePackTransformer(CONFIG).eval()


def test_skipped_steps_leave_out_the_blocks_of_the_transformer(model):
    given, counts = inputs(8, 8), []
    hooks = [block.register_forward_hook(lambda *_: counts.append(1)) for block in model.transformer_blocks]
    hooks += [block.register_forward_hook(lambda *_: counts.append(1)) for block in model.single_transformer_blocks]
    run = SkippingRun(ALWAYS, levels_of(3), BACKWARD)
    plain, skipped = run_ours(model, given), []
    for step in range(3):
        counts.clear()
        run.begin(step)
        skipped.append((run_ours(model, given, transformer_options={SKIPPER: run}), len(counts)))
    for hook in hooks:
        hook.remove()
    assert [ran for _, ran in skipped] == [4, 0, 4]
    assert torch.equal(skipped[0][0], plain)
    assert torch.equal(skipped[2][0], plain)
    torch.testing.assert_close(skipped[1][0], plain, atol=1e-4, rtol=1e-4)  # x + (y - x) for y


def test_first_block_cache_runs_one_block_of_the_transformer(model):
    given, counts = inputs(8, 8), []
    hook = model.transformer_blocks[1].register_forward_hook(lambda *_: counts.append(1))
    run = SkippingRun(FirstBlockCache(0.1, 0.0), levels_of(3), BACKWARD)
    for step in range(2):
        run.begin(step)
        out = run_ours(model, given, transformer_options={SKIPPER: run})
    hook.remove()
    assert len(counts) == 1
    torch.testing.assert_close(out, run_ours(model, given), atol=1e-4, rtol=1e-4)


def test_a_skipped_step_is_at_its_own_noise_level(model):
    """The last norm and projection always run, with the present timestep."""
    run, outputs = SkippingRun(ALWAYS, levels_of(3), BACKWARD), []
    for step, timestep in enumerate((800.0, 300.0)):
        run.begin(step)
        given = inputs(8, 8, timestep=timestep)
        outputs.append(run_ours(model, given, transformer_options={SKIPPER: run}))
    assert run.report().computed == 1
    assert not torch.allclose(*outputs, atol=1e-3)


def test_teacache_decides_as_the_original(model):
    """Its formula, written out here, on what the transformer shows to it over a whole schedule."""
    seen, levels, expected, error = [], levels_of(12), [], 0.0
    base = inputs(8, 8)
    calls = [
        base._replace(x=base.x * (1 + 0.05 * step), timestep=torch.tensor([1000 * s])) for step, s in enumerate(levels)
    ]

    def watch(_section, modulated, stages, _options):
        seen.append(modulated())
        return list(stages)[-1]

    for given in calls:
        run_ours(model, given, transformer_options={SKIPPER: watch})
    for step in range(12):
        if step in (0, 11):
            expected.append(step)
            error = 0.0
            continue
        d = float((seen[step] - seen[step - 1]).abs().mean() / seen[step - 1].abs().mean())
        error += 733.226126 * d**4 - 401.131952 * d**3 + 67.5869174 * d**2 - 3.149878 * d + 0.0961237896
        if error >= 0.15:
            expected.append(step)
            error = 0.0
    run = SkippingRun(TeaCache(retention=0.0), levels, BACKWARD)
    for step, given in enumerate(calls):
        run.begin(step)
        run_ours(model, given, transformer_options={SKIPPER: run})
    assert run.computed == set(expected)
    assert 2 < len(expected) < 12
