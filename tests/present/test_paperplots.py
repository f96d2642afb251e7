"""The figures of the papers: what the tables hold is drawn, captions say n, and errors name what is missing."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from sharpscope.errors import ConfigError, NoData
from sharpscope.findings.criteria.barrier import barrier
from sharpscope.findings.criteria.instability import instability
from sharpscope.findings.pathheights import path_heights
from sharpscope.present.paperplots.drawn import MADE_BY, Drawn, save_drawn
from sharpscope.present.paperplots.prompting import paper_clipfit_shots
from sharpscope.present.scales import SCALES, scaled
from sharpscope.present.style import short_layer
from sharpscope.study.figures import script
from sharpscope.study.figures.reading import settings_table, tables_of
from sharpscope.tables.files import csv_bytes
from sharpscope.vocabulary import DENSE
from tests.scripts import loaded

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted((ROOT / "figures").glob("paper_*.py"))
Tables = dict[str, pd.DataFrame]
SETTINGS = "pair,method,lr,epochs\nsuccess,a,0.001,4\nfailure,a,0.003,4\n"


def _with_variants(accuracy: pd.DataFrame) -> pd.DataFrame:
    """The plain path's rows again as an ensemble, 2 points better, and as an upgraded model, 10 points better."""
    dense = accuracy[accuracy["variant"] == DENSE]
    more = [
        dense.assign(variant=name, **{c: dense[c] + gain for c in ("estimate", "ci_low", "ci_high")})
        for name, gain in (("ensemble:logits", 0.02), ("upgraded", 0.1))
    ]
    return pd.concat([accuracy, *more], ignore_index=True)


def _changes() -> pd.DataFrame:
    blocks = {
        f"visual.transformer.resblocks.{b}.{part}": b + 1
        for part in ("ln_1.weight", "mlp.c_fc.bias")
        for b in (0, 1, 2)
    }
    rows = [
        {"layer": name, "tower": "image", "depth": depth, "kind": "norm", "num_params": 10, "distance": 0.1 * depth}
        | {"norm_0": 1.0, "relative": 0.1 * depth}
        for name, depth in blocks.items()
    ]
    still = {"layer": "positional_embedding", "tower": "text", "depth": 0, "kind": "embedding", "num_params": 40}
    return pd.DataFrame([*rows, still | {"distance": 0.0, "norm_0": 2.0, "relative": 0.0}])


def _few_shot() -> pd.DataFrame:
    rows = [("zero-shot", "mini:photo", 0, 0.42, np.nan, 1)]
    rows += [("coop", "mini:photo", k, 0.4 + 0.01 * k, 0.02, 3) for k in (1, 4, 16)]
    return pd.DataFrame(rows, columns=["method", "dataset", "shots", "accuracy", "accuracy_sd", "seeds"])


def _upgrade() -> pd.DataFrame:
    row = {"method": "contcoop", "dataset": "mini:photo", "shots": 4, "old_zeroshot": 0.4, "old": 0.5, "old_sd": 0.01}
    row |= {
        "upgraded_zeroshot": 0.6,
        "upgraded": 0.65,
        "upgraded_sd": 0.02,
        "gain": 0.05,
        "ci_low": 0.01,
        "ci_high": 0.09,
    }
    return pd.DataFrame([row | {"gain_sd": 0.02, "n": 320, "seeds": 3}])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, few: Tables) -> Path:
    """A run directory with every table that the scripts read, of two pairs, made by hand."""
    root = tmp_path_factory.mktemp("papers") / "demo"
    (root / "tables").mkdir(parents=True)
    extra = {"few_shot": _few_shot(), "upgrade": _upgrade(), "accuracy": _with_variants(few["accuracy"])}
    agreement = few["agreement"].assign(dataset="mini:" + few["agreement"]["dataset"])
    for name, table in {**few, **extra, "agreement": agreement}.items():
        if name in MADE_BY:
            (root / "tables" / f"{name}.csv").write_bytes(csv_bytes(table, name))
    (root / "changes.csv").write_bytes(csv_bytes(_changes(), "changes"))
    (root / "settings.csv").write_text(SETTINGS)
    (root / "models.csv").write_text(
        "dataset,id_accuracy,ood_accuracy\n" + "".join(f"mini:clipart,{p},{p - 0.2}\n" for p in (0.5, 0.6, 0.7, 0.8))
    )
    return root


@pytest.fixture(scope="module")
def draw(run: Path) -> Callable[..., Drawn]:
    """Runs a script on the run directory, once for the same arguments, and returns what it would have written."""

    @functools.cache
    def drawn(name: str, *argv: str, subject: str | None = None) -> Drawn:
        module, kept = loaded(f"figures/paper_{name}.py"), []
        before = dict(matplotlib.rcParams)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(script, "write", lambda made, out, file: kept.append((made, file)))
            module.main([subject or str(run), *(a.replace("RUN", str(run)) for a in argv)])
        assert dict(matplotlib.rcParams) == before
        ((made, file),) = kept
        assert file == f"paper_{name}"  # the script's own name
        return made

    return drawn


def _panel(figure: Figure, title: str) -> Axes:
    return next(ax for ax in figure.axes if ax.get_title(loc="left").startswith(title))


def _curve(ax: Axes, colour: str) -> np.ndarray:
    """The longest line of one colour, [points, 2]."""
    lines = [line for line in ax.get_lines() if line.get_color() == colour]
    return np.asarray(max((line.get_xydata() for line in lines), key=len))


BLUE, ORANGE = "#0072B2", "#D55E00"


# ------------------------------------------------------------------------------------------------------- every script
ARGUMENTS: dict[str, tuple[str, ...]] = {
    "clipfit_change": ("SUBJECT", "RUN/changes.csv"),
    "wiseft_shots": ("SUBJECT", "4=RUN"),
    "wiseft_hyper": ("--settings", "RUN/settings.csv"),
    "lipsum_tradeoff": ("--settings", "RUN/settings.csv"),
}
SAYS = {
    "clipfit_change": "6 tensors that fine-tuning moves (60 of 100 parameters)",
    "clipfit_shots": "1 method by the number of training images per class on 1 data set: means over 3 seeds",
    "contcoop_upgrade": "1 method on 1 data set of 320 images, 3 seeds",
    "lipsum_energy": "3 data sets of 320 images against the distance of the model at α = 1 from the zero-shot model, 2",
    "lipsum_tradeoff": "2 fine-tuned models by 1 method",
    "vrf_ratio": "on 2 data sets, 2 pairs, in bins of 80 images by their squared distance to the k-th nearest of 28",
    "sharpness_correlation": "Left: 2 models at α = 0.5; right: 22 points of 2 paths",
    "sharpness_layers": "22 layers along the straight path of 2 pairs, from 48 probe images",
    "sharpness_lii": "2 pairs at 11 points",
    "sharpness_repair": "2 pairs, and with 50 % of the weights of some layers set to 0",
    "wiseft_alpha": "2 pairs on every data set; 1,600 ID and 14,400 OOD images in 9 sets",
    "wiseft_diversity": "3 data sets with 320 images each, 2 pairs",
    "wiseft_ensembles": "2 other mixtures of the same two models (ensemble:logits, upgraded), 2 pairs",
    "wiseft_hyper": "2 fine-tuned models",
    "wiseft_scatter": "2 pairs, logit axes; 1,600 ID and 14,400 OOD images in 9 sets",
    "wiseft_shots": "1 number of images, 2 fine-tuned models",
}


def test_every_script_is_tested() -> None:
    assert {f"paper_{name}" for name in SAYS} == {s.stem for s in SCRIPTS}


@pytest.mark.parametrize("name", sorted(SAYS))
def test_script_draws_and_its_caption_says_n_and_the_paper(name: str, draw: Callable[..., Drawn], run: Path) -> None:
    given = ARGUMENTS.get(name, ())
    subject = given[1].replace("RUN", str(run)) if given[:1] == ("SUBJECT",) else None
    made = draw(name, *(() if subject else given), subject=subject)
    assert SAYS[name] in made.caption
    assert "arXiv" in made.caption and "  " not in made.caption
    shown = [ax for ax in made.figure.axes if ax.get_visible()]
    marks = [ax for ax in shown if ax.lines or ax.collections or ax.patches]
    assert marks == shown  # no empty panel
    assert any(ax.get_ylabel() for ax in shown) or name == "wiseft_diversity"
    texts = [t for ax in shown for t in (ax.title, ax.xaxis.label, ax.yaxis.label)]
    assert min(t.get_fontsize() for t in texts) >= 7


@pytest.mark.parametrize("name", sorted(SAYS))
def test_a_missing_or_empty_table_is_named_with_its_command(name: str, run: Path, tmp_path: Path) -> None:
    module = loaded(f"figures/paper_{name}.py")
    (tmp_path / "bare" / "tables").mkdir(parents=True)
    subject = {"wiseft_shots": f"4={tmp_path}/bare"}.get(name, f"{tmp_path}/bare")
    if name == "clipfit_change":
        with pytest.raises(SystemExit, match="no such file"):
            module.main([str(tmp_path / "none.csv")])
        return
    with pytest.raises(SystemExit) as told:
        module.main([subject, "--out", str(tmp_path / "out")])
    table = next(t for t in MADE_BY if f"/{t}.csv" in str(told.value))
    assert f"'{MADE_BY[table]}' makes this table" in str(told.value)
    full = run / "tables" / f"{table}.csv"
    (tmp_path / "bare" / "tables" / f"{table}.csv").write_text(full.read_text().splitlines()[0] + "\n")
    with pytest.raises(SystemExit, match=rf"{table}\.csv: has no rows; '.*' makes this table"):
        module.main([subject, "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_files_are_reproducible_and_the_caption_lies_beside_them(tmp_path: Path) -> None:
    written = [save_drawn(paper_clipfit_shots(_few_shot()), tmp_path / folder, "figure") for folder in ("a", "b")]
    assert [p.name for p in written[0]] == ["figure.png", "figure.pdf", "figure.txt"]
    for one, other in zip(*written, strict=True):
        assert one.read_bytes() == other.read_bytes()
    assert written[0][2].read_text().startswith("Accuracy of 1 method")


# ---------------------------------------------------------------------------------------------------- what is in them
def test_scatter_has_the_accuracies_at_their_places_on_each_scale(draw: Callable[..., Drawn], few: Tables) -> None:
    rows = few["accuracy"].query("pair == 'failure' and variant == 'dense'")
    ident = rows[rows["dataset"] == "mini:photo"].sort_values("alpha")["estimate"]
    ood = rows[rows["dataset"] == "mini:clipart"].sort_values("alpha")["estimate"]
    for scale in ("logit", "probit"):
        figure = draw("wiseft_scatter", "--scale", scale, "--baseline", "RUN/models.csv").figure
        ax = _panel(figure, "clipart")
        order = ["failure", "success"]  # the table of a run is sorted
        curve = _curve(ax, (BLUE, ORANGE)[order.index("failure")])
        np.testing.assert_allclose(curve, np.stack([scaled(ident, scale), scaled(ood, scale)], 1))
        models = next(c for c in ax.collections if len(c.get_offsets()) == 4)
        np.testing.assert_allclose(models.get_offsets()[0], scaled(np.array([0.5, 0.3]), scale))
        dashed = next(line for line in ax.get_lines() if line.get_linestyle() == "--")
        p = np.array([0.5, 0.6, 0.7, 0.8])
        slope, height = np.polyfit(scaled(p, scale), scaled(p - 0.2, scale), 1)
        np.testing.assert_allclose(dashed.get_ydata(), slope * np.asarray(dashed.get_xdata()) + height, atol=1e-9)


@pytest.mark.parametrize("scale", list(SCALES))
def test_scales_are_inverted_by_their_inverse(scale: Any) -> None:
    p = np.array([0.02, 0.5, 0.97])
    np.testing.assert_allclose([SCALES[scale][1](v) for v in scaled(p, scale)], p)


def test_chords_join_the_ends(draw: Callable[..., Drawn], few: Tables) -> None:
    ax = _panel(draw("wiseft_alpha").figure, "sketch")
    chord = next(line for line in ax.get_lines() if line.get_linestyle() == ":" and line.get_color() == ORANGE)
    rows = few["accuracy"].query("pair == 'success' and dataset == 'mini:sketch' and variant == 'dense'")
    ends = rows.set_index("alpha")["estimate"]
    np.testing.assert_allclose(chord.get_xydata(), [(0, 100 * ends[0.0]), (1, 100 * ends[1.0])])


def test_ensembles_stand_two_points_above_the_path(draw: Callable[..., Drawn], few: Tables) -> None:
    figure = draw("wiseft_ensembles", "--variants", "dense", "ensemble:logits").figure
    plain, ensemble = (_curve(figure.axes[1], colour) for colour in (BLUE, ORANGE))
    np.testing.assert_allclose(ensemble[:, 1] - plain[:, 1], 2.0)
    mean = few["accuracy"].query("pair == 'failure' and variant == 'dense' and role == 'ood_mean'").sort_values("alpha")
    np.testing.assert_allclose(plain, mean[["alpha", "estimate"]] * [1, 100])
    with pytest.raises(SystemExit, match="no 'ensemble:logit'. Did you mean 'ensemble:logits'"):
        draw("wiseft_ensembles", "--variants", "ensemble:logit")


def test_heights_are_those_of_the_criteria_and_the_arrows_as_long(draw: Callable[..., Drawn], few: Tables) -> None:
    heights = path_heights(few["path"]).set_index("pair")
    own = few["path"].query("pair == 'failure'").sort_values("alpha")
    losses, alphas = own["loss"].to_numpy(), list(own["alpha"])
    assert heights.loc["failure", "lii"] == pytest.approx(1.58 - (1.41 + 0.29) / 2)
    assert heights.loc["failure", "lii"] == instability(losses, alphas)
    assert heights.loc["failure", "barrier"] == barrier(losses, alphas)
    assert heights.loc["failure", "lii_alpha"] == 0.2
    ax = _panel(draw("sharpness_lii").figure, "failure")
    arrows = [c.get_segments()[0] for c in ax.collections if hasattr(c, "get_segments")]
    lengths = sorted(float(s[1][1] - s[0][1]) for s in arrows)
    np.testing.assert_allclose(lengths, sorted(heights.loc["failure", ["barrier", "lii"]].astype(float)))


def test_stragglers_are_named_and_only_those_of_the_pair_are_coloured(draw: Callable[..., Drawn], few: Tables) -> None:
    criterion = "share:hessian_trace"  # other layers in each pair
    chosen = few["stragglers"].query("criterion == @criterion and chosen")
    figure = draw("sharpness_layers", "--criterion", criterion).figure
    names = {t.get_text() for legend in figure.legends for t in legend.get_texts()}
    assert {short_layer(name) for name in chosen["layer"]} <= names
    for pair in ("success", "failure"):
        ax = _panel(figure, pair)
        coloured = [line for line in ax.get_lines() if line.get_linewidth() == 1.4]
        assert len(coloured) == (chosen["pair"] == pair).sum()


def test_overrides_and_measures_are_the_tables(draw: Callable[..., Drawn]) -> None:
    figure = draw("wiseft_diversity", "--pairs", "success").figure
    line = _panel(figure, "zero-shot overrides").get_lines()[0]
    np.testing.assert_allclose(line.get_xydata(), [(0, 0), (0.5, 0.5), (1, 1)])
    ax = _panel(figure, "prediction diversity")
    assert [t.get_text() for t in ax.get_yticklabels()] == ["photo (ID)", "clipart", "painting"]
    marks = next(line for line in ax.get_lines() if line.get_marker() == "D")  # the second pair by name, though alone
    np.testing.assert_allclose(marks.get_xdata(), 1.0)


def test_repair_shows_the_sparse_accuracies(draw: Callable[..., Drawn], few: Tables) -> None:
    ax = _panel(draw("sharpness_repair", "--target", "delta").figure, "success")
    rows = (
        few["repair"]
        .query(
            "pair == 'success' and target == 'delta' and select == 'random' and density == 0.5 and control == 'none'"
        )
        .sort_values("alpha")
    )
    np.testing.assert_allclose(_curve(ax, BLUE), rows[["alpha", "ood_accuracy"]] * [1, 100])


def test_bars_of_an_upgrade(draw: Callable[..., Drawn]) -> None:
    figure = draw("contcoop_upgrade").figure
    bars = [p.get_height() for p in figure.axes[0].patches if isinstance(p, Rectangle)]
    np.testing.assert_allclose(bars, [40, 50, 60, 65])
    bars = [p.get_height() for p in draw("contcoop_upgrade", "--from", "accuracy").figure.axes[0].patches]
    np.testing.assert_allclose(np.array(bars[-2 * len(bars) // 4 :]) - bars[: 2 * len(bars) // 4], 10)  # old, upgraded


def test_changes_are_joined_by_depth(draw: Callable[..., Drawn], run: Path) -> None:
    figure = draw("clipfit_change", subject=str(run / "changes.csv")).figure
    (ax,) = figure.axes
    assert {t.get_text() for t in ax.get_legend().get_texts()} == {"ln_1.weight", "mlp.c_fc.bias"}  # type: ignore[union-attr]
    np.testing.assert_allclose(ax.get_lines()[0].get_xydata(), [(1, 0.1), (2, 0.2), (3, 0.3)])


# ------------------------------------------------------------------------------------------------------ several runs
def test_pairs_of_several_runs_are_told_apart(run: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    (other / "tables").mkdir(parents=True)
    (other / "tables" / "path.csv").write_bytes((run / "tables" / "path.csv").read_bytes())
    both = tables_of([str(run), str(other)]).needed("path")
    assert set(both["pair"]) == {f"{name}: {pair}" for name in ("demo", "other") for pair in ("success", "failure")}
    same = tmp_path / "of_that_name" / "demo"
    shutil.copytree(other, same)
    with pytest.raises(ConfigError, match="is also in a run of another folder of this name"):
        tables_of([str(run), str(same)]).needed("path")
    with pytest.raises(ConfigError, match="is given twice"):
        tables_of([str(run), str(run)])


@pytest.mark.parametrize(
    ("text", "said"),
    [("pair,lr\na,1\n", "no row for the pair 'b'"), ("name,lr\na,1\n", "needs the column pair"),
     ("pair\na\n", "at least one setting"), ("pair,lr\na,1\nb,2\na,3\n", "two rows for the pair 'a'")],
)  # fmt: skip
def test_settings_that_do_not_fit_are_refused(text: str, said: str, tmp_path: Path) -> None:
    file = tmp_path / "settings.csv"
    file.write_text(text)
    with pytest.raises(ConfigError, match=said):
        settings_table(file, tables_of([str(tmp_path)]), ["a", "b"])
    assert list(settings_table(None, tables_of([str(tmp_path)]), ["a", "b"]).columns) == ["pair"]


def test_no_setting_that_differs_is_told(draw: Callable[..., Drawn], tmp_path: Path) -> None:
    file = tmp_path / "same.csv"
    file.write_text("pair,lr\nsuccess,1\nfailure,1\n")
    with pytest.raises(SystemExit, match="no setting has two values"):
        draw("wiseft_hyper", "--settings", str(file))
    with pytest.raises(NoData, match="has no method beside zero-shot"):
        paper_clipfit_shots(_few_shot().iloc[:1])


def test_ratios_lie_at_their_bins_mean_distances(draw: Callable[..., Drawn], few: Tables) -> None:
    figure = draw("vrf_ratio").figure
    ax = _panel(figure, "success")
    curves = [np.asarray(c.lines[0].get_xydata()) for c in ax.containers]
    want = few["vrf"].query("pair == 'success'").dropna(subset="ratio").groupby("dataset")[["distance", "ratio"]]
    for curve, (_, rows) in zip(curves, want, strict=True):
        assert np.allclose(curve, rows.to_numpy())
    assert ax.get_yscale() == "log" and len(curves[0]) == 3  # the bin without a ratio is not drawn, but counted
    assert "1 bin without a ratio above 0" in [t.get_text() for t in figure.legends[0].get_texts()]
