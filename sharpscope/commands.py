"""The subcommands, one dataclass each: its fields are its flags, calling it does the work and returns what to say."""

from __future__ import annotations

import dataclasses
import functools
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from tyro.conf import Positional, Suppress, arg

from sharpscope.config import Device, Granularity, HeadMode, PairConfig, Select, StudyConfig, Target
from sharpscope.errors import ConfigError, shown

if TYPE_CHECKING:
    import pandas as pd

    from sharpscope.study import Run as FinishedRun

__all__ = ["COMMANDS", "Outcome", "StudyCommand"]


@dataclass(frozen=True)
class Outcome:
    """What a command has to say on stdout, what it complains of on stderr, and its exit code."""

    text: str
    complaint: str = ""
    code: int = 0


@dataclass(frozen=True)
class _Files:
    """What to analyse and where to keep it; StudyConfig's own fields follow."""

    study: Annotated[Positional[str | None], arg(metavar="[STUDY.yaml]")] = None
    """Study file (YAML); flags override what it says."""
    zeroshot: str | None = None
    """Checkpoint of the zero-shot model, theta_0 (or ``mini:zeroshot``)."""
    finetuned: tuple[str, ...] = ()
    """Checkpoints of fine-tuned models, theta_1, each a pair with theta_0 (or ``mini:success`` ...)."""
    name: tuple[str, ...] = ()
    """Names of the pairs; default: the stems of the fine-tuned files."""
    out: str | None = None
    """Run directory; the same command again resumes it. Default: runs/NAME."""


@dataclass(frozen=True)
class StudyCommand(StudyConfig, _Files):
    """A command that takes a whole study: every field of StudyConfig is a flag."""

    pairs: Suppress[tuple[PairConfig, ...]] = ()

    def __post_init__(self) -> None:
        """Nothing is checked before flags and study file have come together: see ``config``."""

    def config(self) -> StudyConfig:
        """The study that file and flags describe together; raises ConfigError."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(StudyConfig)}
        config = StudyConfig(**{**values, "pairs": self._pairs()})
        if not config.pairs:
            raise ConfigError(
                "nothing to analyse: give --zeroshot and --finetuned, or a study file (sharpscope run study.yaml).\n"
                "'sharpscope demo' needs neither."
            )
        return config

    def _pairs(self) -> tuple[PairConfig, ...]:
        if self.zeroshot is None and not self.finetuned:
            if self.name:
                raise ConfigError("--name: names the pairs of --finetuned, which is missing.")
            return self.pairs
        zeroshot = {p.zeroshot for p in self.pairs} if self.zeroshot is None else {self.zeroshot}
        if len(zeroshot) != 1:
            raise ConfigError("--zeroshot: give the zero-shot checkpoint beside --finetuned.")
        (first,) = zeroshot
        if not self.finetuned:
            if not self.pairs:
                raise ConfigError("--finetuned: give the fine-tuned checkpoint beside --zeroshot.")
            return tuple(dataclasses.replace(p, zeroshot=first) for p in self.pairs)
        names = self.name or tuple(_stem(path) for path in self.finetuned)
        if len(names) != len(self.finetuned):
            raise ConfigError(f"--name: {len(names)} names for {len(self.finetuned)} fine-tuned checkpoints.")
        if len(set(names)) != len(names):
            raise ConfigError(f"--finetuned: two pairs would be called the same ({', '.join(names)}); give --name.")
        return tuple(PairConfig(n, first, path) for n, path in zip(names, self.finetuned, strict=True))


@dataclass(frozen=True)
class Run(StudyCommand):
    """Analyse pairs of checkpoints: path, sharpness, stragglers, repair, correlation, report."""

    keeps_state: ClassVar[bool] = True

    def __call__(self) -> Outcome:
        config = self.config()
        from sharpscope import study

        out = self.out or f"runs/{Path(self.study).stem if self.study else config.pairs[0].name}"
        return _finish(study.run(config, out, progress=_bar()))


@dataclass(frozen=True)
class Plan(StudyCommand):
    """Say what a run would cost (units, time, memory, disk); writes nothing."""

    def __call__(self) -> Outcome:
        config = self.config()
        from sharpscope import study

        return Outcome(study.plan(config))


@dataclass(frozen=True)
class Demo:
    """The whole method on the embedded world: one pair that interpolates well beside one that does not."""

    out: str = "runs/demo"
    """Run directory; the same command again resumes it."""
    seed: int = 0
    """Seed of everything random."""
    keeps_state: ClassVar[bool] = True

    def __call__(self) -> Outcome:
        from sharpscope import study

        return _finish(study.run(study.demo_config(seed=self.seed), self.out, progress=_bar()))


@dataclass(frozen=True)
class Inspect:
    """What is in a checkpoint, whether it is safe, and how far two of them are apart, layer by layer."""

    a: Annotated[Positional[str], arg(metavar="FILE")]
    """Checkpoint file."""
    b: Annotated[Positional[str | None], arg(metavar="[FILE]")] = None
    """A second one, to compare."""
    model: str | None = None
    """open_clip model name or config JSON to check against; default: a guess from the shapes."""

    def __call__(self) -> Outcome:
        from sharpscope import study

        return Outcome(study.inspect(self.a, self.b, self.model))


@dataclass(frozen=True)
class Convert:
    """Write a checkpoint of any known format as safetensors, in open_clip's names, its facts in the metadata."""

    source: Annotated[Positional[str], arg(metavar="IN")]
    """Checkpoint: a file, ``local-dir:FOLDER`` or ``hf-hub:OWNER/NAME``."""
    out: Annotated[Positional[str], arg(metavar="OUT.safetensors")]
    """File to write."""
    names: Literal["open_clip", "huggingface"] = "open_clip"
    """Whose names the tensors get."""
    base: str | None = None
    """Zero-shot checkpoint below a file that holds only what was tuned (Dassl, LoRA, R-Adapter)."""
    head: str | None = None
    """File with the classification head, where it is kept apart (task_vectors)."""
    classnames: str | None = None
    """Text file with the head's class names, one a line, in its order."""
    quick_gelu: bool | None = None
    """Whether the model uses QuickGELU, where the file does not tell (OpenAI's weights do)."""
    adapter_scale: float | None = None
    """What an adapter's change is multiplied by, where the file does not tell: LoRA's alpha / r, R-Adapter's
    eval_scale."""

    def __call__(self) -> Outcome:
        _check_output(self.out, self.source, *(p for p in (self.base, self.head) if p))
        if not self.out.endswith(".safetensors"):
            raise ConfigError(f"OUT: {shown(self.out)} is to be a safetensors file; name it .safetensors.")
        from sharpscope import steps

        read = steps.convert(
            self.source,
            self.out,
            names=self.names,
            base=self.base,
            head=self.head,
            classnames=self.classnames,
            quick_gelu=self.quick_gelu,
            adapter_scale=self.adapter_scale,
        )
        return Outcome(f"wrote {shown(self.out)}: {len(read.tensors)} tensors of {shown(read.facts['producer'])}")


@dataclass(frozen=True)
class Interpolate:
    """Write theta(alpha) = (1 - alpha) theta_0 + alpha theta_1 as a safetensors file."""

    zeroshot: str
    """Checkpoint of theta_0."""
    finetuned: str
    """Checkpoint of theta_1."""
    alpha: float
    """Point of the path, on the fine-tuned side."""
    out: str
    """File to write."""
    model: str = "ViT-B-32"
    """open_clip model name, config JSON, or ``mini``."""
    extrapolate: bool = False
    """Allow alpha outside [0, 1]."""
    classnames: str | None = None
    """Text file with one class name a line, where a head is stored without its names."""
    head: HeadMode = "auto"
    """stored: the checkpoints' own; zeroshot, text: from the text tower; auto: as in ``sharpscope run``."""
    head_file: str | None = None
    """Classification head in a file of its own (task_vectors), for each checkpoint without one."""

    def __call__(self) -> Outcome:
        _check_alpha(self.alpha, self.extrapolate)
        _check_output(self.out, self.zeroshot, self.finetuned)
        from sharpscope import study

        study.interpolate(
            self.zeroshot,
            self.finetuned,
            self.alpha,
            self.out,
            self.model,
            classnames=self.classnames,
            extrapolate=self.extrapolate,
            head=self.head,
            head_file=self.head_file,
        )
        return Outcome(f"wrote {shown(self.out)}")


@dataclass(frozen=True)
class Sparsify:
    """Write theta(alpha) with some layers made sparse as a safetensors file."""

    zeroshot: str
    """Checkpoint of theta_0."""
    finetuned: str
    """Checkpoint of theta_1."""
    layers: tuple[str, ...]
    """Layers to make sparse, as ``sharpscope inspect`` names them."""
    out: str
    """File to write."""
    density: float = 0.5
    """Fraction of entries KEPT."""
    target: Target = "delta"
    """delta: dropped entries return to theta_0; weight: dropped entries become 0."""
    select: Select = "random"
    """Which entries are kept: a random choice, or the largest |delta| (|weight|)."""
    alpha: float = 1.0
    """Point of the path, on the fine-tuned side."""
    model: str = "ViT-B-32"
    """open_clip model name, config JSON, or ``mini``."""
    granularity: Granularity = "module"
    """What a layer is: every tensor, every module, or every block."""
    seed: int = 0
    """Seed of the random choice."""
    extrapolate: bool = False
    """Allow alpha outside [0, 1]."""
    classnames: str | None = None
    """Text file with one class name a line, where a head is stored without its names."""
    head: HeadMode = "auto"
    """stored: the checkpoints' own; zeroshot, text: from the text tower; auto: as in ``sharpscope run``."""
    head_file: str | None = None
    """Classification head in a file of its own (task_vectors), for each checkpoint without one."""

    def __call__(self) -> Outcome:
        _check_alpha(self.alpha, self.extrapolate)
        _check_output(self.out, self.zeroshot, self.finetuned)
        if not self.layers:
            raise ConfigError("--layers: name at least one layer; 'sharpscope inspect' lists them.")
        if not 0 <= self.density <= 1:
            raise ConfigError(f"--density: {self.density} is outside [0, 1]; density is the fraction of entries KEPT.")
        from sharpscope import study

        study.sparsify(
            self.zeroshot,
            self.finetuned,
            layers=self.layers,
            density=self.density,
            target=self.target,
            select=self.select,
            alpha=self.alpha,
            out=self.out,
            model=self.model,
            granularity=self.granularity,
            seed=self.seed,
            classnames=self.classnames,
            extrapolate=self.extrapolate,
            head=self.head,
            head_file=self.head_file,
        )
        return Outcome(f"wrote {shown(self.out)}")


@dataclass(frozen=True)
class Evaluate:
    """Accuracy of checkpoints on data sets: every metric with its interval, one table."""

    checkpoints: Annotated[Positional[tuple[str, ...]], arg(metavar="FILE [FILE ...]")]
    """Checkpoint files of one architecture."""
    datasets: Annotated[tuple[str, ...], arg(aliases=["--data"])]
    """Data set specs, or collections of them (imagenet-shifts, lipsum-imagenet, domainnet-real), whose averages are
    added."""
    model: str = "ViT-B-32"
    """open_clip model name, config JSON, or ``mini``."""
    head: HeadMode = "auto"
    """stored: the checkpoint's own; zeroshot or text: from its text tower, in each set's class names and templates;
    auto: stored where there is one that has the set's classes."""
    head_file: str | None = None
    """Classification head in a file of its own (task_vectors), for each checkpoint without one."""
    base: str | None = None
    """Zero-shot checkpoint below files that hold only what was tuned (Dassl, LoRA)."""
    metrics: tuple[str, ...] | None = None
    """top1, top5, mean_per_class, macro_f1, worst_group, ece, nll; default: all that have a meaning for a set."""
    classnames: str | None = None
    """Text file with one class name a line; default: each data set's own."""
    templates: str | None = None
    """Text file with one prompt template a line, ``{}`` for the class name; default: each data set's own."""
    data_root: str | None = None
    """Folder under which named sets and relative paths are looked up."""
    batch_size: int = 128
    """Examples a batch."""
    device: Device = "auto"
    """Where to compute; auto takes CUDA when there is one."""
    limit: int | None = None
    """At most this many examples a data set (a fixed, stratified choice)."""
    seed: int = 0
    """Seed of ``--limit``'s choice and of the bootstrap intervals."""
    csv: bool = False
    """Print CSV (a row a metric) instead of a table (a row a data set)."""

    def __call__(self) -> Outcome:
        if not self.checkpoints:
            raise ConfigError("evaluate: give at least one checkpoint file.")
        if not self.datasets:
            raise ConfigError("--datasets: give at least one, e.g. --datasets mini:photo folder:val.")
        for flag, value in (("batch-size", self.batch_size), ("limit", self.limit)):
            if value is not None and value < 1:
                raise ConfigError(f"--{flag}: needs a whole number of at least 1, got {value}.")
        from sharpscope import study

        table = study.evaluate(
            self.checkpoints,
            self.model,
            self.datasets,
            head_file=self.head_file,
            base=self.base,
            metrics=self.metrics,
            head=self.head,
            classnames=self.classnames,
            templates=self.templates,
            data_root=self.data_root,
            batch_size=self.batch_size,
            device=self.device,
            limit=self.limit,
            seed=self.seed,
            progress=_bar(),
        )
        return _show(table, self.csv) if self.csv else Outcome(_by_dataset(table))


@dataclass(frozen=True)
class Finetune:
    """Make the fine-tuned end of a pair, by one of the field's methods; --list shows them."""

    zeroshot: str = ""
    """Checkpoint of the zero-shot model (or ``mini:zeroshot``)."""
    train: str = ""
    """Training data: any data set (its train split), or ``csv:PATH`` of image-caption pairs (filepath, title)."""
    method: str = "wise-ft"
    """How to fine-tune; --list names the methods."""
    lr: float | None = None
    """Peak learning rate; this and what follows: default, what the method's paper says."""
    epochs: int | None = None
    """Times over the training data."""
    steps: int | None = None
    """Optimizer steps in all, whatever --epochs says."""
    batch_size: int | None = None
    """Examples a batch."""
    accumulate: int | None = None
    """Parts of each batch, one in memory at a time (losses of single images only; the gradient is the same)."""
    set: tuple[str, ...] = ()
    """Any other hyperparameter of the method, NAME=VALUE (``--list`` shows them)."""
    model: str = "ViT-B-32"
    """open_clip model name, config JSON, or ``mini``."""
    out: str | None = None
    """Folder for METHOD.safetensors; the same command again resumes. Default: runs/METHOD."""
    val: str | None = None
    """Validation data: accuracy after every epoch, and the best weights kept where the method keeps these."""
    data_root: str | None = None
    """Folder under which relative ``folder:`` and ``csv:`` paths are looked up."""
    classnames: str | None = None
    """Text file with one class name a line; default: the training data's own."""
    templates: str | None = None
    """Text file with one prompt template a line, ``{}`` for the class name."""
    seed: int = 0
    """Seed of everything random."""
    device: Device = "auto"
    """Where to compute; auto takes CUDA when there is one."""
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    """bfloat16, float16: autocast on CUDA; the weights stay float32."""
    augment: bool = True
    """Random crops; arrays and the embedded world stay as they are."""
    checkpoint_every: int = 500
    """Steps between two states on disk."""
    list: bool = False
    """List the methods and their hyperparameters."""
    keeps_state: ClassVar[bool] = True

    def __call__(self) -> Outcome:
        if self.list:
            from sharpscope.finetune.registry import listing

            return Outcome(listing())
        for flag, value in (("zeroshot", self.zeroshot), ("train", self.train)):
            if not value:
                raise ConfigError(f"--{flag}: is missing. 'sharpscope finetune --list' shows the methods.")
        changes: dict[str, Any] = {}
        for pair in self.set:
            name, equals, text = pair.partition("=")
            if not equals:
                raise ConfigError(f"--set: '{shown(pair, 60)}' is not NAME=VALUE.")
            changes[name.replace("-", "_")] = text
        for name in ("lr", "epochs", "steps", "batch_size", "accumulate"):
            if getattr(self, name) is not None:
                changes[name] = getattr(self, name)
        if "epochs" in changes:
            changes.setdefault("steps", None)  # a method that counts steps by default counts epochs when told these
        from sharpscope.finetune.run import finetune

        tuned = finetune(
            self.zeroshot,
            self.train,
            self.method,
            model=self.model,
            out=self.out or f"runs/{self.method}",
            val=self.val,
            data_root=self.data_root,
            classnames=self.classnames,
            templates=self.templates,
            seed=self.seed,
            device=self.device,
            precision=self.precision,
            augment=self.augment,
            checkpoint_every=self.checkpoint_every,
            **changes,
        )
        file = shown(str(tuned.path), 500)
        return Outcome(
            f"wrote {file}: {tuned.summary()}\n"
            f"next: sharpscope run --zeroshot {shown(self.zeroshot)} --finetuned {file} --model {shown(self.model)} ..."
        )


@dataclass(frozen=True)
class _AcrossRuns:
    """The runs of a comparison, and accuracies that were measured elsewhere."""

    runs: Annotated[Positional[tuple[str, ...]], arg(metavar="RUN [RUN ...]")]
    """Run directories."""
    accuracy: str | None = None
    """Accuracies measured elsewhere: CSV with the columns of accuracy.csv, or the result file of WiSE-FT, model-soups,
    CLIP_benchmark (also a folder of json), FLYP, StarFT, Dassl or MonoSoup. A model belongs to a pair if it is called
    by the path of the pair's checkpoint, the pair's name, or the end of that path."""
    match: tuple[str, ...] = ()
    """Where names differ: PAIR=MODEL, or PAIR@ALPHA=MODEL for one point of its path (PAIR@0: its zero-shot model)."""
    id: tuple[str, ...] = ()
    """Which of those data sets are in distribution; default: the one trained on if the file tells, else ImageNet."""
    seed: int = 0
    """Seed of the bootstrap."""
    csv: bool = False
    """Print CSV instead of a table."""

    def check(self) -> None:
        if not self.runs:
            raise ConfigError(f"{type(self).__name__.lower()}: give at least one run directory.")
        if self.accuracy is None and (self.match or self.id):
            raise ConfigError("--match, --id: are about the file of --accuracy, which is missing.")


@dataclass(frozen=True)
class Correlate(_AcrossRuns):
    """Correlate sharpness with OOD accuracy across the pairs of several runs."""

    def __call__(self) -> Outcome:
        self.check()
        from sharpscope import study

        table = study.correlate(self.runs, accuracy=self.accuracy, match=self.match, ids=self.id, seed=self.seed)
        return _show(table, self.csv)


@dataclass(frozen=True)
class Robustness(_AcrossRuns):
    """Effective robustness: OOD accuracy beyond what a baseline lets one expect at the same ID accuracy."""

    baseline: str = "finetuned"
    """Models on whose line OOD accuracy is expected: zeroshot, finetuned or ends (of these runs), or a CSV file with
    dataset, id_accuracy, ood_accuracy (a row a model) or dataset, intercept, slope (logit scale)."""

    def __call__(self) -> Outcome:
        self.check()
        from sharpscope import study

        return _show(
            study.robustness(
                self.runs, self.baseline, accuracy=self.accuracy, match=self.match, ids=self.id, seed=self.seed
            ),
            self.csv,
        )


@dataclass(frozen=True)
class Report:
    """Rebuild tables, figures and report of a run from its finished units."""

    run: Annotated[Positional[str], arg(metavar="RUN")]
    """Run directory."""
    results: Literal["wise-ft", "clip-benchmark"] | None = None
    """Write the accuracies also as these tools do, into RUN/results/: results.jsonl of WiSE-FT, json of
    CLIP_benchmark."""

    def __call__(self) -> Outcome:
        from sharpscope import study

        return _finish(study.report(self.run, results=self.results))


def _show(table: pd.DataFrame, csv: bool) -> Outcome:
    return Outcome(table.to_csv(index=False).rstrip("\n") if csv else table.to_string(index=False))


def _by_dataset(table: pd.DataFrame) -> str:
    """A line a (checkpoint, data set), a column a metric, intervals beside; what is to be said of a set below."""
    cells = [
        f"{value:.4f} [{low:.4f}, {high:.4f}]" if low == low else f"{value:.4f}"
        for value, low, high in zip(table["estimate"], table["ci_low"], table["ci_high"], strict=True)
    ]
    order = ["checkpoint", "dataset", "n"]
    wide = table.assign(cell=cells).pivot_table(
        index=order, columns="metric", values="cell", aggfunc="first", sort=False
    )
    named = [m for m in dict.fromkeys(table["metric"]) if m in wide]
    lines = [wide[named].fillna("").reset_index().to_string(index=False)]
    notes = table.loc[table["note"] != "", ["dataset", "note"]].drop_duplicates()
    lines += [
        f"{shown(dataset)}: {shown(note, 300)}" for dataset, note in zip(notes["dataset"], notes["note"], strict=True)
    ]
    return "\n".join(lines)


def _finish(run: FinishedRun) -> Outcome:
    text = f"{run.summary()}\nreport: {shown(Path(run.root) / 'report.html', 500)}"
    failed = tuple(run.failed_units)
    if not failed:
        return Outcome(text)
    names = ", ".join(failed[:3]) + (" ..." if len(failed) > 3 else "")
    complaint = f"{len(failed)} units failed: {shown(names, 200)}\nThe tables say why (status, note)."
    return Outcome(text, complaint, 1)


def _bar() -> Callable[..., Any]:
    """tqdm with our habits: on stderr, silent when that is not a terminal, gone when done."""
    from tqdm import tqdm

    return functools.partial(tqdm, file=sys.stderr, disable=None, dynamic_ncols=True, leave=False)


def _stem(path: str) -> str:
    return path.removeprefix("mini:") if path.startswith("mini:") else Path(path).stem


def _check_alpha(alpha: float, extrapolate: bool) -> None:
    if not (extrapolate and abs(alpha) < float("inf")) and not 0 <= alpha <= 1:
        raise ConfigError(f"--alpha: {alpha} is outside [0, 1]; extrapolation has to be asked for (--extrapolate).")


def _check_output(out: str, *inputs: str) -> None:
    for path in inputs:
        if Path(path).exists() and Path(out).exists() and Path(path).samefile(out):
            raise ConfigError(f"--out: {shown(out)} is one of the inputs, and inputs are never changed.")


COMMANDS: dict[str, Any] = {
    "demo": Demo,
    "run": Run,
    "plan": Plan,
    "inspect": Inspect,
    "convert": Convert,
    "interpolate": Interpolate,
    "sparsify": Sparsify,
    "evaluate": Evaluate,
    "finetune": Finetune,
    "correlate": Correlate,
    "robustness": Robustness,
    "report": Report,
}
