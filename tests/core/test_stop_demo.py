"""`scripts/demo.py` that is told to end leaves no server behind."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SERVER = """
import os, time
with open("started", "w") as file:
    file.write(str(os.getpid()))
time.sleep(60)
"""


@pytest.mark.skipif(os.name == "nt", reason="Windows ends a program without telling it")
def test_sigterm_stops_the_server(tmp_path):
    shutil.copytree(ROOT / "scripts", tmp_path / "pack" / "scripts")  # the demo's files go beside its scripts
    host = tmp_path / "host"
    (host / "comfy").mkdir(parents=True)
    (host / "requirements.txt").touch()
    (host / "main.py").write_text(SERVER)
    started = tmp_path / "pack" / ".host" / "demo" / "started"
    environment = dict(os.environ, COMFYUI_PATH=str(host), FRAMEPACK_PYTHON=sys.executable)
    demo = subprocess.Popen([sys.executable, tmp_path / "pack" / "scripts" / "demo.py"], env=environment)
    try:
        wait_for(lambda: started.exists() and started.read_text(), 60)
        server = int(started.read_text())
        demo.send_signal(signal.SIGTERM)
        assert demo.wait(20) == 1
        wait_for(lambda: not is_running(server), 5)
    finally:
        demo.kill()
        if started.exists() and is_running(int(started.read_text())):
            os.kill(int(started.read_text()), signal.SIGKILL)


def wait_for(holds, seconds):
    """Fails when it does not hold in time."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def is_running(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
