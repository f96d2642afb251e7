"""Words of before: what a study file or an older run's manifest says is understood as it was meant."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sharpscope.config import studyfile
from sharpscope.config.spellings import current_arguments, current_keys
from sharpscope.config.study import StudyConfig
from sharpscope.errors import ConfigError, RunDirectoryError
from sharpscope.study.store import RunDirectory


def test_an_old_key_is_todays() -> None:
    assert StudyConfig.from_dict({"eval_limit": 7}) == StudyConfig(limit=7)
    assert studyfile.parse("seed: 1\neval_limit: 7\n") == StudyConfig(seed=1, limit=7)
    assert current_keys({"limit": 1, "seed": 2}) == {"limit": 1, "seed": 2}


def test_a_key_in_both_words_is_refused_with_its_line() -> None:
    with pytest.raises(ConfigError, match="^config: limit: is given twice, once by its old name eval_limit"):
        StudyConfig.from_dict({"eval_limit": 7, "limit": 7})
    with pytest.raises(ConfigError, match="^study, line 2: limit: is given twice"):
        studyfile.parse("eval_limit: 7\nlimit: 7\n")


def test_a_bad_value_of_an_old_key_is_found_in_the_file() -> None:
    with pytest.raises(ConfigError, match="^study, line 2: limit: needs a whole number of at least 1, got 0"):
        studyfile.parse("seed: 1\neval_limit: 0\n")


def test_a_run_directory_of_old_words_belongs_to_the_same_experiment(tmp_path: Path) -> None:
    root = tmp_path / "run"
    config = StudyConfig(limit=7).to_dict()
    RunDirectory.open(root, {"config": config}, {"config": config})
    file = root / "manifest.json"
    manifest = json.loads(file.read_text())
    for part in (manifest, manifest["identity"]):
        part["config"]["eval_limit"] = part["config"].pop("limit")
    file.write_text(json.dumps(manifest))
    assert RunDirectory.open(root, {"config": config}, {}).manifest["config"] == config
    assert StudyConfig.from_dict(RunDirectory.existing(root).manifest["config"]) == StudyConfig(limit=7)
    with pytest.raises(RunDirectoryError, match="config.limit is 7 there, 8 here"):
        RunDirectory.open(root, {"config": {**config, "limit": 8}}, {})


@pytest.mark.parametrize(
    ("command", "arguments", "current"),
    [
        ("run", ["--eval-limit", "5", "--id", "x"], ["--limit", "5", "--id", "x"]),
        ("plan", ["--eval_limit=5"], ["--limit=5"]),
        ("convert", ["a", "b", "--head", "h.pt"], ["a", "b", "--head-file", "h.pt"]),
        ("report", ["r", "--results", "wise-ft"], ["r", "--export", "wise-ft"]),
        ("table", ["r", "--style=alphas"], ["r", "--rows=alphas"]),
        ("figures", ["r", "--style", "screen"], ["r", "--style", "screen"]),
        ("merge", ["--results", "f.csv"], ["--results", "f.csv"]),
        ("interpolate", ["--head", "text"], ["--head", "text"]),
        ("evaluate", ["c", "--data", "a", "b"], ["c", "--datasets", "a", "b"]),
        ("finetune", ["--precision", "float16", "--val", "float32"], ["--precision", "fp16", "--val", "float32"]),
        ("run", ["--dtype", "float32", "--title", "a=b"], ["--dtype", "float32", "--title", "a=b"]),
        ("run", ["--title", "--x"], ["--title", "--x"]),
        ("nonsense", ["--data"], ["--data"]),
    ],
)
def test_arguments_in_todays_words(command: str, arguments: list[str], current: list[str]) -> None:
    told, hints = current_arguments(command, arguments)
    assert told == current
    assert len(hints) == sum(a != b for a, b in zip(arguments, current, strict=True))
