"""Names for several data sets at once: one word for the table of a paper."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

__all__ = ["COLLECTIONS", "expand_specs"]

COLLECTIONS: Final[Mapping[str, tuple[str, ...]]] = {
    "imagenet-shifts": ("imagenet-v2", "imagenet-r", "imagenet-a", "imagenet-sketch", "objectnet"),
    "lipsum-imagenet": ("imagenet-v2", "imagenet-r", "imagenet-a", "imagenet-sketch"),
    "domainnet-real": ("domainnet:clipart", "domainnet:painting", "domainnet:infograph", "domainnet:sketch"),
}
"""Collection -> its data set specs.

``imagenet-shifts``: the natural shifts of WiSE-FT (Wortsman et al. 2022, arXiv 2109.01903). ``lipsum-imagenet`` (the
same without ObjectNet) and ``domainnet-real`` (what is held against DomainNet real): Lipsum-FT (Nam et al. 2024, arXiv
2404.00860).
"""


def expand_specs(specs: Iterable[str]) -> tuple[str, ...]:
    """``specs`` with every collection's name replaced by its members, each once, in order of first appearance.

    Repeats that the caller wrote out are kept, so that a check for duplicates still sees them.

    >>> expand_specs(["imagenet", "lipsum-imagenet"])[:3]
    ('imagenet', 'imagenet-v2', 'imagenet-r')
    """
    given = list(specs)
    out: list[str] = []
    for spec in given:
        members = COLLECTIONS.get(spec)
        out += [spec] if members is None else [m for m in members if m not in out and m not in given]
    return tuple(out)
