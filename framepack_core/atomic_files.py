"""Safetensors files that are whole or not there: a crash or a full disk never leaves half of one."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO, Any

import torch
from safetensors.torch import save
from torch import Tensor

HEADER_ROOM = 2**20  # bytes; the released transformer's quantised header takes about 0.3 MB
ALIGNMENT = 16
DTYPES = {  # safetensors' names
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int8: "I8",
    torch.uint8: "U8",
}


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


def stream_atomically(path: Path, tensors: Iterable[tuple[str, Tensor]], metadata: dict[str, str]) -> None:
    """Writes tensors as they come and holds one at a time; never over a file that is there already.

    Raises FileExistsError. The header stands before the data but is known after it, so room is left for it, and
    what it does not need is blank, as the format allows (safetensors README, "Format").
    """
    if path.exists():
        raise FileExistsError(f"{path} exists already and is not overwritten; choose another name.")
    partial = path.with_name(f".{path.name}.partial")
    header: dict[str, Any] = {"__metadata__": metadata}
    late: list[tuple[str, Tensor]] = []
    try:
        with partial.open("wb") as file:
            file.write(HEADER_ROOM.to_bytes(8, "little") + b" " * HEADER_ROOM)
            for name, tensor in tensors:
                if tensor.nbytes % ALIGNMENT:
                    late.append((name, tensor))  # small ones of odd sizes last, so that all others stay aligned
                else:
                    _append(file, header, name, tensor)
            for name, tensor in sorted(late, key=lambda item: -item[1].element_size()):
                _append(file, header, name, tensor)
            text = json.dumps(header).encode()
            if len(text) > HEADER_ROOM:
                raise ValueError(f"The header of {path.name} takes {len(text)} bytes; room is left for {HEADER_ROOM}.")
            file.seek(8)
            file.write(text)
        if path.exists():
            raise FileExistsError(f"{path} was made meanwhile and is not overwritten; choose another name.")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _append(file: IO[bytes], header: dict[str, Any], name: str, tensor: Tensor) -> None:
    begin = file.tell() - 8 - HEADER_ROOM
    tensor = tensor.detach().to("cpu").contiguous()
    file.write(tensor.reshape(-1).view(torch.uint8).numpy().data)
    header[name] = {
        "dtype": DTYPES[tensor.dtype],
        "shape": list(tensor.shape),
        "data_offsets": [begin, begin + tensor.nbytes],
    }
