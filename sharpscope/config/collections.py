"""Names that stand for several data set specs, and the halves of their classes: ``domainnet-real#new``."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from sharpscope.config.halves import split_half
from sharpscope.errors import ConfigError, listing, shown
from sharpscope.vocabulary import COLLECTIONS

__all__ = ["expand_specs", "members_of"]

_OTHER_CLASSES: Final = ("imagenet-r", "imagenet-a", "objectnet")
"""Members with other classes than their collection's reference, ImageNet: 200, 200 and 113 of its classes."""


def members_of(spec: str) -> tuple[str, ...] | None:
    """The data set specs of a collection, or of a half of its classes; None for a spec that is no collection.

    The half of a collection is the half of each member. Raises ConfigError for an unknown half, and where the halves of
    a member's own classes are not those of the reference, so that new classes would be among the ones tuned on.

    >>> members_of("domainnet-real#new")[0]
    'domainnet:clipart#new'
    """
    members = COLLECTIONS.get(spec.partition("#")[0])
    if members is None or "#" not in spec:
        return members
    name, half = split_half(spec, path=False)
    if others := [m for m in members if m in _OTHER_CLASSES]:
        same = [f"{m}#{half}" for m in members if m not in others]
        raise ConfigError(
            f"data set {shown(spec)}: {listing(others)} of {name} have other classes than the set that is tuned on: "
            "the halves of their own classes mix its base and new classes.\n"
            f"Remedy: the sets with all of its classes, {' '.join(same)}."
        )
    return tuple(f"{member}#{half}" for member in members)


def expand_specs(specs: Iterable[str]) -> tuple[str, ...]:
    """``specs`` with every collection's name replaced by its members, each once, in order of first appearance.

    Specs that the caller repeats explicitly are kept, so that a check for duplicates still sees them. Raises as
    :func:`members_of` does.

    >>> expand_specs(["imagenet", "lipsum-imagenet"])[:3]
    ('imagenet', 'imagenet-v2', 'imagenet-r')
    """
    given = list(specs)
    out: list[str] = []
    for spec in given:
        members = members_of(spec)
        out += [spec] if members is None else [m for m in members if m not in out and m not in given]
    return tuple(out)
