"""The units of a protocol: one model each, trained where it has to be, and what it gets right on every set."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np

from sharpscope.clip.answering import answers
from sharpscope.clip.datasets.spec import load_dataset
from sharpscope.clip.evaluate import answered
from sharpscope.clip.model import ClipModel
from sharpscope.clip.pair import load_pair, pick_device
from sharpscope.config.protocol import ProtocolConfig
from sharpscope.finetuning.run import finetune
from sharpscope.scores import wilson
from sharpscope.study.unitfile import Unit, file_name
from sharpscope.vocabulary import ZERO_SHOT
from sharpscope.weights.theta import on_device

__all__ = ["Trial", "measured", "trials"]

_SEED_OF_ZERO_SHOT: Final = 0
"""The entry of the column ``seed`` for the zero-shot model, which depends on no seed."""


@dataclass(frozen=True)
class Trial:
    """One model of a protocol: tuned by a method or recipe on a set with some shots and a seed, or zero-shot.

    ``sets``: role -> the specs that it is evaluated on.
    """

    method: str
    dataset: str
    shots: int
    seed: int
    train: str | None
    sets: Mapping[str, tuple[str, ...]] = field(hash=False)

    @property
    def key(self) -> str:
        """The key of its unit in the run directory."""
        return f"{self.method}/{self.dataset}/shots-{self.shots}/seed-{self.seed}"


def trials(config: ProtocolConfig) -> list[Trial]:
    """Every model of the protocol; the zero-shot ones come first, the shots and seeds of a method together."""
    out = []
    for dataset in config.tuned_on:
        out.append(Trial(ZERO_SHOT, dataset, 0, _SEED_OF_ZERO_SHOT, None, _sets(config, dataset)))
    for method in config.tunings:
        for dataset in config.tuned_on:
            train = f"{dataset}#base" if config.protocol == "base-to-new" else dataset
            out += [
                Trial(method, dataset, shots, seed, train, _sets(config, dataset))
                for shots in config.shots
                for seed in config.seeds
            ]
    if config.protocol == "upgrade":  # the zero-shot models are evaluated beside each tuned one
        return [t for t in out if t.train is not None]
    return out


def _sets(config: ProtocolConfig, dataset: str) -> dict[str, tuple[str, ...]]:
    if config.protocol == "base-to-new":
        return {"base": (f"{dataset}#base",), "new": (f"{dataset}#new",)}
    if config.protocol == "cross-dataset":
        return {"source": (dataset,), "target": config.datasets}
    return {"test": (dataset,)}


def measured(config: ProtocolConfig, trial: Trial, folder: Path) -> Unit:
    """Train the model of ``trial`` (its files are kept below ``folder``) and evaluate it.

    Rows of the table ``protocol``, and the arrays ``ROLE:SPEC`` bool [n]: whether each image is recognised.
    """
    checkpoint = config.zeroshot if trial.train is None else str(_tuned(config, trial, folder))
    if config.protocol == "upgrade":
        hits = _on_both(config, trial, checkpoint)
    else:
        found = answered(
            checkpoint,
            config.model,
            list(dict.fromkeys(spec for specs in trial.sets.values() for spec in specs)),
            base=None if trial.train is None else config.zeroshot,
            templates=config.templates or None,
            data_root=config.data_root,
            batch_size=config.batch_size,
            device=config.device,
            limit=config.limit,
        )
        hits = {
            (role, spec): (found[spec].answers.correct, found[spec].note)
            for role, specs in trial.sets.items()
            for spec in specs
        }
    rows = [_row(config, trial, role, spec, one, note) for (role, spec), (one, note) in hits.items()]
    return Unit({"protocol": rows}, {f"{role}:{spec}": one for (role, spec), (one, _) in hits.items()})


def _tuned(config: ProtocolConfig, trial: Trial, folder: Path) -> Path:
    assert trial.train is not None
    tuned = finetune(
        config.zeroshot,
        trial.train,
        model=config.model,
        out=folder / file_name(trial.key),
        data_root=config.data_root,
        templates=_templates(config, trial.train),
        seed=trial.seed,
        device=config.device,
        precision=config.precision,  # type: ignore[arg-type]
        augment=config.augment,
        progress=False,
        shots=trial.shots,
        **config.way(trial.method, trial.shots),
        **config.hyperparameters,
    )
    assert tuned.path is not None
    return tuned.path


def _templates(config: ProtocolConfig, spec: str) -> tuple[str, ...] | None:
    """The prompts that the user gave, else the set's own (CoOp's, for its sets), else None: the model's."""
    if config.templates:
        return config.templates
    dataset = load_dataset(spec, model=ClipModel.load(config.model), split="train", data_root=config.data_root, limit=1)
    return dataset.templates


def _on_both(config: ProtocolConfig, trial: Trial, checkpoint: str) -> dict[tuple[str, str], tuple[np.ndarray, str]]:
    """(role, set) -> what the zero-shot and the tuned model get right, on the old backbone and on the upgraded one."""
    pair = load_pair(
        config.zeroshot,
        checkpoint,
        model=config.model,
        templates=_templates(config, trial.dataset),
        upgraded=config.upgraded,
        upgraded_model=config.upgraded_model,
    )
    assert pair.upgraded is not None and pair.upgraded_classifier is not None
    device = pick_device(config.device)
    ends = {
        "old_zeroshot": (pair.classifier, pair.theta_0),
        "old": (pair.classifier, pair.theta_1),
        "upgraded_zeroshot": (pair.upgraded_classifier, pair.upgraded[0]),
        "upgraded": (pair.upgraded_classifier, pair.upgraded[1]),
    }
    hits = {}
    for role, (classifier, theta) in ends.items():
        dataset = load_dataset(
            trial.dataset,
            model=classifier.model,
            data_root=config.data_root,
            classnames=classifier.classnames,
            by_name=True,
            limit=config.limit,
        )
        one = answers(classifier, on_device(theta, device), dataset, config.batch_size)
        hits[role, trial.dataset] = one.correct, ""
    return hits


def _row(config: ProtocolConfig, trial: Trial, role: str, spec: str, hits: np.ndarray, note: str) -> dict[str, Any]:
    low, high = wilson(int(hits.sum()), len(hits), config.level)
    return {
        "protocol": config.protocol,
        "method": trial.method,
        "dataset": trial.dataset,
        "shots": trial.shots,
        "seed": trial.seed,
        "role": role,
        "evaluated": spec,
        "metric": "top1",
        "estimate": float(hits.mean()),
        "ci_low": low,
        "ci_high": high,
        "n": len(hits),
        "note": note,
    }


def rows_of(units: Iterable[Unit]) -> list[dict[str, Any]]:
    """The rows of the table ``protocol``."""
    return [dict(row) for unit in units for row in unit.rows["protocol"]]
