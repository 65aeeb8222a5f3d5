"""ComfyUI and the pack, importable by the scripts that stand outside of both."""

import importlib
import importlib.util
import os
import sys
import types
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def name_pack() -> None:
    """Make the pack importable as `framepack_pack`: on sys.path its folder `nodes` would hide ComfyUI's module."""
    if "framepack_pack" in sys.modules:  # a second one would not know what the first has imported
        return
    pack = types.ModuleType("framepack_pack")
    pack.__path__ = [str(ROOT)]
    sys.modules[pack.__name__] = pack


def attach_host(host: Path, cpu: bool, flags: Sequence[str] = ()) -> None:
    """Make the pack and ComfyUI importable; ComfyUI sees these flags and none of the script's own.

    cpu: on the CPU, which the host does not choose by itself where there is no card.
    """
    name_pack()
    sys.path.insert(0, str(host))
    arguments, sys.argv = sys.argv, [sys.argv[0], *(["--cpu"] if cpu else []), *flags]
    import comfy.options

    comfy.options.enable_args_parsing()
    import comfy.cli_args  # reads the flags

    sys.argv = arguments
    if importlib.util.find_spec("comfy.zluda"):  # ComfyUI-Zluda, a derivative for AMD cards
        importlib.import_module("comfy.zluda")
        os.environ.pop("DISABLE_ADDMM_CUDA_LT", None)  # it turns cuBLASLt off, which ComfyUI does not
