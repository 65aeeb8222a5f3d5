"""The demo transformer: its sizes, what it is shown, and training in calls that go on where the last one stopped."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from ...framepack_core.atomic_files import write_atomically
from ...framepack_core.model.config import ANY_DIRECTION, FramePackConfig, metadata_of
from ...framepack_core.model.transformer import FramePackTransformer
from ...framepack_core.section_plan import Direction
from ...framepack_core.training import operations
from ...framepack_core.training.initialise import initialise, trains_from_scratch
from ...framepack_core.training.loop import TrainingRun, compile_blocks, every, new_run, train
from ...framepack_core.training.objective import Objective, relative_flow_loss
from ...framepack_core.training.optimizer import Rates, Schedule
from ...framepack_core.training.run_files import averaged_weights, load_run, save_run
from ...framepack_core.training.sections import Batch, CutIndex, Drawing, Layout, draw_batches, usual_layouts
from .dataset import Dataset
from .films import WINDOW

SHIFT = 3.0  # of the noise levels in training
SHORT_FILM = 4  # sections; longer films differ from it in how far away the start image is
SHORT_SHARE = {
    Direction.BACKWARD: 4,
    Direction.FORWARD: 2,
}  # how often a short film's section is drawn for a long one's


@dataclass(frozen=True)
class Training:
    """Of a whole training, however many calls it takes."""

    steps: int = 14000
    batch: int = 384  # samples of one layout; a smaller batch takes as long, since launches do
    batches: int = 1  # layouts in a step; the direction of the first is drawn
    seed: int = 0
    drop_start: float = 0.1
    text_alone: float = 0.35  # text-to-video must make a picture from nothing, and few other batches teach it
    rates: Rates = Rates()  # noqa: RUF009  # frozen
    decay: float = 0.4  # share of the steps in which the rates fall to 0
    compiles: bool = True
    start_from: Path | None = None  # a checkpoint whose weights a new run begins with


def demo_config(text_width: int, pooled_width: int, image_width: int) -> FramePackConfig:
    """Widths from the encoders; the rest fits 10.4 MB in bf16 (5.1 million parameters).

    The feasibility study's net (2 double, 5 single blocks, MLP of 3 widths) is too large by 1.6 million. A double block
    costs as much as 2.5 single ones, so one of them became a single one, and the MLP shrank to 1.7 widths: depth is
    kept. Width and heads are the study's.
    """
    return FramePackConfig(
        num_attention_heads=3,
        attention_head_dim=64,
        num_layers=1,
        num_single_layers=6,
        num_refiner_layers=1,
        mlp_dim=320,
        text_embed_dim=text_width,
        pooled_projection_dim=pooled_width,
        image_proj_dim=image_width,
        rope_axes_dim=(16, 24, 24),
    )


def config_for(dataset: Dataset) -> FramePackConfig:
    """The demo's sizes with the widths of these features."""
    clips, prompts = dataset
    return demo_config(prompts.features.shape[-1], prompts.pooled.shape[-1], clips.vision.shape[-1])


def demo_layouts(direction: Direction, sections: int) -> tuple[Layout, ...]:
    """Sections of films of up to so many sections, those of short films several times."""
    short = usual_layouts(direction, min(sections, SHORT_FILM), WINDOW)
    if sections <= SHORT_FILM:
        return short
    known = {layout.section for layout in short}
    longer = (layout for layout in usual_layouts(direction, sections, WINDOW) if layout.section not in known)
    return (*short * SHORT_SHARE[direction], *longer)


def demo_drawing(training: Training, sections: int) -> Drawing:
    """Batches of the two directions in turn, with everything that inference may feed or leave out."""
    layouts = tuple(demo_layouts(direction, sections) for direction in (Direction.BACKWARD, Direction.FORWARD))
    return Drawing(
        layouts,
        batch=training.batch,
        batches=training.batches,
        drop_text=0.1,
        drop_start=training.drop_start,
        text_alone=training.text_alone,
        give_end=0.15,
        noisy_histories=0.7,
        history_noise=0.1,
    )


def start_training(config: FramePackConfig, training: Training, device: torch.device, run_file: Path) -> TrainingRun:
    """A new run, or the one in the file."""
    model = FramePackTransformer(config, operations=operations)
    initialise(model, training.seed)
    if training.start_from is not None:
        model.load_state_dict(load_file(training.start_from))
    run = new_run(model.to(device), training.seed, trains=trains_from_scratch, rates=training.rates)
    if run_file.exists():
        load_run(run, run_file)
    if training.compiles:
        # without it inductor of torch 2.11 fails on a GPU: an assertion on hints of dynamic sizes
        compile_blocks(model, dynamic=True, options={"triton.coalesce_tiling_analysis": False})
    return run


def train_transformer(
    run: TrainingRun, dataset: Dataset, training: Training, seconds: float, run_file: Path, tell: Callable[[str], None]
) -> bool:
    """Train for so many seconds or to the last step, saving now and then; whether the training is done."""
    device = dataset.clips.latents.device
    objective = Objective(shift=SHIFT, dtype=torch.bfloat16 if device.type == "cuda" else torch.float32)
    drawing = demo_drawing(training, int(dataset.clips.sections.max()))
    index = CutIndex(dataset.clips, dataset.prompts)
    clock = {"step": run.step, "time": time.monotonic()}

    def batches() -> list[Batch]:
        return draw_batches(dataset.clips, dataset.prompts, drawing, run.generators, index)

    def loss(model: Any, batch: Batch) -> Tensor:
        return relative_flow_loss(model, batch, objective, run.generators.noise)

    def report(run: TrainingRun, value: Tensor) -> None:
        number, now = value.item(), time.monotonic()
        pace = (now - clock["time"]) / (run.step - clock["step"]) * 1000
        clock.update(step=run.step, time=now)
        tell(f"step {run.step}, {run.seconds:.0f} s, log of the loss {number:.3f}, {pace:.0f} ms a step")

    is_done = train(
        run,
        batches,
        loss,
        Schedule(training.steps, warm_up=200, decay=training.decay),
        seconds=seconds,
        callbacks=[every(200, report), every(2000, lambda run, _: save_run(run, run_file))],
    )
    save_run(run, run_file)
    return is_done


def save_transformer(run: TrainingRun, config: FramePackConfig, path: Path) -> None:
    """The checkpoint: averaged weights in bf16."""
    write_atomically(path, averaged_weights(run, torch.bfloat16), metadata_of(config, ANY_DIRECTION))


def trained_model(run: TrainingRun, config: FramePackConfig, dtype: torch.dtype) -> FramePackTransformer:
    """The checkpoint's weights in a model of their own, for sampling: nothing of it is compiled or trains."""
    device = next(iter(run.parameters.values())).device
    model = FramePackTransformer(config)
    model.load_state_dict(averaged_weights(run, torch.bfloat16))
    return model.to(device, dtype).eval().requires_grad_(False)
