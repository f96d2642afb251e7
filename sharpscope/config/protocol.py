"""The one description of a protocol: which set is tuned on, by which methods, how often, and what is evaluated."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Final, Literal, get_args

from sharpscope.config.fields import plain
from sharpscope.config.ranges import check_ranges
from sharpscope.config.specs import check_classes, check_root, read_spec
from sharpscope.errors import ConfigError, did_you_mean, shown

__all__ = ["FEW_SHOTS", "SHOTS", "ProtocolConfig", "ProtocolName"]

ProtocolName = Literal["base-to-new", "few-shot", "cross-dataset", "upgrade"]

SHOTS: Final = "SHOTS"
"""The placeholder for the number of images per class in the name of a recipe: coop-SHOTSshots."""
FEW_SHOTS: Final = (1, 2, 4, 8, 16)
"""The shots of CoOp's few-shot figures (Zhou et al. 2022, arXiv 2109.01134)."""
_SHOTS: Final = 16
"""The shots of the other protocols (Zhou et al. 2022, arXiv 2203.05557, sections 4.1 and 4.2)."""


@dataclass(frozen=True)
class ProtocolConfig:
    """Everything that decides the numbers of a protocol; a run directory belongs to exactly one of these.

    ``datasets``: the sets that are tuned on, one after the other, and evaluated; for cross-dataset the sets that are
    evaluated, ``train`` being the one that is tuned on. ``hyperparameters``: name -> value, for every method.

    Raises ConfigError, naming the field, for what contradicts itself or would change nothing.

    Sources: Zhou et al. 2022, arXiv 2109.01134 (few-shot) and arXiv 2203.05557 (base-to-new, cross-dataset); Wang et
    al. 2024, arXiv 2412.20895 (upgrade).
    """

    protocol: ProtocolName
    zeroshot: str
    datasets: tuple[str, ...]
    model: str = "ViT-B-32"
    methods: tuple[str, ...] = ()
    recipes: tuple[str, ...] = ()
    train: str | None = None
    shots: tuple[int, ...] = ()
    seeds: tuple[int, ...] = (1, 2, 3)
    hyperparameters: dict[str, Any] = field(default_factory=dict)
    templates: tuple[str, ...] = ()
    upgraded: str | None = None
    upgraded_model: str | None = None
    data_root: str | None = None
    limit: int | None = None
    batch_size: int = 128
    device: str = "auto"
    precision: str = "full"
    augment: bool = True
    level: float = 0.95
    bootstrap: int = 1000

    def __post_init__(self) -> None:
        if not self.shots:
            object.__setattr__(self, "shots", FEW_SHOTS if self.protocol == "few-shot" else (_SHOTS,))
        if not (self.methods or self.recipes):
            object.__setattr__(self, "methods", ("coop",))
        _check(self)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return plain(dataclasses.asdict(self))

    @property
    def tunings(self) -> tuple[str, ...]:
        """The methods and the recipes by which models are tuned."""
        return (*self.methods, *self.recipes)

    def way(self, tuning: str, shots: int) -> dict[str, Any]:
        """A method or recipe among ``tunings`` as the keyword that ``finetune`` takes."""
        return {"recipe": tuning.replace(SHOTS, str(shots))} if tuning in self.recipes else {"method": tuning}

    @property
    def tuned_on(self) -> tuple[str, ...]:
        """The sets that are tuned on."""
        return self.datasets if self.train is None else (self.train,)


def _check(c: ProtocolConfig) -> None:
    if c.protocol not in get_args(ProtocolName):
        known = get_args(ProtocolName)
        raise ConfigError(
            f"protocol: '{shown(c.protocol, 40)}' is none of {', '.join(known)}.{did_you_mean(c.protocol, known)}"
        )
    _check_sets(c)
    lists = {name: getattr(c, name) for name in ("datasets", "shots", "seeds")}
    for name, values in {**lists, "methods and recipes": c.tunings}.items():
        if not values:
            raise ConfigError(f"{name}: give at least one.")
        if twice := [v for i, v in enumerate(values) if v in values[:i]]:
            raise ConfigError(f"{name}: '{shown(twice[0], 60)}' is given twice.")
    if low := [s for s in c.shots if s < 1]:
        raise ConfigError(f"shots: needs at least one image of each class, got {low[0]}.")
    if len(c.shots) > 1 and c.protocol != "few-shot":
        raise ConfigError(f"shots: {c.protocol} takes one number; only few-shot takes several.")
    if "shots" in c.hyperparameters:
        raise ConfigError("set: shots has a flag of its own here: --shots.")
    if c.protocol == "upgrade" and c.upgraded is None:
        raise ConfigError("upgraded: is missing: the checkpoint that takes the old one's place.")
    if c.protocol != "upgrade" and (c.upgraded or c.upgraded_model):
        raise ConfigError(f"upgraded: {c.protocol} has no upgraded backbone; protocol upgrade has.")
    check_ranges(c, least=dict.fromkeys(("limit", "batch_size", "bootstrap"), 1), positive=())
    if not 0 < c.level < 1:
        raise ConfigError(f"level: needs a number between 0 and 1, e.g. 0.95, got {c.level}.")


def _check_sets(c: ProtocolConfig) -> None:
    if (c.train is None) == (c.protocol == "cross-dataset"):
        raise ConfigError(
            "train: cross-dataset needs the set that is tuned on."
            if c.train is None
            else f"train: {c.protocol} tunes on each of its datasets; only cross-dataset takes one set to tune on."
        )
    if c.train is not None and c.train in c.datasets:
        raise ConfigError(f"datasets: '{shown(c.train, 60)}' is the set that is tuned on; it is evaluated anyway.")
    check_root((*c.tuned_on, *c.datasets), c.data_root)
    check_classes((*c.tuned_on, *c.datasets), "datasets")
    for spec in dict.fromkeys((*c.tuned_on, *c.datasets)):
        asked = read_spec(spec)
        if spec in c.tuned_on and asked.split is not None:
            raise ConfigError(
                f"datasets: {shown(spec)} names a split; a protocol tunes on the train split and evaluates on the test "
                f"split.\nRemedy: leave out @{shown(asked.split, 40)}."
            )
        if asked.half is not None and c.protocol == "base-to-new":
            raise ConfigError(
                f"datasets: {shown(spec)} is a half already, and base-to-new makes the halves.\n"
                f"Remedy: leave out #{asked.half}."
            )
