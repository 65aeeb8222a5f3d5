"""What all node files share: the category, our socket type, and schemas that older hosts accept."""

import dataclasses
import inspect
from collections.abc import Iterable
from typing import Any

from comfy_api.latest import io

CATEGORY = "FramePack"
History = io.Custom("FRAMEPACK_HISTORY")


def node_schema(**kwargs: Any) -> io.Schema:
    """io.Schema without what this host does not know yet (search_aliases on ComfyUI up to 0.3.75)."""
    known = {field.name for field in dataclasses.fields(io.Schema)}
    return io.Schema(category=CATEGORY, **{name: value for name, value in kwargs.items() if name in known})


def widget(kind: Any, input_id: str, **kwargs: Any) -> Any:
    """A socket or widget without the arguments this host does not know yet (advanced on ComfyUI up to 0.3.75)."""
    known = inspect.signature(kind.Input.__init__).parameters
    return kind.Input(input_id, **{name: value for name, value in kwargs.items() if name in known})


def check_choice(name: str, value: str, options: Iterable[str]) -> None:
    """Raises ValueError for a value outside its list, which ComfyUI up to 0.3.75 does not check for V3 nodes."""
    options = list(options)
    if value not in options:
        raise ValueError(f"{name} is '{value}', which is not in its list: {', '.join(options) or 'empty'}.")
