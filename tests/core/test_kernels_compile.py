"""The kernels are compiled as for a card, which the interpreter of the other tests does not do."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton is not installed; it comes with torch on Linux x86_64")

HERE = Path(__file__).parent
LAUNCH = re.compile(r"^ +(_\w+)\[", re.MULTILINE)


def test_every_kernel_compiles_for_ampere_and_hopper(tmp_path):
    """Except 8 bit and the tensor memory accelerator, which Ampere has not."""
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, HERE / "compile_kernels.py"],
        env={**env, "TRITON_CACHE_DIR": str(tmp_path), "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    compiled = {tuple(line.split()[:2]) for line in done.stdout.splitlines()}
    sources = "".join(path.read_text() for path in (HERE.parents[1] / "framepack_core" / "kernels").glob("*.py"))
    launched = set(LAUNCH.findall(sources))
    assert len(launched) >= 10
    assert {name for name, target in compiled if target == "sm90"} == launched
    assert launched - {name for name, target in compiled if target == "sm80"} == {
        "_quantise_row", "_largest_of_block", "_quantise_block",
    }  # fmt: skip
