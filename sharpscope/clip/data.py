"""From a data set spec to deterministic batches of images and labels."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

from sharpscope.clip.model import ClipModel
from sharpscope.clip.sets.dataset import Dataset, stratified
from sharpscope.clip.sets.folder import find_folder
from sharpscope.clip.sets.found import Found, Request, assemble, need_model
from sharpscope.clip.sets.names import read_classnames, read_lines
from sharpscope.errors import ConfigError, did_you_mean, shown
from sharpscope.specs import COLLECTIONS, expand_specs

__all__ = [
    "COLLECTIONS",
    "KINDS",
    "Dataset",
    "check_spec",
    "expand_specs",
    "load_dataset",
    "read_classnames",
    "read_lines",
    "stratified",
]

Split = Literal["train", "test", "val"]

KINDS: tuple[str, ...] = ("mini:DOMAIN", "folder:PATH")
"""The kinds of data set specs."""

_FINDERS: Mapping[str, Callable[[Request], Found]] = {"folder": find_folder}


def load_dataset(
    spec: str,
    *,
    model: ClipModel | None = None,
    split: Split = "test",
    data_root: str | Path | None = None,
    classnames: Sequence[str] | str | Path | None = None,
    limit: int | None = None,
    seed: int = 0,
) -> Dataset:
    """The data set that ``spec`` names, with the image size, mean and std of ``model``.

    ``mini:DOMAIN`` (or ``mini:DOMAIN@SPLIT``): the embedded world; train, val and test are disjoint draws.
    ``folder:PATH``: a folder of class folders, in torchvision.ImageFolder's order (hidden folders left out), ``PATH``
    under ``data_root`` unless absolute; it has no splits. ``classnames``: the names that labels index (a sequence, or a
    text file): folders go by name (case aside, ``_`` as space) where all are among them, else in sorted order where
    there are as many. ``limit``: at most so many images, a fixed balanced choice by ``seed``.
    Raises ConfigError for a spec of no known kind, DatasetError for anything wrong with the data.
    """
    kind, rest = check_spec(spec)
    names = read_classnames(classnames) if isinstance(classnames, (str, Path)) else classnames
    if limit is not None and limit < 1:
        raise ConfigError(f"data set {shown(spec)}: limit must be at least 1, got {limit}.")
    request = Request(
        spec, kind, rest, split, model, str(data_root or "."), tuple(names) if names is not None else None,
        limit=limit, seed=seed,
    )  # fmt: skip
    if kind == "mini":
        from dataclasses import replace

        from sharpscope.clip.sets.mini import load_mini

        domain, at, asked = rest.partition("@")
        return load_mini(replace(request, rest=domain, split=asked if at else split))
    need_model(request)
    return assemble(_FINDERS[kind](request), request)


def check_spec(spec: str) -> tuple[str, str]:
    """(kind, rest) of a data set spec, without opening anything; ConfigError for an unknown kind, domain or split."""
    kind, _, rest = spec.partition(":")
    if kind not in ("mini", "folder") or not rest:
        near = did_you_mean(spec if ":" in spec else f"mini:{spec}", _known_specs()) or did_you_mean(kind, KINDS)
        raise ConfigError(f"data set: '{shown(spec)}' is of no known kind ({', '.join(KINDS)}).{near}")
    if kind == "mini":
        from sharpscope.clip import miniworld
        from sharpscope.clip.sets.mini import MINI_SIZES

        domain, at, split = rest.partition("@")
        if domain not in miniworld.DOMAINS:
            near = did_you_mean(domain, miniworld.DOMAINS)
            raise ConfigError(
                f"data set: '{shown(spec)}' is no domain of the embedded world.{near} "
                f"Known: {', '.join(miniworld.DOMAINS)}."
            )
        if at and split not in MINI_SIZES:
            near = did_you_mean(split, MINI_SIZES)
            raise ConfigError(f"data set {shown(spec)}: unknown split '{shown(split)}'.{near} Known: train, val, test.")
    return kind, rest


def _known_specs() -> list[str]:
    from sharpscope.clip import miniworld

    return [f"mini:{domain}" for domain in miniworld.DOMAINS]
