"""The step ``merge``: several fine-tuned checkpoints of one architecture become one file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path as FilePath
from typing import Any, Final, get_args

import torch

from sharpscope.clip.answering import answers
from sharpscope.clip.datasets.spec import load_dataset
from sharpscope.clip.export import write_theta
from sharpscope.clip.pair import LoadedPair, load_pair, pick_device
from sharpscope.clip.subjects import checkpoint_labels
from sharpscope.config.study import StudyConfig, checkpoint_stem
from sharpscope.errors import ConfigError, IdenticalPair, PairMismatch, ResultsError, did_you_mean, listing, shown
from sharpscope.exchange.measured import spec_of
from sharpscope.exchange.reading import read_measured
from sharpscope.vocabulary import PATHS, ClassPosition, MergeMethod
from sharpscope.weights.merging import Mean, Step, dare_merge, greedy_soup, model_stock, ties_merge
from sharpscope.weights.theta import Theta, on_device

__all__ = ["Merged", "merge"]

File = str | FilePath
_FROM_ZEROSHOT: Final = ("model-stock", "ties", "dare")
"""The methods that merge changes from theta_0, so that they need it."""
_SETTINGS: Final[Mapping[str, tuple[str, ...]]] = {
    **dict.fromkeys(("val", "results", "results_set", "data_root", "batch_size", "limit", "device"), ("greedy",)),
    **dict.fromkeys(("density", "scale"), ("ties", "dare")),
    "seed": ("dare", "greedy"),
}
"""Setting -> the methods that have it; with any other method it is refused."""
_RECORDED: Final = ("val", "results_set", "limit", "density", "scale", "seed")
"""The settings that the file records as they are."""


def _density(method: MergeMethod) -> float:
    """The fraction of each change that a merge keeps where none is given: that of the path of the same name."""
    usual = {str(name): facts.density for name, facts in PATHS.items()}[method]
    assert usual is not None, method
    return usual


@dataclass(frozen=True)
class Merged:
    """What ``merge`` has written.

    ``path``: the file. ``theta``: its tensors. ``members``: the names of the checkpoints whose mean or merge it is.
    ``steps``: of a greedy soup, in the order in which the candidates were tried. ``ratios``: of Model Stock, the share
    of the mean against theta_0 for every tensor that moves.
    """

    path: FilePath
    theta: Theta = field(repr=False)
    method: str
    members: tuple[str, ...]
    steps: tuple[Step, ...] = ()
    ratios: Mapping[str, float] = field(default_factory=dict, repr=False)

    def summary(self) -> str:
        """What was merged, in a few lines."""
        lines = [f"{self.method} of {len(self.members)} checkpoints: {listing(self.members, 6)}"]
        for step in self.steps:
            kept = "kept" if step.kept else "left out"
            lines.append(
                f"  {shown(step.name, 40)}: alone {step.alone:.4f}, the soup with it {step.with_it:.4f}, {kept}"
            )
        if self.ratios:
            t = torch.tensor(list(self.ratios.values()), dtype=torch.float64)
            lines.append(
                f"  share of the mean against theta_0: {float(t.min()):.3f} to {float(t.max()):.3f} "
                f"(median {float(t.median()):.3f}) over {len(t)} tensors"
            )
        return "\n".join(lines)


def merge(
    checkpoints: Sequence[File],
    out: File,
    method: MergeMethod = "uniform",
    *,
    zeroshot: File | None = None,
    model: str = "ViT-B-32",
    head: str = "auto",
    head_file: File | None = None,
    classnames: File | Sequence[str] | None = None,
    templates: File | Sequence[str] | None = None,
    class_position: ClassPosition | None = None,
    val: str | None = None,
    results: File | None = None,
    results_set: str | None = None,
    data_root: str | None = None,
    batch_size: int | None = None,
    limit: int | None = None,
    device: str | None = None,
    density: float | None = None,
    scale: float | None = None,
    seed: int | None = None,
) -> Merged:
    """Merge fine-tuned checkpoints of one architecture into one file, which records all of them and every setting.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     merge(["mini:success", "mini:failure"], f"{folder}/soup.safetensors", model="mini").members
    ('success', 'failure')

    Args:
        checkpoints: at least two files.
        out: file to write; it is written completely or not at all.
        method: uniform, the mean of all; greedy, the mean of those that do not lower the accuracy on ``val``, tried
            from the best to the worst; model-stock, the mean drawn towards theta_0 by the angle between the changes,
            tensor by tensor; ties, the largest changes with elected signs; dare, the mean of randomly thinned changes.
        zeroshot: the checkpoint of theta_0, which model-stock, ties and dare need. For the soups it completes files
            that hold only tuned tensors.
        model, head, head_file, classnames, templates, class_position: see ``load_pair``.
        val: for greedy, the data set whose val split judges.
        results: for greedy, a file in which the accuracies of the single checkpoints are found (``exchange.FORMATS``),
            so that they are not measured again; ``results_set``: the name of ``val`` in it.
        data_root, batch_size, limit, device: where images are looked up, how many are taken at a time and in all, and
            where accuracies are computed.
        density: for ties and dare, the fraction of each change's entries that is kept; None: .2 and .1.
        scale: for ties and dare, the factor of the merged change; None: 1.
        seed: of dare's choice of entries, and of greedy's choice of images under ``limit``.

    Raises:
        ConfigError: fewer than two checkpoints, one given twice, or a setting that is missing or that the method does
            not have.
        PairMismatch: checkpoints of other architectures, names, heads or classes; IdenticalPair for two that are equal.
        ResultsError: a file of results that cannot be read or lacks one of the checkpoints.
        CheckpointError: a file that cannot be read or written; ``load_pair`` raises further errors.

    Sources: Wortsman et al. 2022, arXiv 2203.05482 (soups); Jang et al. 2024, arXiv 2403.19522 (Model Stock); Yadav et
    al. 2023, arXiv 2306.01708 (TIES); Yu et al. 2024, arXiv 2311.03099 (DARE).
    """
    told = {
        "val": val, "results": results, "results_set": results_set, "data_root": data_root, "batch_size": batch_size,
        "limit": limit, "device": device, "density": density, "scale": scale, "seed": seed,
    }  # fmt: skip
    _check(checkpoints, method, zeroshot, told)
    members = _Members(
        tuple(checkpoints),
        zeroshot,
        {
            "model": model, "head": head, "head_file": head_file, "classnames": classnames, "templates": templates,
            "class_position": class_position,
        },
    )  # fmt: skip
    facts: dict[str, Any] = {k: v for k, v in told.items() if v is not None and k in _RECORDED}
    if results is not None:
        facts["results"] = FilePath(results).name
    steps: list[Step] = []
    ratios: dict[str, float] = {}
    names = members.names
    if method == "uniform":
        theta = Mean(members.theta(name) for name in names).theta()
    elif method == "greedy":
        assert val is not None
        judge = _Judge(
            members, val, data_root, batch_size or StudyConfig.batch_size, limit, device or "auto", seed or 0
        )
        if results is None:
            alone = {name: judge(members.theta(name)) for name in names}
        else:
            alone = _from_results(results, results_set or spec_of(val), members.labels)
        theta, steps = greedy_soup(alone, members.theta, judge)
        names = tuple(s.name for s in steps if s.kept)
    else:
        thetas = [members.theta(name) for name in names]
        zero, moving = members.theta_0, members.moving
        if method == "model-stock":
            theta, ratios = model_stock(thetas, zero, moving)
        else:
            facts["density"] = kept = _density(method) if density is None else density
            facts["scale"] = factor = 1.0 if scale is None else scale
            if method == "ties":
                theta = ties_merge(thetas, zero, moving, kept, factor)
            else:
                facts["seed"] = seed or 0
                theta = dare_merge(thetas, zero, moving, kept, factor, seed or 0)
    written = {"merge": method, "merge_files": json.dumps(members.files_by_sha), "merge_settings": json.dumps(facts)}
    if steps:
        written["merge_steps"] = json.dumps([vars(s) for s in steps])
    if ratios:
        written["merge_ratios"] = json.dumps(ratios)
    if zeroshot is not None:
        written["zeroshot_sha256"] = members.first.facts["zeroshot"]["sha256"]
    write_theta(out, theta, members.first, written)
    return Merged(FilePath(out), theta, method, names, tuple(steps), ratios)


def _check(checkpoints: Sequence[File], method: str, zeroshot: File | None, told: Mapping[str, Any]) -> None:
    known = get_args(MergeMethod)
    if method not in known:
        raise ConfigError(f"method: '{shown(method)}' is none of {', '.join(known)}.{did_you_mean(method, known)}")
    if len(checkpoints) < 2:
        raise ConfigError("merge: give at least two checkpoint files; 'interpolate' is for one and its start.")
    for name, value in told.items():
        if value is not None and method not in _SETTINGS[name]:
            raise ConfigError(f"{name}: has no effect on the method {method}; {' and '.join(_SETTINGS[name])} use it.")
    if method == "greedy" and told["val"] is None:
        raise ConfigError("val: the greedy soup needs held-out images that judge it (--val SPEC).")
    if method in _FROM_ZEROSHOT and zeroshot is None:
        raise ConfigError(f"zeroshot: {method} merges the changes from theta_0, and needs it (--zeroshot FILE).")
    if told["results_set"] is not None and told["results"] is None:
        raise ConfigError("results_set: names a data set in the file of results, which is missing (--results FILE).")
    if told["density"] is not None and not 0 < told["density"] <= 1:
        raise ConfigError(f"density: {told['density']} is outside (0, 1]; it is the fraction of the entries KEPT.")
    if method == "greedy" and told["seed"] is not None and told["limit"] is None:
        raise ConfigError("seed: greedy draws nothing but the images of --limit, which is missing.")
    for name in ("batch_size", "limit"):
        if told[name] is not None and told[name] < 1:
            raise ConfigError(f"{name}: needs a whole number of at least 1, got {told[name]}.")


@dataclass
class _Members:
    """The checkpoints of a merge, each read when it is asked for, and checked against the first.

    Every one forms a pair with theta_0, or without theta_0 with the first checkpoint, so that what ``load_pair``
    refuses is refused here too.
    """

    files: tuple[File, ...]
    zeroshot: File | None
    options: Mapping[str, Any]
    _known: dict[File, tuple[Mapping[str, Any], tuple[str, ...]]] = field(default_factory=dict)

    @cached_property
    def labels(self) -> dict[str, File]:
        return dict(zip(checkpoint_labels(self.files, "merge"), self.files, strict=True))

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.labels)

    @cached_property
    def first(self) -> LoadedPair:
        """The pair that all others have to agree with."""
        return self._load(self.files[0] if self.zeroshot is not None else self.files[1])

    @property
    def theta_0(self) -> Theta:
        return self.first.theta_0

    @cached_property
    def moving(self) -> tuple[str, ...]:
        """The parameters that any of the checkpoints changes, in theta_0's order."""
        found = {name for file in self.files for name in self._told(file)[1]}
        return tuple(n for n in self.theta_0 if n in found)

    @cached_property
    def files_by_sha(self) -> list[dict[str, str]]:
        """Every file with its sha256."""
        return [{"file": told["source"], "sha256": told["sha256"]} for told, _ in map(self._told, self.files)]

    def theta(self, name: str) -> Theta:
        file = self.labels[name]
        return self.theta_0 if self._is_anchor(file) else self._pair(file).theta_1

    def _told(self, file: File) -> tuple[Mapping[str, Any], tuple[str, ...]]:
        """(facts of a file, names of the parameters that move between it and the start); read from disk only once."""
        if self._is_anchor(file):
            return self.first.facts["zeroshot"], ()
        if file not in self._known:
            self._pair(file)
        return self._known[file]

    def _is_anchor(self, file: File) -> bool:
        return self.zeroshot is None and file == self.files[0]

    def _pair(self, file: File) -> LoadedPair:
        first = self.first
        if self._is_anchor(file):
            return first
        pair = self._load(file)
        ours, theirs = first.classifier, pair.classifier
        for what in ("mode", "classnames", "scale_baked", "normalize", "bias"):
            if getattr(ours, what) != getattr(theirs, what):
                raise PairMismatch(
                    f"{shown(file, 200)}: its classifier ({what}) is not that of {shown(self.files[0], 200)}.\n"
                    "Remedy: --head with the same word for all, or --classnames for files that name no classes."
                )
        other = [n for n, t in first.theta_0.items() if n not in pair.theta_0 or not torch.equal(pair.theta_0[n], t)]
        if other or len(pair.theta_0) != len(first.theta_0):
            raise PairMismatch(
                f"{shown(file, 200)}: beside it, the common start reads otherwise ({listing(other, 3)}) than beside "
                f"{shown(self.files[0], 200)}, because their precision or their kind of head differs.\n"
                "Remedy: 'sharpscope convert' all files in the same way."
            )
        self._known[file] = pair.facts["finetuned"], pair.moving
        return pair

    def _load(self, file: File) -> LoadedPair:
        if self.zeroshot is not None:
            return load_pair(self.zeroshot, file, **self.options)
        try:
            return load_pair(self.files[0], file, **self.options)
        except IdenticalPair:
            raise
        except PairMismatch as error:  # many files lack what fine-tuning left alone
            told = [line for line in str(error).splitlines() if not line.startswith("Remedy:")]
            why = "\n".join(told[:2])
            raise PairMismatch(
                f"{why}\nRemedy: --zeroshot FILE, which completes files that lack what fine-tuning did not change."
            ) from None


class _Judge:
    """The accuracy of weights on held-out images: the data set's primary metric."""

    def __init__(
        self,
        members: _Members,
        val: str,
        data_root: str | None,
        batch_size: int,
        limit: int | None,
        device: str,
        seed: int,
    ) -> None:
        pair = members.first
        self._classifier, self._batch_size, self._device = pair.classifier, batch_size, pick_device(device)
        self._dataset = load_dataset(
            val,
            model=pair.model,
            split="val",
            data_root=data_root,
            classnames=pair.classifier.classnames,
            by_name=members.options["classnames"] is None,
            limit=limit,
            seed=seed,
        )

    def __call__(self, theta: Mapping[str, torch.Tensor]) -> float:
        given = answers(
            self._classifier, on_device(theta, self._device, torch.float32), self._dataset, self._batch_size
        )
        statistic = given.statistic(self._dataset.metrics[0])
        assert statistic is not None  # a data set has its primary metric
        return float(statistic.value())


def _from_results(path: File, dataset: str, labels: Mapping[str, File]) -> dict[str, float]:
    """Label -> accuracy on ``dataset`` in a file of results."""
    models = [m for m in read_measured(path) if m.alpha == 1.0]
    sets = dict.fromkeys(d for m in models for d, _ in m.values)
    wanted = dataset if dataset in sets else spec_of(dataset)
    if wanted not in sets:
        raise ResultsError(
            f"{shown(path, 200)}: has no data set '{shown(dataset, 60)}'.{did_you_mean(dataset, sets)}\n"
            f"It has {listing(sets, 8)}; --results-set names the one that judges."
        )
    found = {}
    for label, file in labels.items():
        own = [m for m in models if {label, str(file), checkpoint_stem(file)} & set(m.names)]
        values = [v for m in own for (d, metric), v in m.values.items() if d == wanted and metric == "top1"]
        if len(values) != 1:
            said = "several" if values else "no"
            raise ResultsError(f"{shown(path, 200)}: has {said} accuracies of '{shown(label, 60)}' on {shown(wanted)}.")
        found[label] = values[0]
    return found
