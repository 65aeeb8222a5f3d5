"""A ComfyUI server with only this pack in it, for tests and for the demo: started, and stopped with all it started."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType

from .client import ComfyClient, ServerError

PACK_NAME = "ComfyUI-FramePack-Native"
LOG_TAIL_LINES = 30
POLL_SECONDS = 0.2
STOP_SECONDS = 10
NOT_IN_A_COPY = (".git", ".venv*", ".host", "__pycache__")


class ComfyServer(ComfyClient):
    """Runs `main.py` of a ComfyUI folder while the `with` block lasts.

    `base` is the base directory (models, input, output, ...), a temporary one unless given. The pack is linked into
    its `custom_nodes`; no other pack is loaded, and nothing is written into the ComfyUI folder.
    """

    def __init__(
        self, python: Path, comfyui: Path, pack: Path, *, base: Path | None = None, cpu: bool = False, wait: float = 300
    ) -> None:
        super().__init__(port=0)
        self.python = python.absolute()  # not resolved: a virtual environment's interpreter is a symbolic link
        self.comfyui = comfyui.resolve()
        self.pack = pack.resolve()
        self.cpu = cpu
        self.wait = wait
        self._own_base = base is None
        self.base = Path(tempfile.mkdtemp(prefix="framepack-")) if base is None else base.resolve()
        self.log_path = self.base / "server.log"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> ComfyServer:
        try:
            self._start()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop()

    def log(self) -> str:
        """Everything that the server has printed so far, without terminal colours."""
        text = self.log_path.read_text(encoding="utf-8", errors="replace") if self.log_path.exists() else ""
        return re.sub(r"\x1b\[[0-9;]*m", "", text)

    def _start(self) -> None:
        for name in ("custom_nodes", "input", "output", "models"):
            (self.base / name).mkdir(parents=True, exist_ok=True)
        _link(self.pack, self.base / "custom_nodes" / PACK_NAME)
        self.port = _free_port()
        command = [str(self.python), str(self.comfyui / "main.py"), "--base-directory", str(self.base)]
        command += ["--listen", "127.0.0.1", "--port", str(self.port), "--database-url", "sqlite:///:memory:"]
        command += ["--disable-auto-launch", "--disable-api-nodes"]
        command += ["--disable-all-custom-nodes", "--whitelist-custom-nodes", PACK_NAME]
        command += ["--cpu"] if self.cpu else []
        environment = dict(os.environ, PYTHONIOENCODING="utf-8", PYTHONUNBUFFERED="1", NO_PROXY="127.0.0.1")
        if "PYTHONPYCACHEPREFIX" not in environment:
            environment["PYTHONDONTWRITEBYTECODE"] = "1"
        with self.log_path.open("wb") as log:
            self._process = subprocess.Popen(
                command,
                cwd=self.base,
                env=environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=os.name != "nt",  # a process group of its own, so that all of it can be ended
                creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
            )
        self._wait_until_ready()

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + self.wait
        while time.monotonic() < deadline:
            self.check_alive()
            try:
                self.get("/system_stats")
            except (ServerError, OSError):
                time.sleep(POLL_SECONDS)
            else:
                return
        raise ServerError(f"the server was not ready after {self.wait:.0f} s; its log ends with:\n{self._tail()}")

    def _stop(self) -> None:
        self.close()
        if self._process is not None:
            _end_tree(self._process)
            self._process = None
        _unlink(self.base / "custom_nodes" / PACK_NAME)
        if self._own_base:
            shutil.rmtree(self.base, ignore_errors=True)

    def check_alive(self) -> None:
        """Raises ServerError with the end of the log if the process has ended."""
        if self._process is None:
            raise ServerError("the server is not running")
        code = self._process.poll()
        if code is not None:
            raise ServerError(f"the server ended with exit code {code}; its log ends with:\n{self._tail()}")

    def _tail(self) -> str:
        return "\n".join(self.log().splitlines()[-LOG_TAIL_LINES:])


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _link(target: Path, link: Path) -> None:
    """Makes `link` lead to the folder `target`: a symbolic link, or a junction or a copy where that is refused."""
    _unlink(link)
    try:
        link.symlink_to(target, target_is_directory=True)
    except OSError:
        junction = ["cmd", "/c", "mklink", "/J", str(link), str(target)]
        if os.name != "nt" or subprocess.run(junction, capture_output=True, check=False).returncode != 0:
            shutil.copytree(target, link, ignore=shutil.ignore_patterns(*NOT_IN_A_COPY))


def _unlink(link: Path) -> None:
    """Takes away what `_link` made, never what it leads to."""
    if link.is_symlink():
        link.unlink()
    elif link.is_dir():
        try:
            link.rmdir()  # a junction; a copy is not empty
        except OSError:
            shutil.rmtree(link)


def _end_tree(process: subprocess.Popen[bytes]) -> None:
    """Ends the process and every process that it started."""
    if os.name == "nt":
        subprocess.run(["taskkill", "/F", "/T", "/PID", str(process.pid)], capture_output=True, check=False)
        process.wait(STOP_SECONDS)
        return
    for how in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, how)
        except (ProcessLookupError, PermissionError):  # the group is gone; macOS answers the second
            break
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            continue
    process.wait(STOP_SECONDS)
