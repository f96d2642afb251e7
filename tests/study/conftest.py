"""The smallest study that has every phase of a run."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest

from sharpscope.config.study import PairConfig, StudyConfig


@pytest.fixture(scope="session")
def smallest() -> StudyConfig:
    """One pair, three points, one measure, one repair with its controls: a second of work in a dozen units."""
    return StudyConfig(
        pairs=(PairConfig("success", "mini:zeroshot", "mini:success"),),
        model="mini", probe="mini:photo", id=("mini:photo",), ood=("mini:sketch",), alphas=(0.0, 0.5, 1.0),
        granularity="block", measures=("gradient_norm",), straggler_criterion="rewind", probe_size=4, batch_size=4,
        limit=16, layer_alphas=(0.0, 1.0), criticality_noise=(1.0,), targets=("delta",), repair_alphas=(0.5,), masks=1,
        repair_limit=8, bootstrap=20, threads=1,
    )  # fmt: skip


@pytest.fixture
def untimed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plans that try little of the work, for tests that do not look at their times."""
    monkeypatch.setattr("sharpscope.study.timing._SECONDS", 0.5)


@pytest.fixture(scope="session")
def smallest_run(smallest: StudyConfig, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """(its finished run directory, without figures; what the run said of its progress). Read-only."""
    from sharpscope.cli.outcome import progress_of_units
    from sharpscope.study.run import run

    root = tmp_path_factory.mktemp("smallest") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sharpscope.study.report.all_figures", lambda *_: {})
        patch.setattr(sys, "stderr", said := io.StringIO())
        run(smallest, root, progress=progress_of_units())
    return root, said.getvalue()
