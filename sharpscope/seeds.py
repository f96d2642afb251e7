"""Seeds derived from one number and a purpose, so that no result depends on the order of the work."""

from __future__ import annotations

import hashlib

__all__ = ["derive"]


def derive(seed: int, *purpose: object) -> int:
    """A 63-bit seed for ``purpose``: the first 8 bytes of SHA-256 over ``(seed, *purpose)``.

    Every random draw of a run takes its generator from here, keyed by what it is for (layer, alpha, measure ...), never
    from a shared stream: units of work give the same bits in any order, on any shard, after any restart.

    >>> derive(0, "trace", "visual.conv1", 0.5) == derive(0, "trace", "visual.conv1", 0.5)
    True
    >>> derive(0, "trace") == derive(1, "trace")
    False
    """
    text = "\x1f".join([str(int(seed)), *(repr(p) if isinstance(p, float) else str(p) for p in purpose)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
