"""What the sampler node writes down about its run, and where it goes."""

import json
import time

import av
import comfy.model_management
import folder_paths
import pytest
import torch
from framepack_pack.framepack_core.comfy_host.run_record import KEY, RunRecord
from framepack_pack.framepack_core.run_report import read_speed
from framepack_pack.nodes.decode_video import FramePackDecodeVideo
from sampler_run import STEPS, run


def read(outputs):
    return json.loads(outputs[3])


def test_every_section_of_the_run_is_in_the_report(tiny, positive, new_film):
    history = new_film(count=3)
    first = run(tiny, positive, history, max_sections=1)
    report = read(run(tiny, positive, first[0]))
    assert [part["name"].split(" (")[0] for part in report["sections"]] == ["section 1", "section 0"]
    assert report["film"] == {
        "width": 48, "height": 32, "batch": 1, "mode": "backward", "window": 3, "sections": 3, "seed": 7,
    }  # fmt: skip
    assert report["sampling"]["steps"] == STEPS
    assert report["sampling"]["sampler"].endswith("unipc")
    assert report["attention"]
    assert report["versions"].keys() == {"pack", "ComfyUI", "torch"}
    for part in report["sections"]:
        assert part["steps"] == STEPS
        assert 0 < part["step_seconds"] * (STEPS - 2) < part["seconds"]
        assert part["ram"] > 2**27
        assert part["weights"] == tiny.model.model_size()
        assert part["computed"] is None
    assert "2 of 3 backward sections" in run(tiny, positive, first[0])[2]


def test_times_are_those_of_the_steps(tiny, positive, new_film):
    slow = tiny.model.clone()

    def wait(apply_model, arguments):
        time.sleep(0.05)
        return apply_model(arguments["input"], arguments["timestep"], **arguments["c"])

    slow.set_model_unet_function_wrapper(wait)
    begun = time.perf_counter()
    report = read(run(tiny, positive, new_film(count=2), model=slow, steps=6))
    took = time.perf_counter() - begun
    assert 0.05 <= read_speed(json.dumps(report)).seconds_per_step < took / 6
    assert 2 * 6 * 0.05 <= report["totals"]["seconds"] <= took


def test_guidance_doubles_the_work(tiny, positive, negative, new_film):
    plain = read(run(tiny, positive, new_film()))["sampling"]
    guided = read(run(tiny, positive, new_film(), negative=negative, cfg=2.0))["sampling"]
    assert (plain["forwards_per_step"], guided["forwards_per_step"]) == (1, 2)
    assert guided["tflop_per_step"] == pytest.approx(2 * plain["tflop_per_step"])


def test_what_step_skipping_tells_is_in_its_section(tiny, positive, new_film):
    class Skipped:
        method, computed, steps = "MagCache", 1, STEPS

    told = []

    def skipping(executor, *args, **kwargs):
        out = executor(*args, **kwargs)
        if not told:
            told.append(1)
            for callback in executor.class_obj.model_patcher.get_all_callbacks("framepack_steps_done"):
                callback(Skipped())
        return out

    model = tiny.model.clone()
    model.add_wrapper_with_key("outer_sample", "skipping", skipping)
    report = read(run(tiny, positive, new_film(), model=model))
    assert [part["computed"] for part in report["sections"]] == [1, None]
    assert report["totals"]["skipped_steps"] == STEPS - 1


def test_the_model_is_left_as_it_was_and_nothing_is_kept(tiny, positive, new_film):
    first, again = (read(run(tiny, positive, new_film())) for _ in range(2))
    assert len(first["sections"]) == len(again["sections"]) == 2
    assert not tiny.model.get_wrappers("outer_sample", KEY)
    assert not tiny.model.get_all_callbacks("framepack_steps_done")
    watched = RunRecord(new_film()).watch(tiny.model)
    assert watched.is_clone(tiny.model), "or the host would load the weights anew"


def test_weights_left_off_the_card_count_as_streamed(tiny, positive, new_film, monkeypatch):
    monkeypatch.setattr(type(tiny.model), "loaded_size", lambda self: self.model_size() - 1000)
    assert read(run(tiny, positive, new_film()))["totals"]["streamed_per_forward"] == 1000


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a card")
def test_peak_memory_on_a_card(tiny, positive, new_film):
    report = read(run(tiny, positive, new_film()))
    assert report["totals"]["peak_vram"] > 0
    assert report["card"] == torch.cuda.get_device_name(comfy.model_management.get_torch_device())


def test_the_report_goes_into_the_video(tiny, positive, new_film, tmp_path, monkeypatch):
    monkeypatch.setattr(folder_paths, "get_temp_directory", lambda: str(tmp_path))
    start = torch.randn(1, 16, 1, 8, 8, generator=torch.manual_seed(3))
    history, _, _, report = run(tiny, positive, new_film(start_latent=start))
    made = FramePackDecodeVideo.execute(tiny.vae, "h264", 16, 30.0, "yuv420p", history, report=report)
    with av.open(made.args[0][0].get_stream_source()) as container:
        assert container.metadata["framepack_report"] == report
