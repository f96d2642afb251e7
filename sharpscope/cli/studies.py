"""The commands on whole studies: run, plan, demo, report."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

from tyro.conf import Positional, Suppress, arg

from sharpscope.cli.inputs import check_inputs
from sharpscope.cli.options import Plugins, Tracked, given
from sharpscope.cli.outcome import Outcome, ended, finished, progress_of_units
from sharpscope.cli.slurm import Settings, submit
from sharpscope.config.idle import check_no_idle
from sharpscope.config.study import PairConfig, StudyConfig, checkpoint_stem
from sharpscope.errors import ConfigError, shown
from sharpscope.machine.ranks import ranks
from sharpscope.vocabulary import AlphaSide, ResultFile

__all__ = ["Demo", "Plan", "Report", "Run", "StudyCommand"]


@dataclass(frozen=True)
class _Files:
    """What to analyse and where to keep it; StudyConfig's own fields follow."""

    study: Annotated[Positional[str | None], arg(metavar="[STUDY.yaml]")] = None
    """Study file (YAML); flags override what it says."""
    zeroshot: str | None = None
    """Checkpoint of the zero-shot model, theta_0 (or ``mini:zeroshot``)."""
    finetuned: tuple[str, ...] = ()
    """Checkpoints of fine-tuned models, theta_1 (or ``mini:success`` ...). Each one forms a pair with theta_0."""
    name: tuple[str, ...] = ()
    """Names of the pairs; default: the names of the fine-tuned files without their extensions."""
    out: str | None = None
    """Run directory; the same command again resumes it. Default: runs/NAME."""


@dataclass(frozen=True)
class StudyCommand(StudyConfig, Plugins, _Files):
    """A command that takes a whole study: every field of StudyConfig is a flag."""

    pairs: Suppress[tuple[PairConfig, ...]] = ()

    def __post_init__(self) -> None:
        """Check nothing yet: flags and study file are merged first, see ``config``."""

    def config(self) -> StudyConfig:
        """The study that file and flags describe together; raises ConfigError."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(StudyConfig)}
        return StudyConfig(**{**values, "pairs": self._pairs()})

    def complete(self) -> StudyConfig:
        """The same with nothing missing; called before torch is imported, so that a mistake is told at once."""
        config = self.config()
        config.check_complete()
        check_no_idle(config)
        check_inputs(
            [*(end for p in config.pairs for end in (p.zeroshot, p.finetuned)), config.upgraded, config.head_file],
            (config.probe, *config.id, *config.ood_groups),
            config.data_root,
            classnames=config.classnames,
            templates=config.templates,
            model=config.model,
        )
        return config

    def _pairs(self) -> tuple[PairConfig, ...]:
        if self.zeroshot is None and not self.finetuned:
            if self.name:
                raise ConfigError("--name: gives names to the pairs of --finetuned, and --finetuned is missing.")
            return self.pairs
        zeroshot = {p.zeroshot for p in self.pairs} if self.zeroshot is None else {self.zeroshot}
        if len(zeroshot) != 1:
            raise ConfigError("--zeroshot: give the zero-shot checkpoint together with --finetuned.")
        (first,) = zeroshot
        if not self.finetuned:
            if not self.pairs:
                raise ConfigError("--finetuned: give the fine-tuned checkpoint together with --zeroshot.")
            return tuple(dataclasses.replace(p, zeroshot=first) for p in self.pairs)
        names = self.name or tuple(checkpoint_stem(path) for path in self.finetuned)
        if len(names) != len(self.finetuned):
            raise ConfigError(f"--name: {len(names)} names for {len(self.finetuned)} fine-tuned checkpoints.")
        if len(set(names)) != len(names):
            raise ConfigError(f"--finetuned: two pairs would have the same name ({', '.join(names)}); give --name.")
        return tuple(PairConfig(n, first, path) for n, path in zip(names, self.finetuned, strict=True))


@dataclass(frozen=True)
class Run(StudyCommand, Tracked):
    """Analyse pairs of checkpoints: path, sharpness, stragglers, repair, correlation, report."""

    shard: str | None = None
    """Compute only this share of the units, e.g. 2/4 in the second task of a scheduler's array of four. The repairs are
    chosen when everything else is there: submit the same array once more. The last one to finish writes the report."""
    slurm: tuple[str, ...] = ()
    """Submit the run as jobs of Slurm in place of running it: ``partition=gpu gpus=4 time=120`` are four jobs that
    share it, with a GPU each and 120 minutes at most. Also jobs=N (without GPU), cpus, memory (GiB), account, qos,
    constraint; cluster=local starts them here. Needs sharpscope[slurm]."""
    keeps_state: ClassVar[bool] = True
    shared_by_ranks: ClassVar[bool] = True

    def __call__(self) -> Outcome:
        from sharpscope.study.shard import Shard, Unfinished

        shard = Shard.read(self.shard)
        settings = Settings.read(self.slurm) if self.slurm else None
        if settings is not None and self.shard is not None:
            raise ConfigError("--shard, --slurm: the jobs of --slurm share the units by themselves; leave --shard out.")
        config = self.complete()
        if settings is not None and self.track:
            raise ConfigError(
                "--track, --slurm: the jobs of --slurm write no curves.\n"
                "Remedy: the same command without --slurm when they are done, which only reads what they computed."
            )
        if settings is not None and config.split_units:
            raise ConfigError(
                "split_units: the jobs of --slurm share units and do not split them.\n"
                "Remedy: leave one of the two out, or submit torchrun itself."
            )
        if settings is not None:
            return submit(config, self.folder(), settings, self.plugin)
        from sharpscope.study.report import Run as FinishedRun
        from sharpscope.study.run import run, run_shard
        from sharpscope.study.trackers import track_run, tracked

        with tracked(self.track if ranks().leads else (), self.folder()) as trackers:
            if self.shard is None:
                done: FinishedRun | Unfinished = run(config, self.folder(), progress=progress_of_units())
            else:
                done = run_shard(config, self.folder(), shard, progress_of_units())
            if trackers and isinstance(done, FinishedRun):
                track_run(trackers, done, config.to_dict())
        return ended(done)

    def folder(self) -> str:
        """The run directory: as asked, else named after the study file or the first pair."""
        return self.out or f"runs/{Path(self.study).stem if self.study else self.config().pairs[0].name}"


@dataclass(frozen=True)
class Plan(StudyCommand):
    """Say what a run would cost (units, time, memory, disk); writes nothing."""

    def __call__(self) -> Outcome:
        config = self.complete()
        from sharpscope.study.plan import plan

        unused = f"--out: plan writes nothing; run would write to {shown(self.out)}." if self.out is not None else ""
        return Outcome(plan(config), unused)


@dataclass(frozen=True)
class Demo:
    """Run the whole method on the embedded world: one pair that interpolates well and one that does not."""

    out: str = "runs/demo"
    """Run directory; the same command again resumes it."""
    seed: int = 0
    """Seed of everything random."""
    keeps_state: ClassVar[bool] = True
    shared_by_ranks: ClassVar[bool] = True

    def __call__(self) -> Outcome:
        from sharpscope.study.demo import demo_config
        from sharpscope.study.run import run

        return ended(run(demo_config(seed=self.seed), self.out, progress=progress_of_units()))


@dataclass(frozen=True)
class Report(Plugins):
    """Rebuild tables, figures and report of a run from its finished units, or put several runs side by side."""

    runs: Annotated[Positional[tuple[str, ...]], arg(metavar="RUN [RUN ...]")]
    """Run directory. With several, one report shows all their pairs from the tables that the runs have (--out)."""
    out: str | None = None
    """Folder for the report of several runs; one that already holds such a report is written anew."""
    export: ResultFile | None = None
    """Also write the accuracies into RUN/results/ in the format of another tool: wise-ft (results.jsonl) or
    clip-benchmark (JSON files)."""
    alpha_on: AlphaSide = "finetuned"
    """Model whose weight figures and report show as alpha. zeroshot: alpha' = 1 - alpha, as 2410.16476 writes it; the
    table files keep the weight of the fine-tuned model."""

    def __call__(self) -> Outcome:
        if len(self.runs) > 1:
            return self._side_by_side()
        if not self.runs:
            raise ConfigError("report: name a run directory.")
        if self.out is not None:
            raise ConfigError("--out: the report of one run is written into its directory.\nRemedy: leave --out away.")
        from sharpscope.study.report import report

        return finished(report(self.runs[0], **given(self, "runs", "out", export="results")))

    def _side_by_side(self) -> Outcome:
        if self.out is None:
            raise ConfigError("report: several runs need a folder for their report.\nRemedy: --out FOLDER.")
        if self.export is not None:
            once = "--export: is written for one run at a time."
            raise ConfigError(f"{once}\nRemedy: sharpscope report RUN --export ...")
        from sharpscope.study.sidebyside import reports

        return finished(reports(self.runs, self.out, alpha_on=self.alpha_on))
