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

import pandas as pd
import torch

import sharpscope
from sharpscope.across import correlate, robustness
from sharpscope.clip import miniworld
from sharpscope.clip.data import check_folders, check_spec
from sharpscope.clip.probe import Probe
from sharpscope.config import DEFAULT_MEASURES, PairConfig, StudyConfig
from sharpscope.curvature.eigen import RitzSpace
from sharpscope.curvature.measures import MeasureSettings, measure_layers
from sharpscope.curvature.precision import precision_error
from sharpscope.errors import ConfigError, RunDirectoryError, did_you_mean, shown
from sharpscope.evaluation import evaluate
from sharpscope.findings.foreign import written
from sharpscope.findings.verdicts import CLAIMS
from sharpscope.pairs import LoadedPair, load_pair
from sharpscope.present.plots import all_figures, figure_bytes
from sharpscope.present.report import build_report
from sharpscope.present.tables import csv_bytes, parquet_bytes
from sharpscope.results import Results, stacked
from sharpscope.schema import ALL
from sharpscope.steps import inspect, interpolate, plan, sparsify
from sharpscope.store import RunDirectory
from sharpscope.units import Context, check_density_layers
from sharpscope.weights.layers import Layer
from sharpscope.work import Bar, Crew, peak_memory, threads_of

__all__ = [
    "Run", "correlate", "demo_config", "evaluate", "inspect", "interpolate", "layer_sharpness", "load_pair", "plan",
    "report", "robustness", "run", "sparsify",
]  # fmt: skip

MakeBar = Callable[..., Bar]
_NOT_NUMBERS = ("jobs", "memory", "title", "question", "caveat", "tags")
"""Fields of the config that change no number: a run directory may be taken up again with others."""


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
    caveat: str = ""

    def __getattr__(self, name: str) -> pd.DataFrame:
        tables = self.__dict__.get("tables", {})
        if name in tables:
            return tables[name]
        raise AttributeError(f"Run has no '{name}'.{did_you_mean(name, tables)}")

    @property
    def report(self) -> Path:
        return self.root / "report.html"

    def summary(self) -> str:
        """The study's caveat, the verdicts and the advice, a line each."""
        verdicts = self.tables["verdicts"]
        order = [CLAIMS["question"], *CLAIMS.values()]
        lines = [self.caveat] if self.caveat else []
        for claim in dict.fromkeys(order):
            for _, row in verdicts[verdicts["claim"] == claim].iterrows():
                of_pair = f" ({row['pair']})" if claim == CLAIMS["repair"] else ""
                lines.append(f"{claim}{of_pair}: {row['verdict']}. {row['evidence']}")
        ours = self.tables["advice"]
        for _, row in ours[ours["rule"] == "sharpscope"].iterrows():
            lines.append("; ".join(x for x in (f"advice for {row['pair']}: alpha {row['alpha']:g}", row["note"]) if x))
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        items = "".join(f"<li>{html.escape(line)}</li>" for line in self.summary().split("\n"))
        return f"<p>run in <code>{html.escape(str(self.root))}</code></p><ul>{items}</ul>"


DEMO_CAVEAT = (
    "What was seen, and no more: on the five style shifts used here, the pair called success gains OOD accuracy along "
    "the path and the pair called failure loses it. On the world's four natural shifts, which this demo leaves out, "
    "both pairs gain, the failure more (36 points at alpha 1), and the correlation of sharpness with the gain changes "
    "its sign. The learning rate orders the ten shipped pairs as well as sharpness does. Which sharpness is the good "
    "one is learnt from the other pairs' OOD labels. The world is designed: nothing here is evidence about CLIP."
)
"""Printed before the demo's verdicts, which stand on the style shifts alone."""


def demo_config(seed: int = 0) -> StudyConfig:
    """The embedded world's success and failure pair, side by side: a minute and a half on two cores."""
    return StudyConfig(
        pairs=tuple(PairConfig(name, "mini:zeroshot", f"mini:{name}") for name in ("success", "failure")),
        model="mini",
        probe="mini:photo",
        id=("mini:photo",),
        ood=tuple(f"mini:{style}" for style in miniworld.STYLES if style != "photo"),
        alphas=(0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0),
        seed=seed,
        # the lower end of a spectrum crowds at zero: it takes three times the products of everything else
        measures=tuple(m for m in DEFAULT_MEASURES if m != "lambda_min"),
        probe_size=48,
        batch_size=48,
        eval_limit=320,
        rtol=0.2,
        max_matvecs=8,
        noise_samples=2,
        perturbation_alphas=(0.5,),
        pgd_steps=5,
        layer_alphas=(0.0, 0.5, 1.0),
        criticality_noise=(0.5, 1.0),
        densities=(0.5,),
        selects=("random",),
        repair_alphas=(0.3, 0.5),
        bootstrap=500,
        shipped_pairs=True,
        threads=1,
        jobs=min(2, os.cpu_count() or 1),
        title="sharpscope on the embedded world",
        question=(
            "Two fine-tuned models with the same ID accuracy: can sharpness on ID data tell which of them "
            "may be interpolated?"
        ),
        caveat=DEMO_CAVEAT,
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
            check_density_layers(config, context.layers)
        crew.add_contexts(contexts)
        directory = RunDirectory.open(
            tempfile.mkdtemp(prefix="sharpscope-") if out is None else out,
            _identity(config, contexts),
            _manifest(config, contexts),
        )
        directory.log("start", jobs=config.jobs)
        results = Results(config, {n: c.layers for n, c in contexts.items()})
        with contextlib.closing(bars(total=len(results.first_tasks()), desc="measure")) as bar:
            results.take(*crew.do(directory, results.first_tasks(), bar))
        repairs = results.repair_tasks()
        with contextlib.closing(bars(total=len(repairs), desc="repair")) as bar:
            results.take(*crew.do(directory, repairs, bar))
        return _write(directory, results, crew)


def report(root: str | os.PathLike[str], results: str | None = None) -> Run:
    """Rebuild tables, figures and report of a run directory from its finished units.

    ``results``: write the accuracies also in the form of ``wise-ft`` or ``clip-benchmark``, into ``results/``.
    """
    directory = RunDirectory.existing(root)
    config = StudyConfig.from_dict(directory.manifest["config"], source=f"{root}/manifest.json")
    if directory.identity["sharpscope"] != sharpscope.__version__:
        raise RunDirectoryError(
            f"{shown(root)}: made by sharpscope {directory.identity['sharpscope']}, this is {sharpscope.__version__}.\n"
            "Remedy: run the study again in a new folder."
        )
    layers = {
        name: tuple(Layer(**{**x, "params": tuple(x["params"])}) for x in stored)
        for name, stored in directory.manifest["layers"].items()
    }
    done = Results(config, layers)
    for tasks in (done.first_tasks, done.repair_tasks):
        found = {t.key: directory.load(t.key) for t in tasks()}
        done.take(
            {k: u for k, u in found.items() if u is not None}, {k: "not done" for k, u in found.items() if u is None}
        )
    with Crew(dataclasses.replace(config, jobs=1)) as crew:
        finished = _write(directory, done, crew)
    if results is not None:
        ends = {p.name: (p.zeroshot, p.finetuned) for p in config.pairs}
        files = written(
            finished.accuracy,
            results,
            model=config.model,
            zeroshot={n: e[0] for n, e in ends.items()},
            finetuned={n: e[1] for n, e in ends.items()},
        )
        for name, data in files.items():
            directory.write(f"results/{name}", data)
    return finished


# ---------------------------------------------------------------------- run directory
def _check_study(config: StudyConfig) -> None:
    if not config.pairs:
        raise ConfigError("pairs: give two checkpoints (--zeroshot A --finetuned B).")
    if not config.id and not config.ood:
        raise ConfigError("id, ood: give at least one test set (--id SPEC --ood SPEC ...).")
    measure = config.straggler_criterion.partition(":")[2]
    if measure and measure not in config.measures:  # else it would be found out when everything has been computed
        raise ConfigError(
            f"straggler_criterion: '{config.straggler_criterion}' needs {measure} among measures.\n"
            "Remedy: add it, or choose another criterion (rewind, instability and criticality need no measure)."
        )
    for spec in (config.probe, *config.id, *config.ood):
        check_spec(spec)
    check_folders((config.probe, *config.id, *config.ood), config.data_root)


def _identity(config: StudyConfig, contexts: Mapping[str, Context]) -> dict[str, Any]:
    numbers = {k: v for k, v in config.to_dict().items() if k not in _NOT_NUMBERS}
    inputs = {n: _hashes(c.pair.facts) for n, c in contexts.items()}
    return {"config": numbers, "inputs": inputs, "sharpscope": sharpscope.__version__, "torch": torch.__version__}


def _hashes(pair: Mapping[str, Any]) -> list[str]:
    """sha256 of every file that a pair is made of."""
    return [
        *(pair[end]["sha256"] for end in ("zeroshot", "finetuned", "upgraded") if end in pair),
        *([pair["head_file"]] if "head_file" in pair else []),
    ]


def _manifest(config: StudyConfig, contexts: Mapping[str, Context]) -> dict[str, Any]:
    device = next(iter(contexts.values())).device
    packages = ("open_clip_torch", "numpy", "scipy", "pandas")
    return {
        "config": config.to_dict(),
        "alpha_on": "finetuned",
        "pairs": {n: c.pair.facts for n, c in contexts.items()},
        "layers": {n: [dataclasses.asdict(x) for x in c.layers] for n, c in contexts.items()},
        "data": {
            n: {"probe": c.probe.dataset.facts | {"size": c.probe.n}, **{s: d.facts for s, d in c.datasets.items()}}
            for n, c in contexts.items()
        },
        **({} if config.precision == "full" else {"precision": _precision(config, contexts)}),
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


def _precision(config: StudyConfig, contexts: Mapping[str, Context]) -> dict[str, Any]:
    """The error of one Hessian-vector product of every layer in the middle of the path, against full precision."""
    alpha = config.alphas[len(config.alphas) // 2]
    errors = {}
    for name, c in contexts.items():
        blocks = {ALL: [n for x in c.layers for n in x.params]} | {x.name: x.params for x in c.layers}
        errors[name] = precision_error(
            c.probe, c.theta(alpha), blocks, config.precision, seed=config.seed, memory=c.settings.memory
        )
    return {"kind": config.precision, "alpha": alpha, "hvp_error": errors}


def _write(directory: RunDirectory, results: Results, crew: Crew) -> Run:
    """Everything that is derived from the units: tables, figures, report."""
    config, tables = results.config, results.tables()
    for name, frame in tables.items():
        directory.write(f"tables/{name}.csv", csv_bytes(frame, name))
        directory.write(f"tables/{name}.parquet", parquet_bytes(frame, name))
    drawn = {**tables, "points": results.points()} if config.shipped_pairs else tables
    names = [p.name for p in config.pairs]
    shares = [(drawn, config.straggler_criterion, names, (k, config.jobs)) for k in range(config.jobs)]
    figures = {name: files for part in crew.spread(_draw, shares) for name, files in part.items()}
    for name, (png, pdf) in figures.items():
        directory.write(f"figures/{name}.png", png)
        directory.write(f"figures/{name}.pdf", pdf)
    pngs = {name: png for name, (png, _) in sorted(figures.items())}
    page = build_report(tables, pngs, directory.manifest, _timing(directory))
    directory.write("report.html", page.encode())
    directory.log("report", failed=len(results.failed), peak_memory=peak_memory())
    return Run(directory.root, tables, tuple(sorted(results.failed)), config.caveat or "")


def _timing(directory: RunDirectory) -> dict[str, dict[str, float]]:
    """Units and seconds of each kind of work, from the log."""
    timing: dict[str, dict[str, float]] = {}
    for line in (directory.root / "log.jsonl").read_text(encoding="utf-8").splitlines():
        with contextlib.suppress(ValueError):  # a line cut off by a kill
            event = json.loads(line)
            if event["event"] == "unit":
                row = timing.setdefault(event["key"].split("/")[0], {"units": 0, "seconds": 0.0})
                row["units"] += 1
                row["seconds"] = round(row["seconds"] + event["seconds"], 3)
    return timing


def _draw(
    tables: dict[str, pd.DataFrame], criterion: str, pairs: list[str], share: tuple[int, int]
) -> dict[str, tuple[bytes, bytes]]:
    """(PNG, PDF) by figure name, of this process's share of the figures."""
    return {name: figure_bytes(figure) for name, figure in all_figures(tables, criterion, pairs, share).items()}


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
    warm: dict[str, RitzSpace] = {}
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
    return stacked("sharpness", [pd.DataFrame(rows)])
