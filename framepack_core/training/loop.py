"""The training loop. It knows parameters, losses and time, and nothing of what is trained."""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .generators import Generators, new_generators
from .optimizer import ByName, Optimizers, Rates, Schedule, everything, is_block_matrix
from .weight_average import WeightAverage


@dataclass(eq=False)
class TrainingRun:
    """The state of one training; all of it but the frozen weights is what run_files keeps."""

    model: nn.Module
    parameters: dict[str, nn.Parameter]  # those that train
    optimizers: Optimizers
    average: WeightAverage
    generators: Generators
    step: int = 0  # steps finished
    seconds: float = 0.0  # spent in train()


Batches = Callable[[], Sequence[Any]]
"""The batches of one step; chance comes from the run's generators."""
Loss = Callable[[nn.Module, Any], Tensor]
"""(model, batch) -> scalar with gradient; the loss of a step is the mean over its batches."""
Callback = Callable[[TrainingRun, Tensor], None]
"""(run, loss of the step just finished); reading the number makes an accelerator wait, so do it now and then."""


def new_run(
    model: nn.Module,
    seed: int = 0,
    trains: Callable[[str], bool] = everything,
    rates: Rates | None = None,
    uses_muon: ByName = is_block_matrix,
    decay: float = 0.999,
) -> TrainingRun:
    """A run at step 0. Parameters whose name `trains` refuses are frozen: that is how LoRA matrices train alone.

    Raises ValueError when nothing would train.
    """
    parameters = {}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(trains(name))
        if parameter.requires_grad:
            parameters[name] = parameter
    if not parameters:
        raise ValueError("No parameter of this model would train; the function `trains` refuses all names.")
    device = next(iter(parameters.values())).device
    optimizers = Optimizers(parameters, rates, uses_muon)
    return TrainingRun(model, parameters, optimizers, WeightAverage(parameters, decay), new_generators(seed, device))


def train(
    run: TrainingRun,
    batches: Batches,
    loss: Loss,
    schedule: Schedule,
    until: int | None = None,
    seconds: float | None = None,
    callbacks: Iterable[Callback] = (),
    clip: float = 1.0,
) -> bool:
    """Train on to the end of the schedule, to step `until`, or for so many seconds; whether the schedule is done.

    clip is the largest norm of all gradients together.
    """
    begun, before = time.monotonic(), run.seconds
    last = schedule.steps if until is None else min(until, schedule.steps)
    run.model.train()
    while run.step < last and (seconds is None or time.monotonic() - begun < seconds):
        value = _backward(run.model, batches(), loss)
        torch.nn.utils.clip_grad_norm_(run.parameters.values(), clip)
        run.optimizers.step(schedule.factor(run.step))
        run.step += 1
        run.average.update(run.parameters, run.step)
        run.seconds = before + time.monotonic() - begun
        for callback in callbacks:
            callback(run, value)
    return run.step >= schedule.steps


def every(steps: int, callback: Callback) -> Callback:
    """The callback once in so many steps."""

    def sometimes(run: TrainingRun, value: Tensor) -> None:
        if run.step % steps == 0:
            callback(run, value)

    return sometimes


def compile_blocks(model: nn.Module, **options: Any) -> None:
    """torch.compile, with its options, for each block in place, names unchanged; blocks of one kind share their code.

    Other lengths of prompts and films without a start image cost two more compilations, and no more after that.
    """
    for name in ("transformer_blocks", "single_transformer_blocks"):
        for block in getattr(model, name):
            block.compile(**options)


def _backward(model: nn.Module, batches: Sequence[Any], loss: Loss) -> Tensor:
    """Gradients of the mean loss, batch by batch, so that only one batch's activations live at a time."""
    values = []
    for batch in batches:
        value = loss(model, batch) / len(batches)
        value.backward()
        values.append(value.detach())
    return torch.stack(values).sum()
