"""Made-up tables of realistic size and shape: two pairs, 22 layers, 11 alphas, 9 measures, 12 repairs."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
import pytest

from sharpscope.config.study import DEFAULT_MEASURES
from sharpscope.tables.schema import COLUMNS
from sharpscope.vocabulary import AGREEMENT, ALL, DENSE

LAYERS = (
    "visual.conv1",
    "visual.embed",
    "visual.ln_pre",
    *(f"visual.transformer.resblocks.{b}.{part}" for b in range(4) for part in ("ln_1", "attn", "ln_2", "mlp")),
    "visual.ln_post",
    "visual.proj",
    "head",
)
ALPHAS = tuple(round(0.1 * i, 1) for i in range(11))
OOD = ("clipart", "painting", "sketch", "quickdraw", "neon", "photo-dark", "photo-noise", "photo-tilt", "photo-clutter")
CURVES = {
    "success": {
        "photo": (56.5, 66.1, 70.4, 74.2, 77.9, 80.7, 83.6, 85.8, 87.7, 89.0, 89.8),
        "clipart": (61.3, 75.0, 79.5, 82.0, 83.1, 84.2, 85.1, 85.9, 85.7, 85.3, 84.6),
        "painting": (41.4, 47.2, 50.0, 52.0, 53.8, 54.7, 55.7, 56.1, 56.3, 55.8, 55.2),
        "sketch": (50.0, 55.6, 55.4, 54.6, 52.8, 50.6, 47.5, 44.4, 41.6, 38.6, 35.6),
        "quickdraw": (32.6, 35.1, 35.3, 34.8, 33.6, 32.2, 30.8, 28.9, 27.3, 25.7, 24.0),
        "neon": (44.6, 44.3, 42.1, 38.9, 36.0, 32.6, 28.6, 24.7, 22.0, 19.1, 17.2),
        "photo-dark": (24.4, 31.4, 36.9, 41.6, 46.6, 53.7, 59.8, 62.9, 66.8, 68.0, 68.7),
        "photo-noise": (42.1, 51.0, 55.3, 59.3, 61.8, 65.2, 67.0, 69.2, 70.3, 70.8, 71.6),
        "photo-tilt": (38.2, 42.9, 45.7, 48.6, 51.4, 53.6, 56.0, 58.2, 59.4, 60.6, 61.4),
        "photo-clutter": (41.4, 50.2, 54.6, 59.4, 64.1, 67.8, 70.7, 73.1, 75.1, 76.0, 77.2),
    },
    "failure": {
        "photo": (56.5, 62.3, 61.4, 65.0, 70.9, 77.3, 83.1, 86.3, 88.5, 89.5, 89.7),
        "clipart": (61.3, 69.8, 66.1, 66.8, 70.2, 73.9, 77.6, 80.3, 82.2, 82.1, 81.4),
        "painting": (41.4, 44.1, 42.2, 44.1, 47.8, 51.2, 53.8, 55.4, 56.4, 56.4, 55.8),
        "sketch": (50.0, 36.6, 23.4, 19.7, 18.5, 18.8, 20.0, 21.0, 22.5, 22.9, 23.1),
        "quickdraw": (32.6, 29.0, 21.1, 16.7, 15.5, 15.4, 15.7, 16.6, 16.6, 16.5, 16.1),
        "neon": (44.6, 31.1, 15.8, 10.5, 9.1, 8.8, 9.3, 10.2, 10.8, 12.1, 12.6),
    },
}
CURVES["failure"] |= {name: CURVES["success"][name] for name in OOD[5:]}


def table(name: str, rows: list[dict[str, Any]]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=list(COLUMNS[name]))


def make_path(layers: tuple[str, ...] = LAYERS) -> pd.DataFrame:
    loss = {
        "success": (1.41, 1.28, 1.14, 0.99, 0.84, 0.70, 0.56, 0.45, 0.36, 0.31, 0.28),
        "failure": (1.41, 1.33, 1.58, 1.42, 1.10, 0.68, 0.52, 0.42, 0.35, 0.31, 0.29),
    }
    return table(
        "path",
        [
            {"pair": p, "alpha": a, "loss": v, "loss_stderr": 0.04, "distance_0": 7.1 * a, "distance_1": 7.1 * (1 - a)}
            | {"num_moving": 147_000, "status": "ok"}
            for p, values in loss.items()
            for a, v in zip(ALPHAS, values, strict=True)
        ],
    )


def make_sharpness(layers: tuple[str, ...] = LAYERS, measures: tuple[str, ...] = DEFAULT_MEASURES) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    rows = []
    for p, pair in enumerate(CURVES):
        for m, measure in enumerate(measures):
            base = {"hessian_trace": 60, "ggn_trace": 60, "lambda_max": 8, "lambda_min": -2}.get(measure, 0.05)
            own = base * np.exp(rng.normal(0, 1.3, len(layers)))
            own[0] = 12 * base
            for a in ALPHAS:
                level = np.exp(0.5 * np.sin(3 * a + m)) * (1 - 0.75 * a * p)
                values = own * level * np.exp(rng.normal(0, 0.15, len(layers)))
                whole = values.sum() if "trace" in measure else values[np.abs(values).argmax()] * 1.2
                for layer, value in zip((ALL, *layers), (whole, *values), strict=True):
                    noisy = rng.random()
                    status = "not_converged" if noisy < 0.06 else "ok"
                    value = (
                        -abs(value) / 9 if measure in ("hessian_trace", "weighted_trace") and noisy > 0.93 else value
                    )
                    number = layers.index(layer) if layer != ALL else -1
                    row = {
                        "pair": pair,
                        "alpha": a,
                        "layer": layer,
                        "granularity": "module",
                        "tower": "head" if layer == "head" else "image",
                        "depth": max(0, (number + 1) // 4),
                        "kind": "mlp" if layer.endswith("mlp") else "other",
                        "num_params": 368257 if layer == ALL else 1000 + 977 * number,
                        "measure": measure,
                        "estimate": value,
                        "stderr": abs(value) * (0.2 if status == "not_converged" else 0.04),
                        "stderr_images": abs(value) * 0.25,
                        "n": 48,
                        "residual": np.nan,
                        "converged": status == "ok",
                        "num_matvecs": 100 if status == "not_converged" else 40,
                        "seed": 0,
                        "status": status,
                        "per_param": value / 1000,
                        "share": abs(value / whole),
                        "rho": np.nan,
                        "note": "" if status == "ok" else "100 products spent before rtol 0.05",
                    }
                    if (layer, a, measure) == ("visual.transformer.resblocks.2.attn", 0.4, "lambda_max"):
                        row |= {"estimate": np.nan, "stderr": np.nan, "converged": False, "status": "failed"}
                        row |= {"note": "loss is not finite on batch 3"}
                    rows.append(row)
    return table("sharpness", rows)


def make_accuracy() -> pd.DataFrame:
    rows = []
    for pair, curves in CURVES.items():
        for i, a in enumerate(ALPHAS):
            for dataset, values in curves.items():
                role, value = "id" if dataset == "photo" else "ood", values[i] / 100
                rows.append(
                    (
                        pair,
                        a,
                        DENSE,
                        "mini:" + dataset,
                        "ood" if role == "ood" else "",
                        role,
                        "top1",
                        value,
                        value - 0.012,
                        value + 0.012,
                        1600,
                        "",
                        True,
                    )
                )
            mean = float(np.mean([curves[d][i] for d in OOD])) / 100
            joined = "+".join("mini:" + d for d in OOD)
            rows.append(
                (pair, a, DENSE, joined, "ood", "ood_mean", "top1", mean, mean - 0.006, mean + 0.006, 14400, "", True)
            )
        rows.append(
            (pair, 0.5, "straggler:delta:random:0.5", "mini:photo", "", "id", "top1", 0.7, 0.68, 0.72, 1600, "", True)
        )
    return pd.DataFrame(rows, columns=list(COLUMNS["accuracy"]))


def make_stragglers(layers: tuple[str, ...] = LAYERS) -> pd.DataFrame:
    rng = np.random.default_rng(1)
    rows = []
    for pair in CURVES:
        for criterion, base in (
            ("sharpness:hessian_trace", "0.0-1.0"),
            ("share:hessian_trace", "0.0-1.0"),
            ("sharpness:ggn_trace", "0.0-1.0"),
            ("instability", "finetuned"),
            ("instability", "zeroshot"),
            ("rewind", "finetuned"),
            ("criticality", "zeroshot"),
            ("change:hessian_trace", "3 alphas in [0, 1] against theta_0"),
        ):
            own = np.random.default_rng(2) if criterion.startswith("change") else rng
            score = own.normal(0, 1, len(layers)) * (0 if criterion == "instability" and pair == "success" else 1)
            score[0] = 4.4 if "sharp" in criterion else score[0]
            for layer, value in zip(layers, score, strict=True):
                chosen = bool(value > 2)
                rows.append(
                    (pair, layer, criterion, base, value, 2.0, "mad:2", chosen, min(1.0, max(0, value / 4)), "ok", "")
                )
    return pd.DataFrame(rows, columns=list(COLUMNS["stragglers"]))


def make_failure() -> pd.DataFrame:
    rows = [
        ("success", "F1", "ood_mean", "ood", 0.8, 0.143, 0.131, 0.155, False, "best middle minus zero-shot"),
        ("success", "F2", "ood_mean", "ood", 0.1, 0.062, 0.050, 0.075, False, "worst middle minus the lower end"),
        ("success", "F3", "probe", "", 0.1, -0.01, -0.03, 0.02, False, "instability of the loss"),
        ("success", "F4", "ood_mean", "ood", 0.1, 0.050, 0.039, 0.061, False, "below the chord"),
        ("failure", "F1", "ood_mean", "ood", 0.9, 0.0, -0.012, 0.012, True, ""),
        ("failure", "F2", "ood_mean", "ood", 0.2, -0.062, -0.074, -0.049, True, "a drop beyond the noise"),
        ("failure", "F3", "probe", "", 0.2, 0.73, 0.61, 0.85, True, ""),
        ("failure", "F4", "ood_mean", "ood", 0.3, -0.12, -0.131, -0.109, True, ""),
    ]
    return pd.DataFrame(rows, columns=list(COLUMNS["failure"]))


def make_repair() -> pd.DataFrame:
    rng = np.random.default_rng(2)
    rows = []
    for pair in CURVES:
        for control, prefix in (
            ("none", "straggler"),
            ("random_layers", "control:random_layers"),
            ("all_layers", "control:all_layers"),
            ("everything", "control:everything"),
        ):
            for target in ("delta", "weight"):
                for select in ("random", "magnitude"):
                    for density in (0.5, 0.9):
                        shift = {"none": -0.01, "random_layers": 0.0, "all_layers": 0.02, "everything": 0.02}[control]
                        for a in ALPHAS[1:-1]:
                            gain = shift + rng.normal(0, 0.012)
                            bad = (
                                target == "weight"
                                and density == 0.5
                                and a > 0.7
                                and control in ("all_layers", "everything")
                            )
                            rows.append(
                                {
                                    "pair": pair,
                                    "group": "ood",
                                    "alpha": a,
                                    "variant": f"{prefix}:{target}:{select}:{density}",
                                    "layers": "visual.conv1+head",
                                    "target": target,
                                    "select": select,
                                    "density": density,
                                    "kept_fraction": density + 0.001,
                                    "control": control,
                                    "id_accuracy": 0.7,
                                    "ood_accuracy": 0.5 + gain,
                                    "plain_alpha": a - 0.1,
                                    "plain_ood_accuracy": 0.5,
                                    "gain": np.nan if bad else gain,
                                    "ci_low": np.nan if bad else gain - 0.012,
                                    "ci_high": np.nan if bad else gain + 0.012,
                                    "status": "undefined" if bad else "ok",
                                    "note": "ID accuracy below the whole plain path" if bad else "",
                                }
                            )
    return table("repair", rows)


def make_correlations(layers: tuple[str, ...] = LAYERS) -> pd.DataFrame:
    rng = np.random.default_rng(3)
    rows = []
    for scope, pairs, source in (("path", tuple(CURVES), "run"), ("pairs", ("(pairs)",), "shipped")):
        for pair in pairs:
            for layer in (ALL, "(stragglers)", "(others)", "(best)", *layers):
                for measure in (*DEFAULT_MEASURES, "share:hessian_trace"):
                    for method in ("spearman", "pearson"):
                        r = float(np.tanh(rng.normal(0.5, 0.5)))
                        p = max(0.001, 0.5 * (1 - abs(r)) ** 1.5)
                        bad = measure == "weighted_trace" and layer.endswith("ln_1")
                        rows.append(
                            {
                                "pair": pair,
                                "layer": layer,
                                "measure": measure,
                                "against": "ood_accuracy" if method == "spearman" else "ood_gain",
                                "dataset": "+".join("mini:" + d for d in OOD),
                                "group": "ood",
                                "scope": scope,
                                "alpha": np.nan if scope == "path" else 0.3,
                                "method": method,
                                "estimate": np.nan if bad else r,
                                "ci_low": np.nan if bad else max(-1, r - 0.3),
                                "ci_high": np.nan if bad else min(1, r + 0.2),
                                "p_value": np.nan if bad else p,
                                "q_value": np.nan if bad else min(1, 1.5 * p),
                                "n": 11 if scope == "path" else 8,
                                "source": source,
                                "status": "undefined" if bad else "ok",
                                "note": "a constant column has no correlation" if bad else "",
                            }
                        )
    return table("correlations", rows)


def make_advice() -> pd.DataFrame:
    def row(pair: str, situation: str, rule: str, alpha: float, **more: object) -> dict[str, object]:
        known = {"pair": pair, "situation": situation, "rule": rule, "group": "ood", "alpha": alpha, "layers": ""}
        return known | {"best_baseline": "", "advised": False, "status": "ok", "note": ""} | more

    gain = {"predicted_gain": 0.12, "ci_low": 0.07, "ci_high": 0.16, "id_accuracy": 0.7, "ood_accuracy": 0.537}
    tested = {"expected_regret": 0.021, "best_baseline": "half", "baseline_regret": 0.03, "regret": 0.024}
    held = {"layers": "visual.conv1+head", "density": 0.5}
    refused = {"status": "undefined", "note": "no alpha: this pair lies outside the 9 reference pairs"}
    rows = [
        row("success", "references", "predicted", 0.4, advised=True, **gain, **tested, **held),
        row("success", "references", "best_fixed", 0.5, expected_regret=0.03),
        row("success", "baseline", "half", 0.5, regret=0.011, ood_accuracy=0.55),
        row("success", "baseline", "oracle", 0.8, regret=0.0, ood_accuracy=0.561, note="looks at OOD labels"),
        row("failure", "references", "predicted", np.nan, **refused),
        row("failure", "none", "published", np.nan, group="", status="undefined", note="of 19 end-to-end paths ..."),
        row("failure", "baseline", "half", 0.5, regret=0.07, ood_accuracy=0.39),
    ]
    return table("advice", rows)


def make_verdicts() -> pd.DataFrame:
    question = "of two fine-tuned models with equal ID accuracy, sharpness on ID data tells which may be interpolated"
    facts = "success and failure have ID accuracy 0.898 and 0.897; over 6 other pairs Spearman is -0.2 (p = 0.7)."
    whole = "Spearman of (all) hessian_trace with OOD accuracy over 8 pairs at alpha 0.3 is +0.85 [0.41, 0.97]."
    best = "Best gain over the plain path at the same ID accuracy -1.2 points [-3.0, +0.4]; control all_layers +2.0."
    claims = ("Whole-model sharpness does not tell success from failure", "The sharpness of straggler layers does")
    columns = ("pair", "claim", "source", "verdict", "estimate", "ci_low", "ci_high", "n", "evidence")
    rows = [
        ("(pairs)", question, "shipped", "does not hold", 1.2, 0.9, 1.5, 6, facts),
        ("(pairs)", claims[0], "run", "does not hold", 0.85, 0.41, 0.97, 8, whole),
        ("(pairs)", claims[1], "run", "cannot be told", 0.6, -0.1, 0.9, 8, "Interval holds 0."),
        ("failure", "Sparse stragglers repair the failure", "run", "does not hold", -0.012, -0.03, 0.004, 9, best),
    ]
    return table("verdicts", [dict(zip(columns, row, strict=True)) | {"group": "ood"} for row in rows])


def make_manifest() -> dict[str, Any]:
    question = (
        "Two fine-tuned models with the same ID accuracy: can sharpness on ID data tell which may be interpolated?"
    )
    end = {
        "file": "mini:zeroshot",
        "sha256": "ab" * 32,
        "container": "safetensors",
        "num_params": 368257,
        "dtypes": {"float16": 71},
    }
    return {
        "config": {
            "title": "sharpscope demo",
            "question": question,
            "caveat": "Seen in a designed world only.",
            "pairs": [{"name": p, "zeroshot": "mini:zeroshot", "finetuned": f"mini:{p}"} for p in CURVES],
            "model": "mini",
            "measures": list(DEFAULT_MEASURES),
            "alphas": list(ALPHAS),
            "probe_size": 64,
            "straggler_criterion": "sharpness:hessian_trace",
            "seed": 0,
            "tags": {},
        },
        "pairs": {
            p: {
                "model": "mini",
                "head": "stored",
                "moving": 66,
                "zeroshot": end,
                "finetuned": end | {"file": f"mini:{p}"},
            }
            for p in CURVES
        },
        "layers": {p: [{"name": n, "kind": "mlp"} for n in LAYERS] for p in CURVES},
        "data": {p: {"probe": {"spec": "mini:photo", "n": 8192}} for p in CURVES},
        "versions": {"sharpscope": "0.1.0", "torch": "2.9.0", "python": "3.11"},
        "hardware": {"cpu": "2 cores", "memory": "24 GB"},
        "alpha_on": "finetuned",
        "timing": {"sharpness": {"units": 22, "seconds": 61.4}, "accuracy": {"units": 22, "seconds": 11.2}},
    }


def make_points() -> pd.DataFrame:
    rng = np.random.default_rng(4)
    rows = [
        (pair, float(np.exp(rng.normal(6, 0.6))), float(rng.normal(0.02, 0.05)), "hessian_trace", 0.3)
        for pair in (*CURVES, "cheap", "lr1e-4", "lr3e-4", "lr3e-3", "lr5e-3", "label-noise")
    ]
    return pd.DataFrame(rows, columns=["pair", "sharpness", "ood_gain", "measure", "alpha"])


def make_residuals() -> pd.DataFrame:
    """Ten pairs in nine settings, tuned with learning rates from 1e-5 to 1e-3."""
    rng = np.random.default_rng(6)
    left = rng.normal(size=(2, 10))
    left[:, 9] = left[:, 8]
    rows = [
        {"pair": pair, "group": "ood", "measure": "hessian_trace", "alpha": 0.5, "source": "run", "base": "b" * 64}
        | {"setting": f"s{min(i, 8)}", "learning_rate": 10 ** (-5 + min(i, 8) / 4), "ood_gain": rng.normal(0, 0.05)}
        | {"sharpness": np.exp(rng.normal(6, 0.6)), "residual_sharpness": left[0, i], "residual_gain": left[1, i]}
        | {"given": "learning_rate+distance", "status": "ok", "note": ""}
        for i, pair in enumerate((*CURVES, *(f"p{i}" for i in range(8))))
    ]
    return table("residuals", rows)


def make_tables(layers: tuple[str, ...] = LAYERS) -> dict[str, pd.DataFrame]:
    return {
        "path": make_path(),
        "sharpness": make_sharpness(layers),
        "density": make_density(),
        "accuracy": make_accuracy(),
        "stragglers": make_stragglers(layers),
        "failure": make_failure(),
        "repair": make_repair(),
        "correlations": make_correlations(layers),
        "advice": make_advice(),
        "verdicts": make_verdicts(),
        "agreement": make_agreement(),
        "vrf": make_vrf(),
        "eigenpairs": make_eigenpairs(),
        "points": make_points(),
        "residuals": make_residuals(),
    }


def make_eigenpairs() -> pd.DataFrame:
    return table(
        "eigenpairs",
        [
            {"pair": pair, "alpha": alpha, "layer": ALL, "rank": rank, "eigenvalue": 9.0 / rank, "residual": 0.01,
             "converged": True, "num_params": 1000, "num_matvecs": 20, "status": "ok"}
            for pair in CURVES
            for alpha in (0.0, 1.0)
            for rank in (1, 2)
        ],
    )  # fmt: skip


def make_agreement() -> pd.DataFrame:
    against = {"end": ("zeroshot", "finetuned"), "ends": ("ends",), "point": ("",)}
    return table(
        "agreement",
        [
            {"pair": pair, "alpha": alpha, "dataset": dataset, "measure": measure, "estimate": distance}
            | {
                "ci_low": 0.9 * distance,
                "ci_high": 1.1 * distance,
                "n": 320,
                "status": "ok",
                "against": end,
                "note": "",
            }
            for pair in CURVES
            for dataset in ("photo", *OOD[:2])
            for measure, facts in AGREEMENT.items()
            for end in against[facts.of]
            for alpha in (0.0, 0.5, 1.0)
            for distance in (1 - alpha if end == "finetuned" else alpha,)
        ],
    )


def make_vrf() -> pd.DataFrame:
    """Ratios that fall with the distance, ID and OOD; the last bin of one curve has none."""
    rows = [
        {"pair": pair, "dataset": name, "bin": b, "distance_low": d - 0.1, "distance_high": d + 0.1, "distance": d}
        | {"zeroshot_accuracy": 0.4, "finetuned_accuracy": 0.4 * r, "ratio": r, "ci_low": r / 1.2, "ci_high": 1.2 * r}
        | {"n": 80, "k": 3, "failures": 28, "status": "ok", "note": ""}
        for pair in ("success", "failure")
        for name, scale in (("mini:photo", 2.0), ("mini:sketch", 1.5))
        for b, d, r in ((i + 1, 0.2 + 0.4 * i, scale / (1 + 0.5 * i)) for i in range(4))
    ]
    rows[3] |= {"ratio": np.nan, "ci_low": np.nan, "ci_high": np.nan, "status": "undefined", "note": "none"}
    return table("vrf", rows)


def make_density() -> pd.DataFrame:
    x = np.linspace(-1.0, 9.0, 41)
    return table(
        "density",
        [
            {"pair": pair, "alpha": alpha, "layer": layer, "value": v, "density": d, "stderr": 0.1 * d, "width": 0.2}
            | {"num_params": 500, "num_matvecs": 160, "seed": 3, "status": "ok", "note": ""}
            for pair in CURVES
            for alpha in (0.0, 0.5, 1.0)
            for layer in (ALL, "head")
            for v, d in zip(x, np.exp(-0.5 * (x / (0.2 + 2 * alpha)) ** 2), strict=True)
        ],
    )


FEW = ("hessian_trace", "lambda_max", "lambda_min")


def hostile(tables: dict[str, pd.DataFrame], names: dict[str, str]) -> dict[str, pd.DataFrame]:
    """The tables with every text cell that is a key of ``names`` replaced."""
    return {
        k: df.apply(lambda c: c.map(lambda v: names.get(v, v) if isinstance(v, str) else v)) for k, df in tables.items()
    }


@pytest.fixture
def tables() -> dict[str, pd.DataFrame]:
    """Fresh copies: a test may change them."""
    return {k: df.copy() for k, df in _made().items()}


@cache
def _made() -> dict[str, pd.DataFrame]:
    return make_tables()


@pytest.fixture(scope="session")
def few() -> dict[str, pd.DataFrame]:
    """The same with three measures: quick to draw. Not to be changed."""
    return {**make_tables(), "sharpness": make_sharpness(measures=FEW)}


@pytest.fixture
def manifest() -> dict[str, Any]:
    return make_manifest()


@pytest.fixture(scope="session")
def sharpness_of() -> Callable[..., pd.DataFrame]:
    return make_sharpness


@pytest.fixture(scope="session")
def rename() -> Callable[..., dict[str, pd.DataFrame]]:
    return hostile


@pytest.fixture(scope="session")
def layers() -> tuple[str, ...]:
    return LAYERS


@pytest.fixture(scope="session")
def many() -> pd.DataFrame:
    """A sharpness table of 10^4 layers, two alphas, one measure."""
    names = tuple(f"visual.transformer.resblocks.{i}.mlp" for i in range(10_000))
    values = np.exp(np.random.default_rng(5).normal(0, 2, 10_000))
    frames = []
    for alpha in (0.0, 0.5):
        frame = pd.DataFrame({"layer": names, "estimate": values, "stderr": values / 20, "depth": range(10_000)})
        frames.append(frame.assign(alpha=alpha))
    out = pd.concat(frames).assign(pair="huge", measure="hessian_trace", status="ok", converged=True, num_params=10)
    return out.reindex(columns=list(COLUMNS["sharpness"]))
