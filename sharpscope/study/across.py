"""Correlation and effective robustness over the pairs of several runs, with the runs' accuracies or others."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path as FilePath

import pandas as pd

from sharpscope.atomic import write_atomic
from sharpscope.config.plugins import recall_words
from sharpscope.errors import ConfigError, RunDirectoryError, did_you_mean, shown
from sharpscope.exchange.join import RunPair, join_accuracy, with_means
from sharpscope.exchange.reading import is_accuracy_csv, read_measured
from sharpscope.findings.advising.references import Reference, reference_pairs
from sharpscope.findings.design import Design
from sharpscope.findings.doubts import Doubt, path_doubt
from sharpscope.findings.relation import relation_rows
from sharpscope.findings.robustness import BASELINES, baseline_points, effective_robustness, read_baseline
from sharpscope.findings.stragglers import chosen_by, chosen_layers
from sharpscope.findings.verdictrows import unless_doubted
from sharpscope.study.designs import design_of_manifests, read_covariates, untold, with_covariates
from sharpscope.study.finished import doubts_of
from sharpscope.study.named import manifest_of, told_pairs
from sharpscope.study.population import Population
from sharpscope.study.primaries import check_comparable, check_measured, measured_alpha, named_primary
from sharpscope.tables.files import csv_bytes, normalised, read_csv
from sharpscope.tables.rows import groups_in, table, unique_in_order
from sharpscope.vocabulary import BY_COST

__all__ = ["correlate", "population", "references_of", "relations", "robustness", "save_correlations"]

Path = str | os.PathLike[str]


def correlate(
    runs: Sequence[Path],
    accuracy: Path | None = None,
    *,
    match: Sequence[str] = (),
    ids: Sequence[str] = (),
    straggler_criterion: str | None = None,
    covariates: Path | None = None,
    primary_measure: str | None = None,
    primary_alpha: float | None = None,
    seed: int = 0,
    bootstrap: int = 1000,
    level: float = 0.95,
) -> pd.DataFrame:
    """Across-pair correlations of sharpness with OOD accuracy over the pairs of several run directories.

    Args:
        runs: run directories, each with finished tables.
        accuracy: a file of accuracies measured elsewhere, which replace the runs' own: a table with the columns of
            accuracy.csv, or a file of another system (``exchange.FORMATS``), whose models are matched to the pairs by
            name.
        match, ids: see ``exchange.join_accuracy``.
        straggler_criterion: the criterion whose choice in each run's stragglers table makes the layers ``(stragglers)``
            and ``(others)`` of its pairs; None: the one that decided in the runs.
        covariates: a CSV file of covariates (``designs.read_covariates``), which win over those of files and studies. A
            pair without a value is left out of the partial correlations, and counted in their notes. Its column
            ``setting`` names what pairs that differ in their seed alone have in common.
        primary_measure, primary_alpha: the measure and the alpha of the primary comparison (the nearest alpha is taken
            at which every pair has the measure); None: those that the runs named before looking. Where a run had named
            another, the notes of the primary rows say so.
        seed: seed of the resampling.
        bootstrap: number of replicates, and of permutations.
        level: coverage of the intervals.

    Returns the table ``correlations``, see ``findings.pair_correlations``. For the pairs of one run, and at its alphas,
    the rows are those of the run's own table.

    Raises:
        RunDirectoryError: a folder without tables.
        ConfigError: two runs that have a pair of the same name; covariates that cannot be used; runs in which
            different criteria decided, or which named different primaries, and none is given; runs of different probe
            sets, or with other settings on which the primary measure depends; a criterion or measure that no run has.
        ResultsError: measured numbers that cannot be read or matched.
    """
    compared = population(
        runs, accuracy, match=match, ids=ids, straggler_criterion=straggler_criterion, covariates=covariates,
        primary_measure=primary_measure, primary_alpha=primary_alpha,
    )  # fmt: skip
    return compared.correlations(seed=seed, bootstrap=bootstrap, level=level)


def population(
    runs: Sequence[Path],
    accuracy: Path | None = None,
    *,
    match: Sequence[str] = (),
    ids: Sequence[str] = (),
    straggler_criterion: str | None = None,
    covariates: Path | None = None,
    primary_measure: str | None = None,
    primary_alpha: float | None = None,
) -> Population:
    """The pairs that ``correlate`` compares; arguments and errors are its own."""
    joined = _tables(runs, ("sharpness", "accuracy", "path"), optional=("stragglers",))
    if accuracy is not None:
        joined["accuracy"] = _elsewhere(accuracy, _pairs(runs), match, ids)
    stragglers, sharpness = joined["stragglers"], joined["sharpness"]
    primary = named_primary(runs, primary_measure, primary_alpha)
    check_comparable(runs, primary.measure)
    if primary_measure is not None:
        check_measured(primary_measure, sharpness)
    return Population(
        "run", sharpness, joined["accuracy"], joined["path"], _design(runs, joined["path"], covariates),
        (primary.measure, measured_alpha(sharpness, primary.measure, primary.alpha)), primary.note,
        stragglers=_stragglers(stragglers, straggler_criterion or _deciding(runs), straggler_criterion is not None),
        by_instability=chosen_by(stragglers, BY_COST), layer_losses=stragglers,
    )  # fmt: skip


def relations(
    correlations: pd.DataFrame,
    runs: Sequence[Path],
    covariates: Path | None = None,
    *,
    primary_measure: str | None = None,
    primary_alpha: float | None = None,
    bootstrap: int,
    level: float,
) -> pd.DataFrame:
    """The verdicts that ``correlate``'s table of these runs supports, rows of the table ``verdicts``.

    They are those of ``findings.relation.relation_rows`` for every group of OOD sets, about the primary comparison; all
    arguments are those that ``correlate`` was given. Where a run gives no verdict, because the numbers of one of its
    pairs are meaningless, none is given here.

    Raises:
        ConfigError: covariates that cannot be used, and runs that named different primaries where none is given.
    """
    tables = _tables(runs, ("path", "sharpness"))
    design = _design(runs, tables["path"], covariates)
    primary = named_primary(runs, primary_measure, primary_alpha)
    alpha = measured_alpha(tables["sharpness"], primary.measure, primary.alpha)
    rows = [
        row
        for group in groups_in(correlations)
        for row in relation_rows(
            correlations, group, primary.measure, alpha,
            unknown={"run": untold(design)}, level=level, permutations=bootstrap,
        )
    ]  # fmt: skip
    doubts = [doubt for run in runs for doubt in _doubts(run)]
    return table("verdicts", [unless_doubted(row, doubts) for row in rows])


def _doubts(run: Path) -> list[Doubt]:
    """What makes numbers of the run meaningless; of a run without its units only what its tables show, the path."""
    try:
        return doubts_of(run)
    except (RunDirectoryError, ConfigError):
        path = _tables([run], ("path",))["path"]
        found = [path_doubt(own["alpha"].astype(float).tolist()) for _, own in path.groupby("pair")]
        return [doubt for doubt in found if doubt is not None]


def _design(runs: Sequence[Path], path: pd.DataFrame, covariates: Path | None) -> Design:
    """What is known of the pairs in the table ``path``, by the runs' manifests and the file of ``covariates``."""
    design = design_of_manifests(manifest_of(FilePath(run)) for run in runs).reindexed(unique_in_order(path["pair"]))
    return design if covariates is None else with_covariates(design, read_covariates(covariates, design.pairs))


def save_correlations(table: pd.DataFrame, out: Path) -> None:
    """Write ``correlate``'s table as a CSV file with the columns and bytes of a run's correlations.csv."""
    write_atomic(FilePath(out), csv_bytes(table, "correlations"))


def robustness(
    runs: Sequence[Path],
    baseline: Path,
    accuracy: Path | None = None,
    *,
    match: Sequence[str] = (),
    ids: Sequence[str] = (),
    seed: int = 0,
    bootstrap: int = 1000,
    level: float = 0.95,
) -> pd.DataFrame:
    """Effective robustness of every point of every path: OOD accuracy above the value predicted from ID accuracy.

    Args:
        runs: run directories, each with finished tables.
        baseline: zeroshot, finetuned or ends (the models of these runs at alpha 0, 1, or both), or a CSV file of models
            or lines (``findings.read_baseline``).
        accuracy, match, ids: as for ``correlate``.
        seed: seed of the resampling.
        bootstrap: number of replicates.
        level: coverage of the intervals.

    Returns the columns of ``findings.effective_robustness``, accuracies and differences in [0, 1].

    Raises:
        RunDirectoryError: a folder without tables.
        ConfigError: two runs that have a pair of the same name.
        ResultsError: a baseline, or measured numbers, that cannot be read or matched.

    Source: Taori et al. 2020, arXiv 2007.00644.
    """
    measured = _tables(runs, ("accuracy", "path"))["accuracy"]
    if accuracy is not None:
        measured = _elsewhere(accuracy, _pairs(runs), match, ids)
    named = str(baseline)
    rows = baseline_points(measured, named) if named in BASELINES else read_baseline(named)
    name = named if named in BASELINES else FilePath(baseline).name
    return effective_robustness(measured, rows, name, seed=seed, bootstrap=bootstrap, level=level)


def references_of(runs: Sequence[Path], groups: Mapping[str, str] | None = None) -> list[Reference]:
    """The pairs of run directories as references for advice; ``groups``: OOD set -> its group, over the runs' own.

    Raises:
        RunDirectoryError: a folder without tables.
        ConfigError: two runs that have a pair of the same name.
    """
    if not runs:
        return []
    joined = _tables(runs, ("accuracy", "path"), optional=("sharpness",))
    design = design_of_manifests(manifest_of(FilePath(run)) for run in runs)
    return reference_pairs(joined["accuracy"], joined["path"], joined["sharpness"], design, groups)


def _tables(runs: Sequence[Path], names: Sequence[str], optional: Sequence[str] = ()) -> dict[str, pd.DataFrame]:
    """The concatenated tables of all runs; no pair may be in two runs. An ``optional`` table may be missing."""
    tables: dict[str, list[pd.DataFrame]] = {name: [] for name in (*names, *optional)}
    seen: dict[str, str] = {}
    for run in runs:
        for name, parts in tables.items():
            file = FilePath(run) / "tables" / f"{name}.csv"
            if not file.exists():
                if name in optional:
                    parts.append(table(name, []))
                    continue
                raise RunDirectoryError(
                    f"{shown(run)}: has no tables/{name}.csv; finish it with 'sharpscope run' first."
                )
            parts.append(read_csv(file, name))
        recall_words(manifest_of(FilePath(run)))
        for pair in tables["path"][-1]["pair"].unique():
            if pair in seen:
                raise ConfigError(f"correlate: both {shown(seen[pair])} and {shown(run)} have a pair '{shown(pair)}'.")
            seen[str(pair)] = str(run)
    return {
        name: normalised(pd.concat([p for p in parts if len(p)] or parts[:1]), name) for name, parts in tables.items()
    }


def _deciding(runs: Sequence[Path]) -> str:
    """The straggler criterion that decided in all ``runs``; empty where no manifest names one."""
    named: dict[str, Path] = {}
    for run in runs:
        config = manifest_of(FilePath(run)).get("config")
        if isinstance(config, dict) and (criterion := config.get("straggler_criterion")):
            named.setdefault(str(criterion), run)
    if len(named) > 1:
        (one, first), (other, second), *_ = named.items()
        raise ConfigError(
            f"correlate: {shown(one, 60)} chose the stragglers in {shown(first)}, {shown(other, 60)} those in "
            f"{shown(second)}.\nRemedy: --straggler-criterion CRITERION chooses them by one; every run has all of them."
        )
    return next(iter(named), "")


def _stragglers(stragglers: pd.DataFrame, criterion: str, asked: bool) -> dict[str, tuple[str, ...]]:
    """The layers that ``criterion`` chose in every pair. A pair whose run could not compute it has none, but a
    criterion that was ``asked`` for has to be in the table."""
    if asked:
        known = unique_in_order(stragglers["criterion"])
        if criterion not in known:
            near = did_you_mean(criterion, known) or f" The runs have {', '.join(known)}."
            raise ConfigError(f"straggler_criterion: no run has '{shown(criterion, 60)}'.{near}")
    own = stragglers[stragglers["criterion"] == criterion]
    return {str(pair): chosen_layers(own, criterion, pair=str(pair)) for pair in unique_in_order(own["pair"])}


def _pairs(runs: Sequence[Path]) -> list[RunPair]:
    """Every run's pairs with their fine-tuned files, as the manifests name them."""
    out = []
    for run in runs:
        told = told_pairs(manifest_of(FilePath(run)))
        if not told or any("finetuned" not in pair for pair in told):
            raise RunDirectoryError(f"{shown(run)}: its manifest.json does not name the pairs and their files.")
        out += [RunPair(str(pair["name"]), str(pair["finetuned"])) for pair in told]
    return out


def _elsewhere(accuracy: Path, pairs: Sequence[RunPair], match: Sequence[str], ids: Sequence[str]) -> pd.DataFrame:
    file = FilePath(accuracy)
    if file.is_file() and is_accuracy_csv(file):
        return normalised(with_means(read_csv(file, "accuracy")), "accuracy")
    return normalised(join_accuracy(read_measured(file), pairs, match=match, ids=ids), "accuracy")
