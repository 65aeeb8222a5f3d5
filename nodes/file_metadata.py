"""The workflow inside a video file, as core's Save Video writes it, and the report of the run."""

import json
from typing import Any

from comfy.cli_args import args

REPORT_KEY = "framepack_report"


def workflow_metadata(hidden: Any, report: str | None = None) -> dict[str, str]:
    """Entries of hidden inputs, under the names that core uses, and the report; none with --disable-metadata."""
    if args.disable_metadata:
        return {}
    entries = {} if hidden is None else {**(hidden.extra_pnginfo or {}), "prompt": hidden.prompt}
    kept = {name: json.dumps(value) for name, value in entries.items() if value is not None}
    return {**kept, REPORT_KEY: report} if report else kept
