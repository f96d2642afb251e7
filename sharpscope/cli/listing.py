"""The command ``list``: the words that flags and study files take."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from sharpscope.cli.options import Plugins
from sharpscope.cli.outcome import Outcome
from sharpscope.config.models import MINI, architectures, described
from sharpscope.config.specs import CORRUPTIONS, FOLDERS, LAYOUTS
from sharpscope.vocabulary import COLLECTIONS, CRITERIA, MEASURES, Words

__all__ = ["List"]


@dataclass(frozen=True)
class List(Plugins):
    """List the measures, straggler criteria, data set specs, fine-tuning methods or models that sharpscope knows."""

    what: Annotated[
        Positional[Literal["measures", "criteria", "datasets", "methods", "models"]],
        arg(metavar="{measures,criteria,datasets,methods,models}"),
    ]
    """What to list: measures, criteria, datasets, methods or models (the architectures that --model takes)."""

    def __call__(self) -> Outcome:
        if self.what == "models":
            rows = [(name, described(config)) for name, config in architectures().items()]
            return Outcome("\n".join(_columns([(MINI, "the embedded world's, for tries and tests"), *rows])))
        words, lines = _WORDS[self.what]()
        outside = [f"{name}  (from an installed package; loaded when it is first used)" for name in words.not_loaded()]
        return Outcome("\n".join([*lines, *outside]))


def _measures() -> tuple[Words, list[str]]:
    return MEASURES, _columns([(m.name, m.text) for m in MEASURES.values()])


def _criteria() -> tuple[Words, list[str]]:
    return CRITERIA, _columns([(c.spelling, c.text) for c in CRITERIA.values()])


def _datasets() -> tuple[Words, list[str]]:
    """Every form of a spec with the words that it takes or the folder that it reads, then the names of several sets."""
    rows = [
        (x.form, " ".join(x.known) or " or ".join(f"{name}/" for name in FOLDERS.get(x.name, ())))
        for x in LAYOUTS.values()
    ]
    rows += [(name, f"all of: {' '.join(specs)}") for name, specs in COLLECTIONS.items()]
    ends = "After a spec: @SPLIT, +CORRUPTION@SEVERITY, #base or #new (half of the classes)."
    return LAYOUTS, [line.rstrip() for line in _columns(rows)] + [ends, f"Corruptions: {' '.join(CORRUPTIONS)}"]


def _methods() -> tuple[Words, list[str]]:
    from sharpscope.finetuning.registry import METHODS, listing

    return METHODS, [listing()]


_WORDS = {"measures": _measures, "criteria": _criteria, "datasets": _datasets, "methods": _methods}


def _columns(rows: list[tuple[str, str]]) -> list[str]:
    width = max(len(name) for name, _ in rows)
    return [f"{name:<{width}}  {text}" for name, text in rows]
