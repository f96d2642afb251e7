"""One vocabulary of straggler criteria: what is computed is a choice, and every list of them is this one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import get_args, get_type_hints

import numpy as np
import pandas as pd
import pytest

from sharpscope.config.study import PairConfig, StudyConfig
from sharpscope.errors import ConfigError
from sharpscope.findings import criteria
from sharpscope.findings.criteria import register_criterion
from sharpscope.findings.losses import LayerLosses, NoiseLosses
from sharpscope.findings.stragglers import chosen_layers, stragglers_table
from sharpscope.vocabulary import (
    BASES,
    CRITERIA,
    GROUPS,
    OUTPUT_BASELINES,
    Base,
    Criterion,
    Group,
    Origin,
    OutputBaseline,
    from_outside,
)

LAYERS = tuple(f"l{i}" for i in range(6))
ALPHAS = (0.0, 0.5, 1.0)
WRITTEN = [c.spelling.replace(":M", ":ggn_trace") for c in CRITERIA.values()]


def losses(base: Base = "finetuned") -> LayerLosses:
    """Layer 2 has a bump in the middle of its path and a higher start; the others are nearly flat."""
    values = np.random.default_rng(0).normal(1.0, 0.01, size=(6, 3, 40))
    values[2, 1] += 2.0
    values[2, 0] += 1.0
    return LayerLosses(LAYERS, base, ALPHAS, values)


def noise() -> NoiseLosses:
    values = np.full((6, 2, 1, 40), 1.0)
    values[2] += 9.0
    return NoiseLosses(LAYERS, ALPHAS[1:], (1.0,), values, np.ones(6), np.ones(6))


@pytest.fixture
def sharp(sharpness_of) -> pd.DataFrame:
    rise = {i: [1.0 + 0.1 * i, 1.1, 1.0 + 0.2 * i] for i in range(6)} | {2: [40.0, 100.0, 900.0]}
    return sharpness_of("p", ALPHAS, {f"l{i}": values for i, values in rise.items()})


def table(sharp: pd.DataFrame) -> pd.DataFrame:
    return stragglers_table("p", [losses(b) for b in BASES], noise(), sharp, rule="top:1", bootstrap=20)


@pytest.mark.parametrize("criterion", WRITTEN)
def test_what_is_computed_can_decide(criterion: str, sharp: pd.DataFrame) -> None:
    assert StudyConfig(straggler_criterion=criterion).straggler_criterion == criterion
    assert chosen_layers(table(sharp), criterion) == ("l2",)


def test_the_table_holds_every_criterion_on_its_bases_in_the_order_of_the_vocabulary(sharp: pd.DataFrame) -> None:
    seen = table(sharp)
    assert list(seen["criterion"].unique()) == WRITTEN
    for criterion in CRITERIA.values():
        bases = set(seen.loc[seen["criterion"] == criterion.name, "base"])
        assert bases == set(criterion.bases)


@pytest.mark.parametrize(
    ("criterion", "words"),
    [
        ("bariers", "Did you mean 'barrier'?"),
        ("shares:ggn_trace", "Did you mean 'share'?"),
        ("share", "'share' needs a measure, e.g. share:hessian_trace"),
        ("barrier:ggn_trace", "barrier takes no measure"),
        ("share:ggn_trac", "unknown measure 'ggn_trac'. Did you mean 'ggn_trace'?"),
    ],
)
def test_what_is_no_criterion_is_refused_with_what_was_meant(criterion: str, words: str) -> None:
    with pytest.raises(ConfigError) as error:
        StudyConfig(straggler_criterion=criterion)
    said = str(error.value)
    assert said.startswith("straggler_criterion: ") and words in said
    if "none of" in said:
        assert all(c.spelling in said for c in CRITERIA.values())


def test_help_glossary_and_hint_name_them_all() -> None:
    from sharpscope.present.report import GLOSSARY
    from sharpscope.study.run import run

    hint = get_type_hints(StudyConfig, include_extras=True)["straggler_criterion"].__metadata__[0].documentation
    for criterion in CRITERIA.values():
        assert criterion.spelling in hint
        assert GLOSSARY[criterion.spelling] == f"{criterion.text[:-1]} ({criterion.source})."
    pairs = (PairConfig("a", "mini:zeroshot", "mini:success"),)
    with pytest.raises(ConfigError, match=r"needs no measure \(instability, barrier, rewind, criticality\)"):
        run(StudyConfig(pairs=pairs, id=("mini:photo",), measures=("ggn_trace",)))


def test_options_and_what_is_known_of_them_are_the_same_words() -> None:
    assert get_args(Base) == tuple(BASES)
    assert get_args(Group) == tuple(GROUPS)
    assert get_args(OutputBaseline) == tuple(OUTPUT_BASELINES)
    for criterion in CRITERIA.values():
        assert set(criterion.bases) <= set(BASES) and criterion.text.endswith(".") and criterion.source


# --- from outside the package ---
def peak(losses: np.ndarray, alphas: Sequence[float]) -> np.ndarray:
    return losses.max(axis=-1)


@pytest.fixture
def registered() -> Iterator[Criterion]:
    """A criterion that a user brought along, until the end of the test."""
    with from_outside(Origin("mine.py", "0"), "--plugin mine.py"):
        register_criterion("peak", "Largest loss on the layer's own path.", bases=("zeroshot", "midpoint"))(peak)
    yield CRITERIA["peak"]
    CRITERIA.remove("peak")
    criteria._REGISTERED.pop("peak", None)


def test_a_criterion_from_outside_is_chosen_like_any_other(registered: Criterion, sharp: pd.DataFrame) -> None:
    assert StudyConfig(straggler_criterion="peak").straggler_criterion == "peak"
    seen = table(sharp)
    own = seen[seen["criterion"] == "peak"]
    assert set(own["base"]) == {"zeroshot", "midpoint"}
    want = losses("zeroshot").losses.mean(axis=-1).max(axis=-1)
    np.testing.assert_array_equal(own.loc[own["base"] == "zeroshot", "score"], want)
    assert chosen_layers(seen, "peak") == ("l2",)


def test_what_cannot_be_registered_is_refused(registered: Criterion) -> None:
    for known in ("peak", "barrier"):
        with pytest.raises(ConfigError, match=f"the criterion '{known}' exists already"):
            register_criterion(known, "x.")(peak)
    with pytest.raises(ConfigError, match="a name is made of letters"):
        register_criterion("share:me", "x.")
    with pytest.raises(ConfigError, match="base 'midpont' is none of .* Did you mean 'midpoint'"):
        register_criterion("mine", "x.", bases=("midpont",))  # type: ignore[arg-type]
    assert "mine" not in CRITERIA


def test_a_criterion_without_its_code_asks_for_it(registered: Criterion, sharp: pd.DataFrame) -> None:
    del criteria._REGISTERED["peak"]  # as where a finished run's manifest told of it, but nobody brought its file
    with pytest.raises(
        ConfigError, match=r"criterion 'peak': its code has not been loaded\.\nRemedy: load it from mine\.py"
    ):
        table(sharp)


def test_a_criterion_that_gives_no_score_a_layer_is_named(registered: Criterion, sharp: pd.DataFrame) -> None:
    criteria._REGISTERED["peak"] = lambda losses, alphas: np.asarray(losses)
    with pytest.raises(
        ConfigError, match=r"criterion 'peak': .* one score per layer, shape \(6,\); got shape \(6, 3\)"
    ):
        table(sharp)
