"""Several runs in one report: their pairs side by side, from the tables that each run has already. No torch."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import pandas as pd

from sharpscope.atomic import write_atomic
from sharpscope.errors import ConfigError, shown
from sharpscope.present.alphas import showing_alpha_on
from sharpscope.present.canvas import figure_bytes
from sharpscope.present.plots import all_figures
from sharpscope.present.report import build_report
from sharpscope.present.view import data_notes
from sharpscope.study.finished import opened
from sharpscope.study.report import Run
from sharpscope.tables.files import csv_bytes, parquet_bytes, read_csv
from sharpscope.tables.rows import groups_in, of_group, stacked
from sharpscope.tables.schema import COLUMNS
from sharpscope.vocabulary import DEFAULT_CRITERION, PAIRS, AlphaSide

__all__ = ["reports"]

_MARK: Final = "runs.json"
"""The file that marks a folder as the report of several runs."""
_OF_ONE_PAIR: Final = tuple(name for name in COLUMNS if name != "residuals")
"""The tables whose rows may be about one pair; the residuals of a pair follow from all pairs of its run."""
_ACROSS: Final = (
    "Verdicts and correlations across the pairs of one run stand in the report of that run; 'sharpscope correlate RUN "
    "RUN ...' correlates over the pairs of all."
)


def reports(
    roots: Sequence[str | os.PathLike[str]], out: str | os.PathLike[str], *, alpha_on: AlphaSide = "finetuned"
) -> Run:
    """Tables, figures and one report of the pairs of several runs, in the folder ``out``; the runs do not change.

    A pair whose name several runs have is called ``PAIR (RUN)``. A group of OOD sets that has other sets in another run
    is called ``GROUP (SET, SET ...)``: a mean over other sets is another quantity. What is said of one pair is taken
    from its run; what a run says across its pairs is left out, for it would have to be said again of all of them. The
    straggler criterion that is shown first is that of the runs, or the default where they have several.

    Raises:
        ConfigError: fewer than two runs, two run folders of one name, or ``out`` holds something else.
        RunDirectoryError: a folder is not a run directory, has no tables yet, or is another version's.
    """
    names = [Path(root).resolve().name for root in roots]
    if len(names) < 2:
        raise ConfigError("report: several runs side by side need two run directories at least.")
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise ConfigError(
            f"report: two run directories are called '{shown(twice[0], 60)}', so that their pairs could not be told "
            "apart.\nRemedy: rename one of the folders."
        )
    folder = Path(out)
    if folder.exists() and not (folder.is_dir() and ((folder / _MARK).is_file() or not any(folder.iterdir()))):
        raise ConfigError(f"--out {shown(folder)}: holds something else.\nRemedy: a new folder.")
    found = [opened(root) for root in roots]
    pairs = Counter(p.name for _, results in found for p in results.config.pairs)
    called = [
        {p.name: p.name if pairs[p.name] == 1 else f"{p.name} ({name})" for p in results.config.pairs}
        for name, (_, results) in zip(names, found, strict=True)
    ]
    read = _by_their_sets(
        [{t: read_csv(directory.root / "tables" / f"{t}.csv", t) for t in _OF_ONE_PAIR} for directory, _ in found]
    )
    tables = {t: _together([own[t] for own in read], called) if t in _OF_ONE_PAIR else stacked(t, []) for t in COLUMNS}
    criteria = {results.config.straggler_criterion for _, results in found}
    criterion = criteria.pop() if len(criteria) == 1 else DEFAULT_CRITERION
    manifest = _manifest(names, [directory.manifest for directory, _ in found], called, criterion)
    order = tuple(name for own in called for name in own.values())
    with showing_alpha_on(alpha_on):
        figures = {n: figure_bytes(f) for n, f in all_figures(tables, criterion, order).items()}
    notices = tuple(
        f"{name}: {doubt.text}" for name, (_, results) in zip(names, found, strict=True) for doubt in results.doubts()
    )
    page = build_report(tables, {n: png for n, (png, _) in sorted(figures.items())}, manifest, {}, notices, alpha_on)
    for part in ("tables", "figures"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    write_atomic(folder / _MARK, (json.dumps([os.fspath(root) for root in roots]) + "\n").encode())
    for name, table in tables.items():
        write_atomic(folder / "tables" / f"{name}.csv", csv_bytes(table, name))
        write_atomic(folder / "tables" / f"{name}.parquet", parquet_bytes(table, name))
    for name, (png, pdf) in figures.items():
        write_atomic(folder / "figures" / f"{name}.png", png)
        write_atomic(folder / "figures" / f"{name}.pdf", pdf)
    write_atomic(folder / "report.html", page.encode())
    return Run(
        folder, tables, caveat=str(manifest["config"]["caveat"]), notices=notices, data_notes=data_notes(manifest),
        side=alpha_on, straggler_criterion=criterion, order=order,
    )  # fmt: skip


def _by_their_sets(runs: Sequence[Mapping[str, pd.DataFrame]]) -> list[dict[str, pd.DataFrame]]:
    """The tables of every run; groups of one name that have different sets in them are named after their sets."""
    sets = [_sets_of_groups(run["accuracy"]) for run in runs]
    lists: dict[str, set[tuple[str, ...]]] = {}
    for own in sets:
        for group, specs in own.items():
            lists.setdefault(group, set()).add(specs)
    renamed = [
        {group: f"{group} ({', '.join(specs)})" for group, specs in own.items() if len(lists[group]) > 1}
        for own in sets
    ]
    return [
        {name: t.assign(group=t["group"].replace(new)) if "group" in t and new else t for name, t in run.items()}
        for run, new in zip(runs, renamed, strict=True)
    ]


def _sets_of_groups(accuracy: pd.DataFrame) -> dict[str, tuple[str, ...]]:
    """Group of OOD sets -> the sets that were measured in it, by name."""
    single = accuracy[accuracy["role"] == "ood"]
    return {g: tuple(sorted(set(of_group(single, g)["dataset"]))) for g in groups_in(single)}


def _together(tables: Sequence[pd.DataFrame], called: Sequence[Mapping[str, str]]) -> pd.DataFrame:
    """The rows of every run that are about one pair, under the pair's new name."""
    own = []
    for table, names in zip(tables, called, strict=True):
        rows = table[table["pair"] != PAIRS]
        own.append(rows.assign(pair=rows["pair"].map(dict(names))))
    kept = [table for table in own if len(table)] or own[:1]
    return pd.concat(kept, ignore_index=True)


def _manifest(
    names: Sequence[str],
    manifests: Sequence[Mapping[str, Any]],
    called: Sequence[Mapping[str, str]],
    criterion: str,
) -> dict[str, Any]:
    """What the report reads of a manifest, for all pairs; measures have the order of the first run."""
    configs = [m["config"] for m in manifests]
    caveats = dict.fromkeys(text for c in configs if (text := c.get("caveat")))
    pairs = [p | {"name": own[p["name"]]} for c, own in zip(configs, called, strict=True) for p in c["pairs"]]
    config = {
        "title": f"{' and '.join(names)}, side by side", "question": _ACROSS, "caveat": " ".join(caveats),
        "pairs": pairs, "measures": configs[0].get("measures"),
        "straggler_criterion": criterion,
    }  # fmt: skip
    merged: dict[str, dict[str, Any]] = {
        key: {
            own.get(p, p): facts
            for m, own in zip(manifests, called, strict=True)
            for p, facts in m.get(key, {}).items()
        }
        for key in ("pairs", "data")
    }
    return {"config": config, **merged, "runs": {n: m.get("versions") for n, m in zip(names, manifests, strict=True)}}
