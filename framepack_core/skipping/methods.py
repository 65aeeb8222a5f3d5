"""The methods by the names that users choose from."""

from dataclasses import replace

from .first_block import FirstBlockCache
from .magcache import MagCache
from .magnitudes import MagnitudeTable
from .run import Method
from .teacache import TeaCache

# MagCache: E005K2 to E024K6 of MagCache4FramePack and its paper's notation; TeaCache: the original's
METHODS = {
    "MagCache quality": MagCache(threshold=0.05, max_skips=2),
    "MagCache balanced": MagCache(threshold=0.1, max_skips=3),
    "MagCache fast": MagCache(threshold=0.24, max_skips=6),
    "TeaCache": TeaCache(),
    "first block": FirstBlockCache(),
}


def choose_method(name: str, threshold: float, retention: float, table: MagnitudeTable | None) -> Method:
    """A method with these settings; threshold 0 keeps its own. Raises ValueError for a table that it does not use."""
    method = replace(METHODS[name], retention=retention)
    if threshold:
        method = replace(method, threshold=threshold)
    if table is None:
        return method
    if not isinstance(method, MagCache):
        raise ValueError(f"Ratios are for MagCache, and the method is {name}; take them off, or choose MagCache.")
    return replace(method, table=table)
