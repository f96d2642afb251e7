"""The settings of the emoji study: balanced as its protocol says, and such as finetune takes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from sharpscope.config.idle import check_no_idle
from sharpscope.config.study import PairConfig
from sharpscope.finetuning.run import tuned_by
from sharpscope.vocabulary import DEFAULT_CRITERION, PRIMARY_ALPHA, PRIMARY_MEASURE
from tests.analyses.emoji import SCRIPTS, scripts


@pytest.fixture(scope="module")
def design() -> Iterator[ModuleType]:
    with scripts("design") as (module,):
        yield module


def test_150_settings_in_the_training_bases_80_in_the_held_out_ones_and_24_replicates(design: ModuleType) -> None:
    counts = {base: Counter(t.seed for t in design.trials(base)) for base in design.BASES}
    assert counts == {0: {0: 50, 1: 8}, 1: {0: 50, 1: 8}, 2: {0: 50, 1: 8}, 3: {0: 40}, 4: {0: 40}}
    assert set(design.TRAINING).isdisjoint(design.HELD_OUT)


def test_a_replicate_differs_from_its_setting_in_the_seed_alone(design: ModuleType) -> None:
    for base in design.TRAINING:
        first = {t.setting: t for t in design.trials(base) if t.seed == 0}
        for again in (t for t in design.trials(base) if t.seed == 1):
            assert again.settings == first[again.setting].settings and again.method == first[again.setting].method


def test_names_are_unique_and_no_two_bases_share_a_setting(design: ModuleType) -> None:
    every = [t for base in design.BASES for t in design.trials(base)]
    assert len({t.name for t in every}) == len(every) == 254
    rates = [t.settings["lr"] for t in every if t.seed == 0]
    assert len(set(rates)) == len(rates) == 230


def test_the_hypercube_gives_every_stratum_its_share(design: ModuleType) -> None:
    for base in design.BASES:
        own = [t for t in design.trials(base) if t.seed == 0]
        rates, n = np.array([t.settings["lr"] for t in own]), len(own)
        for low, high, share in ((5e-5, 3e-4, 0.15), (3e-4, 3e-3, 0.6), (3e-3, 2e-2, 0.25)):
            assert abs(((rates >= low) & (rates < high)).sum() - share * n) <= 1
        methods = Counter(t.method for t in own)
        assert set(methods) == set(design.METHODS) and all(abs(k - n / 6) < 2 for k in methods.values())
        assert sum(t.augment for t in own) == n // 2
        assert all(50 <= t.settings["steps"] <= 400 for t in own)


def test_every_setting_is_one_that_its_method_takes(design: ModuleType) -> None:
    for base in design.BASES:
        for trial in design.trials(base):
            method = tuned_by(trial.method, changes=trial.settings)
            assert method.name == trial.method and method.lr == trial.settings["lr"]
            assert method.augmentation.changes == trial.augment
            assert method.optimizer == "adamw"  # one learning rate means one thing


def test_the_protocol_states_the_settings_that_are_drawn(design: ModuleType) -> None:
    told = (SCRIPTS / "protocol.md").read_text(encoding="utf-8")
    assert f"method ({', '.join(design.METHODS)})" in told


def test_what_is_measured_is_what_the_protocol_says() -> None:
    """The study's configurations are accepted, and the further ones change nothing that decides a verdict."""
    with scripts("study") as (study,):
        pairs = (PairConfig("a", "zeroshot.safetensors", "a.safetensors"), PairConfig("b", "zeroshot", "b"))
        measured = study.config(0, Path("data"), pairs, 2)
        again, repaired = study.all_views(measured), study.repairs(measured, ("b",))
    for config in (measured, again, repaired):
        config.check_complete()
        check_no_idle(config)
    assert (measured.primary_measure, measured.primary_alpha) == (PRIMARY_MEASURE, PRIMARY_ALPHA)
    assert repaired.straggler_criterion == measured.straggler_criterion == DEFAULT_CRITERION
    assert [p.name for p in repaired.pairs] == ["b"] and repaired.masks == 5
    assert again.limit is None and again.id == measured.id and again.ood == measured.ood
