"""The registry of measures: what a measure's row says of it is true, and one of a user's own is like any other."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from importlib import import_module
from typing import Any, get_args

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from sharpscope.curvature import hvp
from sharpscope.curvature.measures import own
from sharpscope.curvature.measures.own import LayerAt, LayerValue, register_measure
from sharpscope.curvature.measures.registry import measure_layers
from sharpscope.curvature.measures.rows import MeasureSettings
from sharpscope.errors import ConfigError, NumericalError
from sharpscope.findings.sharpness import OTHERS, STRAGGLERS, sharpness_cube
from sharpscope.layers import Layer, split_layers
from sharpscope.vocabulary import MEASURES, AddsUp, Measure, Origin, budget_of, from_outside


class Quartic:
    """sum_l c_l sum(w_l^2) / 2 + sum(w_l^4) / 12: the layers' Hessian blocks are diagonal, c_l + w^2, and apart."""

    weights = (0.25, 0.75)

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.theta = {n: torch.randn(k, generator=generator, dtype=torch.float64) for n, k in SIZES.items()}

    def batch_loss(self, i: int, theta: Mapping[str, Tensor]) -> Tensor:
        total = torch.zeros((), dtype=torch.float64)
        for k, name in enumerate(SIZES):
            w = theta[name]
            total = total + (k - 1) * w.square().sum() / 2 + w.pow(4).sum() / 12
        return total


SIZES = {"a.weight": 3, "b.weight": 5, "c.weight": 2}


def layers() -> tuple[Layer, ...]:
    return split_layers({n: (k,) for n, k in SIZES.items()}, "module")


@pytest.fixture
def one_of_my_own() -> Iterator[list[str]]:
    """Names to register in a test; they are forgotten afterwards."""
    before = set(MEASURES)
    with from_outside(Origin("test", "1"), "test"):
        yield []
        for name in set(MEASURES) - before:
            MEASURES.remove(name)
            del own._FUNCTIONS[name]


# -- what a row says ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", MEASURES)
def test_every_measure_has_a_family_that_takes_it_and_a_known_rule(name: str) -> None:
    measure = MEASURES[name]
    assert callable(import_module(f"sharpscope.curvature.measures.{measure.family}").take)
    assert measure.adds_up in get_args(AddsUp) and measure.text and measure.name == name


def test_every_measure_gives_a_row_for_every_layer_and_only_what_was_asked_for() -> None:
    net = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)).double()
    data = torch.randn(6, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    class Objective:
        weights = (1.0,)

        def batch_logits(self, i: int, theta: Mapping[str, Tensor]) -> Tensor:
            return torch.func.functional_call(net, dict(theta), (data,))

        def batch_labels(self, i: int) -> Tensor:
            return torch.arange(6) % 2

        def batch_loss(self, i: int, theta: Mapping[str, Tensor]) -> Tensor:
            return nn.functional.cross_entropy(self.batch_logits(i, theta), self.batch_labels(i))

    theta = {n: p.detach() for n, p in net.named_parameters()}
    parts = split_layers({n: t.shape for n, t in theta.items()}, "module")
    few = MeasureSettings(max_matvecs=4, pgd_steps=2, noise_samples=2)
    rows = measure_layers(Objective(), theta, parts, tuple(MEASURES), few).rows
    assert [(r["measure"], r["layer"]) for r in rows] == [(m, x) for m in MEASURES for x in ("(all)", "0", "2")]
    for name in MEASURES:
        alone = measure_layers(Objective(), theta, parts, (name,), few).rows
        assert [r["measure"] for r in alone] == [name] * 3
        for row in alone:
            meaningful = math.isfinite(row["estimate"])
            assert math.isfinite(row["per_param"]) == (meaningful and MEASURES[name].per_param), name
            assert math.isfinite(row["share"]) <= MEASURES[name].share, name


def test_a_family_that_leaves_a_gap_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own, "take", lambda point, measures, table: None)
    with from_outside(Origin("test", "1"), "test"):
        MEASURES.add(Measure("forgotten", "nobody takes it", "own", "sum", "product"))
        try:
            with pytest.raises(NumericalError, match=r"'own' gave no row for forgotten of \(all\), a, b"):
                measure_layers(Quartic(), Quartic().theta, layers(), ("forgotten",))
        finally:
            MEASURES.remove("forgotten")


# -- how layers add up -------------------------------------------------------------------------------------------------
def cube_of(measure: str, values: Mapping[str, float]) -> dict[str, float]:
    """Group -> value of a table where layers a and b are stragglers."""
    rows = [
        {"pair": "p", "alpha": 0.5, "layer": n, "measure": measure, "estimate": v, "share": v, "status": "ok"}
        for n, v in {**values, "(all)": 10.0}.items()
    ]
    cube = sharpness_cube(pd.DataFrame(rows), ["p"], [0.5], {"p": ("a", "b")})
    return {n: float(cube.values[0, i, 0, 0]) for i, n in enumerate(cube.layers)}


@pytest.mark.parametrize(
    ("measure", "together"),
    [
        ("hessian_trace", -1.0),
        ("sharpness_avg", -1.0),
        ("lambda_max", 2.0),
        ("sharpness_max_l2", 2.0),
        ("lambda_min", -3.0),
        ("lambda_abs", -3.0),
        ("gradient_norm", math.sqrt(13)),
        ("gradient_curvature", math.nan),
        ("gradient_alignment", math.nan),
    ],
)
def test_groups_of_layers_add_up_by_the_measure_s_own_rule(measure: str, together: float) -> None:
    found = cube_of(measure, {"a": 2.0, "b": -3.0, "c": 7.0})
    assert found[STRAGGLERS] == pytest.approx(together, nan_ok=True)
    assert found[OTHERS] == pytest.approx(math.nan if math.isnan(together) else 7.0, nan_ok=True)


def test_the_rules_are_those_of_a_block_diagonal_hessian() -> None:
    """Where the layers do not see each other the whole model's value is known from theirs: the rule must give it."""
    measures = ("hessian_trace", "weighted_trace", "lambda_max", "lambda_min", "lambda_abs", "gradient_norm")
    work = Quartic()
    how = MeasureSettings(rtol=1e-9, max_matvecs=200)
    rows = measure_layers(work, work.theta, layers(), measures, how).rows
    values = {(r["measure"], r["layer"]): r["estimate"] for r in rows}
    for measure in measures:
        of_layers = {x.name: values[measure, x.name] for x in layers()}
        cube = cube_of(measure, of_layers)
        # the group of all three, made of the two groups that the cube has
        pieces = np.array([cube[STRAGGLERS], cube[OTHERS]])
        whole = {
            "sum": pieces.sum(),
            "norm": np.hypot(*pieces),
            "max": pieces.max(),
            "min": pieces.min(),
            "magnitude": pieces[np.abs(pieces).argmax()],
        }[MEASURES[measure].adds_up]
        assert whole == pytest.approx(values[measure, "(all)"], rel=1e-6), measure


def test_a_measure_that_nobody_knows_has_no_rule() -> None:
    with pytest.raises(ConfigError, match="sharpness table: unknown measure 'frobenius'"):
        cube_of("frobenius", {"a": 1.0, "b": 2.0, "c": 3.0})


# -- one's own ---------------------------------------------------------------------------------------------------------
def test_a_measure_of_one_s_own_sees_the_layer_as_it_is(one_of_my_own: list[str]) -> None:
    seen: dict[str, LayerAt] = {}

    @register_measure("my_norm", "norm of the layer's gradient", adds_up="none", share=False)
    def my_norm(layer: LayerAt) -> float:
        seen[layer.name] = layer
        return float(layer.gradient.norm())

    work = Quartic()
    rows = measure_layers(work, work.theta, layers(), ("my_norm",), key=("pair", 0.5)).rows
    for row in rows:
        layer = seen[row["layer"]]
        names = list(SIZES) if row["layer"] == "(all)" else [f"{row['layer']}.weight"]
        w = torch.cat([work.theta[n] for n in names])
        c = torch.cat([torch.full((SIZES[n],), float(list(SIZES).index(n) - 1), dtype=torch.float64) for n in names])
        assert torch.equal(layer.weights, w)
        assert torch.allclose(layer.gradient, c * w + w**3 / 3)
        assert torch.allclose(layer.operator.matmat(torch.eye(len(w), dtype=torch.float64)), torch.diag(c + w**2))
        change = torch.linspace(-1, 1, len(w), dtype=torch.float64)
        rise = (c * (w + change) ** 2 / 2 + (w + change) ** 4 / 12 - c * w**2 / 2 - w**4 / 12).sum()
        assert layer.loss(change) - layer.loss(torch.zeros_like(change)) == pytest.approx(float(rise), rel=1e-10)
        assert row["estimate"] == pytest.approx(float((c * w + w**3 / 3).norm()))
        assert row["status"] == "ok" and math.isnan(row["share"]) and row["per_param"] == row["estimate"] / len(w)
        assert row["seed"] == layer.seed
    assert len({layer.seed for layer in seen.values()}) == len(seen)


def test_what_a_measure_of_one_s_own_says_of_its_error_is_kept(one_of_my_own: list[str]) -> None:
    @register_measure("rough", "a value with its error", adds_up="sum")
    def rough(layer: LayerAt) -> LayerValue:
        if layer.name == "b":
            raise NumericalError("this layer has none")
        return LayerValue(2.0, stderr=0.5, converged=False, num_matvecs=3)

    rows = {r["layer"]: r for r in measure_layers(Quartic(), Quartic().theta, layers(), ("rough",)).rows}
    assert (rows["a"]["stderr"], rows["a"]["num_matvecs"], rows["a"]["status"]) == (0.5, 3, "not_converged")
    assert rows["b"]["status"] == "failed" and rows["b"]["note"] == "this layer has none"


@pytest.mark.parametrize("measure", ["hessian_trace", "weighted_trace", "lambda_max", "sharpness_avg"])
def test_the_setting_that_a_note_names_makes_the_estimate_converge(measure: str) -> None:
    few = MeasureSettings(rtol=0.1, atol_share=0.0, max_matvecs=1, noise_samples=2, trace_method="hutchinson")

    def rows(settings: MeasureSettings) -> list[dict[str, Any]]:
        return measure_layers(Quartic(), Quartic().theta, layers(), (measure,), settings).rows

    flag = budget_of(measure)
    before = [row for row in rows(few) if row["status"] == "not_converged"]
    assert before and all(f"raise {flag} to go on" in row["note"] for row in before)
    more = replace(few, **{flag.removeprefix("--").replace("-", "_"): 4000})
    assert all(row["status"] == "ok" and flag not in row["note"] for row in rows(more))


def test_measures_of_one_s_own_share_one_engine(one_of_my_own: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    built = []

    class Counted(hvp.HessianEngine):
        def __init__(self, *args: object, **kwargs: object) -> None:
            built.append(self)
            super().__init__(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(own, "engine_for", lambda products: Counted)
    for name in ("first", "second"):
        register_measure(name, "one", adds_up="sum")(lambda layer: 1.0)
    measure_layers(Quartic(), Quartic().theta, layers(), ("second", "first"))
    assert len(built) == 1


def test_a_rule_that_nobody_knows_is_refused() -> None:
    with pytest.raises(ConfigError, match="measure 'x': adds_up 'summ' is none of .* Did you mean 'sum'"):
        register_measure("x", "x", adds_up="summ")(lambda layer: 1.0)  # type: ignore[arg-type]
    assert "x" not in MEASURES


@pytest.mark.parametrize("name", ["lambda_max", "two words", "a:b", ""])
def test_a_name_that_is_taken_or_that_no_flag_could_carry_is_refused(name: str) -> None:
    with pytest.raises(ConfigError):
        register_measure(name, "x", adds_up="sum")(lambda layer: 1.0)
