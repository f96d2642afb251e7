"""``sharpscope advise`` as a user types it: one pair of the embedded world in each of the five situations."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

import sharpscope
from sharpscope.cli import main as cli
from sharpscope.miniworld import world
from sharpscope.tables.files import read_csv
from sharpscope.tables.schema import COLUMNS

PAIR = ["advise", "--zeroshot", "mini:zeroshot", "--finetuned", "mini:lr2e-3", "--model", "mini", "--device", "cpu"]
SMALL = ["--alphas", "0", "0.5", "1", "--limit", "48", "--bootstrap", "60", "--id", "mini:photo"]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A flat folder of 24 pictures of the style sketch, and labels.csv beside it."""
    folder = tmp_path_factory.mktemp("target") / "pictures"
    folder.mkdir()
    made = world.make("sketch", 24, 12345)
    rows = []
    for i, (pixels, label) in enumerate(zip(made.images, made.labels, strict=True)):
        Image.fromarray(pixels).save(folder / f"{i:02d}.png")
        rows.append((f"pictures/{i:02d}.png", world.CLASSES[int(label)].upper(), "ignored"))
    with open(folder.parent / "labels.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("filepath", "label", "more"), *rows])
    return folder


Say = Callable[..., tuple[int, str, str]]


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> Say:
    def run(*argv: str) -> tuple[int, str, str]:
        code = cli.main([*argv])
        told = capsys.readouterr()
        return code, told.out, told.err

    return run


def test_a_pair_alone_gets_no_alpha_but_what_is_known(say: Say) -> None:
    code, out, err = say(*PAIR)
    assert (code, err) == (0, "")
    assert out.startswith("none: nothing is known but the two checkpoints\n")
    assert "WARNING: this pair was tuned end to end with learning rate 0.002" in out and "->" not in out
    assert "of 19 end-to-end paths, the 16 with learning rate <= 3e-05 lose at most 1.4 points" in out


def test_all_situations_at_once_the_strongest_first(say: Say, pictures: Path, tmp_path: Path) -> None:
    known = ["--ood", "far=mini:neon", "near=mini:photo-tilt", "--target-labels", str(pictures.parent / "labels.csv")]
    known += ["--target-images", str(pictures), "--held-out-shifts", "mini:photo+saturate@3", "--shipped-pairs"]
    code, out, err = say(*PAIR, *SMALL, *known, "--out", str(tmp_path / "advice.csv"))
    assert (code, err) == (0, "")
    order = ["measured: ", "target_labels: ", "target_images: ", "references: ", "baseline: "]
    places = [out.index(f"{'' if title == 'measured: ' else chr(10)}{title}") for title in order]
    assert places == sorted(places) and "none: " not in out and out.endswith(f"wrote {tmp_path / 'advice.csv'}\n")
    table = read_csv(tmp_path / "advice.csv", "advice")
    assert tuple(table.columns) == COLUMNS["advice"]
    measured = table[table["situation"] == "measured"].set_index(["rule", "group"])
    assert set(measured.index) == {(r, g) for r in ("ood_best", "mean_best", "keep_id") for g in ("far", "near")}
    assert measured["id_accuracy"].notna().all() and (measured["regret_high"] >= measured["regret_low"]).all()
    labels = table[table["situation"] == "target_labels"].iloc[0]
    assert labels["advised"] and "24 labelled images" in labels["note"] and labels["ci_low"] <= labels["predicted_gain"]
    images = table[table["situation"] == "target_images"]
    assert images["advised"].sum() == 1 and (images["group"] == "target").all()
    references = table[table["situation"] == "references"]
    assert references.groupby("group")["advised"].sum().max() == 1 and "far" in set(references["group"])


def test_a_pair_outside_the_references_gets_no_alpha(say: Say) -> None:
    code, out, _ = say(*PAIR, "--shipped-pairs", "--learning-rate", "0.5")
    assert code == 0 and "no alpha: this pair lies outside the " in out and "the learning rate is 0.5" in out
    assert "->" not in out and "none: nothing is known" in out


def edited(pictures: Path, tmp_path: Path, change: Callable[[list[str]], list[str]]) -> str:
    lines = (pictures.parent / "labels.csv").read_text().splitlines()
    text = "\n".join(change([line.replace("pictures/", f"{pictures}/") for line in lines]))
    (tmp_path / "labels.csv").write_text(text + "\n")
    return str(tmp_path / "labels.csv")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda rows: rows[:20], "19 labelled images; advice needs at least 20"),
        (lambda rows: [*rows[:5], rows[5].replace("04.png", "absent.png"), *rows[6:]], "line 6: no image file "),
        (lambda rows: [*rows[:5], rows[5].rsplit(",", 2)[0] + ",squar,x", *rows[6:]], "line 6: label 'squar' names no"),
        (lambda rows: [*rows, rows[3]], "is on line 4 already"),
        (lambda rows: ["file,label", *rows[1:]], "no column 'filepath'; its columns are file, label"),
        (lambda rows: [*rows[:5], ",circle,", *rows[6:]], "line 6: filepath is empty"),
    ],
    ids=["few", "missing file", "unknown label", "twice", "no column", "empty"],
)
def test_a_bad_file_of_labels_is_named_with_its_row(
    say: Say, pictures: Path, tmp_path: Path, change: Callable[[list[str]], list[str]], words: str
) -> None:
    code, out, err = say(*PAIR, "--alphas", "0", "1", "--target-labels", edited(pictures, tmp_path, change))
    assert (code, out) == (2, "") and words in err and "labels.csv" in err


def test_target_images_need_an_id_set_and_pictures(say: Say, pictures: Path, tmp_path: Path) -> None:
    code, _, err = say(*PAIR, "--alphas", "0", "1", "--target-images", str(pictures))
    assert code == 2 and "--id SPEC" in err
    code, _, err = say(*PAIR, "--alphas", "0", "1", *SMALL[4:], "--target-images", str(tmp_path))
    assert code == 2 and "no image files" in err


def test_labels_of_a_target_set_are_not_looked_at(pictures: Path) -> None:
    """Class folders with wrong names give the advice that the flat folder of the same pictures gives."""
    nested = pictures.parent / "nested"
    for i, file in enumerate(sorted(pictures.iterdir())):
        (nested / f"some {i // 9}").mkdir(parents=True, exist_ok=True)
        (nested / f"some {i // 9}" / file.name).write_bytes(file.read_bytes())
    more = {"model": "mini", "id": ["mini:photo"], "limit": 32, "alphas": (0, 0.5, 1), "bootstrap": 50, "device": "cpu"}
    more |= {"held_out_shifts": ["mini:photo+saturate@3"]}
    tables = [
        sharpscope.advise(
            zeroshot="mini:zeroshot", finetuned="mini:small", target_images=[f"folder:{folder}"], **more
        ).table
        for folder in (pictures, nested)
    ]
    numbers = [t[t["situation"] == "target_images"].drop(columns="note") for t in tables]
    assert len(numbers[0]) == 4
    assert numbers[0].equals(numbers[1])


def test_the_replicates_and_the_level_that_are_asked_for_reach_the_target_images(pictures: Path) -> None:
    more = {"model": "mini", "id": ["mini:photo"], "limit": 32, "alphas": (0, 0.5, 1), "device": "cpu"}
    more |= {"held_out_shifts": ["mini:photo+saturate@3"], "target_images": [f"folder:{pictures}"]}
    few = sharpscope.advise(
        zeroshot="mini:zeroshot", finetuned="mini:small", bootstrap=50, level=0.99, **more
    ).table.query("situation == 'target_images' and alpha > 0")
    assert len(few) and few["ci_low"].isna().all()
    assert few["note"].str.contains("no interval: 50 bootstrap replicates, and level 0.99 needs 200").all()


@pytest.mark.parametrize(
    "given",
    [
        {"zeroshot": "z"}, {"finetuned": "t"}, {"name": "n"}, {"id": ["i"]}, {"ood": ["o"]}, {"alphas": (0, 1)},
        {"model": "ViT-B-32"}, {"head": "auto"}, {"head_file": "h"}, {"classnames": "c"}, {"templates": "t"},
        {"class_position": "end"}, {"limit": 5}, {"batch_size": 128}, {"data_root": "d"}, {"device": "auto"},
        {"held_out_shifts": ["s"]},
    ],
    ids=str,
)  # fmt: skip
def test_beside_a_run_a_setting_that_would_change_nothing_is_refused(given: dict[str, object]) -> None:
    """Even one that has the value of its default: the run may have been made with another."""
    (name,) = given
    with pytest.raises(sharpscope.SharpscopeError, match=f"^{name}: (is taken from the manifest|changes nothing)"):
        sharpscope.advise("no-such-run", **given)  # type: ignore[arg-type]
