"""One row of the bench, in this process: python3 -m benchmark.worker ROW PASS OPTIONS(JSON)."""

import json
import platform
import sys
import time
from argparse import Namespace
from pathlib import Path

import torch
from host_attach import name_pack


def main() -> None:
    name, options = sys.argv[1], Namespace(**json.loads(sys.argv[2]))
    options.host, options.scratch = Path(options.host), Path(options.scratch)
    name_pack()
    from .peers import run_peer
    from .rows import REFERENCE, ROWS, MissingPieceError
    from .setting import CONFIGS

    row = REFERENCE if name == "reference" else ROWS[name]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    config = CONFIGS[options.config]
    begun = time.perf_counter()
    if row.kind == "ours":
        from .ours import run_ours as run
    else:
        run = run_peer
    try:
        with torch.inference_mode():
            figures, outputs = run(row, options, config, device)
    except MissingPieceError as error:
        figures, outputs = {"skipped": str(error)}, []
    compare(outputs, figures, options.scratch / f"reference_{options.config}_{options.width}x{options.height}.pt", name)
    print(
        "RESULT "
        + json.dumps({**figures, "machine": machine(device, options.host), "process_s": time.perf_counter() - begun})
    )


def compare(outputs: list[torch.Tensor], figures: dict, reference: Path, name: str) -> None:
    """Relative L2 of the outputs against the float32 reference, which its own row writes."""
    from safetensors.torch import load_file, save_file

    if name == "reference" and outputs:
        save_file({str(number): out.contiguous() for number, out in enumerate(outputs)}, reference)
    elif outputs and reference.exists():
        expected = load_file(reference)
        figures["relative_l2"] = [
            float((out - expected[str(number)]).norm() / expected[str(number)].norm())
            for number, out in enumerate(outputs)
        ]


def machine(device: torch.device, host: Path) -> dict:
    version = host / "comfyui_version.py"
    return {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else platform.processor() or "cpu",
        "torch": torch.__version__,
        "python": platform.python_version(),
        "comfyui": version.read_text().split('"')[-2] if version.exists() else None,
        "date": time.strftime("%Y-%m-%d"),
    }


if __name__ == "__main__":
    main()
