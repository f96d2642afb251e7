"""Class names and prompts: read from files, and matched between a data set and the head that reads it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sharpscope.clip.model import imagenet_classnames, imagenet_templates
from sharpscope.errors import DatasetError, shown

__all__ = ["folded", "match", "match_indexed", "read_classnames", "read_lines", "read_templates", "spoken"]


def read_lines(path: str | Path, what: str) -> tuple[str, ...]:
    """The lines of a UTF-8 text file (with or without BOM), stripped; DatasetError for a blank line.

    The word ``imagenet`` instead of a path stands for ImageNet's 1000 names, or its 80 templates, from open_clip.
    """
    if str(path) == "imagenet":
        return imagenet_templates() if what == "templates" else imagenet_classnames()
    try:
        text = Path(path).expanduser().read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as e:
        line = e.object[: e.start].count(b"\n") + 1
        raise DatasetError(f"{what}: {shown(path)}, line {line}: not UTF-8 text.") from e
    except (OSError, ValueError) as e:
        raise DatasetError(f"{what}: cannot read {shown(path)}: {getattr(e, 'strerror', None) or e}.") from e
    lines = [line.strip() for line in text.replace("\r\n", "\n").removesuffix("\n").split("\n")]
    for number, content in enumerate(lines, 1):
        if not content:
            raise DatasetError(f"{what}: {shown(path)}, line {number}: the line is blank.")
    return tuple(lines)


def read_classnames(path: str | Path) -> tuple[str, ...]:
    """Class names, one per line, in the order of the head's rows; DatasetError for a blank or duplicate line.

    ImageNet's usual names are accepted, although two of them ("missile", "sunglasses") name two classes each.
    """
    names = read_lines(path, "class names")
    if names == imagenet_classnames():
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
    """``name`` in the form in which names are compared: with ``_`` as space, ignoring case."""
    return " ".join(name.replace("_", " ").split()).casefold()


def spoken(folder: str) -> str:
    """A folder's name as a class name, with ``_`` as space."""
    return " ".join(folder.replace("_", " ").split()) or folder


def match(found: Sequence[str], classnames: Sequence[str] | None, where: str) -> tuple[tuple[str, ...], list[int], str]:
    """(class names, index of each found class among them, how they were matched: own | name | order).

    Classes are matched by name where every found class is among ``classnames``, else in order where there are equally
    many and no name contradicts the order. Raises DatasetError where neither is possible.
    """
    if classnames is None:
        return tuple(spoken(f) for f in found), list(range(len(found))), "own"
    by_name = _places(found, classnames)
    if all(len(b) == 1 for b in by_name) and len({b[0] for b in by_name}) == len(by_name):
        return tuple(classnames), [b[0] for b in by_name], "name"
    # In order only where every name that is known is at its own place.
    if len(found) == len(classnames) and all(i in b for i, b in enumerate(by_name) if b):
        return tuple(classnames), list(range(len(found))), "order"
    unknown = [shown(f, 40) for f, b in zip(found, by_name, strict=True) if not b]
    detail = f" Not among the names: {', '.join(unknown[:5])}{', ...' * (len(unknown) > 5)}." if unknown else ""
    raise DatasetError(
        f"{shown(where)}: {len(found)} class folders do not fit {len(classnames)} class names.{detail}\n"
        "Remedy: give class names that are the folders' names, or one line for each folder in sorted order."
    )


def match_indexed(own: Sequence[str], classnames: Sequence[str], where: str) -> list[int] | None:
    """Index among ``classnames`` of each class of a set whose classes have a fixed number (ImageNet's 0 ... 999).

    Classes keep their numbers where there are equally many names, and at least half of the names that match any class
    match at their own number. (There are several lists of ImageNet names, some with a name that occurs twice, but all
    in the same order.) Otherwise classes are matched by name. Returns None where some classes have no matching name.
    Raises DatasetError for equally many names in a different order that do not match by name.
    """
    by_name = _places(own, classnames)
    fitting = [i in b for i, b in enumerate(by_name) if b]
    if len(own) == len(classnames) and 2 * sum(fitting) >= len(fitting):
        return list(range(len(own)))
    if all(len(b) == 1 for b in by_name) and len({b[0] for b in by_name}) == len(by_name):
        return [b[0] for b in by_name]
    if len(own) == len(classnames):
        raise DatasetError(
            f"{shown(where)}: the {len(own)} class names are in a different order from the data set's classes.\n"
            "Remedy: give one name for each class, in the data set's own order."
        )
    return None


def _places(found: Sequence[str], classnames: Sequence[str]) -> list[list[int]]:
    index: dict[str, list[int]] = {}
    for i, name in enumerate(classnames):
        index.setdefault(folded(name), []).append(i)
    return [index.get(folded(f), []) for f in found]
