"""The workflow inside a video file, as core's Save Video writes it."""

import json
from typing import Any

from comfy.cli_args import args


def workflow_metadata(hidden: Any) -> dict[str, str]:
    """Entries of a node's hidden inputs, under the names that core uses; none with --disable-metadata."""
    if args.disable_metadata or hidden is None:
        return {}
    entries = {**(hidden.extra_pnginfo or {}), "prompt": hidden.prompt}
    return {name: json.dumps(value) for name, value in entries.items() if value is not None}
