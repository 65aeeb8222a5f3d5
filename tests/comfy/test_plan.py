"""FramePack Plan: what it reads from MODEL, history and host, and what it shows."""

import json

import comfy.model_management
import folder_paths
import pytest
import torch
from comfy_api.torch_helpers import set_torch_compile_wrapper
from comfy_extras import nodes_easycache
from framepack_pack.framepack_core.comfy_host import plan_request
from framepack_pack.framepack_core.comfy_host.conditioning import CHECKPOINT_ATTACHMENT
from framepack_pack.framepack_core.comfy_host.plan_request import model_facts, read_machine
from framepack_pack.framepack_core.comfy_host.step_skipping import PATCH
from framepack_pack.framepack_core.comfy_host.timeline_picture import draw_timeline
from framepack_pack.framepack_core.planning.cost import Weights
from framepack_pack.framepack_core.planning.resolve import Span
from framepack_pack.framepack_core.section_plan import Direction
from framepack_pack.nodes.plan import FramePackPlan
from sampler_run import run

GIB = 2**30
WIDGETS = {
    "mode": "backward (FramePack)", "total_second_length": 5.0, "latent_window_size": 9, "width": 640, "height": 640,
    "steps": 25, "cfg": 1.0, "weight_dtype": "bf16", "card": "this machine", "vram_gb": 0.0, "seconds_per_step": 0.0,
}  # fmt: skip


@pytest.fixture(autouse=True)
def temporary(tmp_path, monkeypatch):
    """ComfyUI's temporary folder, for the picture."""
    monkeypatch.setattr(folder_paths, "get_temp_directory", lambda: str(tmp_path))


def plan(**changes):
    return FramePackPlan.execute(**{**WIDGETS, **changes})


def figures(**changes):
    return json.loads(plan(**changes).args[1])


def rules(**changes):
    return {message["rule"] for message in figures(**changes)["messages"]}


def test_widgets_alone_plan_a_film_of_the_released_model():
    made = figures(card="RTX 4090")
    assert made["frames"] == 145
    assert made["tokens"]["total"] == 19257
    assert len(made["sections"]) == 4
    assert made["weights_on_card"] == pytest.approx(18.15e9, rel=1e-3)
    assert figures(card="RTX 4090", weight_dtype="fp8")["weights_on_card"] < 9.1e9
    assert figures(card="RTX 4090", vram_gb=8.0)["streamed_per_forward"] > 10e9
    assert made["sampling_seconds"] == pytest.approx(100 * 535.1 / 155, rel=1e-3)


def test_history_model_and_prompts_are_read(tiny, positive, new_film):
    history = run(tiny, positive, new_film(count=3), max_sections=1)[0]
    made = figures(model=tiny.model, history=history, positive=positive, vae=tiny.vae)
    assert (made["width"], made["height"], made["window"]) == (48, 32, 3)
    assert [part["done"] for part in made["sections"]] == [False, False, True]
    assert [part["prompt"] for part in made["sections"]] == ["prompt 1", "prompt 2", "prompt 2"]
    assert made["tokens"]["text"] == max(entry[0].shape[1] for entry in positive)
    assert made["tokens"]["image"] == 16
    assert made["ram"] >= tiny.model.model_size()
    assert "size of the training" in {message["rule"] for message in made["messages"]}


def test_the_tokens_and_the_work_are_those_that_the_run_reports(tiny, positive, new_film):
    history = new_film()
    report = run(tiny, positive, history, steps=5)[3]
    made = figures(model=tiny.model, history=history, positive=positive, report=report)
    told = json.loads(report)
    assert made["tokens"]["total"] == told["sampling"]["tokens"]
    assert made["tflop_per_step"] == pytest.approx(told["sampling"]["tflop_per_step"])
    assert made["seconds_per_step"] == pytest.approx(told["totals"]["seconds_per_step"])
    assert made["seconds_per_step_from"] == "measured on cpu"


def test_tokens_are_those_that_attention_sees(tiny, positive, new_film):
    lengths = set()

    def watch(attention, q, k, v, heads, *args, **kwargs):
        lengths.add(q.shape[2])
        return attention(q, k, v, heads, *args, **kwargs)

    model = tiny.model.clone()
    model.model_options["transformer_options"] = {"optimized_attention_override": watch}
    prompt = positive[:1]
    report = json.loads(run(tiny, [[prompt[0][0], {**prompt[0][1]}]], new_film(count=1), model=model)[3])
    assert report["sampling"]["tokens"] == max(lengths)
    assert "overridden" in report["attention"]


def test_what_is_on_the_model_is_seen(tiny):
    assert model_facts(tiny.model).skippers == ()
    cached = nodes_easycache.EasyCacheNode.execute(tiny.model, 0.2, 0.15, 0.95, False)
    cached = getattr(cached, "args", cached)[0]
    cached.add_wrapper_with_key("outer_sample", PATCH, lambda *_: None)
    set_torch_compile_wrapper(cached, "inductor")
    cached.attachments[CHECKPOINT_ATTACHMENT] = ("f1.safetensors", Direction.FORWARD)
    cached.patches["some weight"] = []
    facts = model_facts(cached)
    assert len(facts.skippers) == 2
    assert facts.compiled
    assert facts.has_loras
    assert facts.checkpoint == "f1.safetensors"
    assert {"two skippers", "direction"} <= rules(model=cached)
    assert not {"two skippers", "direction"} & rules(model=tiny.model)


def test_kinds_of_weights_are_seen(tiny):
    class GGUFModelPatcher:
        model = tiny.model.model

    assert plan_request._quantisers(GGUFModelPatcher()) == ("GGUF",)
    assert plan_request._quantisers(tiny.model) == ()
    small = torch.nn.Module()
    small.model = torch.nn.Module()
    small.model.diffusion_model = torch.nn.Linear(2, 2).to(torch.float8_e4m3fn)
    assert plan_request._quantisers(small) == ("fp8",)


def test_weights_beside_the_loop_are_what_the_host_does_not_count(tiny, monkeypatch):
    whole = comfy.model_management.module_size(tiny.model.model)
    monkeypatch.setattr(type(tiny.model), "model_size", lambda self: whole - 100)
    assert model_facts(tiny.model).weights == Weights(whole - 100, 100)


def test_the_hosts_reserve_is_kept_from_weights(tiny, new_film):
    machine = read_machine("RTX 3060", 4.0, tiny.model, new_film())
    host = comfy.model_management
    assert machine.vram == 4 * GIB
    assert machine.reserve >= int(host.minimum_inference_memory())
    large = read_machine("RTX 3060", 4.0, tiny.model, new_film(start_latent=torch.zeros(1, 16, 1, 200, 200)))
    assert large.reserve > machine.reserve
    assert read_machine("RTX 3060", 0.0, None, new_film()).reserve is None


def test_the_picture_and_the_text_are_shown(positive, new_film, tmp_path):
    made = plan(positive=positive, history=new_film(count=3))
    text, _, picture = made.args
    assert picture.shape == (1, 192, 1024, 3)
    shown = made.ui if isinstance(made.ui, dict) else made.ui.as_dict()
    assert shown["text"] == (text,)
    assert len(list(tmp_path.glob("*.png"))) == 1


def test_the_picture_shows_what_is_made_and_where_prompts_change():
    def spans(done, prompts):
        return [Span(k, 3 - k, range(36 * k, 36 * k + 36), prompts[k], done and k == 2) for k in range(3)]

    def middle(picture, share, row):
        return picture[0, row, int(16 + share * (1024 - 32))].tolist()

    fresh, begun = (draw_timeline(spans(done, "aab"), "film") for done in (False, True))
    assert middle(fresh, 5 / 6 - 0.02, 98) != middle(begun, 5 / 6 - 0.02, 98)
    assert middle(fresh, 1 / 6 - 0.02, 98) == middle(begun, 1 / 6 - 0.02, 98)
    assert middle(fresh, 0.25, 134) == middle(fresh, 0.6, 134) != middle(fresh, 0.9, 134)
    assert (
        draw_timeline([Span(k, k + 1, range(4 * k, 4 * k + 4), "", False) for k in range(3000)], "long")
        .isfinite()
        .all()
    )


def test_bad_input_is_refused(tiny, new_film):
    with pytest.raises(ValueError, match="card is 'RTX 1'"):
        plan(card="RTX 1")
    with pytest.raises(ValueError, match="not one of FramePack Sampler"):
        plan(report="hello")

    class Other:
        model = object()

    with pytest.raises(ValueError, match="not FramePack"):
        plan(model=Other())
