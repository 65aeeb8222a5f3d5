"""The JSON file of an evaluation: what it was made with, and a row for each variant, written after every one."""

import json
from pathlib import Path
from typing import Any

Report = dict[str, Any]
"""{"made_with": settings that all rows share, "rows": {name: figures}}"""


def read_report(file: Path, made_with: dict[str, Any]) -> Report:
    """The report so far, or an empty one. Raises ValueError for one that was made with something else."""
    if not file.exists():
        return {"made_with": made_with, "rows": {}}
    report = json.loads(file.read_text(encoding="utf-8"))
    other = [name for name, value in made_with.items() if report["made_with"].get(name) != value]
    if other:
        there = ", ".join(f"{name} {report['made_with'].get(name)}" for name in other)
        here = ", ".join(f"{name} {made_with[name]}" for name in other)
        raise ValueError(
            f"{file} holds rows made with {there}; this run has {here}, and rows of one table must compare. "
            "Name another folder with --out, or move that file away."
        )
    return report


def write_report(file: Path, report: Report) -> None:
    """Whole or not at all."""
    partial = file.with_suffix(".partial")
    partial.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    partial.replace(file)


def is_done(row: dict[str, Any] | None) -> bool:
    """Whether a row has figures, and so is not made again."""
    return row is not None and "obeyed" in row
