"""Safetensors files that are whole or not there: a crash or a full disk never leaves half of one."""

from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save
from torch import Tensor


def write_atomically(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None) -> None:
    """Writes beside `path` first and renames when the file is whole.

    One metadata entry at most: safetensors writes several in an order that changes from run to run.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_bytes(save(dict(tensors), metadata=metadata))
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
