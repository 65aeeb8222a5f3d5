"""Films made through /prompt and /ws, from the example workflows to the MP4 file."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any, NamedTuple

import av
import numpy
import pytest
from framepack_pack.scripts import workflow
from framepack_pack.scripts.client import InterruptedRunError, NodeError, ServerError
from PIL import Image

SIZE = (96, 64)
SECTION_FRAMES = 36
SAMPLER_LINKS = {
    "model": workflow.DEMO_LOADER,
    "positive": "FramePackNativeSectionPrompts",
    "history": "FramePackNativeStartHistory",
}


class Film(NamedTuple):
    """A decoded video file."""

    frames: numpy.ndarray  # [F, H, W, 3], 0 to 255
    rate: float


def read_film(content: bytes) -> Film:
    with av.open(io.BytesIO(content)) as container:
        rate = float(container.streams.video[0].average_rate)
        return Film(numpy.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]), rate)


def read_picture(content: bytes) -> numpy.ndarray:
    return numpy.asarray(Image.open(io.BytesIO(content)))


def make_film(server, prompt: workflow.Prompt) -> Film:
    (file,) = server.run(prompt)
    return read_film(server.view(file))


@pytest.mark.parametrize(
    ("name", "frames"),
    [
        ("image_to_video", 2 * SECTION_FRAMES + 1),
        ("forward", 2 * SECTION_FRAMES + 1),
        ("text_to_video", 2 * SECTION_FRAMES - 3),
        ("hand_wired_sections", 2 * SECTION_FRAMES + 1),
    ],
)
def test_example_makes_a_film(server, small, name, frames):
    printed = len(server.log())
    film = make_film(server, small(name))
    assert film.frames.shape == (frames, SIZE[1], SIZE[0], 3)
    assert film.rate == 30
    assert film.frames[0].std() > 1, "the first frame is one colour"
    assert numpy.abs(numpy.diff(film.frames.astype(int), axis=0)).max() > 1, "nothing changes"
    assert "Traceback" not in server.log()[printed:]


def test_hand_wired_sections_equal_the_sampler_node(server, small):
    """The one-node sampler and wiring section by section are two shells around one primitive."""
    by_hand = small("hand_wired_sections")
    (video,) = workflow.node_ids(by_hand, "CreateVideo")
    images = by_hand[video]["inputs"]["images"]
    # As PNG: two runs of the MP4 encoder differ.
    by_hand["frames"] = {"class_type": "PreviewImage", "inputs": {"images": images}}
    (unused,) = workflow.node_ids(by_hand, "SaveVideo")
    del by_hand[unused]

    by_node = workflow.set_inputs(by_hand, "FramePackNativeDecode", history=["sampler", 0])
    links = {name: [workflow.node_ids(by_hand, kind)[0], 0] for name, kind in SAMPLER_LINKS.items()}
    widgets = {"steps": 2, "cfg": 1.0, "guidance_rescale": 0.0, "shift": 0.0, "max_sections": 0}
    by_node["sampler"] = {"class_type": "FramePackNativeSampler", "inputs": {**links, **widgets}}

    hand_frames, node_frames = ([server.view(file) for file in server.run(prompt)] for prompt in (by_hand, by_node))
    assert len(hand_frames) == 73
    assert hand_frames[-1] != hand_frames[0]
    assert all(
        numpy.array_equal(read_picture(a), read_picture(b)) for a, b in zip(hand_frames, node_frames, strict=True)
    )


def test_progress_counts_all_steps_of_all_sections(server, small):
    prompt = small("image_to_video", FramePackNativeStartHistory={"seed": 11})
    (sampler,) = workflow.node_ids(prompt, "FramePackNativeSampler")
    shown = [
        (event.data["value"], event.data["max"])
        for event in server.events(server.queue(prompt))
        if event.type == "progress" and event.data["node"] == sampler
    ]
    assert shown[-1] == (4, 4)
    assert shown == sorted(set(shown)), "it only grows"  # newer ComfyUI leaves out messages that follow too soon
    assert {total for _, total in shown} == {4}


def test_interrupted_run_stops_and_the_next_one_works(server, small):
    minute = {"total_second_length": 60.0}
    prompt = small("image_to_video", FramePackNativeStartHistory=minute, FramePackNativeSampler={"steps": 500})
    (sampler,) = workflow.node_ids(prompt, "FramePackNativeSampler")
    prompt_id = server.queue(prompt)
    steps = []

    def watch() -> None:
        for event in server.events(prompt_id):
            if event.type == "progress" and event.data["node"] == sampler:
                if not steps:
                    server.interrupt(prompt_id)
                steps.append(event.data["value"])

    with pytest.raises(InterruptedRunError, match="FramePackNativeSampler"):
        watch()
    assert len(steps) < 50 * 500, "of all sections; how many pass before the request arrives depends on the machine"
    assert server.history(prompt_id)["status"]["completed"] is False
    assert len(make_film(server, small("image_to_video", FramePackNativeStartHistory={"seed": 3})).frames) == 73


class Refused(NamedTuple):
    """A change to an example that the server must refuse before it runs, or a node while it runs, and the reason."""

    example: str
    changes: dict[str, dict[str, Any]]
    reason: str


BEFORE_RUN = {
    "no prompt": Refused("image_to_video", {"FramePackNativeSectionPrompts": {"prompts": " "}}, "prompt list is empty"),
    "inverted range": Refused(
        "image_to_video", {"FramePackNativeSectionPrompts": {"prompts": "[3s-1s: dance]"}}, "ends before it starts"
    ),
    "no length": Refused(
        "image_to_video", {"FramePackNativeStartHistory": {"total_second_length": 0.0}}, "smaller than min"
    ),
}

IN_RUN = {
    "last padding not 0": Refused(
        "image_to_video", {"FramePackNativeStartHistory": {"latent_paddings": "2, 1"}}, "padding"
    ),
    "paddings that are no numbers": Refused(
        "image_to_video", {"FramePackNativeStartHistory": {"latent_paddings": "one"}}, "padding"
    ),
    "paddings of a forward film": Refused(
        "forward", {"FramePackNativeStartHistory": {"latent_paddings": "1, 0"}}, "backward"
    ),
    "cfg without negative": Refused("image_to_video", {"FramePackNativeSampler": {"cfg": 4.0}}, "negative"),
    "range outside the film": Refused(
        "image_to_video", {"FramePackNativeSectionPrompts": {"prompts": "[50: dance]"}}, "outside the film"
    ),
}

# ComfyUI up to 0.3.75 does not check the values of lists of V3 nodes, newer ones do so before the run.
BEFORE_OR_IN_RUN = {
    "unknown mode": Refused(
        "image_to_video", {"FramePackNativeStartHistory": {"mode": "sideways"}}, "not in.*backward"
    ),
    "unknown checkpoint": Refused(
        "image_to_video", {"FramePackNativeLoadDemo": {"checkpoint": "no such set"}}, "no such set"
    ),
    "checkpoint outside the models folder": Refused(
        "image_to_video", {"FramePackNativeLoadDemo": {"checkpoint": "../../input"}}, "not in( its)? list"
    ),
}


@pytest.mark.parametrize("case", BEFORE_RUN.values(), ids=BEFORE_RUN)
def test_bad_value_is_refused_before_the_run(server, small: Callable[..., workflow.Prompt], case: Refused):
    with pytest.raises(ServerError, match=case.reason):
        server.queue(small(case.example, **case.changes))


@pytest.mark.parametrize("case", BEFORE_OR_IN_RUN.values(), ids=BEFORE_OR_IN_RUN)
def test_value_outside_its_list_is_refused(server, small: Callable[..., workflow.Prompt], case: Refused):
    with pytest.raises(ServerError, match=case.reason):
        server.run(small(case.example, **case.changes))


@pytest.mark.parametrize("case", IN_RUN.values(), ids=IN_RUN)
def test_bad_input_is_named_in_the_run(server, small: Callable[..., workflow.Prompt], case: Refused):
    with pytest.raises(NodeError, match=case.reason) as caught:
        server.run(small(case.example, **case.changes))
    assert caught.value.node_type.startswith("FramePackNative")
    assert caught.value.message.endswith("."), "the message is a sentence"
