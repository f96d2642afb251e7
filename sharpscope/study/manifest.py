"""What a run directory records about itself: the identity, which determines its numbers, and the manifest."""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import json
import os
import platform
from collections.abc import Iterable, Mapping
from importlib import metadata
from typing import Any

import torch

from sharpscope.clip.datasets.images import REMEMBERED
from sharpscope.config.idle import changes_nothing
from sharpscope.config.specs import LAYOUTS, read_spec
from sharpscope.config.spellings import EARLIER_DEFAULTS
from sharpscope.config.study import VRF_FIELDS, StudyConfig
from sharpscope.curvature.arithmetic import precision_error
from sharpscope.curvature.draws import DRAWS
from sharpscope.machine.devices import name_of
from sharpscope.study.context import Context
from sharpscope.study.tasks import perturbation_alphas
from sharpscope.study.workers import threads_of
from sharpscope.vocabulary import ALL, CRITERIA, MEASURES, Words, __version__

__all__ = ["contents_of", "identity_of", "manifest_of"]
_NOT_NUMBERS = ("jobs", "memory", "image_cache", "title", "question", "caveat", "tags")
"""Fields of the config that change no number; a run directory may be resumed with other values of them."""
_LATER: Mapping[str, Any] = {
    name: getattr(StudyConfig, name)
    for name in (
        "paths", "path_density", "class_position", "upgraded_model", "agreement", "ensembles", "eigenvectors",
        "eigenvector_layers", "eigenvector_alphas", "rho_geodesic", "normalize_logits", "random_start", "eigen_method",
        "products", "primary_measure", "primary_alpha", "masks", "repair_limit", "curvature_alphas", "split_units",
    )
} | EARLIER_DEFAULTS  # fmt: skip
"""Fields that were added later -> the value that describes older runs. A field with this value is no part of the
identity, so that an older run can still be resumed."""
_WHERE_USED = (*VRF_FIELDS, *EARLIER_DEFAULTS)
"""Fields that are part of the identity only where they have an effect, because older runs lack them or had another
default."""


def identity_of(config: StudyConfig, contexts: Mapping[str, Context]) -> dict[str, Any]:
    numbers = {k: v for k, v in config.to_dict().items() if k not in _NOT_NUMBERS}
    same = [name for name, before in _LATER.items() if getattr(config, name) == before]
    if changes_nothing(config, "perturbation_alphas") or perturbation_alphas(config) == config.measured_alphas:
        numbers["perturbation_alphas"] = None  # as in runs from when that meant all
    else:
        numbers["perturbation_alphas"] = list(perturbation_alphas(config))
    for name in {*same, *(name for name in _WHERE_USED if changes_nothing(config, name))}:
        del numbers[name]
    inputs = {n: _hashes(c.pair.facts) for n, c in contexts.items()}
    versions = {"sharpscope": __version__, "torch": torch.__version__, "draws": DRAWS}
    identity = {"config": numbers, "inputs": inputs, **versions}
    first = next(iter(contexts.values()))
    outside, device = _from_outside(config), name_of(first.device)
    ranks = {"ranks": first.team.size} if config.split_units else {}  # the sums of others differ in the last bits
    # Bits differ between devices, and "auto" may mean any. What changes nothing is left out, so that a run from before
    # these facts were kept stays the same run.
    return (
        identity
        | ({"from_outside": outside} if outside else {})
        | ({"device": device} if device != "cpu" else {})
        | ranks
    )


def contents_of(contexts: Mapping[str, Context]) -> dict[str, Any]:
    """Digests of what the config only names: the architecture, the class names and prompts, and every data set.

    A file of templates that was edited, or a folder in which images moved from one class to another, is another
    experiment under the same flags. Of each set all labels and ``REMEMBERED`` pictures are looked at.
    """
    found: dict[str, Any] = {}
    for name, c in contexts.items():
        head, model = c.pair.classifier, c.pair.model
        examples = c.probe.dataset.subset(c.probe.indices)
        found[name] = {
            "model": _digest(model.config),
            "classnames": _digest(head.classnames), "templates": _digest(head.templates),
            "probe": examples.fingerprint(REMEMBERED),
            "data": {spec: dataset.fingerprint(REMEMBERED) for spec, dataset in c.datasets.items()},
        }  # fmt: skip
    return found


def _digest(value: Any) -> str:
    return hashlib.blake2b(json.dumps(value, sort_keys=True, default=str).encode(), digest_size=16).hexdigest()


def _from_outside(config: StudyConfig) -> dict[str, dict[str, list[str]]]:
    """Origins of the code behind every name of this study that is not the package's own: kind -> name -> origin."""
    kinds = {read_spec(spec).kind for spec in (config.probe, *config.id, *config.ood_groups)}
    used: list[tuple[Words[Any], Iterable[str]]] = [
        (MEASURES, config.measures), (CRITERIA, CRITERIA), (LAYOUTS, kinds),
    ]  # fmt: skip
    origins = {
        words.kind: {n: [origin.source, origin.version] for n in sorted(names) if (origin := words.origins.get(n))}
        for words, names in used
    }
    return {kind: found for kind, found in origins.items() if found}


def _hashes(pair: Mapping[str, Any]) -> list[str]:
    """The sha256 of every file that makes up a pair."""
    return [
        *(pair[end]["sha256"] for end in ("zeroshot", "finetuned", "upgraded") if end in pair),
        *([pair["head_file"]] if "head_file" in pair else []),
    ]


def manifest_of(config: StudyConfig, contexts: Mapping[str, Context]) -> dict[str, Any]:
    packages = ("open_clip_torch", "numpy", "scipy", "pandas")
    return {
        "config": config.to_dict(),
        "alpha_on": "finetuned",
        "words": {
            words.kind: {
                n: {"word": dataclasses.asdict(words[n]), "origin": dataclasses.asdict(words.origins[n])}
                for n in names if n in words.origins
            }
            for words, names in ((MEASURES, config.measures), (CRITERIA, CRITERIA))
        },
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
            "sharpscope": __version__, "python": platform.python_version(), "torch": torch.__version__,
            **{p: metadata.version(p) for p in packages},
        },
        "hardware": {
            "machine": platform.machine(), "system": platform.system(), "cores": os.cpu_count(),
            "device": name_of(next(iter(contexts.values())).device),
        },
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }  # fmt: skip


def _precision(config: StudyConfig, contexts: Mapping[str, Context]) -> dict[str, Any]:
    """The error against full precision of one Hessian-vector product of every layer, in the middle of the path."""
    alpha = config.alphas[len(config.alphas) // 2]
    errors = {}
    for name, c in contexts.items():
        blocks = {ALL: [n for x in c.layers for n in x.params]} | {x.name: x.params for x in c.layers}
        errors[name] = precision_error(
            c.probe, c.theta(alpha), blocks, config.precision, seed=config.seed, memory=c.settings.memory
        )
    return {"kind": config.precision, "alpha": alpha, "hvp_error": errors}
