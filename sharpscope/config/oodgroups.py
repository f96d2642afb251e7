"""Named groups of OOD sets: ``styles=mini:sketch`` is the set ``mini:sketch`` in the group ``styles``.

Each group has a mean, verdicts and advice of its own, because distribution shifts of different kinds may answer a
question differently.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

from sharpscope.config.collections import expand_specs
from sharpscope.errors import ConfigError, shown
from sharpscope.vocabulary import DEFAULT_GROUP

__all__ = ["expand_ood", "flat_ood", "ood_groups", "split_group"]

_PREFIX: Final = re.compile(r"([^=:/@#\\]*)=(.*)", re.DOTALL)
_NAME: Final = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")
_RULE: Final = "a group's name has letters, digits, - and _ only, and begins with a letter."


def split_group(entry: str) -> tuple[str, str]:
    """``NAME=SPEC`` as (group, spec); a spec without ``NAME=`` is in the group ``ood``.

    An equals sign behind a colon, a slash, ``@`` or ``#`` belongs to the spec.

    >>> split_group("styles=mini:sketch"), split_group("folder:/a=b")
    (('styles', 'mini:sketch'), ('ood', 'folder:/a=b'))

    Raises:
        ConfigError: a name that is empty or has other characters than letters, digits, ``-`` and ``_``; no spec.
    """
    found = _PREFIX.fullmatch(entry)
    if found is None:
        return DEFAULT_GROUP, entry
    name, spec = found.groups()
    if not _NAME.fullmatch(name) or not spec:
        raise ConfigError(
            f"ood: '{shown(entry, 60)}' is no NAME=SPEC: {_RULE}\n"
            "Remedy: e.g. styles=mini:sketch; or a spec alone, which is in the group 'ood'."
        )
    return name, spec


def flat_ood(value: Any) -> Any:
    """A mapping from groups to specs, as study files may have it, as a tuple of ``NAME=SPEC``; all else unchanged.

    >>> flat_ood({"styles": ["mini:sketch", "mini:neon"], "ood": ["mini:photo-dark"]})
    ('styles=mini:sketch', 'styles=mini:neon', 'mini:photo-dark')

    Raises:
        ConfigError: a group that is not a list of specs, or has a bad name.
    """
    if not isinstance(value, Mapping):
        return value
    out = []
    for name, specs in value.items():
        if isinstance(specs, (str, bytes, Mapping)) or not isinstance(specs, Iterable):
            raise ConfigError(f"ood: the group '{shown(name, 40)}' needs a list of data set specs.")
        if not _NAME.fullmatch(str(name)):
            raise ConfigError(f"ood: '{shown(name, 40)}': {_RULE}")
        out += [spec if name == DEFAULT_GROUP else f"{name}={spec}" for spec in specs]
    return tuple(out)


def expand_ood(entries: Iterable[str]) -> tuple[str, ...]:
    """``entries`` with every collection's name replaced by its members, in the collection's group."""
    split = [split_group(entry) for entry in entries]
    members = expand_specs([spec for _, spec in split])
    named = {spec: group for group, spec in split}
    of: dict[str, str] = {}
    for group, spec in split:
        of |= {m: named.get(m, group) for m in expand_specs([spec]) if m not in of}
    return tuple(m if of[m] == DEFAULT_GROUP else f"{of[m]}={m}" for m in members)


def ood_groups(entries: Iterable[str]) -> dict[str, str]:
    """Spec -> the name of its group, in the given order."""
    return {spec: group for group, spec in map(split_group, entries)}
