"""From units of work to tables: the findings are computed here from the units that exist, once per pair."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypedDict

import numpy as np
import pandas as pd

from sharpscope.config.study import StudyConfig
from sharpscope.findings.advice import Known, advice_table
from sharpscope.findings.advising.along import AlongPath, along_path
from sharpscope.findings.advising.references import Reference, reference_pairs
from sharpscope.findings.doubts import Doubt, path_doubt, swap_doubt
from sharpscope.findings.failure import failure_table
from sharpscope.findings.frames import Answered, members_of
from sharpscope.findings.losses import LayerLosses, NoiseLosses
from sharpscope.findings.pathcorrelation import path_correlations
from sharpscope.findings.prediction import reference_table
from sharpscope.findings.repair import Repairs, analyse_repairs
from sharpscope.findings.sharpness import ImageParts
from sharpscope.findings.stragglers import chosen_by, chosen_layers, stragglers_table
from sharpscope.findings.verdicts import verdicts_table
from sharpscope.layers import Layer, whole_model
from sharpscope.study.designs import design_of, joined, shipped_design, untold
from sharpscope.study.known import shipped_references, shipped_table, tuning_of
from sharpscope.study.population import Population
from sharpscope.study.primaries import measured_alpha
from sharpscope.study.repaired import Repaired, answered, pictures
from sharpscope.study.tasks import Task, Variant, image_key, looked_at, measured_at, plan_curvature, roles, variants
from sharpscope.study.unitfile import Unit
from sharpscope.tables.files import normalised
from sharpscope.tables.rows import nearest, of_group, stacked
from sharpscope.tables.schema import COLUMNS
from sharpscope.vocabulary import (
    BASELINE,
    BASES,
    BY_COST,
    DEFAULT_GROUP,
    PAIRS,
    expand_measures,
)

__all__ = ["Resampling", "Results", "compared_alphas", "unless_doubted"]

_FIXED_ALPHAS = (0.5, 1.0)
"""The alphas at which pairs are compared with each other, where the path has them, beside the primary one. They were
fixed before any result was seen."""


class Resampling(TypedDict):
    """How intervals are computed: number of replicates, coverage, seed."""

    bootstrap: int
    level: float
    seed: int


class Results:
    """The units of a study and the tables derived from them; neither checkpoints nor data are opened.

    ``layers`` holds the layers of every pair in the order of the forward pass, ``facts`` what its files state.
    """

    def __init__(
        self,
        config: StudyConfig,
        layers: Mapping[str, Sequence[Layer]],
        facts: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        self.config, self.layers, self.facts = config, layers, facts or {}
        self.design = design_of(config.pairs, self.facts)
        self.units: dict[str, Unit] = {}
        self.failed: dict[str, str] = {}
        self._stragglers: dict[str, pd.DataFrame] = {}
        self._variants: dict[str, list[Variant]] = {}
        self._fallback: dict[str, str] = {}
        self._repaired: list[Repairs] | None = None
        self.resampling: Resampling = {
            "bootstrap": config.bootstrap,
            "level": config.level,
            "seed": config.seed,
        }

    def take(self, units: Mapping[str, Unit], failed: Mapping[str, str]) -> None:
        self.units |= units
        self.failed |= failed
        self._repaired = None

    def first_tasks(self) -> list[Task]:
        """All tasks but the repairs, the longest first, so that no core is idle at the end."""
        names = list(self.layers)
        kinds = [
            [f"curvature/{n}/{chunk}" for chunk in plan_curvature(self.config.measured_alphas) for n in names],
            [f"eigenvectors/{n}/{alpha!r}" for alpha in self.eigenvector_alphas for n in names],
            [f"layers/{n}/{base}" for base in BASES for n in names],
            [f"noise/{n}" for n in names],
            [f"path/{n}/{alpha!r}" for alpha in self.config.alphas for n in names],
            [f"pathvariant/{n}/{p}/{a!r}" for p in self.config.paths[1:] for a in self.config.alphas for n in names],
            [f"upgraded/{n}/{alpha!r}" for alpha in self.config.alphas for n in names if self.config.upgraded],
            [f"outputs/{n}" for n in names if self.config.output_baselines],
            [f"ensembles/{n}" for n in names if self.config.ensembles],
        ]
        return [Task(key) for keys in kinds for key in keys]

    def repair_tasks(self) -> list[Task]:
        return [
            Task(f"repair/{name}/{variant.name}/{alpha!r}", variant)
            for name in self.layers
            for variant in self.variants(name)
            for alpha in self.config.repaired_alphas
        ]

    @property
    def eigenvector_alphas(self) -> tuple[float, ...]:
        """The alphas at which eigenvectors are saved; none where none are asked for."""
        return looked_at(self.config.alphas, self.config.eigenvector_alphas) if self.config.eigenvectors else ()

    # ------------------------------------------------------------------ measured values
    def measured(self, table: str) -> pd.DataFrame:
        """The rows of ``table`` in all units of all pairs."""
        rows = [row for unit in self.units.values() for row in unit.rows.get(table, [])]
        return normalised(pd.DataFrame(rows, columns=list(COLUMNS[table])), table)

    def arrays(self, name: str) -> tuple[list[float], dict[str, Answered], np.ndarray]:
        """(alphas, {data set: answers [A, n]}, probe losses [A, n]) from the path units that exist."""
        alphas = [a for a in self.config.alphas if f"path/{name}/{a!r}" in self.units]
        units = [self.units[f"path/{name}/{a!r}"] for a in alphas]
        hits = {spec: answered(spec, units) for spec in roles(self.config)} if units else {}
        return alphas, hits, np.stack([u.arrays["losses"] for u in units]) if units else np.empty((0, 0))

    def answers(self) -> dict[str, tuple[list[float], dict[str, Answered]]]:
        """Pair -> (alphas, {data set: answers [A, n]}) from the path units that exist."""
        return {name: self.arrays(name)[:2] for name in self.layers}

    def pictures(self, name: str) -> dict[str, np.ndarray]:
        """The numbers of the pictures of those data sets that have some in common, [n] like the answers."""
        first = next((u for a in self.config.alphas if (u := self.units.get(f"path/{name}/{a!r}"))), None)
        return {} if first is None else pictures(roles(self.config), first)

    def stragglers(self, name: str) -> pd.DataFrame:
        """The stragglers table of one pair."""
        if name not in self._stragglers:
            layers = tuple(x.name for x in self.layers[name])
            losses = [
                LayerLosses(layers, base, tuple(unit.arrays["alphas"].tolist()), unit.arrays["losses"])
                for base in BASES
                if (unit := self.units.get(f"layers/{name}/{base}")) is not None
            ]
            unit = self.units.get(f"noise/{name}")
            noise = None
            if unit is not None:
                a = unit.arrays
                noise = NoiseLosses(
                    layers,
                    tuple(a["alphas"].tolist()),
                    tuple(a["sigmas"].tolist()),
                    a["losses"],
                    a["distance_sq"],
                    a["weight_rms"],
                )
            self._stragglers[name] = stragglers_table(
                name,
                losses,
                noise,
                self.measured("sharpness"),
                parts=self._image_parts(name),
                rule=self.config.straggler_rule,
                bootstrap=self.config.bootstrap,
                seed=self.config.seed,
            )
        return self._stragglers[name]

    def _image_parts(self, name: str) -> ImageParts:
        """What each probe image adds to the estimates of one pair's layers, from the curvature units that exist."""
        layers = [x.name for x in self.layers[name]]
        units = [
            u for key in plan_curvature(self.config.measured_alphas) if (u := self.units.get(f"curvature/{name}/{key}"))
        ]
        return {
            (measure, alpha): dict(zip(layers, unit.arrays[key], strict=True))
            for unit in units
            for alpha in self.config.measured_alphas
            for measure in expand_measures(self.config.measures)
            if (key := image_key(measure, alpha)) in unit.arrays
        }

    def variants(self, name: str) -> list[Variant]:
        """Repairs of the stragglers. Where the rule chose no layer, the layer with the highest score is repaired, and
        the table's notes say so. Without any score there is no repair."""
        if name not in self._variants:
            table = self.stragglers(name)
            chosen = self._chosen(name)
            if not chosen:
                rows = table[table["criterion"] == self.config.straggler_criterion]
                scores = rows["score"].to_numpy(dtype=float)
                if np.isfinite(scores).any():
                    chosen = (str(rows["layer"].iloc[int(np.nanargmax(scores))]),)
                instead = (
                    "the layer with the highest score is made sparse instead" if chosen else "no layer has a score"
                )
                self._fallback[name] = f"no layer is a straggler by the rule; {instead}"
            frozen = table.loc[table["status"] == "frozen", "layer"]
            self._variants[name] = variants(self.config, self.layers[name], chosen, frozen)
        return self._variants[name]

    def tables(self) -> dict[str, pd.DataFrame]:
        """All tables of the run, from the units that exist."""
        path, sharpness, accuracy = (self.measured(t) for t in ("path", "sharpness", "accuracy"))
        measured = {name: found for name in self.layers if (found := self.arrays(name))[0]}
        failure = [
            failure_table(
                name,
                alphas,
                hits,
                roles(self.config),
                losses,
                groups=self.config.ood_groups,
                pictures=self.pictures(name),
                **self.resampling,
            )
            for name, (alphas, hits, losses) in measured.items()
        ]
        repairs = self.repairs()
        references = self.references()
        advice = [advice_table(self.along(name), self.known(name, references)) for name in measured]
        doubts = self.doubts()
        compared = self._compared(sharpness, accuracy, path)
        across = [one.correlations(**self.resampling) for one in compared]
        tables = {
            "path": path,
            "sharpness": self._with_failed(sharpness),
            "density": self.measured("density"),
            "eigenpairs": self.measured("eigenpairs"),
            "accuracy": accuracy,
            "stragglers": stacked("stragglers", [self.stragglers(n) for n in self.layers]),
            "failure": stacked("failure", failure),
            "repair": stacked("repair", [r.table for r in repairs]),
            "correlations": stacked("correlations", [path_correlations(sharpness, accuracy), *across]),
            "residuals": stacked("residuals", [c.residuals(t) for c, t in zip(compared, across, strict=True)]),
            "advice": unless_doubted(stacked("advice", advice), doubts),
            "agreement": self.measured("agreement"),
            "vrf": self.measured("vrf"),
        }
        tables["verdicts"] = stacked("verdicts", [self._verdicts(g, tables, repairs, doubts) for g in self.groups])
        return tables

    @property
    def groups(self) -> tuple[str, ...]:
        """The groups of OOD sets, each of which is judged by itself; one empty group where the study has no OOD set."""
        return tuple(members_of(self.config.ood_groups, self.config.ood_groups)) or (DEFAULT_GROUP,)

    def along(self, name: str, resampling: Resampling | None = None) -> AlongPath:
        """One pair's ID accuracy, and its OOD accuracy by group, along its path; ``resampling``: default, the run's."""
        alphas, hits, _ = self.arrays(name)
        how, groups = resampling or self.resampling, self.config.ood_groups
        return along_path(name, alphas, hits, roles(self.config), groups, pictures=self.pictures(name), **how)

    def repairs(self) -> list[Repairs]:
        """The repairs of every pair that has been measured, on every group of OOD sets."""
        if self._repaired is None:
            measured = {name: found for name in self.layers if (found := self.arrays(name))[0]}
            self._repaired = [
                self._repairs(name, group, alphas, self._judged_on(group, hits))
                for name, (alphas, hits, _) in measured.items()
                for group in self.groups
            ]
        return self._repaired

    def references(self) -> list[Reference]:
        """This run's pairs and, where asked for, the embedded world's, as references for advice on each other."""
        accuracy, path, sharpness = (self.measured(t) for t in ("accuracy", "path", "sharpness"))
        own = reference_pairs(accuracy, path, sharpness, self.design)
        if not self.config.shipped_pairs:
            return own
        return own + shipped_references(self.config.ood_groups, list(self.layers))

    def known(self, name: str, references: Sequence[Reference]) -> Known:
        """What is known of one pair for advice: its tuning and stragglers, ``references`` (its own features among
        them), and the repairs of the pairs that have stragglers."""
        repairs = self.repairs()
        return Known(
            tuning_of(self.design, name, self.facts.get(name)),
            next((r for r in references if r.pair == name), None),
            references,
            self._chosen(name),
            stacked("repair", [r.table for r in repairs if r.pair not in self._fallback]),
        )

    def _judged_on(self, group: str, hits: Mapping[str, Answered]) -> dict[str, Answered]:
        """The answers on the ID sets and on the OOD sets of ``group``."""
        groups = self.config.ood_groups
        return {spec: found for spec, found in hits.items() if groups.get(spec, group) == group}

    def doubts(self) -> list[Doubt]:
        """What makes the numbers of this run, or of one of its pairs, meaningless."""
        found = [path_doubt(self.config.alphas)]
        for name in self.layers:
            alphas, hits, _ = self.arrays(name)
            found.append(swap_doubt(name, alphas, hits, roles(self.config), self.config.level))
        return [doubt for doubt in found if doubt is not None]

    # ------------------------------------------------------------------ findings
    def _chosen(self, name: str) -> tuple[str, ...]:
        """The straggler layers; none where all units have failed on which the criterion rests."""
        table, criterion = self.stragglers(name), self.config.straggler_criterion
        return chosen_layers(table, criterion) if (table["criterion"] == criterion).any() else ()

    def _repairs(self, name: str, group: str, alphas: Sequence[float], hits: Mapping[str, Answered]) -> Repairs:
        plain = [self.units[f"path/{name}/{a!r}"] for a in alphas]
        runs = Repaired(name, self.units, self.variants(name), self.config.repaired_alphas)
        repairs = analyse_repairs(
            name,
            alphas,
            {spec: runs.compared(spec, plain) for spec in hits},
            roles(self.config),
            runs.runs(list(hits)),
            group=group,
            pictures=runs.pictures(hits, plain[0]),
            **self.resampling,
        )
        said = self._fallback.get(name, "")
        notes = ["; ".join(x for x in (note, said) if x) for note in repairs.table["note"].fillna("")]
        told = repairs.table.assign(note=notes, n_stragglers=len(self._chosen(name)))
        return dataclasses.replace(repairs, table=told)

    def _references(self, sharpness: pd.DataFrame, accuracy: pd.DataFrame, path: pd.DataFrame) -> pd.DataFrame:
        """The reference pairs of advice and verdicts: this run's pairs and, where asked for, the embedded world's. (The
        judged pair is dropped by those who use them.)"""
        own = reference_table(sharpness, accuracy, path)
        if not self.config.shipped_pairs:
            return own
        shipped = reference_table(*(shipped_table(t) for t in ("sharpness", "accuracy", "path")))
        return pd.concat([own, shipped[~shipped["pair"].isin(own["pair"])]], ignore_index=True)

    def _compared(self, sharpness: pd.DataFrame, accuracy: pd.DataFrame, path: pd.DataFrame) -> list[Population]:
        """This run's pairs and, where asked for, the embedded world's."""
        c = self.config
        every = stacked("stragglers", [self.stragglers(n) for n in self.layers])
        own = Population(
            "run", sharpness, accuracy, path, self.design, self._primary,
            stragglers={name: self._chosen(name) for name in self.layers}, by_instability=chosen_by(every, BY_COST),
            layer_losses=every, alphas=compared_alphas(c.alphas, self._primary[1]),
            answers=self.answers(),
        )  # fmt: skip
        if not c.shipped_pairs:
            return [own]
        known = shipped_table("sharpness")
        shipped = Population(
            "shipped", known, shipped_table("accuracy"), shipped_table("path"), shipped_design(),
            (c.primary_measure, measured_alpha(known, *self._primary)),
            stragglers=self._shipped_stragglers(c.straggler_criterion),
            by_instability=self._shipped_stragglers(BY_COST),
            alphas=compared_alphas(known["alpha"].unique(), measured_alpha(known, *self._primary)),
        )  # fmt: skip
        return [own, shipped]

    @property
    def _primary(self) -> tuple[str, float]:
        """The measure and the alpha of the primary comparison, the nearest one above 0 at which the study takes it."""
        c = self.config
        taken = [a for a in c.measured_alphas if a > 0 and measured_at(c, c.primary_measure, a)]
        return c.primary_measure, nearest(taken, c.primary_alpha) if taken else c.primary_alpha

    def _shipped_stragglers(self, criterion: str) -> dict[str, tuple[str, ...]] | None:
        """The layers of the shipped pairs that ``criterion`` chose by its own rule; None if this run has another rule,
        or the shipped table lacks the criterion."""
        return None if self.config.straggler_rule else chosen_by(shipped_table("stragglers"), criterion)

    def _verdicts(
        self, group: str, tables: Mapping[str, pd.DataFrame], repairs: Sequence[Repairs], doubts: Sequence[Doubt]
    ) -> pd.DataFrame:
        c = self.config
        return verdicts_table(
            of_group(tables["correlations"], group),
            of_group(tables["failure"], group),
            [r for r in repairs if r.group == group],
            tables["sharpness"],
            of_group(tables["accuracy"], group),
            of_group(self._references(tables["sharpness"], tables["accuracy"], tables["path"]), group),
            measure=c.primary_measure,
            alpha=self._primary[1],
            group=group,
            design=joined(self.design, shipped_design()) if c.shipped_pairs else self.design,
            unknown={"run": untold(self.design), "shipped": untold(shipped_design())},
            no_evidence=self._fallback if c.densities else dict.fromkeys(self.layers, "no repair was asked for"),
            doubts=doubts,
            reference_source="shipped" if c.shipped_pairs else "run",
            level=c.level,
            bootstrap=c.bootstrap,
            seed=c.seed,
        )

    def _with_failed(self, sharpness: pd.DataFrame) -> pd.DataFrame:
        """The sharpness table with a row of status failed for every value of a failed unit: no gap is silent."""
        c = self.config
        rows = []
        for key, reason in self.failed.items():
            kind, name, *rest = key.split("/")
            if kind == "curvature":
                first, last = (float(a) for a in rest[0].split(".."))
                layers = self.layers[name]
                rows += [
                    {
                        "pair": name, "alpha": alpha, "layer": x.name, "granularity": c.granularity, "tower": x.tower,
                        "depth": x.depth, "kind": x.kind, "num_params": x.num_params, "measure": measure,
                        "converged": False, "num_matvecs": 0, "seed": c.seed, "status": "failed", "note": reason,
                    }
                    for alpha in c.measured_alphas if first <= alpha <= last
                    for measure in expand_measures(c.measures) if measured_at(c, measure, alpha)
                    for x in (whole_model(layers), *layers)
                ]  # fmt: skip
        return stacked("sharpness", [sharpness, pd.DataFrame(rows)]) if rows else sharpness


def compared_alphas(path: Iterable[float], primary: float) -> list[float]:
    """The alphas at which pairs are compared: of those on the ``path``, .5, 1 and the ``primary`` one."""
    return sorted({float(a) for a in path if a in (*_FIXED_ALPHAS, primary)})


def unless_doubted(advice: pd.DataFrame, doubts: Sequence[Doubt]) -> pd.DataFrame:
    """The advice table without advice for a pair in doubt; what the baselines would have reached stays as it is."""
    ours = advice["situation"] != BASELINE
    for doubt in doubts:
        at = ours if doubt.pair == PAIRS else ours & (advice["pair"] == doubt.pair)
        gone = ["alpha", "density", "predicted_gain", "ci_low", "ci_high", "id_accuracy", "regret", "ood_accuracy"]
        advice.loc[at, [*gone, "baseline_regret", "expected_regret", "regret_low", "regret_high"]] = np.nan
        advice.loc[at, ["layers", "best_baseline", "status"]] = ["", "", "undefined"]
        advice.loc[at, "note"] = f"no advice is given: {doubt.reason}"
        advice.loc[at, "advised"] = False
    return advice
