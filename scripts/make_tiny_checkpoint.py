"""Writes the tiny random-weight checkpoint set; needs torch and safetensors, not ComfyUI."""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from framepack_core.tiny_checkpoint import write_tiny_checkpoint_set


def main() -> None:
    """Reads the command line, writes the set, names the folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for the five files; made if absent")
    parser.add_argument("--seed", type=int, default=0, help="same seed, same bytes (default 0)")
    arguments = parser.parse_args()
    write_tiny_checkpoint_set(arguments.out, arguments.seed)
    sys.stdout.write(f"{arguments.out}\n")


if __name__ == "__main__":
    main()
