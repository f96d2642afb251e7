"""A study from config to report: which units of work there are, getting them done, and what is made of them."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import html
import json
import os
import platform
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

import sharpscope
from sharpscope.clip import miniworld
from sharpscope.clip.probe import Probe
from sharpscope.config import PairConfig, StudyConfig, expand_measures
from sharpscope.curvature.measures import MeasureSettings, measure_layers
from sharpscope.errors import ConfigError, RunDirectoryError, did_you_mean
from sharpscope.findings.advice import advice_table, reference_table
from sharpscope.findings.correlation import pair_correlations, path_correlations
from sharpscope.findings.failure import failure_table
from sharpscope.findings.repair import Repairs, analyse_repairs
from sharpscope.findings.repair import Variant as RepairRun
from sharpscope.findings.stragglers import LayerLosses, NoiseLosses, chosen_layers, stragglers_table
from sharpscope.findings.verdicts import verdicts_table
from sharpscope.pairs import LoadedPair, load_pair
from sharpscope.present.plots import all_figures, figure_bytes
from sharpscope.present.report import build_report
from sharpscope.present.tables import csv_bytes, normalised, parquet_bytes, read_csv
from sharpscope.schema import ALL, COLUMNS
from sharpscope.steps import correlate, covariates, evaluate, inspect, interpolate, plan, sparsify
from sharpscope.store import RunDirectory
from sharpscope.unitfile import Unit
from sharpscope.units import Context, Variant, plan_curvature, variants
from sharpscope.work import Bar, Crew, Task, threads_of

__all__ = [
    "Run", "correlate", "demo_config", "evaluate", "inspect", "interpolate", "layer_sharpness", "load_pair", "plan",
    "report", "run", "sparsify",
]  # fmt: skip

MakeBar = Callable[..., Bar]
_NOT_NUMBERS = ("jobs", "memory", "title", "question", "tags")
"""Fields of the config that change no number: a run directory may be taken up again with others."""
_BASES = ("finetuned", "zeroshot", "midpoint")


class _Silent:
    def update(self, n: float = 1) -> None: ...
    def set_postfix_str(self, s: str = "") -> None: ...
    def close(self) -> None: ...


@dataclass(frozen=True)
class Run:
    """A finished (or partly failed) study: its folder and its tables as DataFrames, ``run.sharpness``, ``run.accuracy``
    ..."""

    root: Path
    tables: dict[str, pd.DataFrame] = field(repr=False)
    failed_units: tuple[str, ...] = ()

    def __getattr__(self, name: str) -> pd.DataFrame:
        tables = self.__dict__.get("tables", {})
        if name in tables:
            return tables[name]
        raise AttributeError(f"Run has no '{name}'.{did_you_mean(name, tables)}")

    @property
    def report(self) -> Path:
        return self.root / "report.html"

    def summary(self) -> str:
        """The verdicts and the advice, a line each."""
        lines = [f"{r.claim}: {r.verdict}. {r.evidence}" for r in self.tables["verdicts"].itertuples()]
        ours = self.tables["advice"]
        for r in ours[ours["rule"] == "sharpscope"].itertuples():
            lines.append(
                f"advice for {r.pair}: alpha {r.alpha:g}; {r.note}" if r.note else f"advice for {r.pair}: {r.alpha:g}"
            )
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        items = "".join(f"<li>{html.escape(line)}</li>" for line in self.summary().split("\n"))
        return f"<p>run in <code>{html.escape(str(self.root))}</code></p><ul>{items}</ul>"


def demo_config(seed: int = 0) -> StudyConfig:
    """The embedded world's success and failure pair, side by side: about a minute on two cores."""
    return StudyConfig(
        pairs=tuple(PairConfig(name, "mini:zeroshot", f"mini:{name}") for name in ("success", "failure")),
        model="mini",
        probe="mini:photo",
        id=("mini:photo",),
        ood=tuple(f"mini:{style}" for style in miniworld.STYLES if style != "photo"),
        seed=seed,
        probe_size=32,
        batch_size=32,
        eval_limit=400,
        rtol=0.25,
        max_matvecs=8,
        noise_samples=2,
        perturbation_alphas=(0.0, 0.5, 1.0),
        pgd_steps=5,
        layer_alphas=(0.0, 0.5, 1.0),
        criticality_noise=(0.5, 1.0),
        densities=(0.5,),
        selects=("random",),
        repair_alphas=(0.3, 0.5),
        shipped_pairs=True,
        threads=1,
        jobs=min(2, os.cpu_count() or 1),
        title="sharpscope on the embedded world",
        question=(
            "Two fine-tuned models with the same ID accuracy (about 90 %): can sharpness on ID data tell which of them "
            "may be interpolated?"
        ),
    )


def run(config: StudyConfig, out: str | os.PathLike[str] | None = None, progress: MakeBar | None = None) -> Run:
    """Do a study, or what is missing of it, and write tables, figures and report.

    Args:
        config: what to do.
        out: the run directory; the same config again resumes, another one is refused. Default: a new temporary folder.
        progress: makes a bar from ``total`` and ``desc``, e.g. ``tqdm``; default: silent.

    Raises:
        SharpscopeError: one of its kinds for anything wrong with the input, before anything is written.
    """
    _check_study(config)
    bars = progress or (lambda **_: _Silent())
    with Crew(config) as crew:
        contexts = {p.name: Context.load(config, p) for p in config.pairs}
        for context in contexts.values():
            _ = context.probe, context.datasets
        crew.add_contexts(contexts)
        directory = RunDirectory.open(
            tempfile.mkdtemp(prefix="sharpscope-") if out is None else out,
            _identity(config, contexts),
            _manifest(config, contexts),
        )
        directory.log("start", jobs=config.jobs)
        results = _Results(config, directory, contexts)
        with contextlib.closing(bars(total=len(results.first_tasks()), desc="measure")) as bar:
            results.take(*crew.do(directory, results.first_tasks(), bar))
        repairs = results.repair_tasks()
        with contextlib.closing(bars(total=len(repairs), desc="repair")) as bar:
            results.take(*crew.do(directory, repairs, bar))
    return _write(directory, results.tables(), results.failed)


def report(root: str | os.PathLike[str]) -> Run:
    """Rebuild tables, figures and report of a run directory from its finished units."""
    directory = RunDirectory.existing(root)
    config = StudyConfig.from_dict(directory.manifest["config"], source=f"{root}/manifest.json")
    contexts = {p.name: Context.load(config, p) for p in config.pairs}
    if directory.identity != json.loads(json.dumps(_identity(config, contexts))):
        raise RunDirectoryError(f"{root}: made by another version or from other files; run the study again elsewhere.")
    results = _Results(config, directory, contexts)
    for tasks in (results.first_tasks, results.repair_tasks):
        found = {t.key: directory.load(t.key) for t in tasks()}
        results.take(
            {k: u for k, u in found.items() if u is not None}, {k: "not done" for k, u in found.items() if u is None}
        )
    return _write(directory, results.tables(), results.failed)


# ---------------------------------------------------------------------- units -> tables
class _Results:
    """The units of a study and the tables that follow from them; findings are made once for each pair."""

    def __init__(self, config: StudyConfig, directory: RunDirectory, contexts: Mapping[str, Context]) -> None:
        self.config, self.directory, self.contexts = config, directory, contexts
        self.units: dict[str, Unit] = {}
        self.failed: dict[str, str] = {}
        self._stragglers: dict[str, pd.DataFrame] = {}
        self._variants: dict[str, list[Variant]] = {}
        self._fallback: dict[str, str] = {}

    def take(self, units: Mapping[str, Unit], failed: Mapping[str, str]) -> None:
        self.units |= units
        self.failed |= failed

    def first_tasks(self) -> list[Task]:
        """The longest first, so that no core waits at the end."""
        names = list(self.contexts)
        kinds = [
            [f"curvature/{n}/{chunk}" for chunk in plan_curvature(self.config.alphas) for n in names],
            [f"layers/{n}/{base}" for base in _BASES for n in names],
            [f"noise/{n}" for n in names],
            [f"path/{n}/{alpha!r}" for alpha in self.config.alphas for n in names],
        ]
        return [Task(key) for keys in kinds for key in keys]

    def repair_tasks(self) -> list[Task]:
        return [
            Task(f"repair/{name}/{variant.name}/{alpha!r}", variant)
            for name in self.contexts
            for variant in self.variants(name)
            for alpha in self.repair_alphas
        ]

    @property
    def repair_alphas(self) -> tuple[float, ...]:
        given = self.config.repair_alphas
        return tuple(a for a in self.config.alphas if 0 < a < 1) if given is None else given

    # ------------------------------------------------------------------ of one pair
    def of_pair(self, table: str) -> pd.DataFrame:
        rows = [row for unit in self.units.values() for row in unit.rows.get(table, [])]
        return normalised(pd.DataFrame(rows, columns=list(COLUMNS[table])), table)

    def arrays(self, name: str) -> tuple[list[float], dict[str, np.ndarray], np.ndarray]:
        """(alphas, {data set: right [A, n]}, probe losses [A, n]) of the path units that are there."""
        alphas = [a for a in self.config.alphas if f"path/{name}/{a!r}" in self.units]
        units = [self.units[f"path/{name}/{a!r}"] for a in alphas]
        roles = self.contexts[name].roles
        hits = {spec: np.stack([u.arrays[f"correct:{spec}"] for u in units]) for spec in roles} if units else {}
        return alphas, hits, np.stack([u.arrays["losses"] for u in units]) if units else np.empty((0, 0))

    def stragglers(self, name: str) -> pd.DataFrame:
        if name not in self._stragglers:
            layers = tuple(x.name for x in self.contexts[name].layers)
            losses = [
                LayerLosses(layers, base, tuple(unit.arrays["alphas"].tolist()), unit.arrays["losses"])
                for base in _BASES
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
                self.of_pair("sharpness"),
                rule=self.config.straggler_rule,
                bootstrap=self.config.bootstrap,
                seed=self.config.seed,
            )
        return self._stragglers[name]

    def variants(self, name: str) -> list[Variant]:
        """Repairs of the stragglers; where the rule chose nobody, of the layer with the highest score (and it is
        said)."""
        if name not in self._variants:
            context, table = self.contexts[name], self.stragglers(name)
            criterion = self.config.straggler_criterion
            chosen = chosen_layers(table, criterion)
            if not chosen:
                rows = table[(table["criterion"] == criterion) & np.isfinite(table["score"])]
                chosen = tuple(rows.loc[[rows["score"].idxmax()], "layer"]) if len(rows) else ()
                self._fallback[name] = "no layer is a straggler by the rule: its highest score is repaired instead"
            self._variants[name] = variants(self.config, context.layers, chosen)
        return self._variants[name]

    def tables(self) -> dict[str, pd.DataFrame]:
        """All tables of the run, from the units that are there."""
        config = self.config
        common = {"bootstrap": config.bootstrap, "level": config.level, "seed": config.seed}
        path, sharpness, accuracy = (self.of_pair(t) for t in ("path", "sharpness", "accuracy"))
        failure, repair, advice = [], [], []
        repairs: dict[str, Repairs] = {}
        references = self._references(sharpness, accuracy, path)
        for name, context in self.contexts.items():
            alphas, hits, losses = self.arrays(name)
            if not alphas:
                continue
            failure.append(failure_table(name, alphas, hits, context.roles, losses, **common))
            repairs[name] = self._repairs(name, alphas, hits)
            repair.append(repairs[name].table)
            features = reference_table(sharpness, accuracy, path)
            advice.append(
                advice_table(
                    name,
                    alphas,
                    hits,
                    context.roles,
                    features[features["pair"] == name],
                    references,
                    stragglers=self._chosen(name),
                    **common,
                )
            )
        tables = {
            "path": path,
            "sharpness": self._with_failed(sharpness),
            "accuracy": accuracy,
            "stragglers": _stacked("stragglers", [self.stragglers(n) for n in self.contexts]),
            "failure": _stacked("failure", failure),
            "repair": _stacked("repair", repair),
            "correlations": self._correlations(sharpness, accuracy, path),
            "advice": _stacked("advice", advice),
        }
        tables["verdicts"] = self._verdicts(tables, repairs)
        return tables

    # ------------------------------------------------------------------ findings
    def _chosen(self, name: str) -> tuple[str, ...]:
        return chosen_layers(self.stragglers(name), self.config.straggler_criterion)

    def _repairs(self, name: str, alphas: Sequence[float], hits: Mapping[str, np.ndarray]) -> Repairs:
        runs = []
        for variant in self.variants(name):
            found = [
                (alpha, unit)
                for alpha in self.repair_alphas
                if (unit := self.units.get(f"repair/{name}/{variant.name}/{alpha!r}")) is not None
            ]
            if found:
                right = {spec: np.stack([unit.arrays[f"correct:{spec}"] for _, unit in found]) for spec in hits}
                runs.append(
                    RepairRun(
                        variant.name,
                        variant.layers,
                        variant.target,
                        variant.select,
                        variant.density,
                        variant.kept_fraction,
                        "none" if variant.group == "straggler" else variant.group,
                        tuple(alpha for alpha, _ in found),
                        right,
                    )
                )
        c = self.config
        repairs = analyse_repairs(
            name, alphas, hits, self.contexts[name].roles, runs, level=c.level, bootstrap=c.bootstrap, seed=c.seed
        )
        said = self._fallback.get(name, "")
        if said and len(repairs.table):
            notes = ["; ".join(x for x in (note, said) if x) for note in repairs.table["note"].fillna("")]
            repairs = dataclasses.replace(repairs, table=repairs.table.assign(note=notes))
        return repairs

    def _references(self, sharpness: pd.DataFrame, accuracy: pd.DataFrame, path: pd.DataFrame) -> pd.DataFrame:
        """What the advice may learn from: this run's pairs and, where asked for, the embedded world's (never the judged
        one)."""
        own = reference_table(sharpness, accuracy, path)
        if not self.config.shipped_pairs:
            return own
        shipped = reference_table(*(_shipped(t) for t in ("sharpness", "accuracy", "path")))
        return pd.concat([own, shipped[~shipped["pair"].isin(own["pair"])]], ignore_index=True)

    def _correlations(self, sharpness: pd.DataFrame, accuracy: pd.DataFrame, path: pd.DataFrame) -> pd.DataFrame:
        c = self.config
        common = {"seed": c.seed, "bootstrap": c.bootstrap, "level": c.level}
        stragglers = {name: self._chosen(name) for name in self.contexts}
        parts = [path_correlations(sharpness, accuracy)]
        parts.append(
            pair_correlations(
                sharpness,
                accuracy,
                covariates(accuracy, path),
                source="run",
                stragglers=stragglers,
                alphas=[a for a in (0.5, 1.0) if a in c.alphas] or None,
                **common,
            )
        )
        if c.shipped_pairs:
            tables = {t: _shipped(t) for t in ("sharpness", "accuracy", "path")}
            shipped = pair_correlations(
                tables["sharpness"],
                tables["accuracy"],
                covariates(tables["accuracy"], tables["path"]),
                source="shipped",
                **common,
            )
            parts.append(shipped)
        return _stacked("correlations", parts)

    def _verdicts(self, tables: Mapping[str, pd.DataFrame], repairs: Mapping[str, Repairs]) -> pd.DataFrame:
        c = self.config
        return verdicts_table(
            tables["correlations"],
            tables["failure"],
            list(repairs.values()),
            tables["sharpness"],
            tables["accuracy"],
            self._references(tables["sharpness"], tables["accuracy"], tables["path"]),
            reference_source="shipped" if c.shipped_pairs else "run",
            level=c.level,
            bootstrap=c.bootstrap,
            seed=c.seed,
        )

    def _with_failed(self, sharpness: pd.DataFrame) -> pd.DataFrame:
        """Rows for curvature that could not be had: never a silent gap."""
        rows = []
        for key, reason in self.failed.items():
            kind, name, *rest = key.split("/")
            if kind == "curvature":
                first, last = (float(a) for a in rest[0].split(".."))
                rows += [
                    {
                        "pair": name, "alpha": alpha, "layer": ALL, "granularity": self.config.granularity,
                        "tower": ALL,
                        "depth": -1, "kind": ALL, "num_params": 0, "measure": measure, "converged": False,
                        "num_matvecs": 0, "seed": self.config.seed, "status": "failed", "note": reason,
                    }
                    for alpha in self.config.alphas if first <= alpha <= last
                    for measure in expand_measures(self.config.measures)
                ]  # fmt: skip
        return _stacked("sharpness", [sharpness, pd.DataFrame(rows)]) if rows else sharpness


def _stacked(name: str, frames: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """One table of the schema from several, empty ones included."""
    rows = [row for frame in frames for row in frame.to_dict("records")]
    return normalised(pd.DataFrame(rows, columns=list(COLUMNS[name])), name)


def _shipped(table: str) -> pd.DataFrame:
    """The embedded world's across-pair table, as ``analyses/world.py`` computed it."""
    return read_csv(miniworld.pairs_table(table), table)


# ---------------------------------------------------------------------- run directory
def _check_study(config: StudyConfig) -> None:
    if not config.pairs:
        raise ConfigError("pairs: give two checkpoints (--zeroshot A --finetuned B).")
    if not config.id and not config.ood:
        raise ConfigError("id, ood: give at least one test set (--id SPEC --ood SPEC ...).")


def _identity(config: StudyConfig, contexts: Mapping[str, Context]) -> dict[str, Any]:
    numbers = {k: v for k, v in config.to_dict().items() if k not in _NOT_NUMBERS}
    inputs = {n: [c.pair.facts[end]["sha256"] for end in ("zeroshot", "finetuned")] for n, c in contexts.items()}
    return {"config": numbers, "inputs": inputs, "sharpscope": sharpscope.__version__, "torch": torch.__version__}


def _manifest(config: StudyConfig, contexts: Mapping[str, Context]) -> dict[str, Any]:
    device = next(iter(contexts.values())).device
    packages = ("open_clip_torch", "numpy", "scipy", "pandas")
    return {
        "config": config.to_dict(),
        "alpha_on": "finetuned",
        "pairs": {n: c.pair.facts for n, c in contexts.items()},
        "layers": {n: len(c.layers) for n, c in contexts.items()},
        "data": {
            n: {"probe": c.probe.dataset.facts | {"size": c.probe.n}, **{s: d.facts for s, d in c.datasets.items()}}
            for n, c in contexts.items()
        },
        "seed": config.seed,
        "threads": threads_of(config),
        "versions": {
            "sharpscope": sharpscope.__version__, "python": platform.python_version(), "torch": torch.__version__,
            **{p: metadata.version(p) for p in packages},
        },
        "hardware": {
            "machine": platform.machine(), "system": platform.system(), "cores": os.cpu_count(),
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        },
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }  # fmt: skip


def _write(directory: RunDirectory, tables: dict[str, pd.DataFrame], failed: Mapping[str, str]) -> Run:
    for name, frame in tables.items():
        directory.write(f"tables/{name}.csv", csv_bytes(frame, name))
        directory.write(f"tables/{name}.parquet", parquet_bytes(frame, name))
    pngs = {}
    for name, figure in all_figures(tables).items():
        png, pdf = figure_bytes(figure)
        pngs[name] = png
        directory.write(f"figures/{name}.png", png)
        directory.write(f"figures/{name}.pdf", pdf)
    directory.write("report.html", build_report(tables, pngs, directory.manifest).encode())
    directory.log("report", failed=len(failed))
    return Run(directory.root, tables, tuple(sorted(failed)))


# ---------------------------------------------------------------------- notebook
def layer_sharpness(
    pair: LoadedPair,
    probe: Probe,
    *,
    alphas: Sequence[float] = (0.0, 0.5, 1.0),
    granularity: str = "module",
    measures: Sequence[str] = ("hessian_trace", "lambda_max", "lambda_min"),
    progress: Callable[[str], None] = lambda what: None,
    **settings: Any,
) -> pd.DataFrame:
    """The sharpness table of one pair without a run directory: layers x alphas x measures, warm-started along alpha.

    ``settings`` are fields of ``curvature.measures.MeasureSettings`` (rtol, max_matvecs, seed ...).
    """
    path, layers = pair.path(probe.dtype), pair.layers(granularity)
    rows: list[dict[str, Any]] = []
    warm: dict[str, torch.Tensor] = {}
    for alpha in alphas:
        theta = {k: v.to(probe.device) for k, v in path.at(alpha).items()}
        result = measure_layers(
            probe,
            theta,
            layers,
            measures,
            MeasureSettings(**settings),
            key=(pair.name, alpha),
            warm=warm,
            progress=progress,
        )
        warm = result.warm
        rows += [{"pair": pair.name, "alpha": alpha, "granularity": granularity} | row for row in result.rows]
    return _stacked("sharpness", [pd.DataFrame(rows)])
