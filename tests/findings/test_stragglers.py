from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from sharpscope.errors import ConfigError
from sharpscope.findings.losses import LayerLosses, NoiseLosses
from sharpscope.findings.stragglers import chosen_layers, stragglers_table
from sharpscope.tables.schema import COLUMNS, KEYS
from sharpscope.vocabulary import AMONG_LARGEST

LAYERS = tuple(f"l{i}" for i in range(6))
ALPHAS = (0.0, 0.5, 1.0)


def path_losses(base: str = "finetuned", bump: float = 2.0, rise: float = 1.0) -> LayerLosses:
    """Layer 2 has a bump in the middle, layer 4 rises when rewound, the others are nearly flat."""
    rng = np.random.default_rng(0)
    losses = np.repeat(rng.gamma(2.0, 0.2, size=(1, 1, 64)), 6, axis=0).repeat(3, axis=1)
    losses = losses + rng.normal(0, 0.01, size=losses.shape)
    losses[2, 1] += bump
    losses[4, 0] += rise
    return LayerLosses(LAYERS, base, ALPHAS, losses)


def noise_losses(distance: np.ndarray | None = None) -> NoiseLosses:
    losses = np.full((6, 3, 2, 64), 0.4)
    losses[3] += 5.0
    d = np.arange(1.0, 7.0) if distance is None else distance
    return NoiseLosses(LAYERS, ALPHAS, (0.5, 1.0), losses, d, np.ones(6))


@pytest.fixture
def outlier(sharpness_of) -> pd.DataFrame:
    """Layer 1 stands out at every alpha, layer 5 at one of five only, layer 0 has no log at two."""
    alphas = (0.0, 0.25, 0.5, 0.75, 1.0)
    values = {f"l{i}": [1.0 + 0.1 * i] * 5 for i in range(6)}
    values["l1"] = [50.0] * 5
    values["l5"] = [60.0, 1.4, 1.4, 1.4, 1.4]
    values["l0"] = [-1.0, 0.0, 1.0, 1.0, 1.0]
    return sharpness_of("p", alphas, values)


def test_every_criterion_and_base_has_a_row_a_layer_in_forward_order(outlier: pd.DataFrame) -> None:
    paths = [path_losses(b) for b in ("midpoint", "zeroshot", "finetuned")]
    table = stragglers_table("p", paths, noise_losses(), outlier, bootstrap=50)
    assert tuple(table.columns) == COLUMNS["stragglers"]
    assert not table.duplicated(list(KEYS["stragglers"])).any()
    wanted = [(c, b) for c in ("instability", "barrier", "rewind") for b in ("finetuned", "zeroshot", "midpoint")]
    wanted += [("criticality", "finetuned")]
    seen = list(dict.fromkeys(zip(table["criterion"], table["base"], strict=True)))
    assert seen[: len(wanted)] == wanted
    of_sharpness = [f"{form}:ggn_trace" for form in ("sharpness", "per_param", "share", "change")]
    assert list(table["criterion"].unique())[4:] == of_sharpness
    for _, part in table.groupby(["criterion", "base"]):
        assert tuple(part["layer"]) == LAYERS


def test_the_planted_layers_are_found_and_stay_found_under_resampling(outlier: pd.DataFrame) -> None:
    table = stragglers_table("p", [path_losses()], noise_losses(), outlier, rule="mad:4", bootstrap=200)
    assert chosen_layers(table, "barrier") == ("l2",)
    assert chosen_layers(table, "instability") == ("l2", "l4")
    assert chosen_layers(table, "rewind") == ("l4",)
    assert chosen_layers(table, "sharpness:ggn_trace") == ("l1",)
    for criterion, layer in (("barrier", "l2"), ("rewind", "l4"), ("sharpness:ggn_trace", "l1")):
        row = table[(table["criterion"] == criterion) & (table["layer"] == layer)].iloc[0]
        assert row["probability"] == 1.0
        assert row["score"] > row["threshold"]
    assert table["probability"].between(0, 1).all()


def test_what_is_not_sustained_is_not_chosen_and_missing_logs_are_said(outlier: pd.DataFrame) -> None:
    table = stragglers_table("p", [], None, outlier, rule="mad:5", bootstrap=20).set_index(["criterion", "layer"])
    once = table.loc[("sharpness:ggn_trace", "l5")]
    assert not once["chosen"] and once["base"] == "80% of 5 alphas in [0, 1]"
    no_log = table.loc[("sharpness:ggn_trace", "l0")]
    assert no_log["status"] == "undefined" and np.isnan(no_log["score"])
    assert "estimate <= 0 at 2 of 5 alphas" in no_log["note"]
    assert table.loc[("share:ggn_trace", "l0")]["status"] == "ok"


def test_no_movement_of_the_loss_chooses_nobody_and_says_so(sharpness_of) -> None:
    flat = LayerLosses(LAYERS, "finetuned", ALPHAS, np.full((6, 3, 20), 0.7))
    table = stragglers_table("p", [flat], None, sharpness_of("p", ALPHAS, {}, whole=[1.0] * 3), bootstrap=20)
    assert set(table["criterion"]) == {"instability", "barrier", "rewind"}
    assert not table["chosen"].any() and (table["probability"] == 0).all() and (table["score"] == 0).all()
    assert table["note"].str.contains("the score of every layer is 0").all()
    assert chosen_layers(table, "instability") == ()


def test_a_layer_whose_return_lowers_the_loss_is_no_straggler(sharpness_of) -> None:
    losses = np.zeros((6, 3, 10))
    losses[:, 1:] += np.array([9.0, 9.1, 9.2, 9.3, 9.4, 2.0])[:, None, None]
    helped = LayerLosses(LAYERS, "finetuned", ALPHAS, losses)
    table = stragglers_table(
        "p", [helped], None, sharpness_of("p", ALPHAS, {}, whole=[1.0] * 3), rule="top:2", bootstrap=20
    )
    assert (table.loc[table["criterion"] == "rewind", "score"] < 0).all()
    assert chosen_layers(table, "rewind") == ()


def test_layers_that_do_not_move_are_frozen_and_do_not_change_the_threshold(outlier: pd.DataFrame) -> None:
    distance = np.array([1.0, 1.0, 0.0, 1.0, 1.0, 1.0])
    table = stragglers_table("p", [path_losses()], noise_losses(distance), outlier, bootstrap=50)
    still = table[table["layer"] == "l2"]
    assert (still["status"] == "frozen").all() and not still["chosen"].any() and (still["probability"] == 0).all()
    assert still["score"].isna().all()
    outlier.loc[outlier["layer"] == "l1", "status"] = "frozen"
    by_status = stragglers_table("p", [path_losses()], None, outlier, bootstrap=50)
    assert set(by_status.loc[by_status["status"] == "frozen", "layer"]) == {"l1"}


def test_criticality_of_censored_weightless_and_baseless_layers(outlier: pd.DataFrame) -> None:
    noise = noise_losses()
    rms = np.array([1.0, 0.0, 1.0, 1.0, 1.0, 1.0])
    noise = NoiseLosses(LAYERS, ALPHAS, noise.sigmas, noise.losses, noise.distance_sq, rms)
    rows = stragglers_table("p", [path_losses(bump=0, rise=0)], noise, outlier, bootstrap=50)
    rows = rows[rows["criterion"] == "criticality"].set_index("layer")
    assert rows.loc["l3", "score"] == 4.0 / 0.25 and "lower bound" in rows.loc["l3", "note"]
    assert rows.loc["l0", "score"] == 0.0
    assert rows.loc["l1", "status"] == "undefined" and "all 0" in rows.loc["l1", "note"]
    bare = stragglers_table("p", [path_losses("zeroshot")], noise, outlier, bootstrap=50)
    bare = bare[bare["criterion"] == "criticality"]
    assert (bare["status"] == "undefined").all() and bare["note"].str.contains("fine-tuned loss").all()


def test_a_loss_that_is_not_finite_fails_its_layer_only(outlier: pd.DataFrame) -> None:
    entry = path_losses()
    losses = entry.losses.copy()
    losses[0, 1, 5] = np.nan
    table = stragglers_table("p", [LayerLosses(LAYERS, "finetuned", ALPHAS, losses)], None, outlier, bootstrap=50)
    rows = table[table["criterion"] == "barrier"].set_index("layer")
    assert rows.loc["l0", "status"] == "failed" and "not finite" in rows.loc["l0", "note"]
    assert (rows.drop("l0")["status"] == "ok").all() and rows.loc["l2", "probability"] == 1.0


def test_probability_follows_the_uncertainty_of_the_estimates(sharpness_of) -> None:
    values = {f"l{i}": [1.0 + 0.1 * i] * 5 for i in range(6)} | {"l1": [3.0] * 5}
    alphas = (0.0, 0.25, 0.5, 0.75, 1.0)
    got = []
    for error in (0.0, 0.02, 0.5):
        table = stragglers_table("p", [], None, sharpness_of("p", alphas, values, error=error), bootstrap=300)
        row = table[(table["criterion"] == "sharpness:ggn_trace") & (table["layer"] == "l1")].iloc[0]
        assert row["chosen"]
        got.append(row["probability"])
        assert ("no stderr" in row["note"]) == (error == 0.0)
    assert got[0] == 1.0 and got[1] > 0.9 and 0 < got[2] < 0.9


def test_probability_counts_other_draws_of_images_and_says_where_it_cannot(sharpness_of) -> None:
    values = {f"l{i}": [1.0 + 0.1 * i] * 5 for i in range(6)} | {"l1": [3.0] * 5}
    sharp = sharpness_of("p", (0.0, 0.25, 0.5, 0.75, 1.0), values, error=0.02)
    got = {}
    for name, images in (("same", 0.02), ("others", 0.6), ("unknown", np.nan)):
        table = stragglers_table("p", [], None, sharp.assign(stderr_images=images * sharp["estimate"]), bootstrap=300)
        got[name] = table[(table["criterion"] == "sharpness:ggn_trace") & (table["layer"] == "l1")].iloc[0]
        assert ("error over draws of images is unknown" in got[name]["note"]) == (name == "unknown")
    assert got["same"]["probability"] > 0.9 and got["unknown"]["probability"] > 0.9
    assert 0 < got["others"]["probability"] < 0.9


def test_absolute_rules_compare_the_values_themselves(outlier: pd.DataFrame) -> None:
    table = stragglers_table("p", [path_losses()], None, outlier, rule="abs:0.5", bootstrap=20)
    assert chosen_layers(table, "rewind") == ("l4",)
    assert set(chosen_layers(table, "sharpness:ggn_trace")) >= {"l1", "l2"}
    assert chosen_layers(table, "share:ggn_trace") == ("l1",)
    assert (table["threshold"] == 0.5).all()


def test_same_seed_same_bits_and_other_pairs_do_not_matter(outlier: pd.DataFrame) -> None:
    other = outlier.assign(pair="q", estimate=7.0)
    both = pd.concat([other, outlier], ignore_index=True)
    one = stragglers_table("p", [path_losses()], noise_losses(), outlier, bootstrap=60, seed=3)
    two = stragglers_table("p", [path_losses()], noise_losses(), both, bootstrap=60, seed=3)
    pd.testing.assert_frame_equal(one, two, check_exact=True)
    noisy = outlier.assign(stderr=outlier["estimate"].abs() * 0.8)
    a, b = (stragglers_table("p", [], None, noisy, bootstrap=60, seed=s) for s in (3, 4))
    assert (a["probability"] != b["probability"]).any()


def test_chosen_layers_wants_one_pair_and_a_known_criterion(outlier: pd.DataFrame) -> None:
    table = stragglers_table("p", [path_losses()], None, outlier, bootstrap=20)
    two = pd.concat([table, table.assign(pair="q")])
    with pytest.raises(ConfigError, match="name one of the pairs p, q"):
        chosen_layers(two, "rewind")
    assert chosen_layers(two, "rewind", pair="q") == chosen_layers(table, "rewind")
    with pytest.raises(ConfigError, match="Did you mean 'rewind'"):
        chosen_layers(table, "rewin")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"base": "fine"}, "none of finetuned"),
        ({"alphas": (0.1, 0.5, 1.0)}, "need 0 and 1"),
        ({"losses": np.zeros((6, 2, 4))}, r"need \[6 layers, 3 alphas, n\]"),
    ],
)
def test_losses_that_do_not_fit_are_refused(change: dict, message: str) -> None:
    good = {"layers": LAYERS, "base": "finetuned", "alphas": ALPHAS, "losses": np.zeros((6, 3, 4))}
    with pytest.raises(ConfigError, match=message):
        LayerLosses(**(good | change))


def test_a_rule_of_half_a_layer_is_refused(outlier: pd.DataFrame) -> None:
    with pytest.raises(ConfigError, match="whole number"):
        stragglers_table("p", [path_losses()], None, outlier, rule="top:1.5", bootstrap=20)


def test_a_layer_that_rises_is_named_and_one_that_is_large_already_is_only_called_so(sharpness_of) -> None:
    alphas, rng = (0.0, 0.5, 1.0), np.random.default_rng(0)
    values = {f"l{i:02}": np.exp(0.05 * rng.standard_normal(3)) for i in range(12)}
    values["l03"] = values["l03"] * [1, 5, 25]
    values["l07"] = values["l07"] * 300
    sharp = sharpness_of("p", alphas, values, error=0.05)
    rows = stragglers_table("p", [], None, sharp, bootstrap=200)
    assert chosen_layers(rows, "change:ggn_trace") == ("l03",)
    assert chosen_layers(rows, "share:ggn_trace") != ("l03",)
    change = rows[rows["criterion"] == "change:ggn_trace"].set_index("layer")
    assert set(change["rule"]) == {"null:0.05"} and set(rows["rule"]) == {"null:0.05", "mad:2"}
    assert change.index[change["note"].str.contains(AMONG_LARGEST)].tolist() == ["l07"]
    assert change.loc["l03", "probability"] > 0.9 and change["probability"].drop("l03").max() < 0.1
    assert "changes 5." in change.loc["l03", "note"]  # exp((log 1 + 2 log 5 + log 25) / 4) = 5, noise aside
    plain = stragglers_table("p", [], None, sharp, rule="top:1", bootstrap=20)
    assert chosen_layers(plain, "change:ggn_trace") == ("l03",)
    strict = stragglers_table("p", [], None, sharp, rule="null:0.0001", bootstrap=20)
    assert set(strict["rule"]) == {"null:0.0001", "mad:2"} and chosen_layers(strict, "change:ggn_trace") == ()
    told = strict.loc[strict["criterion"] == "change:ggn_trace", ["threshold", "note"]]
    assert told["threshold"].isna().all() and told["note"].str.contains("cannot show a chance as small as 0.0001").all()
    flat = stragglers_table(
        "p", [], None, sharpness_of("p", alphas, {f"l{i}": [1, 1, 1] for i in range(6)}), bootstrap=20
    )
    assert flat.loc[flat["criterion"] == "change:ggn_trace", "note"].str.contains("no layer chosen").all()
    later = stragglers_table("p", [], None, sharp[sharp["alpha"] > 0], bootstrap=20)
    later = later[later["criterion"] == "change:ggn_trace"]
    assert set(later["status"]) == {"undefined"} and later["note"].str.contains("no estimate at theta_0").all()


def test_a_probability_follows_what_each_image_adds(sharpness_of) -> None:
    """Paired images that all say the same leave no doubt about a change; the errors of its two ends alone would."""
    alphas, rng = (0.0, 1.0), np.random.default_rng(1)
    values = {f"l{i:02}": np.array([1.0, 1.0 + 0.02 * i]) for i in range(12)}
    values["l05"] = np.array([1.0, 3.0])
    sharp = sharpness_of("p", alphas, values, error=0.35)
    images = rng.standard_normal(32)
    images = 1 + 0.35 * (images - images.mean()) / np.sqrt((images - images.mean()) @ (images - images.mean())) * 32
    parts = {("ggn_trace", a): {x: v[i] * images / 32 for x, v in values.items()} for i, a in enumerate(alphas)}
    row = {}
    for name, known in (("paired", parts), ("bound", None)):
        found = stragglers_table("p", [], None, sharp, parts=known, bootstrap=200)
        row[name] = found[(found["criterion"] == "change:ggn_trace") & (found["layer"] == "l05")].iloc[0]
    assert row["paired"]["chosen"] and row["paired"]["probability"] > 0.95
    assert not row["bound"]["chosen"] and row["bound"]["probability"] < 0.5
