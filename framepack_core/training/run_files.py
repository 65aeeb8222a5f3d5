"""A training run as one safetensors file, so that the next run goes on where this one stopped, bit for bit."""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn

from ..atomic_files import write_atomically
from .loop import TrainingRun

METADATA_KEY = "framepack_training"


def save_run(run: TrainingRun, path: Path) -> None:
    """Parameters that train, their averages, optimiser state and generators; the old file stays until all is written.

    Raises ValueError for weights that are not finite, OSError when the file cannot be written.
    """
    broken = next((name for name, value in run.parameters.items() if not torch.isfinite(value).all()), None)
    if broken is not None:
        raise ValueError(
            f"After step {run.step} {broken} holds NaN or infinity; {path.name} was not written. "
            "Go on from an earlier file with lower learning rates."
        )
    tensors = {
        **_under("model", run.parameters),
        **_under("average", run.average.values),
        **_under("optimizer", run.optimizers.state()),
        **_under("generator", {name: g.get_state() for name, g in run.generators._asdict().items()}),
    }
    # copies, since safetensors refuses tensors that share memory
    stored = {key: tensor.detach().to("cpu", copy=True).contiguous() for key, tensor in tensors.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, stored, {METADATA_KEY: json.dumps({"step": run.step, "seconds": run.seconds})})


def load_run(run: TrainingRun, path: Path) -> None:
    """Put a run of the same model, made by new_run, into the saved state.

    Raises ValueError for a file that is no training run, or one of other parameters.
    """
    with safe_open(path, framework="pt") as file:
        metadata = (file.metadata() or {}).get(METADATA_KEY)
        if metadata is None:
            raise ValueError(f"{path.name} is not a training run; give a file that save_run wrote.")
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  # safe_open is not a mapping
    weights = _parts(tensors, "model")
    _check_parameters(weights, run.parameters, path.name)
    with torch.no_grad():
        for name, parameter in run.parameters.items():
            parameter.copy_(weights[name])
        for name, value in _parts(tensors, "average").items():
            run.average.values[name].copy_(value)
    run.optimizers.restore(_parts(tensors, "optimizer"))
    for name, generator in run.generators._asdict().items():
        generator.set_state(tensors[f"generator/{name}"])
    saved = json.loads(metadata)
    run.step, run.seconds = int(saved["step"]), float(saved["seconds"])


def averaged_weights(run: TrainingRun, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """The model's state dict on the CPU with averages in place of what trained: what a checkpoint should hold."""
    state = {**run.model.state_dict(), **run.average.values}
    return {
        name: value.detach().to(device="cpu", dtype=dtype or value.dtype).contiguous() for name, value in state.items()
    }


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}/{name}": tensor for name, tensor in tensors.items()}


def _parts(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    prefix += "/"
    return {key[len(prefix) :]: value for key, value in tensors.items() if key.startswith(prefix)}


def _check_parameters(saved: Mapping[str, Tensor], own: Mapping[str, nn.Parameter], name: str) -> None:
    before = {key: tuple(value.shape) for key, value in saved.items()}
    now = {key: tuple(value.shape) for key, value in own.items()}
    if before != now:
        differing = min(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
        raise ValueError(
            f"{name} trained other parameters: {differing} has shape {before.get(differing)} there and "
            f"{now.get(differing)} here. Make the run with the same sizes and the same choice of parameters."
        )
