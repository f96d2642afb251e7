"""A slice of the loss is drawn as it is in its table."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from sharpscope.errors import NoData
from sharpscope.present.sliceplots import loss_slice
from tests.scripts import loaded


def line() -> pd.DataFrame:
    steps = np.linspace(-1, 1, 5)
    return pd.DataFrame({"step_1": steps, "step_2": np.nan, "loss": steps**2 + 1, "loss_stderr": 0.1})


def plane() -> pd.DataFrame:
    steps = np.linspace(-1, 1, 4)
    rows = [(a, b, a * a + 3 * b * b, 0.1) for a in steps for b in steps]
    return pd.DataFrame(rows, columns=["step_1", "step_2", "loss", "loss_stderr"])


def test_a_line_has_its_points_and_a_band_of_one_standard_error() -> None:
    ax = loss_slice(line().sample(frac=1, random_state=0), ["theta_1 - theta_0"])
    curve = ax.lines[0]
    assert list(curve.get_xdata()) == sorted(curve.get_xdata()) and list(curve.get_ydata()) == list(line()["loss"])
    corners = ax.collections[0].get_paths()[0].vertices
    assert corners[:, 1].max() == pytest.approx(2.1) and corners[:, 1].min() == pytest.approx(0.9)
    assert ax.get_xlabel() == "step along theta_1 - theta_0"
    beyond = line().assign(step_1=lambda df: df["step_1"] + 5)
    assert len(loss_slice(beyond.assign(loss_stderr=np.nan)).lines) == 1  # neither a band nor a mark at 0


def test_a_plane_has_contours_with_the_first_step_across() -> None:
    ax = loss_slice(plane(), ["up", "across"])
    filled = ax.collections[0]
    assert filled.levels[0] <= plane()["loss"].min() and filled.levels[-1] >= plane()["loss"].max()
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("step along up", "step along across")
    # the loss grows faster along the second direction, so that its contours are wider across
    inner = max((p.vertices for p in filled.get_paths()[:2] if len(p.vertices)), key=len)
    assert np.ptp(inner[:, 0]) > np.ptp(inner[:, 1])
    gone = plane()
    gone.loc[3, "loss"] = np.inf
    loss_slice(gone)


@pytest.mark.parametrize("table", [line().assign(loss=np.nan), line().iloc[:0], plane().query("step_2 < -0.9")])
def test_without_data_there_is_an_error(table: pd.DataFrame) -> None:
    with pytest.raises(NoData, match="loss_slice"):
        loss_slice(table)


def test_the_script_draws_the_table(tmp_path: Path) -> None:
    script = loaded("figures/fig_slice.py")
    plane().to_csv(tmp_path / "slice.csv", index=False)
    script.main([str(tmp_path / "slice.csv"), "--names", "v1", "v2", "--out", str(tmp_path)])
    assert {p.suffix for p in tmp_path.glob("loss_slice.*")} == {".png", ".pdf"}
    line().assign(loss=np.nan).to_csv(tmp_path / "empty.csv", index=False)
    with pytest.raises(SystemExit, match="finite"):
        script.main([str(tmp_path / "empty.csv"), "--out", str(tmp_path)])
