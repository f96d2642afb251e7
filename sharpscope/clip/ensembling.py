"""The step ``evaluate`` for the mixed outputs of two checkpoints, which may have different architectures."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Sequence
from itertools import product
from pathlib import Path as FilePath
from typing import Any, get_args

import pandas as pd
import torch
from torch import Tensor

from sharpscope.clip.accuracy import accuracy_rows, dataset_note, reported
from sharpscope.clip.answering import answers_of, logits
from sharpscope.clip.checkpoint_heads import CheckpointHeads, SetsByNames
from sharpscope.clip.datasets.names import read_classnames, read_lines
from sharpscope.clip.ensembles import ensemble
from sharpscope.clip.evaluate import COLUMNS, collection_means
from sharpscope.clip.model import ClipModel
from sharpscope.clip.pair import check_activation, pick_device, resolve_checkpoint
from sharpscope.clip.progress import Shown, bars_for
from sharpscope.clip.settings import check_templates
from sharpscope.clip.subjects import check_needed, checkpoint_labels, read_over
from sharpscope.config.collections import expand_specs
from sharpscope.config.specs import check_folders
from sharpscope.errors import ConfigError, PairMismatch, shown
from sharpscope.vocabulary import METRICS, ClassPosition, EnsembleKind, check_metrics, ensemble_variant
from sharpscope.weights import read_checkpoint

__all__ = ["evaluate_ensemble"]


def evaluate_ensemble(
    checkpoints: Sequence[str | FilePath],
    models: str | Sequence[str] = "ViT-B-32",
    specs: Sequence[str] = (),
    *,
    kinds: Sequence[EnsembleKind] = get_args(EnsembleKind),
    alphas: Sequence[float] = (0.0, 0.25, 0.5, 0.75, 1.0),
    metrics: Sequence[str] | None = None,
    head: str = "auto",
    classnames: str | FilePath | Sequence[str] | None = None,
    templates: str | FilePath | Sequence[str] | None = None,
    data_root: str | None = None,
    batch_size: int = 128,
    device: str = "auto",
    limit: int | None = None,
    level: float = 0.95,
    bootstrap: int = 1000,
    seed: int = 0,
    progress: Shown = False,
    base: str | FilePath | None = None,
    class_position: ClassPosition | None = None,
) -> pd.DataFrame:
    """Every metric of the mixed outputs of two checkpoints, also of two architectures, at every alpha: one table.

    The outputs are (1 - alpha) f_0 + alpha f_1 of the logits, or the same mean of the probabilities. At alpha 0 and 1
    they are those of one checkpoint, bit for bit. Each checkpoint sees the images as its own model prepares them.

    Args:
        checkpoints: two checkpoints, f_0 and f_1.
        models: the open_clip name or config JSON of both, or one for each.
        specs, metrics, head, classnames, templates, data_root, batch_size, device, limit, level, bootstrap, seed,
            progress, base, class_position: as for ``evaluate``.
        kinds: logits and probabilities, the outputs that are mixed.
        alphas: weights of the second checkpoint, in [0, 1].

    Returns:
        One row per (kind, alpha, data set, metric), in the columns of ``evaluate``; ``variant`` is ensemble:KIND, alpha
        is the weight of the second checkpoint's outputs.

    Raises:
        ConfigError: not two checkpoints, an unknown metric, model or head, or an alpha outside [0, 1].
        PairMismatch: heads whose classes are not the same, so that their logits cannot be added.
        CheckpointError, CorruptCheckpoint, UnsafeCheckpoint, DatasetError: as for ``evaluate``.

    Source: Wortsman et al. 2022 (arXiv 2109.01903), section C.8 and Table 13.
    """
    two = (models, models) if isinstance(models, str) else tuple(models)
    if len(checkpoints) != 2 or len(two) != 2:
        raise ConfigError(f"ensemble: mixes two checkpoints, got {len(checkpoints)} (and {len(two)} models).")
    if bad := [alpha for alpha in alphas if not 0 <= alpha <= 1]:
        raise ConfigError(f"alphas: {bad[0]} is outside [0, 1]; the outputs of two models are averaged there.")
    check_metrics(tuple(metrics or ()))
    if head == "stored":
        check_templates(templates)
    wanted, where, sets = (
        METRICS if metrics is None else metrics,
        pick_device(device),
        dict.fromkeys(expand_specs(specs)),
    )
    check_folders(sets, data_root)
    names = read_classnames(classnames, repeated=True) if isinstance(classnames, (str, FilePath)) else classnames
    prompts = read_lines(templates, "templates") if isinstance(templates, (str, FilePath)) else templates
    under = None if base is None else read_checkpoint(resolve_checkpoint(base))
    read = functools.partial(read_over, base=under, head_file=None)
    check_needed(checkpoints, read, base, None, class_position)
    sides = []
    for model, file in zip(two, checkpoints, strict=True):
        clip, weights = ClipModel.load(model), read(file)
        check_activation(clip, (weights,))
        heads = CheckpointHeads(
            clip, model, weights, head, tuple(names) if names else None, tuple(prompts or ()), where, class_position
        )
        sides.append((heads, SetsByNames(clip, {"data_root": data_root, "limit": limit, "seed": seed})))
    label = shown("+".join(checkpoint_labels(checkpoints, "evaluate --ensemble")))
    rows: dict[tuple[EnsembleKind, float], list[dict[str, Any]]] = {at: [] for at in product(kinds, alphas)}
    for spec in sets:
        outputs: list[tuple[Tensor, Tensor]] = []
        found = [heads.for_set(spec, data) for heads, data in sides]
        (_, _, dataset, _), (_, _, other, _) = found
        if not (dataset.classnames == other.classnames and torch.equal(dataset.labels, other.labels)):
            raise PairMismatch(
                f"ensemble: on {shown(spec)} the heads of {label} have other classes or another order, so that their "
                "outputs cannot be added.\nRemedy: --head zeroshot --classnames FILE, the same names for both."
            )
        for classifier, theta, images, _ in found:
            with contextlib.closing(bars_for(progress)(total=len(images), desc=f"{label} {spec}")) as bar:
                outputs.append(logits(classifier, theta, images, batch_size, where, progress=bar.update))
        for kind, alpha in rows:
            mixed = ensemble(kind, outputs[0][0], outputs[1][0], alpha)
            rows[kind, alpha] += accuracy_rows(
                label,
                alpha,
                ensemble_variant(kind),
                {spec: answers_of(mixed, outputs[0][1], dataset)},
                {spec: "test"},
                {spec: reported(dataset, wanted)},
                level=level,
                notes={spec: "; ".join(x for x in dict.fromkeys((dataset_note(dataset), *(f[3] for f in found))) if x)},
                bootstrap=bootstrap,
                seed=seed,
            )
    table = [row for own in rows.values() for row in own + collection_means(own, specs)]
    return pd.DataFrame(table).rename(columns={"pair": "checkpoint"})[list(COLUMNS)]
