"""A sweep: one file per combination, one run over all of them, hyperparameters as covariates; stopped and resumed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr

from sharpscope.cli.main import main
from sharpscope.config.study import PairConfig, StudyConfig
from sharpscope.config.sweep import load_sweep
from sharpscope.errors import ConfigError
from sharpscope.study import sweep as sweeping
from sharpscope.study.across import correlate
from sharpscope.study.designs import design_of, design_of_manifests
from sharpscope.tables.files import csv_bytes, read_csv
from sharpscope.weights.checkpoint import read_checkpoint, write_checkpoint

MakeFolder = Callable[..., Path]

SWEEP = """
zeroshot: {folder}/zeroshot.safetensors
train: folder:{folder}/train
methods: [wise-ft]
grid:
  lr: [1e-3, 3e-2, 1.0e-1]
  steps: [1, 2]
seeds: [0]
set:
  batch_size: 4
study:
  model: {model}
  probe: folder:{folder}/train
  id: ["folder:{folder}/id"]
  ood: ["folder:{folder}/ood"]
  alphas: [0, 1]
  measures: [hessian_trace]
  granularity: block
  probe_size: 4
  max_matvecs: 2
  densities: []
  layer_alphas: [0, 1]
  criticality_noise: [1]
  bootstrap: 20
  threads: 1
  device: cpu
"""


@pytest.fixture
def file(image_folder: MakeFolder, tiny_paths: dict[str, Path], tiny_theta: dict[str, Any], tmp_path: Path) -> Path:
    for name in ("train", "id", "ood"):
        image_folder({"cat": 4, "dog": 4}, name)
    write_checkpoint(tmp_path / "zeroshot.safetensors", tiny_theta, {})
    (tmp_path / "lrs.yaml").write_text(SWEEP.format(folder=tmp_path, model=tiny_paths["vit"]), encoding="utf-8")
    return tmp_path / "lrs.yaml"


def digests(root: Path) -> dict[str, str]:
    found = sorted(root.rglob("*.safetensors"))
    return {str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in found}


def test_a_stopped_sweep_goes_on_to_the_same_files_and_correlate_takes_it(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sharpscope.study.report.all_figures", lambda *_: {})  # the slowest part, and not looked at
    monkeypatch.chdir(tmp_path)
    assert main(["sweep", str(file), "--out", "whole"]) == 0
    table = pd.read_csv("whole/tables/finetunings.csv").set_index("pair")
    assert len(table) == 6 and table.at["wise-ft-lr0.03-steps2-seed0", "learning_rate"] == 0.03
    assert table["epochs"].tolist() == (table["steps"] * 4 / 8).tolist() and set(table["method"]) == {"wise-ft"}
    manifest = json.loads(Path("whole/manifest.json").read_text())
    named = {p["name"]: p["covariates"] for p in manifest["config"]["pairs"]}
    design = design_of_manifests([manifest])  # the files state the same as the sweep, and each is a setting of its own
    assert design.remarks == () and len(set(design.setting)) == 6 and "" not in design.setting and design.n_bases == 1
    told = manifest["pairs"]["wise-ft-lr0.1-steps1-seed0"]["finetuned"]["finetuning"]
    assert told["hyperparameters"]["lr"] == 0.1
    assert named["wise-ft-lr0.1-steps1-seed0"] == {"learning_rate": 0.1, "epochs": 0.5, "steps": 1}

    # eight test images leave the accuracies of all six models equal, so others are put in their place
    measured = read_csv("whole/tables/accuracy.csv", "accuracy")
    ood = measured["role"].isin(["ood", "ood_mean"])
    rank = dict(zip(table.index, (0.6, 0.2, 0.5, 0.3, 0.1, 0.4), strict=True))
    measured.loc[ood, "estimate"] = [rank[pair] for pair in measured.loc[ood, "pair"]]
    Path("whole/tables/accuracy.csv").write_bytes(csv_bytes(measured, "accuracy"))
    found = correlate([tmp_path / "whole"], bootstrap=20)
    assert {"learning_rate", "steps", "epochs"} <= set(found["given"])
    own = found[(found["measure"] == "covariate:learning_rate") & (found["method"] == "spearman")]
    own = own[own["against"] == "ood_accuracy"].iloc[0]
    expected = spearmanr(table["learning_rate"], [rank[pair] for pair in table.index]).statistic
    assert own["n"] == 6 and own["estimate"] == pytest.approx(expected)

    finetune, calls = sweeping.finetune, []

    def stopped(*args: Any, **kwargs: Any) -> Any:
        calls.append(kwargs["out"].name)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return finetune(*args, **kwargs)

    def only_seen(config: StudyConfig, *_: Any) -> None:
        seen.append(config)
        raise KeyboardInterrupt

    seen: list[StudyConfig] = []
    monkeypatch.setattr(sweeping, "finetune", stopped)
    monkeypatch.setattr(sweeping, "run", only_seen)
    assert main(["sweep", str(file), "--out", "parts"]) == 130
    assert len(digests(Path("parts"))) == 2 and not seen
    assert main(["sweep", str(file), "--out", "parts"]) == 130  # now all files are there, and the measuring is stopped
    assert digests(Path("parts")) == digests(Path("whole"))
    assert [p.covariates for p in seen[0].pairs] == list(named.values())
    capsys.readouterr()


def test_what_a_sweep_file_must_not_say(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    for old, new, said in (
        ("steps: [1, 2]", "steps: []", r"line 7: grid.steps: needs a list"),
        ("lr: [1e-3, 3e-2, 1.0e-1]", "lr: [1e-3, 0.001]", "line 6: grid.lr: '0.001' is given twice"),
        ("batch_size: 4", "lr: 1e-3", "line 10: set.lr: is among grid too"),
        ("methods:", "method:", "line 4: unknown key 'method'. Did you mean 'methods'"),
        ("  probe_size: 4", "  probe_sise: 4", "study.unknown key 'probe_sise'. Did you mean 'probe_size'"),
        ("seeds: [0]", "seeds: [a]", r"line 8: seeds\[0\]: needs a whole number"),
    ):
        assert old in text
        file.write_text(text.replace(old, new), encoding="utf-8")
        with pytest.raises(ConfigError, match=said):
            load_sweep(file)


def test_a_sweep_file_draws_at_random(file: Path) -> None:
    drawn = "draw: 3\ndesign: latin-hypercube\nranges:\n  lr: {low: 1e-4, high: 1e-1, scale: log}\n  steps: [1, 2, 3]\n"
    given = file.read_text(encoding="utf-8")
    text = drawn + given[: given.index("grid:")] + given[given.index("seeds:") :]
    file.write_text(text, encoding="utf-8")
    trials = load_sweep(file).trials()
    assert {t.settings["steps"] for t in trials} == {1, 2, 3} and len({t.settings["lr"] for t in trials}) == 3
    assert all(1e-4 <= t.settings["lr"] <= 1e-1 and t.settings["batch_size"] == 4 for t in trials)
    for old, new, said in (
        ("scale: log", "scale: lin", "line 4: ranges.lr: scale: 'lin' is none of linear, log"),
        ("latin-hypercube", "sobol", "line 2: design: 'sobol' is none of random, latin-hypercube"),
        ("draw: 3\n", "", "line 2: ranges: changes nothing without draw"),
        ("ranges:", "range:", "line 3: unknown key 'range'. Did you mean 'ranges'"),
    ):
        file.write_text(text.replace(old, new), encoding="utf-8")
        with pytest.raises(ConfigError, match=said):
            load_sweep(file)


def test_a_recipe_stands_beside_the_methods(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    file.write_text(text.replace("methods: [wise-ft]", "methods: [flyp]\nrecipes: [mini-wise-ft]"), encoding="utf-8")
    trials = load_sweep(file).trials()
    assert [t.way for t in trials] == [{"method": "flyp"}] * 6 + [{"recipe": "mini-wise-ft"}] * 6
    assert trials[-1].name == "mini-wise-ft-lr0.1-steps2-seed0"
    file.write_text(text.replace("methods: [wise-ft]", "recipes: [wise]"), encoding="utf-8")
    with pytest.raises(ConfigError, match="wise"):
        sweeping.run_sweep(load_sweep(file), "nowhere")


def test_a_diverged_fine_tuning_has_no_pair(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = {}

    def measured(config: StudyConfig, out: Any, progress: Any) -> None:
        made["pairs"] = config.pairs
        raise KeyboardInterrupt  # the pairs are what is looked at

    monkeypatch.setattr(sweeping, "run", measured)
    text = file.read_text(encoding="utf-8").replace("1.0e-1]", "1.0e+30]").replace("steps: [1, 2]", "steps: [3]")
    file.write_text(text, encoding="utf-8")
    with pytest.raises(KeyboardInterrupt):
        sweeping.run_sweep(load_sweep(file), tmp_path / "out")
    assert [p.name for p in made["pairs"]] == ["wise-ft-lr0.001-steps3-seed0", "wise-ft-lr0.03-steps3-seed0"]
    assert all(read_checkpoint(p.finetuned).tensors for p in made["pairs"])


def test_covariates_of_pairs_in_a_study_file() -> None:
    study = StudyConfig(pairs=({"name": "a", "zeroshot": "z", "finetuned": "f", "covariates": {"learning_rate": 1}},))  # type: ignore[arg-type]
    assert study.pairs == (PairConfig("a", "z", "f", {"learning_rate": 1.0}),)
    with pytest.raises(ConfigError, match=r"pairs\[0\].covariates.learning_rate: needs a number, got 'x'"):
        StudyConfig(pairs=({**vars(study.pairs[0]), "covariates": {"learning_rate": "x"}},))  # type: ignore[arg-type]
    design = design_of([*study.pairs, PairConfig("b", "z", "g", setting="mine", base="other")], {})
    assert design.covariates["learning_rate"][0] == 1 and np.isnan(design.covariates["learning_rate"][1])
    assert (design.base, design.setting) == (("z", "other"), ("", "mine"))
