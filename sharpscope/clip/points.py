"""One point of a chosen path of a pair: the settings that choose it, and what a file says about it."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Any

from sharpscope.clip.pair import LoadedPair
from sharpscope.errors import ConfigError, did_you_mean, listing, shown
from sharpscope.layers import HEAD_WEIGHT, Layer
from sharpscope.vocabulary import PATHS, PathName, check_path_density
from sharpscope.weights.checkpoint import Checkpoint
from sharpscope.weights.choices import Fishers
from sharpscope.weights.fisherfile import read_fisher
from sharpscope.weights.path import InterpolationPath
from sharpscope.weights.theta import Theta

__all__ = ["SEEDED_PATHS", "PathChoice", "alphas_by_layer", "as_checkpoint", "path_choices"]

SEEDED_PATHS = ("dare", "random")
"""The paths that depend on a seed."""


@dataclass(frozen=True)
class PathChoice:
    """A path by name with its settings; None is a setting's default.

    ``density``: of ties and dare. ``seed``: of dare and random. ``fisher_0``, ``fisher_1``: files with the Fisher
    information of theta_0 and theta_1, for the path fisher.

    Raises ConfigError for a setting that the path does not have, and for fisher without its two files.
    """

    kind: PathName = "linear"
    density: float | None = None
    seed: int | None = None
    fisher_0: str | FilePath | None = None
    fisher_1: str | FilePath | None = None

    def __post_init__(self) -> None:
        if self.kind not in PATHS:
            known = ", ".join(PATHS)
            raise ConfigError(f"path: '{shown(self.kind)}' is none of {known}.{did_you_mean(str(self.kind), PATHS)}")
        check_path_density(self.density, (self.kind,), "path_density")
        if self.seed is not None and self.kind not in SEEDED_PATHS:
            raise ConfigError(f"seed: the path {self.kind} has nothing random; {' and '.join(SEEDED_PATHS)} have.")
        files = [f for f in (self.fisher_0, self.fisher_1) if f is not None]
        if files and self.kind != "fisher":
            raise ConfigError(f"fisher_0, fisher_1: the path {self.kind} does not use them; the path fisher does.")
        if self.kind == "fisher" and len(files) < 2:
            raise ConfigError(
                "path fisher: needs the Fisher information of both ends (--fisher-0 FILE --fisher-1 FILE).\n"
                "Remedy: 'sharpscope fisher' computes both and writes them."
            )

    def path(self, pair: LoadedPair, extrapolate: bool = False) -> tuple[InterpolationPath, dict[str, str]]:
        """(the path of ``pair``, the settings as a file's metadata has them).

        Raises what ``LoadedPair.path`` raises, and CheckpointError and PairMismatch for Fisher files.
        """
        facts = {} if self.kind == "linear" else {"path": str(self.kind)}
        usual = PATHS[self.kind].density
        if usual is not None:
            facts["path_density"] = repr(usual if self.density is None else self.density)
        if self.kind in SEEDED_PATHS:
            facts["seed"] = str(self.seed or 0)
        fishers: Fishers | None = None
        if self.fisher_0 is not None and self.fisher_1 is not None:
            zero, facts["fisher_0_sha256"] = read_fisher(self.fisher_0, pair.facts["zeroshot"]["sha256"])
            one, facts["fisher_1_sha256"] = read_fisher(self.fisher_1, pair.facts["finetuned"]["sha256"])
            fishers = zero, one
        extrapolate = extrapolate and PATHS[self.kind].extrapolates
        made = pair.path(
            extrapolate=extrapolate, kind=self.kind, density=self.density, seed=self.seed or 0, fishers=fishers
        )
        return made, facts


def path_choices(
    paths: Sequence[PathName],
    alphas: Sequence[float] | None,
    base: str | FilePath | None,
    density: float | None,
    fisher_0: str | FilePath | None,
    fisher_1: str | FilePath | None,
    seed: int,
) -> list[PathChoice]:
    """The chosen paths of the command ``evaluate``, each with the settings that it has.

    Raises ConfigError for a setting that no path has, for paths without ``base``, and for an alpha outside [0, 1].
    """
    if not paths:
        given = {"alphas": alphas, "path_density": density, "fisher_0": fisher_0, "fisher_1": fisher_1}
        if told := [name for name, value in given.items() if value is not None]:
            raise ConfigError(f"{told[0]}: is a setting of paths, and no path is asked for (--paths linear lines ...).")
        return []
    if base is None:
        raise ConfigError("paths: start at the zero-shot checkpoint, which is missing (--base FILE).")
    if alphas is not None and (bad := [a for a in alphas if not 0 <= a <= 1]):
        raise ConfigError(f"alphas: {bad[0]} is outside [0, 1].")
    check_path_density(density, paths, "path_density")
    if "fisher" not in paths and (fisher_0 or fisher_1):
        raise ConfigError("fisher_0, fisher_1: only the path fisher uses them, and it is not among paths.")
    return [
        PathChoice(
            kind,
            density if kind in PATHS and PATHS[kind].density is not None else None,
            seed if kind in SEEDED_PATHS else None,
            *((fisher_0, fisher_1) if kind == "fisher" else ()),
        )
        for kind in dict.fromkeys(paths)
    ]


def as_checkpoint(pair: LoadedPair, theta: Theta, source: str) -> Checkpoint:
    """``theta``, a point of a path of ``pair``, as the checkpoint that a file with it would be read as."""
    head: dict[str, Any] | None = None
    if HEAD_WEIGHT in theta:
        made = pair.classifier
        head = {
            "scale_baked": made.scale_baked, "normalize": made.normalize, "classnames": tuple(made.classnames),
        }  # fmt: skip
    return Checkpoint(dict(theta), {"head": head, "metadata": {}}, pair.facts["finetuned"]["sha256"], source)


def alphas_by_layer(
    source: str | FilePath | Mapping[str, float], layers: tuple[Layer, ...], rest: float | None
) -> tuple[dict[str, float], dict[str, float]]:
    """(alpha of every tensor that ``source`` speaks of, alpha of every layer it names).

    ``source``: layer name -> alpha, or a CSV file with the columns layer and alpha. ``rest``: the alpha of the other
    layers; None: every layer has to be named.

    Raises ConfigError for a file without these columns, an unknown layer (with the nearest name), a layer named twice,
    an alpha that is no number, and for layers that are missing without ``rest``.
    """
    label = "layer_alphas" if isinstance(source, Mapping) else f"layer_alphas: {shown(source, 200)}"
    given = dict(source) if isinstance(source, Mapping) else _read(FilePath(source).expanduser(), label)
    known = {layer.name: layer for layer in layers}
    for name in given:
        if name not in known:
            raise ConfigError(
                f"{label}: no layer '{shown(name)}'.{did_you_mean(name, known)}\n"
                "'sharpscope inspect A B' lists the layers; --granularity says how tensors are grouped."
            )
    if rest is None and (missing := [name for name in known if name not in given]):
        raise ConfigError(
            f"{label}: says nothing about {listing(missing, 5)}.\n"
            "Remedy: --alpha, at which the layers stand that are not named."
        )
    return {n: alpha for name, alpha in given.items() for n in known[name].params}, given


def _read(path: FilePath, label: str) -> dict[str, float]:
    try:
        with open(path, newline="", encoding="utf-8-sig") as handle:
            rows = list(csv.DictReader(handle))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{label}: cannot be read: {shown(getattr(error, 'strerror', None) or error)}.") from None
    if not rows or not {"layer", "alpha"} <= set(rows[0]):
        raise ConfigError(f"{label}: needs the columns layer and alpha, and at least one row.")
    out: dict[str, float] = {}
    for i, row in enumerate(rows, 2):
        name = str(row["layer"]).strip()
        if name in out:
            raise ConfigError(f"{label}, line {i}: the layer '{shown(name)}' is given twice.")
        try:
            out[name] = float(row["alpha"] or "")
        except ValueError:
            raise ConfigError(f"{label}, line {i}: '{shown(row['alpha'], 40)}' is no alpha.") from None
    return out
