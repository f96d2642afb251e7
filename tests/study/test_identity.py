"""Which runs are the same run: what the identity of a run directory names, and what older ones mean."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sharpscope.config.study import PairConfig, StudyConfig
from sharpscope.machine.team import ALONE
from sharpscope.study.finished import opened
from sharpscope.study.manifest import identity_of
from sharpscope.study.store import RunDirectory
from sharpscope.vocabulary import __version__


def named(**settings: Any) -> dict[str, Any]:
    """The config in the identity of a study with these settings."""
    facts = {end: {"sha256": end} for end in ("zeroshot", "finetuned")}
    context = SimpleNamespace(pair=SimpleNamespace(facts=facts), device=torch.device("cpu"), team=ALONE)
    study = StudyConfig(pairs=(PairConfig("x", "a", "b"),), **settings)
    found: dict[str, Any] = identity_of(study, {"x": context})["config"]  # type: ignore[dict-item]
    return found


def test_a_run_that_does_not_name_the_share_gave_every_layer_its_own_tolerance() -> None:
    assert named()["atol_share"] == 0.001 and named(atol_share=0.01)["atol_share"] == 0.01
    assert "atol_share" not in named(atol_share=0.0)


@pytest.mark.parametrize("more", [{"measures": ("lambda_max",)}, {"trace_method": "xtrace"}])
def test_what_changes_no_number_of_the_study_is_no_part_of_its_identity(more: dict[str, Any]) -> None:
    assert named(**more) == named(**more, atol_share=0.0) and "atol_share" not in named(**more)
    assert named(**more) == named(**more, vrf_k=3) != named(**more, seed=1)
    assert named(**more, output_baselines=("vrf",))["vrf_k"] is None


def test_finite_radii_are_named_by_their_alphas_and_all_alphas_as_by_older_runs() -> None:
    rises = {"measures": ("sharpness_max",)}
    assert named(**rises)["perturbation_alphas"] == [0.0, 0.5, 1.0]
    assert named(**rises) == named(**rises, perturbation_alphas=(0.0, 0.5, 1.0))
    assert named(**rises, perturbation_alphas=StudyConfig.alphas)["perturbation_alphas"] is None
    assert named(**rises, alphas=(0.0, 0.3, 1.0))["perturbation_alphas"] is None
    assert named(measures=("hessian_trace",))["perturbation_alphas"] is None


def test_the_size_of_the_finite_radii_counts_where_it_leaves_images_out() -> None:
    rises = {"measures": ("sharpness_max",), "probe_size": 1024}
    assert named(**rises)["perturbation_size"] == 256
    assert "perturbation_size" not in named(**rises, perturbation_size=None)  # as in older runs, which took all
    few = rises | {"probe_size": 64}
    assert named(**few) == named(**few, perturbation_size=None) != named(**few, perturbation_size=32)


def test_the_config_of_an_older_directory_is_read_with_the_default_of_its_time(tmp_path: Path) -> None:
    identity = {"sharpscope": __version__, "config": named(atol_share=0.0)}
    config = StudyConfig(atol_share=0.0).to_dict()
    del config["atol_share"]
    RunDirectory.open(tmp_path / "run", identity, {"config": config, "layers": {}})
    assert opened(tmp_path / "run")[1].config.atol_share == 0.0
