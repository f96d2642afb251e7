"""The help page of a command with many flags: examples first, then the flags in groups."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final

__all__ = ["STUDY_EXAMPLES", "STUDY_GROUPS", "grouped", "without_none"]

STUDY_GROUPS: Final[Mapping[str, tuple[str, ...]]] = {
    "what is analysed": (
        "zeroshot", "finetuned", "name", "out", "model", "head", "head_file", "upgraded", "upgraded_model", "plugin",
    ),
    "data": (
        "probe", "id", "ood", "data_root", "classnames", "class_position", "templates", "metrics", "limit",
        "probe_size", "batch_size",
    ),
    "the path": (
        "alphas", "extrapolate", "paths", "path_density", "agreement", "ensembles", "output_baselines", "vrf_images",
        "vrf_k", "vrf_centre", "vrf_width",
    ),
    "sharpness": (
        "measures", "granularity", "curvature_alphas", "perturbation_alphas", "perturbation_size", "rtol", "atol_share",
        "max_matvecs", "trace_method", "eigen_method", "products", "noise_samples", "pgd_steps", "rho_avg", "rho_linf",
        "rho_l2", "rho_geodesic", "normalize_logits", "random_start", "density_layers", "density_alphas",
        "eigenvectors", "eigenvector_layers", "eigenvector_alphas",
    ),
    "straggler layers and their repair": (
        "straggler_criterion", "straggler_rule", "layer_alphas", "criticality_noise", "densities", "targets", "selects",
        "masks", "repair_alphas", "repair_limit",
    ),
    "conclusions and report": (
        "primary_measure", "primary_alpha", "bootstrap", "level", "shipped_pairs", "title", "question", "caveat",
        "tags",
    ),
    "machine": (
        "device", "dtype", "precision", "seed", "jobs", "threads", "memory", "image_cache", "split_units", "shard",
        "slurm", "track",
    ),
}  # fmt: skip
"""Title -> the fields of a study in the order in which its help page shows them."""
STUDY_EXAMPLES: Final = """\
examples:
  sharpscope run --zeroshot ViT-B-32.pt --finetuned tuned.pt --model ViT-B-32 --probe imagenet@train \\
      --id imagenet --ood imagenet-shifts --data-root /data --out runs/tuned
  sharpscope run --zeroshot mini:zeroshot --finetuned mini:success --model mini --probe mini:photo --ood mini:sketch"""
_FLAG: Final = re.compile(r"^  (-h|--[\w-]+)")
_TITLE: Final = re.compile(r"^ \w[\w ]*$")


_NONE: Final = re.compile(r"\{None\}\|(?:\{(?P<several>\[.*?\])\}|(?P<one>\S+))|\{None,(?P<words>[^}]*)\}")


def without_none(page: str) -> str:
    """tyro's ``page`` without the word None among a flag's values: who wants the default leaves the flag away.

    >>> without_none("  --limit {None}|INT   Largest number.")
    '  --limit INT          Largest number.'
    """

    def told(found: re.Match[str]) -> str:
        values = found["several"] or found["one"] or f"{{{found['words']}}}"
        return values.ljust(len(found[0]))  # the texts behind it are a column

    return _NONE.sub(told, page)


def grouped(page: str, groups: Mapping[str, Sequence[str]], examples: str) -> str:
    """tyro's ``page`` with the ``examples`` behind its description and its flags in ``groups``, title -> fields.

    A flag that no group names stands at the end, under "other".
    """
    lines = page.splitlines()
    start = next(i for i, line in enumerate(lines) if line.strip() == "options")
    rule = lines[start + 1]
    blocks: dict[str, list[str]] = {}
    name = ""
    for line in lines[start + 2 :]:
        if found := _FLAG.match(line):
            name = found[1].lstrip("-").replace("-", "_")
        blocks.setdefault(name, []).append(line)
    placed = {field for fields in groups.values() for field in fields}
    out = [*lines[:start]]
    for title, fields in (*groups.items(), ("other", [n for n in blocks if n not in placed])):
        own = [line for field in fields for line in blocks.get(field, ())]
        if own:
            out += [f" {title}", rule, *(line.rstrip() for line in own), ""]
    first = next(i for i, line in enumerate(out) if _TITLE.match(line))
    return "\n".join([*out[:first], examples, "", *out[first:]]).rstrip()
