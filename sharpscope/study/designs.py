"""How the pairs were made, as far as it is known: zero-shot models, settings and covariates, from checkpoint files and
the study."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from sharpscope.config.study import PairConfig
from sharpscope.errors import ConfigError, did_you_mean, shown
from sharpscope.findings.design import Design
from sharpscope.miniworld import shipped
from sharpscope.vocabulary import LEARNING_RATE

__all__ = [
    "design_of",
    "design_of_manifests",
    "joined",
    "read_covariates",
    "recipe_numbers",
    "shipped_design",
    "untold",
    "with_covariates",
]

_NOT_THE_SETTING: Final = ("seed", "device", "zeroshot_sha256")
"""Facts of a fine-tuning that do not define its setting: those that may differ between replicates, and those of the
zero-shot model."""
SETTING: Final = "setting"
"""The column of a file of covariates that names settings, and the field of a pair that does."""
_MEASURED: Final = ("distance", "id_accuracy")
"""Covariates that a run measures itself at every alpha."""


@dataclass(frozen=True)
class _Made:
    """How one pair was made, as far as it is known."""

    pair: str
    base: str
    setting: str
    numbers: Mapping[str, float]
    remark: str = ""
    file: str = ""


def recipe_numbers(told: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a fine-tuning by the names of covariates, from what its file states (``sharpscope.finetuning``).

    learning_rate (the file's lr), batch_size, examples, steps (where the file states epochs: epochs times the whole
    batches in an epoch) and epochs (steps times batch size / examples); those that cannot be told are missing.
    """
    values = told.get("hyperparameters")
    values = values if isinstance(values, Mapping) else {}
    lr, size, steps, epochs = (_number(values.get(name)) for name in ("lr", "batch_size", "steps", "epochs"))
    examples = _number(told.get("examples"))
    if size > 0 and examples > 0:
        steps = epochs * (examples // size) if math.isnan(steps) else steps
        epochs = steps * size / examples
    found = {LEARNING_RATE: lr, "epochs": epochs, "steps": steps, "batch_size": size, "examples": examples}
    return {name: value for name, value in found.items() if math.isfinite(value)}


def _number(value: Any) -> float:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else math.nan


def design_of(pairs: Iterable[PairConfig], facts: Mapping[str, Mapping[str, Any]]) -> Design:
    """The design of a study's pairs.

    Args:
        pairs: the pairs of the study; what they state wins over what files state, and a note tells where they differ.
        facts: pair -> what its files state (``LoadedPair.facts``, the manifest's ``pairs``); may lack a pair.
    """
    return _design([_made(pair, facts.get(pair.name) or {}) for pair in pairs])


def design_of_manifests(manifests: Iterable[Mapping[str, Any]]) -> Design:
    """The design of the pairs of several runs, from their manifests; one that cannot be read adds no pair."""
    made = []
    for manifest in manifests:
        config, facts = manifest.get("config"), manifest.get("pairs")
        for told in config.get("pairs", ()) if isinstance(config, Mapping) else ():
            own = facts.get(told["name"]) if isinstance(facts, Mapping) else None
            made.append(_made(PairConfig(**{"zeroshot": "", "finetuned": "", **told}), own or {}))
    return _design(made)


def shipped_design() -> Design:
    """The design of the embedded world's pairs, whose recipes its manifest holds."""
    known = shipped.manifest()["checkpoints"]
    base = _sha(known["zeroshot"])
    tuned = {name: told for name, told in known.items() if told["method"] == "wise_ft"}
    return _design(
        [_Made(n, base, _setting(_shipped(told)), recipe_numbers(_shipped(told))) for n, told in tuned.items()]
    )


def joined(first: Design, second: Design) -> Design:
    """The pairs of ``first``, and those of ``second`` that have other names."""
    more = [i for i, name in enumerate(second.pairs) if name not in first.pairs]
    names = dict.fromkeys((*first.covariates, *second.covariates))

    def both(name: str) -> np.ndarray:
        parts = (one.covariates.get(name, np.full(len(one.pairs), math.nan)) for one in (first, second))
        ours, theirs = parts
        return np.concatenate([ours, theirs[more]])

    return Design(
        (*first.pairs, *(second.pairs[i] for i in more)),
        (*first.base, *(second.base[i] for i in more)),
        (*first.setting, *(second.setting[i] for i in more)),
        {name: both(name) for name in names},
        (*first.remarks, *second.remarks),
        (*_files(first), *(_files(second)[i] for i in more)),
    )


def _files(design: Design) -> tuple[str, ...]:
    return design.file or ("",) * len(design.pairs)


def untold(design: Design) -> tuple[str, ...]:
    """What a verdict across the pairs of ``design`` needs and is not known of them, each in words with its remedy.

    It needs a learning rate, which no pair may lack altogether, and the setting of every pair that has a learning rate:
    seeds of one setting under names of their own count as so many settings, and a null is then rejected too often.
    """
    rates = design.covariates.get(LEARNING_RATE, np.full(len(design.pairs), math.nan))
    if not np.isfinite(rates).any():
        return (f"no pair's learning rate is known (remedy: a column {LEARNING_RATE} in the file of --covariates)",)
    known = [bool(s) for s, rate in zip(design.told_setting, rates, strict=True) if np.isfinite(rate)]
    if all(known):
        return ()
    return (
        f"the setting of {known.count(False)} of {len(known)} pairs is unknown, and seeds of one setting would count "
        f"as evidence (remedy: {SETTING} of each pair in the study file, or a column {SETTING} in the file of "
        "--covariates, with a name of its own for every setting)",
    )


def _made(pair: PairConfig, facts: Mapping[str, Any]) -> _Made:
    ends = [end if isinstance(end := facts.get(name), Mapping) else {} for name in ("zeroshot", "finetuned")]
    told = ends[1].get("finetuning") or _shipped_with(_sha(ends[1]))
    numbers = recipe_numbers(told) if told else {}
    differing = [
        f"{pair.name}: {name} is {value:g} by the study and {numbers[name]:g} by the file"
        for name, value in pair.covariates.items()
        if name in numbers and not math.isclose(value, numbers[name], rel_tol=1e-6)
    ]
    setting = pair.setting or (_setting(told) if told else "")
    return _Made(pair.name, pair.base or _sha(ends[0]) or pair.zeroshot, setting, numbers | pair.covariates,
                 "; ".join(differing), _sha(ends[1]))  # fmt: skip


def _sha(file: Mapping[str, Any]) -> str:
    return str(file.get("sha256") or "")


def _shipped_with(sha256: str) -> dict[str, Any]:
    """What is known of the embedded world's file with this hash; nothing for another file."""
    known = shipped.manifest()["checkpoints"].values()
    return next((_shipped(told) for told in known if sha256 and told["sha256"] == sha256), {})


def _shipped(told: Mapping[str, Any]) -> dict[str, Any]:
    """An entry of the embedded world's manifest in the words of a file's own metadata."""
    recipe = told["recipe"]
    return {"method": told["method"], "hyperparameters": recipe, "examples": recipe.get("n"), "seed": told["seed"]}


def _setting(told: Mapping[str, Any]) -> str:
    """A name for a fine-tuning's setting: everything that ``told`` states about it except the seed."""
    kept = {name: value for name, value in told.items() if name not in _NOT_THE_SETTING}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:12]


def _design(made: Sequence[_Made]) -> Design:
    names = dict.fromkeys(name for one in made for name in one.numbers)
    return Design(
        tuple(one.pair for one in made),
        tuple(one.base for one in made),
        tuple(one.setting for one in made),
        {name: np.array([one.numbers.get(name, math.nan) for one in made]) for name in names},
        tuple(one.remark for one in made if one.remark),
        tuple(one.file for one in made),
    )


def read_covariates(path: str | os.PathLike[str], pairs: Sequence[str]) -> dict[str, dict[str, float | str]]:
    """Pair -> what a CSV file tells of it: the column ``pair``, one for each covariate, and perhaps ``setting``.

    A covariate is a number. ``setting`` is a text, the same for all pairs that differ in their seed alone. An empty
    cell, and a pair that has no row, is unknown.

    Raises:
        ConfigError: a file that cannot be read, has no column ``pair``, a pair twice or one that is none of ``pairs``,
            a covariate that every run measures itself, or a cell that is no finite number.
    """
    where = f"--covariates {shown(os.fspath(path))}"
    try:
        with Path(path).open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.reader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{where}: cannot be read as a CSV file ({shown(error, 100)}).") from None
    head = rows[0] if rows else []
    if "pair" not in head or len(set(head)) != len(head) or len(head) < 2 or "" in head:
        raise ConfigError(f"{where}: needs a line of names: the column pair, and one for each covariate or setting.")
    if taken := [name for name in head if name in _MEASURED or name == "alpha"]:
        raise ConfigError(f"{where}: {taken[0]} is measured by the runs themselves; give the column another name.")
    at, out = head.index("pair"), dict[str, dict[str, float | str]]()
    for line, row in enumerate(rows[1:], 2):
        if not any(row):
            continue
        pair = row[at] if len(row) > at else ""
        if len(row) != len(head) or pair not in pairs or pair in out:
            why = "has another number of cells than the first line" if len(row) != len(head) else (
                "is there twice" if pair in out else f"is no pair of these runs.{did_you_mean(pair, pairs)}"
            )  # fmt: skip
            raise ConfigError(f"{where}, line {line}: '{shown(pair, 60)}' {why}")
        out[pair] = {
            name: cell.strip() if name == SETTING else _cell(cell, f"{where}, line {line}: {shown(name, 60)}")
            for name, cell in zip(head, row, strict=True)
            if name != "pair"
        }
    return out


def _cell(text: str, where: str) -> float:
    if not text.strip():
        return math.nan
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ConfigError(f"{where}: needs a number or an empty cell, got '{shown(text, 60)}'.")
    return value


def with_covariates(design: Design, told: Mapping[str, Mapping[str, float | str]]) -> Design:
    """``design`` with the covariates and settings ``told`` (pair -> name -> value).

    A covariate replaces that of the same name, also where its cell is empty; a setting replaces that of its pair.
    """
    names = dict.fromkeys(name for own in told.values() for name in own if name != SETTING)
    more = {n: np.array([float(told.get(p, {}).get(n, math.nan)) for p in design.pairs]) for n in names}
    settings = tuple(
        str(told.get(p, {}).get(SETTING, "")) or s for p, s in zip(design.pairs, design.setting, strict=True)
    )
    return dataclasses.replace(design, setting=settings, covariates={**design.covariates, **more})
