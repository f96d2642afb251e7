"""The study that ``sharpscope demo`` runs on the embedded world."""

from __future__ import annotations

from sharpscope.config.study import PairConfig, StudyConfig
from sharpscope.miniworld import world as miniworld

__all__ = ["DEMO_CAVEAT", "demo_config", "mini_ood"]

DEMO_CAVEAT = (
    "The embedded world is designed, so that interpolation helps here and hurts there: nothing in it is evidence about "
    "CLIP."
)
"""Printed before everything else that the demo says."""


def mini_ood() -> tuple[str, ...]:
    """Every OOD domain of the embedded world, in its two groups."""
    return tuple(f"{group}=mini:{name}" for group, names in miniworld.OOD_GROUPS.items() for name in names)


def demo_config(seed: int = 0) -> StudyConfig:
    """The study of the embedded world's success and failure pairs; it takes about three minutes on two cores."""
    return StudyConfig(
        pairs=tuple(PairConfig(name, "mini:zeroshot", f"mini:{name}") for name in ("success", "failure")),
        model="mini",
        probe="mini:photo",
        id=("mini:photo",),
        ood=mini_ood(),
        alphas=(0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0),
        seed=seed,
        probe_size=48,
        batch_size=48,
        limit=320,
        rtol=0.2,
        max_matvecs=8,
        noise_samples=2,
        perturbation_alphas=(0.5,),
        pgd_steps=5,
        layer_alphas=(0.0, 0.5, 1.0),
        criticality_noise=(0.5, 1.0),
        repair_alphas=(0.5,),
        repair_limit=160,
        bootstrap=500,
        shipped_pairs=True,
        threads=1,
        title="sharpscope on the embedded world",
        question=(
            "Two fine-tuned models with the same ID accuracy: can sharpness on ID data tell which of them "
            "may be interpolated?"
        ),
        caveat=DEMO_CAVEAT,
    )
