"""The tables that figures are drawn from, read from run directories and files when a figure asks for them."""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pandas as pd

from sharpscope.config.plugins import recall_words
from sharpscope.errors import ConfigError, NoData, did_you_mean, shown
from sharpscope.present.sources import Tables, not_made
from sharpscope.study.known import points_beside_shipped
from sharpscope.study.named import manifest_of, pairs_of
from sharpscope.tables.files import read_csv
from sharpscope.tables.rows import groups_in, of_group

__all__ = ["settings_table", "tables_of"]

_FILES: Final = {"changes": ("layer", "distance", "relative"), "slice": ("step_1", "step_2", "loss")}
"""Table that stands in a file of its own, not in a run directory -> columns by which it is known."""
_NUMBERED: Final = re.compile(r"(?P<number>[1-9]\d*)=(?P<run>.+)", re.DOTALL)


@dataclass(frozen=True)
class _Source:
    """A run directory, or a file with one table."""

    root: Path
    number: int | None = None
    """Training images per class of the run's models, where that is told."""

    @classmethod
    def of(cls, text: str) -> _Source:
        """What the text K=RUN, RUN or FILE names."""
        found = None if Path(text).exists() else _NUMBERED.fullmatch(text)
        return cls(Path(found["run"]), int(found["number"])) if found else cls(Path(text))

    def table(self, name: str) -> pd.DataFrame:
        """Table ``name``; raises NoData, with the command that makes it, where it is missing or empty."""
        file = self.root if name in _FILES else self.root / "tables" / f"{name}.csv"
        if not file.is_file():
            raise not_made(shown(file), name, "no such file")
        table = pd.read_csv(file) if name == "slice" else read_csv(file, name)
        if not len(table):
            raise not_made(shown(file), name, "has no rows")
        if self.number is not None and "pair" in table:
            return table.assign(pair=list(map(self.called, table["pair"])))
        return table

    def called(self, pair: str, twice: Collection[str] = ()) -> str:
        """The name under which a pair is drawn; ``twice``: the names that pairs of several runs have."""
        if self.number is not None:
            return f"{self.number}: {pair} of {self.root}"
        return f"{self.root.resolve().name}: {pair}" if pair in twice else pair

    def pairs(self) -> list[str]:
        """The pairs of a run in the order of its config."""
        return pairs_of(manifest_of(self.root))

    def holds(self, name: str) -> bool:
        """Whether table ``name`` may be asked of this source: a file is known by its columns."""
        if not self.root.is_file():
            return name not in _FILES
        try:
            header = set(pd.read_csv(self.root, nrows=0).columns)
        except (OSError, ValueError):
            return False
        return name in _FILES and set(_FILES[name]) <= header


def tables_of(sources: Sequence[str], group: str | None = None) -> Tables:
    """The tables of ``sources`` in one; pairs of one name are told apart by the folder's name.

    Pairs are in the order of the sources and, inside a run, of its config.

    Args:
        sources: run directories; K=RUN for a run whose models were tuned on K images per class; the CSV file of
            ``sharpscope inspect --granularity tensor`` or of ``sharpscope.loss_slice``.
        group: the group of OOD sets to draw; the rows of other groups are left out.

    Raises:
        ConfigError: no source, one that does not exist or is given twice, or a group that no run has.
        NoData: a numbered run without accuracies.
    """
    found = [_Source.of(text) for text in sources]
    if not found:
        raise ConfigError("figures: give at least one run directory.")
    for source in found:
        if not source.root.exists():
            raise NoData(f"{shown(source.root)}: no such file or run directory.")
    places = [source.root.resolve() for source in found]
    if twice := [root for i, root in enumerate(places) if root in places[:i]]:
        raise ConfigError(f"{shown(twice[0])}: is given twice.")
    manifests = [manifest_of(source.root) for source in found]
    for manifest in manifests:
        recall_words(manifest)
    runs = [manifest for source, manifest in zip(found, manifests, strict=True) if not source.root.is_file()]
    config = runs[0].get("config") if len(runs) == 1 else None
    told: dict[str, Any] = config if isinstance(config, dict) else {}
    read = functools.cache(functools.partial(_joined, tuple(found), group, bool(told.get("shipped_pairs"))))
    if group is not None:
        _check_group(found, group)
    shared = _in_several([source.pairs() for source in found])
    images = {pair: s.number for s in found if s.number is not None for pair in s.table("accuracy")["pair"]}
    return Tables(
        read,
        criterion=told.get("straggler_criterion"),
        pairs=[source.called(pair, shared) for source in found for pair in source.pairs()],
        alone=len(runs) == 1,
        images=images,
    )


def _check_group(sources: Sequence[_Source], group: str) -> None:
    known: list[str] = []
    for source in sources:
        try:
            known += groups_in(source.table("accuracy"))
        except NoData:
            continue
    if known and group not in known:
        raise ConfigError(f"--group: no OOD sets are in the group '{shown(group, 40)}'.{did_you_mean(group, known)}")


def _joined(sources: tuple[_Source, ...], group: str | None, shipped: bool, name: str) -> pd.DataFrame:
    """Table ``name`` of all sources."""
    if name == "points":
        return _points(sources, group, shipped)
    sources = tuple(source for source in sources if source.holds(name))
    if not sources:
        raise not_made(f"the table {name}", name, "is in none of the given runs and files")
    tables = [source.table(name) for source in sources]
    if len(tables) > 1 and "pair" not in tables[0]:
        raise NoData(f"the table {name} has no column pair, so that its figures take one run, not {len(tables)}.")
    if len(tables) == 1:
        return tables[0] if group is None else of_group(tables[0], group)
    twice = _in_several([source.pairs() for source in sources]) | _in_several([table["pair"] for table in tables])
    told = [
        table.assign(pair=[p if source.number is not None else source.called(p, twice) for p in table["pair"]])
        for source, table in zip(sources, tables, strict=True)
    ]
    seen: set[str] = set()
    for source, table in zip(sources, told, strict=True):
        if same := seen & set(table["pair"]):
            raise ConfigError(
                f"{shown(source.root)}: '{shown(min(same), 60)}' is also in a run of another folder of this name."
            )
        seen |= set(table["pair"])
    joined = pd.concat(told, ignore_index=True)
    return joined if group is None else of_group(joined, group)


def _in_several(names: Sequence[Iterable[str]]) -> set[str]:
    """The names that stand in more than one of the lists."""
    count = Counter(name for own in names for name in set(own))
    return {name for name, times in count.items() if times > 1}


def _points(sources: tuple[_Source, ...], group: str | None, shipped: bool) -> pd.DataFrame:
    """The points of a run that shows the shipped pairs beside its own, as its report does."""
    if not shipped:
        raise NoData("no run shows the shipped pairs beside its own, so that there are no further points.")
    points = points_beside_shipped(*(_joined(sources, group, shipped, name) for name in ("sharpness", "accuracy")))
    return points if group is None else points[points["group"] == group]


def settings_table(path: Path | None, tables: Tables, pairs: Sequence[str]) -> pd.DataFrame:
    """How every pair was fine-tuned, one row per pair: the CSV file ``path``, else the sweep's table ``finetunings``.

    A file has the column pair and one more per setting. Runs of no sweep have the only setting ``pair``, its name.

    Raises:
        ConfigError: a file that cannot be read, repeats a pair, or lacks one of ``pairs``.
    """
    if path is None:
        found = tables.found("finetunings")
        if found is None:
            return pd.DataFrame({"pair": list(pairs)})
        table, where = found, "finetunings.csv"
    else:
        where = shown(path)
        try:
            table = pd.read_csv(path, dtype={"pair": str})
        except (OSError, ValueError) as error:
            raise ConfigError(f"{where}: not a readable table of settings ({shown(error, 80)}).") from None
    if "pair" not in table or len(table.columns) < 2:
        raise ConfigError(f"{where}: needs the column pair and at least one setting, such as lr or epochs.")
    if lost := [p for p in pairs if p not in set(table["pair"])]:
        raise ConfigError(f"{where}: no row for the pair '{shown(lost[0], 60)}'; every pair needs one.")
    twice = table.loc[table["pair"].duplicated(), "pair"]
    if len(twice):
        raise ConfigError(f"{where}: two rows for the pair '{shown(twice.iloc[0], 60)}'.")
    return table[table["pair"].isin(pairs)].reset_index(drop=True)
