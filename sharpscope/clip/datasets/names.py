"""Class names and prompts: read from files, and matched between a data set and the head that reads it."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sharpscope.clip.model import imagenet_classnames, imagenet_templates
from sharpscope.config.inputs import lines_of
from sharpscope.errors import DatasetError, shown

__all__ = [
    "check_distinct",
    "folded",
    "match",
    "match_indexed",
    "numbers_alone",
    "read_classnames",
    "read_json",
    "read_lines",
    "read_templates",
    "same_names",
    "spoken",
    "two_orders",
]

_DIGITS = re.compile(r"(\d+)")


def read_lines(path: str | Path, what: str) -> tuple[str, ...]:
    """The lines of a UTF-8 text file (with or without BOM), stripped; DatasetError for a blank line.

    The word ``imagenet`` instead of a path stands for ImageNet's 1000 names, or its 80 templates, from open_clip.
    """
    if str(path) == "imagenet":
        return imagenet_templates() if what == "templates" else imagenet_classnames()
    return lines_of(path, what)


def read_json(path: Path, download: str) -> dict[str, Any]:
    """The JSON object in a file of ``download`` (``ObjectNet's download``); DatasetError where there is none."""
    try:
        data = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as e:
        raise DatasetError(f"{shown(path)}: cannot be read ({e.strerror or e}); {download} has it.") from e
    except ValueError as e:
        raise DatasetError(f"{shown(path)}: not JSON ({shown(e)}).") from e
    if not isinstance(data, dict):
        raise DatasetError(f"{shown(path)}: not a JSON object.")
    return data


def read_classnames(path: str | Path, *, repeated: bool = False) -> tuple[str, ...]:
    """Class names, one per line, in the order of the head's rows; DatasetError for a blank or duplicate line.

    ``repeated``: whether a name may stand for several classes, as in iWildCam's English names, where classes have
    numbers; :func:`match` refuses such names where classes are matched by name. ImageNet's usual names are accepted,
    although two of them ("missile", "sunglasses") name two classes each.
    """
    names = read_lines(path, "class names")
    if repeated or names == imagenet_classnames():
        return names
    seen: dict[str, int] = {}
    for number, name in enumerate(names, 1):
        before = seen.setdefault(folded(name), number)
        if before != number:
            raise DatasetError(
                f"class names: {shown(path)}, line {number}: '{shown(name)}' is on line {before} already; "
                "every class needs a different name."
            )
    return names


def read_templates(path: str | Path) -> tuple[str, ...]:
    """Prompts, one per line, with ``{}`` for the class name; CLIP_benchmark's ``{c}`` is replaced by it."""
    lines = tuple(line.replace("{c}", "{}") for line in read_lines(path, "templates"))
    for number, line in enumerate(lines, 1):
        if "{}" not in line:
            raise DatasetError(f"templates: {shown(path)}, line {number}: {{}} is missing where the class name goes.")
    return lines


def folded(name: str) -> str:
    """``name`` in the form in which names are compared: with ``_`` as space, ignoring case, in composed Unicode.

    macOS stores folder names in decomposed Unicode.
    """
    return " ".join(unicodedata.normalize("NFC", _caseless(name)).replace("_", " ").split())


def _caseless(name: str) -> str:
    """``name`` decomposed, case-folded and decomposed again: Unicode's canonical caseless form (section 3.13)."""
    return unicodedata.normalize("NFD", unicodedata.normalize("NFD", name).casefold())


def spoken(folder: str) -> str:
    """A folder's name as a class name, with ``_`` as space, in composed Unicode."""
    return unicodedata.normalize("NFC", " ".join(folder.replace("_", " ").split()) or folder)


def same_names(one: Sequence[str], other: Sequence[str]) -> bool:
    """Whether two lists name the same classes in the same order, as :func:`folded` compares names."""
    return [folded(n) for n in one] == [folded(n) for n in other]


def numbers_alone(names: Sequence[str]) -> bool:
    """Whether every name is a number, so that a prompt ("a photo of a 0.") does not describe the class."""
    return all(name.strip().isdecimal() for name in names)


def check_distinct(names: Sequence[str], where: str) -> None:
    """Raise DatasetError where :func:`folded` makes two of ``names`` equal (``big_cat`` and ``big cat``)."""
    seen: dict[str, str] = {}
    for name in names:
        if (key := folded(name)) in seen:
            raise DatasetError(
                f"{shown(where)}: '{shown(seen[key])}' and '{shown(name)}' are the same class name.\n"
                "Remedy: rename one of them, or put the images of both into one folder."
            )
        seen[key] = name


def two_orders(names: Sequence[str]) -> str:
    """A description of both orders where "sorted" has two meanings for ``names``; empty where the orders agree.

    The first order compares characters, as torchvision's ImageFolder does (10 before 2). The second one compares digits
    by their value and ignores case, as people do (2 before 10).
    """
    first, second = list(names), sorted(names, key=_counted)
    if first == second:
        return ""
    return f"{_beginning(first)} (as texts) or {_beginning(second)} (as numbers, case aside)"


def _beginning(names: Sequence[str]) -> str:
    return ", ".join(shown(n, 20) for n in names[:4]) + ", ..." * (len(names) > 4)


def _counted(name: str) -> tuple[list[tuple[int, int, str]], str]:
    """A sort key that compares digits by their value and ignores case."""
    parts = (p for p in _DIGITS.split(_caseless(name)) if p)
    return [(0, int(p), "") if p.isdecimal() else (1, 0, p) for p in parts], name


def match(
    found: Sequence[str], classnames: Sequence[str] | None, where: str, *, by_name: bool = False
) -> tuple[tuple[str, ...], list[int], str]:
    """(class names, index of each found class among them, how they were matched: own | name | order).

    Classes are matched by name where every found class is among ``classnames``, else in order where there are equally
    many and no name contradicts the order. ``by_name``: never match in order; for names that come from a checkpoint or
    from another data set. Raises DatasetError where neither is possible, where a name that a folder has is given twice,
    and where the order of the folders has two readings.
    """
    if classnames is None:
        return tuple(spoken(f) for f in found), list(range(len(found))), "own"
    places = _places(found, classnames)
    if all(len(b) == 1 for b in places) and len({b[0] for b in places}) == len(places):
        return tuple(classnames), [b[0] for b in places], "name"
    if twice := next((b for b in places if len(b) > 1), None):
        raise DatasetError(
            f"{shown(where)}: '{shown(classnames[twice[0]])}' is name {twice[0] + 1} and name {twice[1] + 1} of "
            f"{len(classnames)} class names, but class folders are distinguished by their names: "
            f"{len(found)} class folders do not fit {len(classnames)} class names."
        )
    fitting = [i in b for i, b in enumerate(places) if b]
    # In order only where every name that is known is at its own place.
    if len(found) == len(classnames) and all(fitting) and not by_name:
        if (two := two_orders(found)) and 2 * len(fitting) < len(found):
            raise DatasetError(
                f"{shown(where)}: the order of the {len(found)} class folders has two readings: {two}.\n"
                "Remedy: rename the folders to the class names, or to numbers of equal length (00, 01, ... 10)."
            )
        return tuple(classnames), list(range(len(found))), "order"
    unknown = [shown(f, 40) for f, b in zip(found, places, strict=True) if not b]
    detail = f" Not among the names: {', '.join(unknown[:5])}{', ...' * (len(unknown) > 5)}." if unknown else ""
    remedy = (
        "Remedy: use the head's class names for the folders or in a classnames.txt beside them, or --head zeroshot."
        if by_name
        else "Remedy: give class names that are the folders' names, or one line for each folder in sorted order."
    )
    raise DatasetError(
        f"{shown(where)}: {len(found)} class folders do not fit {len(classnames)} class names.{detail}\n{remedy}"
    )


def match_indexed(
    own: Sequence[str], classnames: Sequence[str], where: str, *, codes: Sequence[str] = (), by_name: bool = False
) -> list[int] | None:
    """Index among ``classnames`` of each class of a set whose classes have a fixed number (ImageNet's 0 ... 999).

    Classes keep their numbers where there are equally many names, and at least half of the names that match any class
    match at their own number. (There are several lists of ImageNet names, some with a name that occurs twice, but all
    in the same order.) ``codes``: other names of the classes (WordNet ids). ``by_name``: at least half of all names
    must match at their own number; for names that come from a checkpoint or from another data set. Otherwise classes
    are matched by name. Returns None where some classes have no matching name. Raises DatasetError for equally many
    names that are in a different order, or are different names, and do not match by name.
    """
    places = _places(own, classnames)
    if codes:
        places = [a or b for a, b in zip(places, _places(codes, classnames), strict=True)]
    if len(own) == len(classnames):
        here = [i in b or _related(own[i], classnames[i]) for i, b in enumerate(places)]
        against = len(own) - sum(here) if by_name else sum(bool(b) and not h for b, h in zip(places, here, strict=True))
        if sum(here) >= against:
            return list(range(len(own)))
    if all(len(b) == 1 for b in places) and len({b[0] for b in places}) == len(places):
        return [b[0] for b in places]
    if len(own) == len(classnames):
        raise DatasetError(
            f"{shown(where)}: the {len(own)} class names are {'in a different order' if any(places) else 'different'} "
            "from the data set's classes.\nRemedy: give one name for each class, in the data set's own order."
        )
    return None


def _related(one: str, other: str) -> bool:
    """Whether two comma-separated lists of synonyms ("tench, Tinca tinca") have a synonym in common."""
    return bool({folded(p) for p in one.split(",")} & {folded(p) for p in other.split(",")})


def _places(found: Sequence[str], classnames: Sequence[str]) -> list[list[int]]:
    index: dict[str, list[int]] = {}
    for i, name in enumerate(classnames):
        index.setdefault(folded(name), []).append(i)
    return [index.get(folded(f), []) for f in found]
