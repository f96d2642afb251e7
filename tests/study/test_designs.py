"""What is known of how pairs were made: files, the study, a file of covariates, the embedded world."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sharpscope.config.study import PairConfig, StudyConfig
from sharpscope.errors import ConfigError
from sharpscope.miniworld import shipped
from sharpscope.study.designs import (
    design_of,
    design_of_manifests,
    read_covariates,
    recipe_numbers,
    shipped_design,
    untold,
    with_covariates,
)


def facts(seed: int, lr: float = 1e-3, base: str = "z") -> dict[str, dict[str, object]]:
    told = {"method": "wise-ft", "hyperparameters": {"lr": lr, "epochs": 3, "steps": None, "batch_size": 4}}
    return {
        "zeroshot": {"sha256": base},
        "finetuned": {
            "sha256": f"{seed}{lr}",
            "finetuning": {**told, "examples": 9, "seed": seed, "device": f"d{seed}"},
        },
    }


def test_the_ten_shipped_pairs_are_eight_clusters_of_one_base() -> None:
    design = shipped_design()
    assert len(design.pairs) == 10 and design.n_effective == design.n_clusters == 8 and design.n_bases == 1
    assert design.setting[design.pairs.index("success")] == design.setting[design.pairs.index("success-seed1")]
    assert design.covariates["learning_rate"][design.pairs.index("failure")] == 0.007
    known = shipped.manifest()["checkpoints"]
    own = {
        "p": {"zeroshot": {"sha256": known["zeroshot"]["sha256"]}, "finetuned": {"sha256": known["small"]["sha256"]}}
    }
    same = design_of([PairConfig("p", "a copy", "of small")], own)
    assert (same.base[0], same.setting[0]) == (design.base[0], design.setting[design.pairs.index("small")])


def test_a_file_states_its_learning_rate_and_replicates_are_one_setting() -> None:
    pairs = [PairConfig(n, "z.pt", f"{n}.pt") for n in "abc"]
    design = design_of(pairs, {"a": facts(0), "b": facts(1), "c": facts(0, lr=3e-3)})
    assert design.n_effective == 2 and design.setting[0] == design.setting[1] != design.setting[2]
    assert design.covariates["learning_rate"].tolist() == [1e-3, 1e-3, 3e-3]
    assert design.covariates["steps"].tolist() == [6, 6, 6]  # three epochs of two whole batches
    assert design.covariates["epochs"][0] == pytest.approx(6 * 4 / 9)
    manifest = {"config": {"pairs": [vars(p) for p in pairs]}, "pairs": {"a": facts(0), "b": facts(1)}}
    again = design_of_manifests([manifest])
    assert again.setting[:2] == design.setting[:2] and again.setting[2] == "" and again.base[2] == "z.pt"
    assert design_of_manifests([{}]).pairs == () and recipe_numbers({"hyperparameters": 3, "examples": "x"}) == {}


def test_the_study_wins_over_the_file_and_the_note_says_so() -> None:
    pair = PairConfig("a", "z.pt", "a.pt", {"learning_rate": 2e-3}, setting="mine", base="b")
    design = design_of([pair], {"a": facts(0)})
    assert design.covariates["learning_rate"][0] == 2e-3 and (design.setting, design.base) == (("mine",), ("b",))
    assert "a: learning_rate is 0.002 by the study and 0.001 by the file" in design.note(np.ones(1))
    assert StudyConfig(pairs=(pair,)).to_dict()["pairs"][0]["setting"] == "mine"
    assert set(StudyConfig(pairs=(PairConfig("a", "z", "f"),)).to_dict()["pairs"][0]) == {
        "name",
        "zeroshot",
        "finetuned",
    }


def test_a_file_of_covariates(tmp_path: Path) -> None:
    file = tmp_path / "c.csv"
    file.write_text("pair,learning_rate,decay\na,1e-3,\nb,2e-3,0.1\n", encoding="utf-8")
    told = read_covariates(file, ("a", "b", "c"))
    design = with_covariates(design_of([PairConfig(n, "z", n) for n in "abc"], {"a": facts(0)}), told)
    np.testing.assert_array_equal(design.covariates["learning_rate"], [1e-3, 2e-3, np.nan])
    np.testing.assert_array_equal(design.covariates["decay"], [np.nan, 0.1, np.nan])


def test_a_column_of_settings_is_text_and_wins_where_it_says_something(tmp_path: Path) -> None:
    file = tmp_path / "c.csv"
    file.write_text("pair,setting,learning_rate\na,1e-3 long,1\nb,1e-3 long,1\nc, ,2\n", encoding="utf-8")
    pairs = [
        PairConfig("a", "z", "a"),
        PairConfig("b", "z", "b", setting="other"),
        PairConfig("c", "z", "c", setting="c"),
    ]
    known = design_of(pairs, {})
    design = with_covariates(known, read_covariates(file, ("a", "b", "c")))
    assert design.setting == ("1e-3 long", "1e-3 long", "c") and design.n_effective == 2
    assert untold(design) == () and "setting" not in design.covariates
    assert "of 1 of 3 pairs is unknown" in untold(with_covariates(known, {p: {"learning_rate": 1.0} for p in "abc"}))[0]
    assert "no pair's learning rate is known" in untold(known)[0]
    without_rate = with_covariates(known, {p: {"learning_rate": 1.0} for p in "bc"})
    assert untold(without_rate) == ()  # a pair without a learning rate enters no partial correlation


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name,lr\na,1\n", "needs a line of names"),
        ("pair\na\n", "needs a line of names"),
        ("pair,distance\na,1\n", "distance is measured by the runs themselves"),
        ("pair,lr\nalpha,1\n", "line 2: 'alpha' is no pair of these runs. Did you mean 'alpha1'"),
        ("pair,lr\nalpha1,1\nalpha1,2\n", "line 3: 'alpha1' is there twice"),
        ("pair,lr\nalpha1,1,2\n", "line 2: 'alpha1' has another number of cells"),
        ("pair,lr\nalpha1,fast\n", "line 2: lr: needs a number or an empty cell, got 'fast'"),
        ("pair,lr\nalpha1,inf\n", "needs a number or an empty cell, got 'inf'"),
    ],
)
def test_a_file_of_covariates_that_cannot_be_used(text: str, said: str, tmp_path: Path) -> None:
    file = tmp_path / "c.csv"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=said.replace("(", r"\(")):
        read_covariates(file, ("alpha1", "b"))
    with pytest.raises(ConfigError, match="cannot be read as a CSV file"):
        read_covariates(tmp_path / "none.csv", ("a",))


def test_the_primary_comparison_is_named_in_the_study() -> None:
    from sharpscope.config.idle import check_no_idle

    assert StudyConfig(primary_measure="ggn_trace", primary_alpha=0.3).primary_measure == "ggn_trace"
    with pytest.raises(ConfigError, match=r"primary_measure: unknown measure 'ggn_trase'. Did you mean 'ggn_trace'"):
        StudyConfig(primary_measure="ggn_trase")
    with pytest.raises(ConfigError, match="primary_alpha: 2.0 is outside"):
        StudyConfig(primary_alpha=2.0)
    with pytest.raises(ConfigError, match="primary_measure: changes nothing in this study"):
        check_no_idle(StudyConfig(measures=("ggn_trace",), primary_measure="lambda_max"))
