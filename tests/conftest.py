"""Makes the pack importable as `framepack_pack` and, where COMFYUI_PATH names a host, that host on the CPU."""

import importlib
import os
import sys
import types
from pathlib import Path

import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # before the first import of Triton, which reads it

ROOT = Path(__file__).resolve().parents[1]
HOST = os.environ.get("COMFYUI_PATH")
NEED_HOST = {ROOT / "tests" / "comfy", ROOT / "tests" / "meaning"}

# An alias, because our folder `nodes` would hide ComfyUI's module `nodes` if the root were on sys.path.
pack = types.ModuleType("framepack_pack")
pack.__path__ = [str(ROOT)]
sys.modules[pack.__name__] = pack

if HOST:
    sys.path.insert(0, HOST)
    arguments, sys.argv = sys.argv, sys.argv[:1]
    importlib.import_module("comfy.cli_args").args.cpu = True
    sys.argv = arguments


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
