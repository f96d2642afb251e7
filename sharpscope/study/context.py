"""A loaded pair with the data sets on which a study evaluates it, loaded once in every process."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import torch

from sharpscope.clip.answering import FeatureCache
from sharpscope.clip.datasets.dataset import Dataset
from sharpscope.clip.datasets.spec import check_spec, load_dataset
from sharpscope.clip.end_outputs import EndOutputs
from sharpscope.clip.model import ClipModel
from sharpscope.clip.pair import LoadedPair, load_pair, pick_device
from sharpscope.clip.probe import Probe
from sharpscope.config.specs import check_folders
from sharpscope.config.study import PairConfig, StudyConfig
from sharpscope.curvature.fisher import diagonal_fisher
from sharpscope.curvature.measures.rows import MeasureSettings
from sharpscope.errors import ConfigError, DatasetError, NoClassNames, did_you_mean, shown
from sharpscope.layers import Layer, tower_of
from sharpscope.machine.devices import free_bytes
from sharpscope.machine.ranks import ranks
from sharpscope.machine.team import ALONE, Team
from sharpscope.scores import FRAME_METRICS
from sharpscope.seeds import derive
from sharpscope.study.overlap import check_apart
from sharpscope.study.tasks import roles
from sharpscope.vocabulary import ALL, PATHS, Base, PathName
from sharpscope.weights.choices import Fishers
from sharpscope.weights.path import InterpolationPath
from sharpscope.weights.theta import Theta, on_device

__all__ = ["Context", "check_inputs", "check_test_sets", "load_contexts", "load_study_pair"]

GRAPH_SHARE = {"cpu": 1 / 2, "cuda": 3 / 4}
"""The share of the free memory that gradient graphs may take, the room for a product included. What is left is for the
weights, the bases of eigenvalues and what one alpha hands to the next; in a host's memory also for images. With a
larger share fewer graphs are built anew, and memory may not suffice: a GPU then repeats the unit with half of it."""

Half = Literal["train", "test"]
"""The images that a study measures on | those that it evaluates on."""


def load_study_pair(config: StudyConfig, pair: PairConfig, *, rough_head: bool = False) -> LoadedPair:
    """``load_pair`` with the settings of a study; a head made from text without class names gets the probe set's.

    So do learnt prompts whose own classes are not the probe set's: they are put before its class names.
    ``rough_head``: as for ``load_pair``.
    """

    def load(classnames: str | Sequence[str] | None) -> LoadedPair:
        return load_pair(
            pair.zeroshot,
            pair.finetuned,
            model=config.model,
            head=config.head,
            classnames=classnames,
            templates=config.templates,
            name=pair.name,
            upgraded=config.upgraded,
            upgraded_model=config.upgraded_model,
            head_file=config.head_file,
            class_position=config.class_position,
            device=pick_device(config.device),
            rough_head=rough_head,
        )

    def probe(clip: ClipModel, names: Sequence[str] | None = None) -> Dataset:
        return load_dataset(
            config.probe, model=clip, split="train", data_root=config.data_root, classnames=names, limit=1, by_name=True
        )

    try:
        loaded = load(config.classnames)
    except NoClassNames:
        return load(probe(ClipModel.load(config.model)).classnames)
    if config.classnames is not None or not loaded.facts["finetuned"].get("prompts"):
        return loaded
    try:
        probe(loaded.model, loaded.classifier.classnames)
    except DatasetError:
        return load(probe(loaded.model).classnames)
    return loaded


class Shelf:
    """The data sets of one study in one process: pairs that read a set alike share it, and its decoded images."""

    def __init__(self) -> None:
        self._sets: dict[tuple[object, ...], Dataset] = {}

    def dataset(
        self,
        config: StudyConfig,
        spec: str,
        split: Half,
        limit: int | None,
        model: ClipModel,
        classnames: Sequence[str],
    ) -> Dataset:
        """The set ``spec`` with the image size and normalisation of ``model``, its labels in the order of
        ``classnames``."""
        key = (spec, split, limit, model.name, model.image_size, model.mean, model.std, tuple(classnames))
        if key not in self._sets:
            self._sets[key] = load_dataset(
                spec,
                model=model,
                split=split,
                data_root=config.data_root,
                classnames=classnames,
                by_name=config.classnames is None,  # a checkpoint's names are not in a set's order
                limit=limit,
                seed=config.seed,
                image_cache=config.image_cache / config.processes,
            )
        return self._sets[key]


@dataclass
class Budget:
    """A memory budget in bytes, which is reduced when less memory turns out to be free than was assumed."""

    bytes: int

    def halve(self) -> None:
        self.bytes = max(self.bytes // 2, 1)


@dataclass(frozen=True)
class Context:
    """A loaded pair with the data sets on which a study evaluates it, which it shares with the study's other pairs."""

    config: StudyConfig
    pair: LoadedPair
    shelf: Shelf = field(default_factory=Shelf, repr=False, compare=False)
    team: Team = field(default=ALONE, repr=False, compare=False)
    """The ranks that measure units together (``split_units``)."""

    @classmethod
    def load(
        cls,
        config: StudyConfig,
        pair: PairConfig,
        shelf: Shelf | None = None,
        team: Team = ALONE,
        *,
        rough_head: bool = False,
    ) -> Context:
        return cls(config, load_study_pair(config, pair, rough_head=rough_head), shelf or Shelf(), team)

    @property
    def dtype(self) -> torch.dtype:
        return torch.float64 if self.config.dtype == "float64" else torch.float32

    @cached_property
    def device(self) -> torch.device:
        return pick_device(self.config.device)

    @cached_property
    def path(self) -> InterpolationPath:
        """The linear path, on which everything is measured except the accuracy of the further paths."""
        return self.pair.path(self.dtype, extrapolate=self.config.extrapolate)

    def further_path(self, name: PathName) -> InterpolationPath:
        """One of the study's other paths (all but the linear one); it is made when it is first asked for."""
        if name not in self._further:
            c = self.config
            self._further[name] = self.pair.path(
                self.dtype,
                extrapolate=c.extrapolate and PATHS[name].extrapolates,
                kind=name,
                density=None if PATHS[name].density is None else c.path_density,
                seed=c.seed,
                fishers=self.fishers if name == "fisher" else None,
            )
        return self._further[name]

    @cached_property
    def _further(self) -> dict[PathName, InterpolationPath]:
        return {}

    @cached_property
    def fishers(self) -> Fishers:
        """The diagonal Fisher information of both ends, on the probe set."""
        zero, one = (
            diagonal_fisher(self.probe, self.theta(end), self.pair.moving, seed=derive(self.config.seed, "fisher", end))
            for end in (0.0, 1.0)
        )
        return on_device(zero.values, "cpu"), on_device(one.values, "cpu")

    @cached_property
    def layers(self) -> tuple[Layer, ...]:
        return self.pair.layers(self.config.granularity)

    @cached_property
    def probe(self) -> Probe:
        """The fixed probe set, after a check that two evaluations give the same loss."""
        probe = Probe(
            self.pair.classifier,
            self._dataset(self.config.probe, "train"),
            size=self.config.probe_size,
            batch_size=self.config.batch_size,
            seed=self.config.seed,
            device=self.device,
            dtype=self.dtype,
        )
        probe.check_deterministic(self.theta(0.0))
        return probe

    @cached_property
    def team_probe(self) -> Probe:
        """The probe set as the units see it that ranks measure together (``tasks.SPLIT``)."""
        return self.probe.shared(self.team)

    @cached_property
    def perturbation_probe(self) -> Probe:
        """The part of the probe set on which the measures of finite radius are taken."""
        most = self.config.perturbation_size
        return self.team_probe if most is None else self.team_probe.thinned(most)

    @cached_property
    def datasets(self) -> dict[str, Dataset]:
        """ID and OOD test sets by spec."""
        return {spec: self.dataset(spec) for spec in roles(self.config)}

    @cached_property
    def repair_places(self) -> dict[str, list[int]]:
        """Test set -> the places of the images on which repairs are evaluated; only sets of which some are left out."""
        most, seed = self.config.repair_limit, self.config.seed
        return {spec: d.choice(most, seed) for spec, d in self.datasets.items() if d.listed > most}

    @cached_property
    def repair_datasets(self) -> dict[str, Dataset]:
        """The test sets on which repairs are evaluated."""
        places = self.repair_places
        return {spec: d.at(places[spec]) if spec in places else d for spec, d in self.datasets.items()}

    @cached_property
    def upgraded_path(self) -> InterpolationPath:
        """From the upgraded backbone to the upgraded backbone plus the pair's change of weights."""
        assert self.pair.upgraded is not None
        return InterpolationPath(*self.pair.upgraded, self.dtype, self.config.extrapolate)

    @cached_property
    def upgraded_datasets(self) -> dict[str, Dataset]:
        """The same sets with the image size and normalisation of the upgraded backbone."""
        reader = self.pair.upgraded_classifier
        if reader is None or reader.model is self.pair.model:
            return self.datasets
        return {spec: self._dataset(spec, "test", self.config.limit, reader.model) for spec in roles(self.config)}

    @cached_property
    def vrf_train(self) -> Dataset:
        """The training images among which VRF searches for failures of the zero-shot model."""
        if self.config.vrf_images is None:
            return self.probe.dataset
        return self._dataset(self.config.probe, "train", self.config.vrf_images)

    def dataset(self, spec: str) -> Dataset:
        """A further test set, with the study's limit."""
        return self._dataset(spec, "test", self.config.limit)

    def _dataset(
        self,
        spec: str,
        split: Half,
        limit: int | None = None,
        model: ClipModel | None = None,
    ) -> Dataset:
        names = self.pair.classifier.classnames
        return self.shelf.dataset(self.config, spec, split, limit, model or self.pair.model, names)

    @cached_property
    def features(self) -> FeatureCache | None:
        """A cache of image features for all alphas, or None where the image tower moves."""
        return None if any(tower_of(n) == "image" for n in self.pair.moving) else FeatureCache()

    @cached_property
    def ends(self) -> EndOutputs:
        """The outputs of both ends of the path on the test sets, with the energies of random texts."""
        return EndOutputs(self.pair, self.path, self.config.batch_size, self.device, self.features, self.config.seed)

    def theta(self, alpha: float) -> Theta:
        """theta(alpha) on the device."""
        return on_device(self.path.at(alpha), self.device)

    def on_layer(self, layer: Layer, alpha: float, base: Base) -> Theta:
        """theta with one layer at ``alpha`` and all others at the base, on the device.

        The base stays there, so that only the layer travels.
        """
        moved = self.path.at_layer(layer, alpha, base)
        if self.device.type == "cpu":
            return moved
        here, there = self._base(base)
        return {n: there[n] if t.data_ptr() == here[n].data_ptr() else t.to(self.device) for n, t in moved.items()}

    def _base(self, base: Base) -> tuple[Theta, Theta]:
        """theta at the base, on the host and on the device; it is kept until another base is asked for."""
        if self._bases.keys() != {base}:
            self._bases.clear()
            here = self.path.at_layer((), 0.0, base)
            self._bases[base] = here, on_device(here, self.device)
        return self._bases[base]

    @cached_property
    def _bases(self) -> dict[Base, tuple[Theta, Theta]]:
        return {}

    @cached_property
    def free_memory(self) -> int:
        """One job's share of the free bytes on the device of this study, as found when it is first asked for."""
        beside = ranks().local_world if self.device.type == "cpu" else 1
        return free_bytes(self.device) // (self.config.processes * beside)

    @cached_property
    def budget(self) -> Budget:
        """The memory that gradient graphs may take. It is the same at every alpha, so that the numbers of a study do
        not depend on the order of its units."""
        given = self.config.memory
        return Budget(int(given * 2**30 if given is not None else GRAPH_SHARE[self.device.type] * self.free_memory))

    def agree_on_memory(self) -> None:
        """Give every rank of the team the smallest budget among them, so that all lay out their graphs alike."""
        if self.team.several:
            self.budget.bytes = min(self.team.gather("the memory", lambda: self.budget.bytes))

    @property
    def settings(self) -> MeasureSettings:
        c = self.config
        return MeasureSettings(
            seed=c.seed, rtol=c.rtol, atol_share=c.atol_share, max_matvecs=c.max_matvecs,
            noise_samples=c.noise_samples, pgd_steps=c.pgd_steps, rho_avg=c.rho_avg, rho_linf=c.rho_linf,
            rho_l2=c.rho_l2, rho_geodesic=c.rho_geodesic, memory=self.budget.bytes, trace_method=c.trace_method,
            precision=c.precision, normalize_logits=c.normalize_logits, random_start=c.random_start,
            eigen_method=c.eigen_method, products=c.products,
        )  # fmt: skip


def check_inputs(config: StudyConfig) -> None:
    """Raise for everything that can be known to be wrong before a checkpoint or an image is opened."""
    config.check_complete()
    device = pick_device(config.device)
    if config.precision == "tf32" and device.type != "cuda":
        raise ConfigError(
            f"precision: tf32 is an arithmetic of NVIDIA GPUs; this study computes on {device.type}, where it would "
            "change nothing.\nRemedy: --precision full, or bf16, which a CPU has too."
        )
    check_test_sets(config)


def check_test_sets(config: StudyConfig) -> None:
    """Raise for a spec of probe, ID or OOD that means nothing, or a folder that is not there. No image is opened."""
    for spec in (config.probe, *config.id, *config.ood_groups):
        check_spec(spec)
    if both := [spec for spec in config.ood_groups if spec in config.id]:
        raise ConfigError(f"ood: '{shown(both[0], 60)}' is among id too; a set is in distribution or out of it.")
    check_folders((config.probe, *config.id, *config.ood_groups), config.data_root)


def load_contexts(config: StudyConfig, team: Team = ALONE, *, rough_head: bool = False) -> dict[str, Context]:
    """The context of every pair, its checkpoints and data loaded and checked; raises what ``run`` raises.

    ``rough_head``: as for ``load_pair``; nothing may be measured then.
    """
    shelf = Shelf()
    contexts = {p.name: Context.load(config, p, shelf, team, rough_head=rough_head) for p in config.pairs}
    for context in contexts.values():
        _ = context.probe, context.datasets
        _check_batches(context.probe, team)
        if config.repaired_alphas:
            _ = context.repair_places
        _check_layer_names(config, context.layers)
    first = next(iter(contexts.values()))  # the pictures are the same for every pair
    _check_metrics(config, first.datasets.values())
    check_apart(config.probe, first.probe.dataset.subset(first.probe.indices), first.datasets, roles(config))
    return contexts


def _check_batches(probe: Probe, team: Team) -> None:
    """Raise ConfigError for fewer batches of the probe than ranks that share them."""
    if len(probe.batches) < team.size:
        smaller = f"--batch-size {probe.n // team.size}, or fewer ranks" if probe.n >= team.size else "fewer ranks"
        raise ConfigError(
            f"split_units: each of {team.size} ranks needs a batch of the probe, and {probe.n} images in batches of "
            f"{probe.batch_size} make {len(probe.batches)}.\nRemedy: {smaller}."
        )


def _check_metrics(config: StudyConfig, datasets: Iterable[Dataset]) -> None:
    """Raise ConfigError for a metric that was asked for and has no meaning for any of the test sets."""
    sets = list(datasets)
    if "worst_group" in config.metrics and all(d.groups is None for d in sets):
        raise ConfigError("metrics: worst_group needs a test set with groups (fmow, waterbirds), and none has any.")
    if asked := [m for m in FRAME_METRICS if m in config.metrics and all(d.frames is None for d in sets)]:
        raise ConfigError(
            f"metrics: {asked[0]} needs a test set of video frames (imagenet-vid-robust, ytbb-robust), and none is one."
        )
    if "top5" in config.metrics and max(len(d.classes or d.target_names) for d in sets) <= 5:
        raise ConfigError("metrics: top5 needs a test set with more than five classes, and none has so many.")


def _check_layer_names(config: StudyConfig, layers: Sequence[Layer]) -> None:
    """Raise ConfigError for a name in ``density_layers`` or ``eigenvector_layers`` that no layer has."""
    known = [ALL, *(x.name for x in layers)]
    asked = [("density_layers", n) for n in config.density_layers]
    asked += [("eigenvector_layers", n) for n in config.eigenvector_layers]
    for key, name in asked:
        if name not in known:
            raise ConfigError(
                f"{key}: no layer '{shown(name)}' at granularity {config.granularity}.{did_you_mean(name, known)}"
            )
