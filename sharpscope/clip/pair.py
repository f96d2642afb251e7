"""Loaded pairs: two checkpoints, the model they belong to, the head that reads them, and the path between them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path as FilePath
from typing import Any, get_args

import torch
from torch import Tensor

from sharpscope.card import card
from sharpscope.clip.datasets.names import read_classnames, read_lines, same_names
from sharpscope.clip.head import Classifier
from sharpscope.clip.model import ClipModel, pretrained_tag
from sharpscope.clip.prompts import holds_prompts
from sharpscope.clip.settings import check_head_file, check_position, check_templates, unread_prompts
from sharpscope.clip.transplant import check_carried, prompted, reader_on, transplanted
from sharpscope.config.study import checkpoint_stem
from sharpscope.errors import CheckpointError, ConfigError, NoClassNames, PairMismatch, did_you_mean, shown
from sharpscope.layers import HEAD_BIAS, HEAD_WEIGHT, TOWERS, Layer, Tower, split_layers, tower_of
from sharpscope.machine.ranks import ranks
from sharpscope.miniworld import world as miniworld
from sharpscope.vocabulary import ClassPosition, Device, PathName
from sharpscope.weights.checkpoint import Checkpoint, Weights, checkpoint_of, read_checkpoint, with_head
from sharpscope.weights.choices import Fishers, chosen_path
from sharpscope.weights.compare import check_model
from sharpscope.weights.heads import CLASSNAMES
from sharpscope.weights.pair import Pair, alike_heads, check_pair
from sharpscope.weights.path import InterpolationPath
from sharpscope.weights.prompts import read_prompts
from sharpscope.weights.theta import HALF_TYPES, without_halves

__all__ = ["LoadedPair", "check_activation", "check_head_names", "load_pair", "pick_device", "resolve_checkpoint"]

CheckpointSource = str | FilePath | Weights
"""The forms in which a checkpoint can be given: a file, ``mini:NAME``, a hub or folder id, or weights in memory."""


@dataclass(frozen=True)
class LoadedPair:
    """Zero-shot and fine-tuned weights of one architecture, with the classifier that turns them into logits.

    Made by ``load_pair``. ``theta_0`` and ``theta_1``: name -> tensor, with ``head.*`` where the head mode has a head.
    ``parameters``: the names on which the logits depend; only these can belong to layers. ``facts``: what the files
    state, for the manifest. ``upgraded``: where an upgraded backbone was given, the two ends of the path that the same
    change or the same prompts give on it (``clip.transplant.transplanted``), which ``upgraded_classifier`` reads.
    """

    name: str
    model: ClipModel
    classifier: Classifier
    theta_0: dict[str, Tensor]
    theta_1: dict[str, Tensor]
    parameters: tuple[str, ...]
    facts: dict[str, Any] = field(default_factory=dict, repr=False)
    upgraded: tuple[dict[str, Tensor], dict[str, Tensor]] | None = field(default=None, repr=False)
    upgraded_classifier: Classifier | None = field(default=None, repr=False)
    head_made: bool = field(default=False, repr=False)

    def path(
        self,
        dtype: torch.dtype = torch.float32,
        *,
        extrapolate: bool = False,
        kind: PathName = "linear",
        density: float | None = None,
        seed: int = 0,
        fishers: Fishers | None = None,
    ) -> InterpolationPath:
        """A path from theta_0, computed lazily: alpha in [0, 1] (any number with ``extrapolate``) -> theta(alpha).

        Every path starts at theta_0 bit for bit. ``kind`` (``vocabulary.PATHS``; ``weights.choices.chosen_path``):

        - linear: ``(1 - alpha) * theta_0 + alpha * theta_1`` (Wortsman et al. 2022, arXiv 2109.01903), which ends at
          theta_1 bit for bit, as do fisher (Matena and Raffel 2022, arXiv 2111.09832: means weighted by ``fishers``,
          the diagonal Fisher information of theta_0 and theta_1) and random (each weight is theta_1's with probability
          alpha, drawn from ``seed``);
        - straight lines that end at an edit of theta_1: lines (Wang et al. 2024, arXiv 2410.17146: less change in
          shallow layers), ties (Yadav et al. 2023, arXiv 2306.01708: a fraction ``density`` of the largest changes),
          dare (Yu et al. 2024, arXiv 2311.03099: a random fraction ``density``, rescaled), monosoup
          (Abdollahpoorrostam et al. 2026, arXiv 2602.09689: singular directions of the change reweighted).

        ``dtype``: float32 or float64. ``density``: None for what the papers recommend, .2 for ties and .1 for dare.

        Raises ConfigError for an unknown kind, another dtype, a density that the kind does not have, and for fisher
        without ``fishers``; PairMismatch and NonFiniteWeights for Fisher information that does not fit.
        """
        straight = InterpolationPath(self.theta_0, self.theta_1, dtype, extrapolate, moving=self.moving)
        layers = self.layers() if kind == "lines" else ()
        return chosen_path(kind, straight, layers, density=density, seed=seed, fishers=fishers)

    def layers(self, granularity: str = "module") -> tuple[Layer, ...]:
        """The parameters on which the logits depend, grouped into layers in the order of the forward pass.

        ``granularity``: tensor | module | block. Raises ConfigError for another one.
        """
        return split_layers({n: self.theta_0[n].shape for n in self.parameters}, granularity)

    @property
    def moving(self) -> tuple[str, ...]:
        """The names of the ``parameters`` that differ between the two ends."""
        return tuple(n for n in self.parameters if not torch.equal(self.theta_0[n], self.theta_1[n]))

    def __repr__(self) -> str:
        count = sum(self.theta_0[n].numel() for n in self.moving)
        head = self.classifier.mode
        return f"LoadedPair({self.name!r}, {self.model.name!r}, head={head!r}, {count:,} moving parameters)"

    def _repr_html_(self) -> str:
        return card("Pair", _summary(self))


def load_pair(
    zeroshot: CheckpointSource,
    finetuned: CheckpointSource,
    *,
    model: str | ClipModel = "ViT-B-32",
    head: str = "auto",
    classnames: str | FilePath | Sequence[str] | None = None,
    templates: str | FilePath | Sequence[str] | None = None,
    name: str | None = None,
    upgraded: CheckpointSource | None = None,
    upgraded_model: str | ClipModel | None = None,
    head_file: str | FilePath | None = None,
    class_position: ClassPosition | None = None,
    device: torch.device | str | None = None,
    rough_head: bool = False,
) -> LoadedPair:
    """Load and check two checkpoints of one architecture; nothing in a file is executed, no input is modified.

    >>> pair = load_pair("mini:zeroshot", "mini:success", model="mini")
    >>> pair.name, pair.classifier.mode, [x.name for x in pair.layers("block")][:2]
    ('success', 'stored', ['visual.stem', 'visual.transformer.resblocks.0'])
    >>> pair.path().distance(0.0)[0]
    0.0

    Args:
        zeroshot, finetuned: files, ``mini:NAME`` of the embedded world, live modules, or named tensors.
        model: open_clip model name, path of an open_clip config JSON, ``mini``, or a ClipModel (for a live module, use
            ``ClipModel.from_module``).
        head: zeroshot | stored | text (see ``sharpscope.Classifier``); auto takes stored where the fine-tuned
            checkpoint has a head, else text where the text tower moves, else zeroshot.
        classnames: list, or file with one name per line; None: those in the checkpoint, else, for ``mini``, the
            embedded world's.
        templates: list, or file with one template per line, with ``{}`` for the class name; None: those that the
            fine-tuned file states, else the model's.
        name: the pair's name in tables; None: the fine-tuned file's stem.
        upgraded: better zero-shot weights, on which the pair's change is evaluated too.
        upgraded_model: the architecture of ``upgraded``; None: the pair's own. Learnt prompts need a text tower of the
            same width there, a head the same embedding, a change of a tower a tower with the same tensors.
        head_file: a separate file with a classification head (task_vectors), for each checkpoint without a head.
        class_position: where the class name stands in a file's learnt prompts, in CoOp's words: end | middle | front;
            None: end is assumed.
        device: where the prompts of a head made from text are encoded (None: the CPU); the pair stays on the CPU.
        rough_head: encode one prompt a class for such a head instead of all: other logits in a fraction of the time, to
            time what comes after it.

    Raises:
        CheckpointError, CorruptCheckpoint, UnsafeCheckpoint: a file that cannot be used.
        PairMismatch: keys, shapes or dtypes that do not fit each other or the model; a model with another activation
            than the file states; or weights that differ only where the logits do not depend on them.
        IdenticalPair: the two checkpoints are equal, so that there is nothing to interpolate.
        NonFiniteWeights: NaN or infinite weights, listed by key.
        ConfigError: an unknown model or head, a stored head that does not exist, no class names, or a setting that
            would change nothing (templates where no head is made from text, class_position without prompts).
    """
    clip = _model(model)
    first = _read(zeroshot, "zeroshot")
    second = _read_finetuned(finetuned, first, clip, classnames, head, class_position)
    check_position(class_position, second)
    ends = alike_heads(*_with_head_file((first, second), head_file, head))
    pair: Pair = check_pair(*ends, parameter_names=clip.parameter_names)
    stored = next((e.facts["head"] for e in reversed(ends) if e.facts.get("head")), None)
    mode = _head_mode(head, pair, clip)
    _check_model(pair, clip, ends, _needed(mode, pair, stored))
    check_activation(clip, ends)
    if classnames is not None and mode == "stored":
        check_head_names(ends, _given(classnames))
    classifier = Classifier(
        clip,
        mode,  # type: ignore[arg-type]
        _classnames(classnames, ends, clip.name),
        _templates(templates, ends),
        scale_baked=bool(mode == "stored" and stored and stored["scale_baked"]),
        normalize=not (mode == "stored" and stored and not stored["normalize"]),
        bias=HEAD_BIAS in pair.theta_1,
    )
    if mode == "stored" and HEAD_WEIGHT in pair.theta_0 and upgraded is None:
        check_templates(templates)
    zero, one, cast = without_halves(pair.theta_0), without_halves(pair.theta_1), _halves(pair.theta_0)
    made = classifier.makes_head([zero, one])
    head_0 = classifier.made_head(zero, device=device, one_template=rough_head) if made else None
    theta_0, theta_1 = classifier.attach(zero, head=head_0), classifier.attach(one, zero, head_0)
    names = tuple(
        n for n in classifier.reached(theta_0) if n != "logit_scale" or not torch.equal(theta_0[n], theta_1[n])
    )
    if all(torch.equal(theta_0[n], theta_1[n]) for n in names):
        raise PairMismatch(
            f"pair: the weights that differ are not among those that head '{mode}' uses, so that every point "
            "of the path gives the same logits.\nRemedy: another --head (text when the text tower was fine-tuned)."
        )
    moving = [n for n in names if not torch.equal(theta_0[n], theta_1[n])]
    facts = {
        "model": clip.name, "what moves": _what_moves(names, moving, theta_0),
        "head_only": _head_only(moving), "head": mode,
        "scale_baked": classifier.scale_baked, "classes": len(classifier.classnames),
        "zeroshot": _file_facts(ends[0]), "finetuned": _file_facts(ends[1]), "cast": cast,
        "assumed": [*(sentence for end in ends for sentence in end.assumptions), *unread_prompts(second, mode)],
        **({} if head_file is None else {"head_file": _head_digest(ends)}),
        **pair.facts,
    }  # fmt: skip
    better, reader = None, None
    if upgraded_model is not None and upgraded is None:
        raise ConfigError("upgraded_model: names the architecture of upgraded, and upgraded is missing.")
    if upgraded is not None:
        end = _read(upgraded, "upgraded")
        reader = classifier if upgraded_model is None else reader_on(_model(upgraded_model), classifier)
        there = reader.model
        check_model(end.tensors, there.shapes, there.name, source=end.source, require=("image", "text", "scale"))
        check_activation(there, (end,))
        facts["upgraded"] = _file_facts(end) | ({} if there is clip else {"model": there.name})
        prompts = read_prompts(resolve_checkpoint(finetuned)) if isinstance(finetuned, (str, FilePath)) else None
        if reader is not classifier and not prompts:
            check_carried(clip, reader, moving, theta_1, without_halves(end.tensors))
        better = transplanted(reader, theta_0, theta_1, without_halves(end.tensors), prompts, class_position)
    return LoadedPair(name or _stem(finetuned), clip, classifier, theta_0, theta_1, names, facts, better, reader, made)


def _model(model: str | ClipModel) -> ClipModel:
    return model if isinstance(model, ClipModel) else ClipModel.load(model)


def resolve_checkpoint(source: str | FilePath) -> str | FilePath:
    """What ``read_checkpoint`` opens for a checkpoint argument: ``mini:NAME`` is a file of the embedded world, all else
    (a path, a hub or folder id) stays as it is.

    Raises ConfigError for a checkpoint that the world does not have, and CheckpointError for one of open_clip's
    pretrained tags, with the hub id to pass instead.
    """
    if str(source).startswith("mini:"):
        return miniworld.checkpoint_path(str(source))
    if not FilePath(source).expanduser().exists() and (remedy := pretrained_tag(str(source))):
        raise CheckpointError(f"{shown(source, 200)}: no such file. {remedy}")
    return source


def _read(source: CheckpointSource, role: str, base: Checkpoint | None = None) -> Checkpoint:
    """The checkpoint of one end; a partial file (Dassl, adapters) is laid over ``base``."""
    if isinstance(source, Checkpoint):
        return source
    if isinstance(source, (str, FilePath)):
        return read_checkpoint(resolve_checkpoint(source), base=base)
    return checkpoint_of(source, f"<{role}>")


def _read_finetuned(
    source: CheckpointSource,
    first: Checkpoint,
    clip: ClipModel,
    classnames: str | FilePath | Sequence[str] | None,
    head: str,
    position: ClassPosition | None,
) -> Checkpoint:
    """The fine-tuned end. For a file of learnt prompts (CoOp), the head that they make of the class names is added.

    A head that such a file contains has the classes that the prompts were trained on. ``position``: where the class
    name stands in the prompts.
    """
    path = resolve_checkpoint(source) if isinstance(source, (str, FilePath)) else None
    try:
        second = _read(source, "finetuned", first)
    except CheckpointError:
        prompts = read_prompts(path, alone=True) if path is not None else {}
        if path is None or not prompts:
            raise
        return prompted(clip, first, prompts, path, _classnames(classnames, (first,), clip.name), position)
    told = second.facts.get("head")
    names = () if classnames is None else _given(classnames)
    ready = told is not None and (not names or (told["classnames"] and same_names(told["classnames"], names)))
    if path is None or ready or head not in ("auto", "stored") or not holds_prompts(second):
        return second
    names = names or tuple(_classnames(None, (first, second), clip.name))
    return prompted(clip, second, read_prompts(path), path, names, position)


def check_head_names(ends: Sequence[Checkpoint], given: Sequence[str]) -> None:
    """Raise PairMismatch where the user's class names are not the names that a checkpoint's head has, in its order.

    Otherwise every row of the head would silently be read as a different class.
    """
    for end in ends:
        told = (end.facts.get("head") or {}).get("classnames")
        if told and not same_names(told, given):
            some = ", ".join(shown(n, 30) for n in told[:3])
            raise PairMismatch(
                f"{shown(end.source, 200)}: the file names the {len(told)} classes of its head ({some} ...), and the "
                f"{len(given)} class names given are different or in a different order.\n"
                "Remedy: leave out --classnames, or use --head zeroshot for a head from the text tower."
            )


def _with_head_file(
    ends: tuple[Checkpoint, Checkpoint], path: str | FilePath | None, head: str
) -> tuple[Checkpoint, Checkpoint]:
    """``ends``, of which those without a head get the head in the file ``path``."""
    if path is None:
        return ends
    check_head_file(head)
    if all(e.facts.get("head") for e in ends):
        raise ConfigError(f"head_file: {shown(path)} is not needed: both checkpoints hold a head of their own.")
    first, second = (e if e.facts.get("head") else with_head(e, path) for e in ends)
    return first, second


def _head_digest(ends: tuple[Checkpoint, Checkpoint]) -> str:
    """The sha256 of the file that holds only the head."""
    return next(str(h["file_sha256"]) for e in ends if "file_sha256" in (h := e.facts["head"] or {}))


def _halves(theta: Mapping[str, Tensor]) -> dict[str, int]:
    """The number of tensors of each half-precision dtype that were cast to float32."""
    return {str(d).removeprefix("torch."): n for d in HALF_TYPES if (n := sum(t.dtype == d for t in theta.values()))}


def _needed(mode: str, pair: Pair, stored: Mapping[str, Any] | None) -> tuple[Tower, ...]:
    """The towers whose tensors must all exist; WiSE-FT files, for example, keep only parts of their text tower."""
    if mode == "stored":
        both = HEAD_WEIGHT in pair.theta_0 and HEAD_WEIGHT in pair.theta_1
        scale: tuple[Tower, ...] = () if stored and stored["scale_baked"] else ("scale",)
        return ("image", *scale) if both else ("image", "text", "scale")
    return ("image", "text", "scale")


def _check_model(pair: Pair, model: ClipModel, ends: tuple[Checkpoint, Checkpoint], needed: tuple[Tower, ...]) -> None:
    for theta, end in zip((pair.theta_0, pair.theta_1), ends, strict=True):
        body = {k: v for k, v in theta.items() if tower_of(k) != "head"}
        check_model(body, model.shapes, model.name, source=end.source, require=needed)


def check_activation(model: ClipModel, ends: tuple[Checkpoint, ...]) -> None:
    """Raise PairMismatch where a file states another activation (GELU, QuickGELU) than the model has.

    Names and shapes are the same with both, but the logits differ. A file that states no activation is accepted.
    """
    if not model.config:
        return
    asked = bool(model.config.get("quick_gelu", False))
    for end in ends:
        told = end.facts.get("quick_gelu")
        if told is not None and told != asked:
            this, other = ("QuickGELU", "GELU") if told else ("GELU", "QuickGELU")
            remedy = f"{model.name}-quickgelu" if told else model.name.removesuffix("-quickgelu")
            raise PairMismatch(
                f"{shown(end.source, 200)} was trained with {this}, but model '{shown(model.name)}' has {other}: names "
                f"and shapes are the same, but the logits differ.\nRemedy: --model {shown(remedy)}, or a config JSON "
                f'with "quick_gelu": {str(told).lower()}.'
            )


def _head_mode(head: str, pair: Pair, model: ClipModel) -> str:
    if head == "stored" and HEAD_WEIGHT not in pair.theta_1:
        raise ConfigError(
            "head: 'stored' was asked for, but the fine-tuned checkpoint has no head.weight.\n"
            "Remedy: --head zeroshot (head from theta_0's text tower) or --head text (rebuilt at every alpha)."
        )
    if head != "auto":
        return head
    if HEAD_WEIGHT in pair.theta_1:
        return "stored"
    return "text" if any(n in pair.moving for n in model.text_names) else "zeroshot"


def _classnames(given: str | FilePath | Sequence[str] | None, ends: Sequence[Checkpoint], model: str) -> Sequence[str]:
    if given is not None:
        return _given(given)
    for end in reversed(ends):
        if (head := end.facts.get("head")) and head.get("classnames"):
            return tuple(head["classnames"])
        if told := _told(end, CLASSNAMES):  # the names that a file without a head states for a head from its text tower
            return told
    if model == "mini":
        return miniworld.CLASSES
    if any(e.facts.get("head") for e in ends):  # its classes are in an order that only the head's maker knows
        raise ConfigError("classnames: they are needed to read the head (--classnames FILE, one class name per line).")
    raise NoClassNames(
        "classnames: they are needed to make the head from text (--classnames FILE, one class name per line)."
    )


def _given(classnames: str | FilePath | Sequence[str]) -> tuple[str, ...]:
    """The user's class names; two classes may have the same name, because the head's rows distinguish them."""
    if isinstance(classnames, (str, FilePath)):
        return read_classnames(classnames, repeated=True)
    return tuple(classnames)


def _templates(given: str | FilePath | Sequence[str] | None, ends: tuple[Checkpoint, ...]) -> Sequence[str] | None:
    """The given templates, else those with which the fine-tuned file states that its training began, else None."""
    if isinstance(given, (str, FilePath)):
        return read_lines(given, "templates")
    return given or _told(ends[1], "sharpscope.templates") or None


def _told(end: Checkpoint, key: str) -> tuple[str, ...]:
    """The texts in a file's metadata under ``key``; an empty tuple where there are none."""
    try:
        told = json.loads(end.facts.get("metadata", {}).get(key, "[]"))
    except (ValueError, RecursionError):
        return ()
    return tuple(told) if isinstance(told, list) and all(isinstance(name, str) for name in told) else ()


def _head_only(moving: Sequence[str]) -> bool:
    """Whether both ends have the same towers, so that the path mixes the logits of two heads."""
    return all(tower_of(n) == "head" for n in moving)


def _what_moves(names: Sequence[str], moving: Sequence[str], theta_0: Mapping[str, Tensor]) -> str:
    """A description of the parameters that differ between the two ends, with their kind, tower by tower."""
    if _head_only(moving):
        return "only the head: the towers are the same at both ends, and the path mixes the logits of the two heads"
    norms = {n for x in split_layers({n: theta_0[n].shape for n in names}) if x.kind == "norm" for n in x.params}
    said = []
    for tower in TOWERS:
        own = [n for n in moving if tower_of(n) == tower]
        kinds = {"norms" if n in norms else "biases" if n.endswith("bias") else "" for n in own}
        what = f" ({' and '.join(sorted(kinds))} only)" if "" not in kinds and tower in ("image", "text") else ""
        if own:
            said.append(f"{tower}: {len(own)} of {sum(tower_of(n) == tower for n in names)} tensors{what}")
    return "; ".join(said)


def _file_facts(end: Checkpoint) -> dict[str, Any]:
    told = {"source": FilePath(end.source).name, "sha256": end.sha256, "container": end.facts.get("container")}
    if tuned := _finetuning(end):
        told["finetuning"] = tuned
    return told | ({"prompts": True} if holds_prompts(end) else {})


def _finetuning(end: Checkpoint) -> dict[str, Any]:
    """What a file that ``sharpscope finetune`` wrote states about the fine-tuning; nothing for another file."""
    try:
        told = json.loads(end.facts.get("metadata", {}).get("sharpscope.finetuning", "{}"))
    except (ValueError, RecursionError):
        return {}
    return told if isinstance(told, dict) else {}


def _stem(source: CheckpointSource) -> str:
    return checkpoint_stem(source) if isinstance(source, (str, FilePath)) else "finetuned"


def _summary(pair: LoadedPair) -> dict[str, Any]:
    return {
        "pair": pair.name, "model": pair.model.name, "head": pair.classifier.mode,
        "classes": len(pair.classifier.classnames), "moving tensors": len(pair.moving),
        "zero-shot": pair.facts["zeroshot"]["source"], "fine-tuned": pair.facts["finetuned"]["source"],
    }  # fmt: skip


def pick_device(device: str) -> torch.device:
    """The device called cpu or cuda; auto is CUDA where it is available, else the CPU.

    Of several ranks on one host each has a GPU of its own, which becomes its current one; ranks beyond the number of
    GPUs begin again at the first. Raises ConfigError for another word, and for cuda where torch finds no GPU.
    """
    if device not in get_args(Device):
        known = get_args(Device)
        raise ConfigError(f"device: '{shown(device)}' is none of {', '.join(known)}.{did_you_mean(device, known)}")
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            "device: cuda was asked for, and torch finds no CUDA GPU on this machine.\n"
            "Remedy: --device cpu or auto; where there is a GPU, its driver and a torch that is built for CUDA."
        )
    if device == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    if not ranks().several:
        return torch.device("cuda")
    own = torch.device("cuda", ranks().local_rank % torch.cuda.device_count())
    torch.cuda.set_device(own)
    return own
