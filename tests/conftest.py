"""Makes the pack importable as `framepack_pack` and, where COMFYUI_PATH names a host, that host on the CPU."""

import os
import sys
from pathlib import Path

import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # before the first import of Triton, which reads it

ROOT = Path(__file__).resolve().parents[1]
HOST = os.environ.get("COMFYUI_PATH")
NEED_HOST = {ROOT / "tests" / "comfy", ROOT / "tests" / "meaning"}

sys.path.append(str(ROOT / "scripts"))  # last: its server.py must not hide ComfyUI's
from host_attach import attach_host, name_pack  # noqa: E402

if HOST:
    attach_host(Path(HOST), cpu=True)
else:
    name_pack()


class NeedsHost(pytest.Module):
    """A test file that is skipped before it is imported."""

    def collect(self):
        pytest.skip("needs ComfyUI: set COMFYUI_PATH to its folder", allow_module_level=True)


def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> pytest.Module | None:
    """Without a host the files of these folders cannot even be imported."""
    if HOST or NEED_HOST.isdisjoint(module_path.parents):
        return None
    return NeedsHost.from_parent(parent, path=module_path)


def pytest_report_header() -> str:
    """Says which host the tests use."""
    return f"ComfyUI: {HOST or 'none'}"
