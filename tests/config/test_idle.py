"""A setting of a study that changes nothing is refused; with what it needs, it is taken."""

from __future__ import annotations

from typing import Any

import pytest

from sharpscope.config import idle
from sharpscope.config.idle import changes_nothing, check_no_idle
from sharpscope.config.study import StudyConfig
from sharpscope.errors import ConfigError
from sharpscope.vocabulary import MEASURES

TRACES: dict[str, Any] = {"measures": ("hessian_trace",)}
NOISE: dict[str, Any] = {"measures": ("sharpness_avg_absolute",), "straggler_criterion": "rewind"}
WORST: dict[str, Any] = {"measures": ("sharpness_max",), "straggler_criterion": "rewind"}
CASES: list[tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = [
    ({"extrapolate": True}, {}, {"alphas": (0.0, 1.5)}),
    ({"curvature_alphas": (0.0,)}, {"measures": ()}, TRACES),
    ({"curvature_alphas": (0.0,)}, {"measures": ()}, {"measures": (), "density_layers": ("(all)",)}),
    ({"perturbation_alphas": (0.0,)}, TRACES, NOISE),
    ({"perturbation_size": 64}, TRACES, NOISE),
    ({"perturbation_size": 64}, {**WORST, "probe_size": 64}, {**WORST, "probe_size": 65}),
    ({"perturbation_size": None}, {**WORST, "probe_size": 256}, {**WORST, "probe_size": 257}),
    ({"perturbation_size": 500}, {**WORST, "probe_size": 256}, {**WORST, "probe_size": 257}),
    ({"noise_samples": 3}, TRACES, NOISE),
    ({"rho_avg": 0.3}, TRACES, NOISE),
    ({"pgd_steps": 3}, NOISE, {"measures": ("sharpness_max",)}),
    ({"rho_linf": 0.3}, {"measures": ("sharpness_max_l2",)}, {"measures": ("sharpness_max",)}),
    ({"rho_l2": 0.3}, {"measures": ("sharpness_max",)}, {"measures": ("sharpness_max_l2_absolute",)}),
    ({"rho_linf": 0.3}, {"measures": ("sharpness_max@0.1",)}, {"measures": ("sharpness_max", "sharpness_max@0.1")}),
    ({"rho_geodesic": 0.3}, {"measures": ("sharpness_max",)}, {"measures": ("sharpness_geodesic",)}),
    ({"normalize_logits": True}, TRACES, NOISE),
    ({"random_start": True}, NOISE, {"measures": ("sharpness_geodesic",)}),
    ({"eigen_method": "power"}, TRACES, {"measures": ("lambda_abs",)}),
    ({"products": "func"}, NOISE, {"measures": ("relative_flatness",)}),
    ({"products": "func"}, {"measures": ("gradient_norm",)}, {"measures": ("gradient_curvature",)}),
    ({"products": "func"}, NOISE, {**NOISE, "eigenvectors": 1}),
    ({"trace_method": "hutchinson"}, {"measures": ("lambda_max",)}, TRACES),
    ({"atol_share": 0.0}, {"measures": ("lambda_max",)}, TRACES),
    ({"atol_share": 0.0}, {"measures": ("relative_flatness",)}, {"measures": ("weighted_trace",)}),
    ({"atol_share": 0.0}, {**TRACES, "trace_method": "xtrace"}, {**TRACES, "trace_method": "controlled"}),
    ({"precision": "bf16"}, NOISE, TRACES),
    ({"precision": "bf16"}, NOISE, {**NOISE, "density_layers": ("(all)",)}),
    ({"targets": ("delta",)}, {"densities": ()}, {}),
    ({"selects": ("magnitude",)}, {"repair_alphas": ()}, {}),
    ({"masks": 3}, {"densities": ()}, {}),
    ({"repair_limit": 100}, {"repair_alphas": ()}, {}),
    ({"densities": (0.3,)}, {"repair_alphas": ()}, {}),
    ({"repair_alphas": (0.5,)}, {"densities": ()}, {}),
    ({"primary_measure": "lambda_max"}, TRACES, {"measures": ("hessian_trace", "lambda_max")}),
    ({"vrf_images": 64}, {"output_baselines": ("ose",)}, {"output_baselines": ("vrf",)}),
    ({"vrf_k": 2}, {}, {"output_baselines": ("ose", "vrf")}),
    ({"vrf_centre": 1.0}, {}, {"output_baselines": ("vrf",)}),
    ({"vrf_width": 1.0}, {}, {"output_baselines": ("vrf",)}),
    ({"ensembles": ("logits",)}, {"alphas": (-0.5, 1.5), "extrapolate": True}, {}),
    # each part of a rule that has several
    ({"extrapolate": True}, {}, {"alphas": (-0.5, 0.0, 1.0)}),
    ({"extrapolate": True}, {}, {"repair_alphas": (1.5,)}),
    ({"perturbation_alphas": (0.0,)}, TRACES, WORST),
    ({"noise_samples": 3}, WORST, NOISE),
    ({"normalize_logits": True}, TRACES, WORST),
    ({"products": "func"}, NOISE, {**NOISE, "density_layers": ("(all)",)}),
    ({"products": "func"}, NOISE, {"measures": ("lambda_max",)}),
    ({"trace_method": "hutchinson"}, {"measures": ("lambda_max",)}, {"measures": ("relative_flatness",)}),
    ({"precision": "bf16"}, NOISE, {**NOISE, "eigenvectors": 1}),
    ({"precision": "bf16"}, NOISE, {"measures": ("lambda_max",)}),
    ({"precision": "bf16"}, NOISE, {**NOISE, "measures": ("ggn_trace",)}),
    ({"ensembles": ("logits",)}, {"alphas": (-0.5, 1.5), "extrapolate": True}, {"alphas": (0.0, 1.0)}),
]


@pytest.mark.parametrize(("setting", "idle", "used"), CASES, ids=[f"{next(iter(c[0]))}" for c in CASES])
def test_a_setting_that_changes_nothing(setting: dict[str, Any], idle: dict[str, Any], used: dict[str, Any]) -> None:
    (name,) = setting
    assert changes_nothing(StudyConfig(**setting, **idle), name)
    assert not changes_nothing(StudyConfig(**setting, **used), name)
    check_no_idle(StudyConfig(**idle))  # its default is no setting
    check_no_idle(StudyConfig(**setting, **used))
    with pytest.raises(ConfigError, match=rf"^{name}: changes nothing in this study; it needs .*\n?Remedy: give that"):
        check_no_idle(StudyConfig(**setting, **idle))


def test_no_repair_may_be_said_twice() -> None:
    check_no_idle(StudyConfig(densities=(), repair_alphas=()))


def test_every_rule_has_a_case() -> None:
    assert {rule.setting for rule in idle._RULES} == {setting for case in CASES for setting in case[0]}


def test_every_measure_of_a_finite_radius_names_the_field_of_its_radius() -> None:
    fields = set(StudyConfig.__dataclass_fields__)
    finite = {m.name for m in MEASURES.values() if m.taken_at == "perturbation_alphas"}
    assert finite == {m.name for m in MEASURES.values() if m.radius is not None}
    assert {MEASURES[name].radius for name in finite} == {f for f in fields if f.startswith("rho_")}
