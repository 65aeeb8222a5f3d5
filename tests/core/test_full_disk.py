"""A disk that fills while something is written: one sentence, nothing half written, nothing lost."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# The kernel ends writes past this size as it ends them on a full disk: in the middle, with an OSError.
LIMITED = """
import resource, signal, sys
sys.path.insert(0, {root!r})
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
from pathlib import Path
{code}
"""

SAVE_FILM = """
from scripts.demo import save_film
from scripts.host_setup import SetupError
try:
    save_film(b"film" * 100_000, Path({folder!r}) / "film.mp4", Path("kept.mp4"))
except SetupError as error:
    print(error)
"""

WRITE_SET = """
from framepack_core.tiny_checkpoint import write_tiny_checkpoint_set
try:
    write_tiny_checkpoint_set(Path({folder!r}))
except OSError as error:
    print(error.strerror)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs RLIMIT_FSIZE")
@pytest.mark.parametrize(
    ("code", "sentence"),
    [(SAVE_FILM, "film.mp4 could not be written: File too large. The film is whole in kept.mp4."), (WRITE_SET, "File")],
)
def test_half_written_files_do_not_stay(tmp_path, code, sentence):
    (tmp_path / "film.mp4").write_text("mine")
    code = LIMITED.format(root=str(ROOT), code=code.format(folder=str(tmp_path)))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert sentence.replace("film.mp4 could", "film_2.mp4 could") in done.stdout
    left = {path.name for path in tmp_path.iterdir() if path.stat().st_size > 4}
    assert not any("partial" in name or "film" in name for name in left)
    assert (tmp_path / "film.mp4").read_text() == "mine"
