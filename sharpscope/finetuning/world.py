"""Training of everything that ships with the embedded world: a zero-shot CLIP, ten fine-tunings, a better CLIP."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from sharpscope.clip.head import Classifier
from sharpscope.clip.model import ClipModel
from sharpscope.errors import ConfigError, did_you_mean, shown
from sharpscope.finetuning.examples import TensorExamples
from sharpscope.finetuning.fit import fit
from sharpscope.finetuning.method import Task
from sharpscope.finetuning.methods.wise_ft import WiseFT
from sharpscope.finetuning.pretrain import Pretraining, as_tensor, pretrain
from sharpscope.finetuning.recipes import published
from sharpscope.finetuning.trainer import Recipe
from sharpscope.layers import HEAD_WEIGHT, tower_of
from sharpscope.miniworld import world as miniworld
from sharpscope.weights.checkpoint import read_checkpoint, write_checkpoint
from sharpscope.weights.heads import head_metadata
from sharpscope.weights.theta import Theta, without_halves

__all__ = [
    "FINETUNED",
    "TEST_SIZE",
    "UPGRADED",
    "ZEROSHOT",
    "FineTuning",
    "accuracies",
    "classifier",
    "load",
    "train_world",
]

ZEROSHOT: Final = "zeroshot"
UPGRADED: Final = "upgraded"
TEST_SIZE: Final = 400
"""Number of test images per domain on which the accuracies in the world's manifest are measured."""
_ALPHAS: Final = (0.3, 0.5, 1.0)


@dataclass(frozen=True)
class FineTuning:
    """One shipped fine-tuning on photo: the recipe ``mini-world`` with its own rate and length."""

    lr: float
    n: int = 8192
    epochs: int = 5
    warmup: float = 0.015
    """The warm-up as a share of all steps."""
    seed: int = 0

    def recipe(self) -> WiseFT:
        changes = {"lr": self.lr, "epochs": self.epochs, "warmup": self.warmup}
        return WiseFT(**{**published("mini-world").settings, **changes})


FINETUNED: Final[dict[str, FineTuning]] = {
    "success": FineTuning(1e-3),
    "failure": FineTuning(7e-3),
    "small": FineTuning(1e-3, n=2048, warmup=0.1),
    "lr3e-4": FineTuning(3e-4),
    "lr2e-3": FineTuning(2e-3),
    "lr3.5e-3": FineTuning(3.5e-3),
    "lr5e-3": FineTuning(5e-3),
    "success-seed1": FineTuning(1e-3, seed=1),
    "failure-seed1": FineTuning(7e-3, seed=1),
    "short": FineTuning(1e-3, epochs=1),
}
"""Success and failure differ in the learning rate alone; the others are there for correlations across pairs."""

UPGRADE: Final = Pretraining(
    noise=0.05,
    confuse=0.3,
    recipe=Recipe(lr=5e-4, steps=900, warmup=40, betas=(0.9, 0.98), schedule="product", decay="matrices"),
)
"""How the upgraded backbone was made: the zero-shot model is trained on, with other images and cleaner captions. A
prompt or a task vector made on the old backbone may or may not survive this."""
_UPGRADE_SEED: Final = 1


def train_world(out: str | Path, only: Sequence[str] = ()) -> Path:
    """Train the checkpoints named in ``only`` (default: all) into the folder ``out``; returns its manifest's path.

    Fine-tunings start from ``out/zeroshot.safetensors``, the half-precision file itself, or from the packaged one when
    it is not there. The manifest keeps the entries of checkpoints that are not trained again. About 210 CPU-seconds for
    the zero-shot model, 90 for the upgraded one and 15 to 40 for each other. Raises ConfigError for an unknown name.
    """
    known = (ZEROSHOT, *FINETUNED, UPGRADED)
    for name in only:
        if name not in known:
            raise ConfigError(f"only: '{shown(name)}' is none of {', '.join(known)}.{did_you_mean(name, known)}")
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    model = ClipModel.load("mini")
    if not only or ZEROSHOT in only:
        _write(out / f"{ZEROSHOT}.safetensors", pretrain(model, progress=True).theta, {})
    base = out / f"{ZEROSHOT}.safetensors"
    theta_0 = load(model, base if base.exists() else miniworld.checkpoint_path(ZEROSHOT))
    entries: dict[str, Any] = {}
    for name in known:
        if only and name not in only:
            continue
        path, alphas = out / f"{name}.safetensors", (0.0,) if name == ZEROSHOT else _ALPHAS
        if name == UPGRADED:
            better = pretrain(model, UPGRADE, _UPGRADE_SEED, {n: theta_0[n] for n in model.shapes}, progress=True).theta
            _write(path, better, {})
            alphas = (1.0,)
        elif name != ZEROSHOT:
            _finetune(model, theta_0, FINETUNED[name], path)
        theta_1 = theta_0 if name == ZEROSHOT else {**theta_0, **load(model, path)}
        path_points = {f"{a:g}": accuracies(model, _between(theta_0, theta_1, a), miniworld.DOMAINS) for a in alphas}
        entries[name] = _facts(name, path) | {"accuracy": path_points}
    return _write_manifest(out / "manifest.json", entries, known)


def classifier(model: ClipModel) -> Classifier:
    """The world's classifier: a stored head without the logit scale baked in."""
    return Classifier(model, "stored", miniworld.CLASSES, miniworld.TEMPLATES)


def load(model: ClipModel, path: Path) -> Theta:
    """A shipped file as float32 theta, the zero-shot one together with its head."""
    theta = without_halves(read_checkpoint(path).tensors)
    return theta if HEAD_WEIGHT in theta else classifier(model).attach(theta)


@torch.no_grad()
def accuracies(model: ClipModel, theta: Mapping[str, Tensor], domains: Sequence[str]) -> dict[str, float]:
    """Top-1 accuracy of ``theta`` with its stored head on the first test images of each of ``domains``."""
    result, classify = {}, classifier(model)
    for domain in domains:
        sample = miniworld.make(domain, TEST_SIZE, miniworld.SEEDS["test"])
        predicted = classify.logits(theta, as_tensor(sample.images, model)).argmax(1)
        result[domain] = int((predicted == torch.from_numpy(sample.labels)).sum()) / TEST_SIZE
    return result


def _between(theta_0: Theta, theta_1: Theta, alpha: float) -> Theta:
    return {k: (1 - alpha) * theta_0[k] + alpha * theta_1[k] for k in theta_0}


def _finetune(model: ClipModel, theta_0: Theta, run: FineTuning, path: Path) -> None:
    sample = miniworld.make("photo", run.n, miniworld.SEEDS["train"])
    examples = TensorExamples(as_tensor(sample.images, model), torch.from_numpy(sample.labels))
    task = Task(model, theta_0, miniworld.CLASSES, miniworld.TEMPLATES, run.n, run.seed)
    theta = fit(run.recipe(), task, examples).theta
    head = head_metadata(scale_baked=False, classnames=miniworld.CLASSES)
    _write(path, {k: v for k, v in theta.items() if tower_of(k) == "image" or k == HEAD_WEIGHT}, head)


def _write(path: Path, theta: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    write_checkpoint(path, {k: v.half() for k, v in theta.items()}, metadata=metadata)


def _facts(name: str, path: Path) -> dict[str, Any]:
    data = path.read_bytes()
    pretraining = {ZEROSHOT: Pretraining(), UPGRADED: UPGRADE}
    recipe: Any = pretraining.get(name) or FINETUNED[name]
    facts = dataclasses.asdict(recipe)
    return {
        "file": path.name,
        "sha256": hashlib.sha256(data).hexdigest(),
        "bytes": len(data),
        "method": "contrastive pretraining" if name in pretraining else "wise_ft",
        "recipe": facts,
        "seed": facts.pop("seed", _UPGRADE_SEED if name == UPGRADED else 0),
        "torch": torch.__version__,
    }


def _write_manifest(path: Path, entries: Mapping[str, Any], order: Sequence[str]) -> Path:
    old = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    merged = {**old.get("checkpoints", {}), **entries}
    content = {
        "format": 1,
        "versions": {p: importlib.metadata.version(p) for p in ("torch", "open_clip_torch", "numpy")},
        "accuracy": {"metric": "top1", "split": "test", "seed": miniworld.SEEDS["test"], "n": TEST_SIZE},
        "checkpoints": {name: merged[name] for name in order if name in merged},
    }
    unfinished = path.with_suffix(".json.tmp")
    unfinished.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    os.replace(unfinished, path)
    return path
