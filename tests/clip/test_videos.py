"""Video frames: pm-k as laws of its formula, and both sets as made files of the released layouts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sharpscope.clip.accuracy import accuracy_rows, dataset_note, reported
from sharpscope.clip.answering import answers_of
from sharpscope.clip.datasets.dataset import Dataset
from sharpscope.clip.datasets.imagenet import wnids
from sharpscope.clip.datasets.spec import load_dataset
from sharpscope.clip.metrics import Answers, estimates
from sharpscope.clip.model import ClipModel
from sharpscope.errors import ConfigError, DatasetError
from sharpscope.scores import Predictions, anchors_right, label_score, wilson
from tests.clip.test_datasets import picture, shades, tree

VID = "imagenet_vid_ytbb_robust/imagenet-vid-robust"
YTBB = "imagenet_vid_ytbb_robust/ytbb-robust"
DOGS, CAT, CAR = (151, 152), 281, 817
"""ImageNet's numbers of two dogs, a cat and a car."""


# ---------------------------------------------------------------------- pm-k
def drawn(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Random hits, and video sets with one anchor and up to four neighbours each, in a random order."""
    rng = np.random.default_rng(seed)
    frames = np.concatenate([np.array([2 * v, *[2 * v + 1] * rng.integers(0, 5)]) for v in range(30)])
    return rng.random(len(frames)) < 0.7, rng.permutation(frames)


def by_definition(hits: np.ndarray, frames: np.ndarray, neighbours: bool) -> float:
    """pm-k anchor by anchor, in plain words."""
    right = []
    for v in frames[frames % 2 == 0] // 2:
        own = [bool(h) for h, f in zip(hits, frames, strict=True) if f == 2 * v or (neighbours and f == 2 * v + 1)]
        right.append(all(own))
    return sum(right) / len(right)


@pytest.mark.parametrize("seed", range(5))
def test_pm_k_is_its_definition_and_falls_with_k(seed: int) -> None:
    hits, frames = drawn(seed)
    pm0, pm10 = (anchors_right(hits, frames, neighbours=n).value() for n in (False, True))
    assert (pm0, pm10) == (by_definition(hits, frames, False), by_definition(hits, frames, True))
    assert pm10 < pm0 < 1
    for turned in (~np.zeros_like(hits), np.zeros_like(hits)):  # all right, all wrong
        assert anchors_right(turned, frames, neighbours=True).value() == float(turned[0])


def test_pm_k_knows_no_order_and_no_names_of_sets() -> None:
    hits, frames = drawn(7)
    order = np.random.default_rng(0).permutation(len(hits))
    other = np.random.default_rng(1).permutation(50)[frames // 2] * 2 + frames % 2
    for neighbours in (False, True):
        given = anchors_right(hits, frames, neighbours=neighbours).value()
        assert anchors_right(hits[order], frames[order], neighbours=neighbours).value() == given
        assert anchors_right(hits, other, neighbours=neighbours).value() == given
    alone = frames % 2 == 0  # without neighbours pm-10 is pm-0, which is then plain accuracy
    assert anchors_right(hits[alone], frames[alone], neighbours=True).value() == hits[alone].mean()
    lost = frames != frames[alone][0]  # neighbours whose anchor is gone do not count
    kept = lost & (frames // 2 != frames[alone][0] // 2)
    both = [anchors_right(hits[m], frames[m], neighbours=True).value() for m in (lost, kept)]
    assert both[0] == both[1]


def test_pm_k_is_resampled_by_anchors() -> None:
    """The bootstrap weights of the anchors are those of whole sets; the weights of neighbours change nothing."""
    hits, frames = drawn(3)
    weights = np.random.default_rng(0).integers(0, 3, size=(6, len(hits))).astype(float)
    got = anchors_right(hits, frames, neighbours=True).resampled(weights)
    for row, value in zip(weights, got, strict=True):
        at = np.flatnonzero(frames % 2 == 0)
        right = [by_definition(hits[frames // 2 == v], frames[frames // 2 == v], True) for v in frames[at] // 2]
        assert value == pytest.approx(np.average(right, weights=row[at]), abs=1e-12)
    assert np.isnan(anchors_right(hits, frames, neighbours=True).resampled(np.zeros((1, len(hits)))))
    with pytest.raises(ValueError, match="no anchor"):
        anchors_right(hits[:1], np.array([1]), neighbours=False)
    with pytest.raises(ValueError, match="pm10.*without groups"):
        label_score("pm10", np.zeros(1, int), np.zeros(1, int))
    models = Predictions("pm10", np.ones(len(hits), int), np.stack([hits, ~hits]).astype(int), frames)
    assert models.scores().tolist() == [by_definition(h, frames, True) for h in (hits, ~hits)]


# ---------------------------------------------------------------------- ImageNet-Vid-Robust
def vid(root: Path) -> Path:
    """Three videos: a dog with two neighbours, a cat or dog (both are right) with one, and a cat alone."""
    dogs, cats = [wnids()[i] for i in DOGS], [wnids()[CAT]]
    near = {"val/a/005.JPEG": ["val/a/004.JPEG", "val/a/006.JPEG"], "val/b/001.JPEG": ["val/b/000.JPEG"],
            "val/c/009.JPEG": []}  # fmt: skip
    right = {"val/a/005.JPEG": [0], "val/a/004.JPEG": [0], "val/a/006.JPEG": [0], "val/b/001.JPEG": [1, 0],
             "val/b/000.JPEG": [1, 0], "val/c/009.JPEG": [1]}  # fmt: skip
    shade = dict(zip(["val/a/005.JPEG", "val/a/004.JPEG", "val/a/006.JPEG", "val/b/001.JPEG", "val/b/000.JPEG",
                      "val/c/009.JPEG"], range(10, 70, 10), strict=True))  # fmt: skip
    return tree(
        root / VID,
        {
            "metadata/pmsets.json": json.dumps(near),
            "metadata/labels.json": json.dumps(right),
            "misc/imagenet_vid_class_index.json": json.dumps({"1": ["n2", "domestic_cat"], "0": ["n1", "dog"]}),
            "misc/rev_wnid_map.json": json.dumps({"n1": dogs, "n2": cats}),
            **{name: picture(value) for name, value in shade.items()},
        },
    )


def said(dataset: Dataset, *classes: int) -> Answers:
    """The answers of a head that predicts ImageNet's ``classes``, one per image."""
    scores = torch.zeros(len(classes), 1000)
    scores[torch.arange(len(classes)), torch.tensor(classes)] = 5.0
    return answers_of(dataset.project(scores), dataset.labels, dataset)


def values(given: Answers, metrics: tuple[str, ...] = ("pm0", "pm10", "top1")) -> dict[str, float]:
    return {metric: value for metric, (value, _, _) in estimates(given, metrics, bootstrap=50).items()}


def test_imagenet_vid_robust(tmp_path: Path, tiny_model: ClipModel) -> None:
    root = vid(tmp_path)
    dataset = load_dataset("imagenet-vid-robust", model=tiny_model, data_root=tmp_path)
    assert (dataset.labels.tolist(), shades(dataset)) == ([0, 0, 0, 1, 1, 1], [10, 20, 30, 40, 50, 60])
    assert dataset.target_names == ("dog", "domestic cat") and dataset.metrics == ("pm0", "pm10", "top1")
    assert dataset.frames is not None and dataset.frames.numbers.tolist() == [0, 1, 1, 2, 3, 4]
    # a: anchor and one neighbour right; b: the cat's second label, dog, is said; c: wrong
    given = said(dataset, DOGS[0], DOGS[1], CAT, DOGS[0], CAT, DOGS[1])
    assert values(given) == {"pm0": pytest.approx(2 / 3), "pm10": pytest.approx(1 / 3), "top1": pytest.approx(4 / 6)}
    (row, tens, top1) = accuracy_rows("p", 0.5, "dense", {"v": given}, {"v": "ood"}, {"v": reported(dataset)})
    assert [(r["metric"], r["n"], r["primary"]) for r in (row, tens, top1)] == [
        ("pm0", 3, True), ("pm10", 3, False), ("top1", 6, False),
    ]  # fmt: skip
    assert (tens["ci_low"], tens["ci_high"]) == wilson(1, 3)
    own = load_dataset("imagenet-vid-robust", model=tiny_model, data_root=tmp_path, classnames=("Domestic cat", "dog"))
    assert own.projection is None and own.labels.tolist() == [1, 1, 1, 0, 0, 0]  # a head of the 30 classes themselves
    assert own.frames is not None and own.frames.also.flatten().tolist() == [-1, -1, -1, 1, 1, -1]

    (root / "val/a/004.JPEG").unlink()  # a neighbour that cannot be read is not asked for
    (root / "val/c/009.JPEG").write_bytes(b"")  # an anchor that cannot be read takes its video with it
    rest = load_dataset("imagenet-vid-robust", model=tiny_model, data_root=tmp_path)
    assert values(said(rest, DOGS[0], DOGS[0], CAT, CAT)) == {"pm0": 1.0, "pm10": 1.0, "top1": 1.0}
    assert rest.frames is not None and rest.frames.numbers.tolist() == [0, 1, 2, 3]
    assert "2 unreadable images skipped" in dataset_note(rest)
    part = rest.subset([0, 1])
    assert values(said(part, DOGS[0], CAT)) == {"pm0": 1.0, "pm10": 0.0, "top1": 0.5}


def test_a_limit_keeps_whole_videos(tmp_path: Path, tiny_model: ClipModel) -> None:
    vid(tmp_path)
    for limit in (3, 4, 5, 6):
        dataset = load_dataset("imagenet-vid-robust", model=tiny_model, data_root=tmp_path, limit=limit)
        numbers = dataset.frames.numbers.tolist() if dataset.frames is not None else []
        full = [n for n in [0, 1, 1, 2, 3, 4] if n // 2 in {m // 2 for m in numbers}]
        assert numbers == full and 0 < len(numbers) <= limit
    assert len(numbers) == 6
    with pytest.raises(ConfigError, match=r"limit 1 is less than one anchor frame with all"):
        for seed in range(9):  # the first anchor of some order has neighbours
            load_dataset("imagenet-vid-robust", model=tiny_model, data_root=tmp_path, limit=1, seed=seed)


def test_only_frames_have_pm_k(tmp_path: Path, tiny_model: ClipModel) -> None:
    vid(tmp_path)
    dataset = load_dataset("imagenet-vid-robust", model=tiny_model, data_root=tmp_path)
    assert "worst_group" not in values(said(dataset, *[CAT] * 6), ("worst_group", "pm0"))
    plain = Answers.of(torch.eye(2), torch.tensor([0, 1]))
    assert values(plain) == {"top1": 1.0}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("metadata/labels.json", {}, r"the entry 'val/a/005.JPEG' is missing"),
        ("metadata/labels.json", {"val/a/005.JPEG": [7]}, r"the entry 'val/a/005.JPEG' is missing"),
        ("metadata/pmsets.json", {"val/a/005.JPEG": "x"}, r"the entry 'val/a/005.JPEG'"),
        ("misc/rev_wnid_map.json", {"n1": ["n00000000"]}, r"the entry 'n1'"),
        ("misc/imagenet_vid_class_index.json", {"1": ["n2", "cat"]}, r"the numbers 0 to 0 is missing"),
        ("misc/imagenet_vid_class_index.json", [1], "not a JSON object"),
    ],
)
def test_a_file_not_as_released(tmp_path: Path, tiny_model: ClipModel, name: str, content: Any, message: str) -> None:
    root = vid(tmp_path)
    (root / name).write_text(json.dumps(content))
    if content == {"val/a/005.JPEG": [7]}:
        (root / "metadata/pmsets.json").write_text(json.dumps({"val/a/005.JPEG": []}))
    with pytest.raises(DatasetError, match=message):
        load_dataset("imagenet-vid-robust", model=tiny_model, data_root=tmp_path)


def test_frames_outside_the_folder_are_refused(tmp_path: Path, tiny_model: ClipModel) -> None:
    root = vid(tmp_path)
    (root / "metadata/pmsets.json").write_text(json.dumps({"../x.JPEG": []}))
    (root / "metadata/labels.json").write_text(json.dumps({"../x.JPEG": [0]}))
    with pytest.raises(DatasetError, match=r"'\.\./x\.JPEG' lies outside"):
        load_dataset("imagenet-vid-robust", model=tiny_model, data_root=tmp_path)


# ---------------------------------------------------------------------- YTBB-Robust
WORDS = ["good", "unsure", "bad", "dog", "car", "cow"]
PAIR_WORDS = ["similar", "dissimilar", "bad-anchor", "correct"]
CLASSES = [f"class {i}" for i in range(24)]
CLASSES[6], CLASSES[19], CLASSES[22], CLASSES[23] = "cow", "dog", "none", "car"


def reviews(words: list[str], given: dict[str, list[str]]) -> str:
    annotations = [{"key": k, "notes": "", "labels": [words.index(w) for w in v]} for k, v in given.items()]
    return json.dumps({"annotations": annotations, "labels": words})


def ytbb(root: Path) -> Path:
    anchors = {
        "dog_100/frame-20.jpg": ["unsure"],  # reviewed again below, under the path of the reviewers' machine
        "/data/frames/dog_100/frame-20.jpg": ["good"],
        "car_200/frame-50.jpg": ["good", "dog"],
        "cow_300/frame-9.jpg": ["good"],
        "dim_400/frame-7.jpg": ["good", "bad"],
        "odd_500/frame-7.jpg": ["good"],  # a reviewer of its pairs calls the anchor bad
    }
    pairs = {
        "dog_100/frame-20.jpg,dog_100/frame-10.jpg": ["similar"],
        "dog_100/frame-20.jpg,dog_100/frame-31.jpg": ["similar"],  # eleven frames away
        "dog_100/frame-20.jpg,dog_100/frame-21.jpg": ["similar", "dissimilar"],
        "dog_100/frame-20.jpg,dog_100/frame-22.jpg": ["correct"],
        "/d/car_200/frame-50.jpg,/d/car_200/frame-60.jpg": ["similar", "correct"],
        "odd_500/frame-7.jpg,odd_500/frame-8.jpg": ["bad-anchor"],
    }
    table = "ytid,time_ms,label\ndog,100,19\ncar,200,22\ncow,300,6\ndim,400,1\nodd,500,1\n"
    members = {str(i): [i] for i in range(24) if i not in (6, 19, 22, 23)}
    shade = {"dog_100/frame-20": 10, "dog_100/frame-10": 20, "car_200/frame-50": 30, "car_200/frame-60": 40,
             "cow_300/frame-9": 50, "dog_100/frame-31": 91, "dog_100/frame-21": 92,
             "dog_100/frame-22": 93, "dim_400/frame-7": 94, "odd_500/frame-7": 95}  # fmt: skip
    metadata = "../ytbb-robust_metadata"
    return tree(
        root / YTBB,
        {
            **{f"ytbb_videos/{name}.jpg": picture(value) for name, value in shade.items()},
            f"{metadata}/anchor_labels.json": reviews(WORDS, anchors),
            f"{metadata}/pmk_labels.json": reviews(PAIR_WORDS, pairs),
            f"{metadata}/ytbb_robustness_test_anchors_full.csv": table,
            f"{metadata}/ytbb_class_index.json": json.dumps({str(i): n for i, n in enumerate(CLASSES)}),
            f"{metadata}/rev_class_idx_map.json": json.dumps(members | {"19": list(DOGS), "23": [CAR]}),
        },
    )


def test_ytbb_robust(tmp_path: Path, tiny_model: ClipModel) -> None:
    (tmp_path / YTBB).mkdir(parents=True)
    ytbb(tmp_path)
    dataset = load_dataset("ytbb-robust", model=tiny_model, data_root=tmp_path)
    assert (dataset.labels.tolist(), shades(dataset)) == ([19, 19, 23, 23, 6], [10, 20, 30, 40, 50])  # 22 means car
    assert dataset.frames is not None and dataset.frames.numbers.tolist() == [0, 1, 2, 3, 4]
    given = said(dataset, DOGS[1], CAR, DOGS[0], CAR, CAR)  # the car's anchor shows a dog, too
    assert values(given) == {"pm0": pytest.approx(2 / 3), "pm10": pytest.approx(1 / 3), "top1": pytest.approx(3 / 5)}
    assert "the head has no class for 'cow, none': images of these count as wrong" in dataset_note(dataset)
    assert list(values(given, ("nll", "ece"))) == ["ece"]  # a label that cannot be named has no likelihood
    own = load_dataset("ytbb-robust", model=tiny_model, data_root=tmp_path, classnames=tuple(CLASSES))
    assert own.projection is None and "count as wrong" not in dataset_note(own)
    lost = tmp_path / YTBB / "ytbb_videos/dog_100/frame-20.jpg"
    lost.unlink()  # YouTube's videos disappear
    assert len(load_dataset("ytbb-robust", model=tiny_model, data_root=tmp_path)) == 4


def test_ytbb_files_not_as_released(tmp_path: Path, tiny_model: ClipModel) -> None:
    (tmp_path / YTBB).mkdir(parents=True)
    with pytest.raises(DatasetError, match=r"no folder ytbb-robust_metadata in .* or beside it\.\nRemedy: copy"):
        load_dataset("ytbb-robust", model=tiny_model, data_root=tmp_path)
    metadata = ytbb(tmp_path).parent / "ytbb-robust_metadata"
    for name, content, message in (
        (
            "ytbb_robustness_test_anchors_full.csv",
            "ytid,time_ms,label\n",
            r"the entry 'dog_100/frame-20.jpg' is missing",
        ),
        ("ytbb_robustness_test_anchors_full.csv", "ytid,label\n", "not a table with ytid, time_ms"),
        ("rev_class_idx_map.json", '{"24": [0]}', "the entry class 24"),
        ("pmk_labels.json", reviews(PAIR_WORDS, {"a_1/frame-1.jpg": ["similar"]}), "the entry 'a_1/frame-1.jpg'"),
        ("anchor_labels.json", reviews(WORDS, {"a_1/one.jpg": ["good"]}), "the entry 'a_1/one.jpg'"),
        ("anchor_labels.json", '{"labels": ["fine"], "annotations": []}', "the entry 'labels' with 'good'"),
    ):
        ytbb(tmp_path)
        (metadata / name).write_text(content)
        with pytest.raises(DatasetError, match=message):
            load_dataset("ytbb-robust", model=tiny_model, data_root=tmp_path)
