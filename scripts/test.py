"""Runs the checks and the tests against a ComfyUI that it sets up itself: `python3 scripts/test.py`.

`--host` (or COMFYUI_PATH) names another ComfyUI to test with, `--only` one of the four test folders without the
checks; what follows `--` goes to pytest. The exit code is pytest's, or else that of the first check that failed.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from scripts.host_setup import ROOT, SetupError, prepare, run_to_end

CHECKS = (
    ("ruff", "check", "."),
    ("ruff", "format", "--check", "."),
    ("pyright",),
)

# Not `-m pytest`, which puts the working directory on sys.path: there our folder `nodes` hides ComfyUI's module
# `nodes`. Not `-P`, which Python 3.10 does not have.
PYTEST = "import sys; sys.path.pop(0); import pytest; sys.exit(pytest.main(sys.argv[1:]))"


def main() -> int:
    """Reads the command line and returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", type=Path, help="folder of the ComfyUI to test with (default: the pinned one)")
    parser.add_argument(
        "--only", choices=("core", "comfy", "meaning", "server"), help="one folder of tests, without the checks"
    )
    parser.add_argument("pytest_arguments", nargs="*", metavar="-- ARGUMENTS", help="handed to pytest")
    arguments = parser.parse_args()
    try:
        host = prepare(arguments.host)
    except SetupError as error:
        sys.stderr.write(f"{error}\n")
        return 1

    python, environment = str(host.python), host.environment()
    failed = 0
    for check in () if arguments.only else CHECKS:
        extra = ("--pythonpath", python) if check[0] == "pyright" else ()
        sys.stdout.write(f"== {' '.join(check)}\n")
        sys.stdout.flush()
        code = run_to_end([python, "-m", *check, *extra], environment, ROOT)
        failed = failed or code

    folder = f"tests/{arguments.only}" if arguments.only else "tests"
    named = [argument for argument in arguments.pytest_arguments if (ROOT / argument.split("::")[0]).exists()]
    tests = [python, "-c", PYTEST, "-c", "tests/pytest.ini", *arguments.pytest_arguments, *([] if named else [folder])]
    tested = run_to_end(tests, environment, ROOT)
    if failed:
        sys.stdout.write("A check failed, see above the tests.\n")
    return tested or failed


if __name__ == "__main__":
    sys.exit(main())
