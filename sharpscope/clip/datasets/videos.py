"""ImageNet-Vid-Robust and YTBB-Robust: anchor frames of videos and the similar frames within ten frames of each."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
import torch

from sharpscope.clip.datasets.found import Found, Request
from sharpscope.clip.datasets.frames import Frames
from sharpscope.clip.datasets.imagenet import place, wnids
from sharpscope.clip.datasets.images import Files
from sharpscope.clip.datasets.names import read_json, spoken
from sharpscope.clip.model import imagenet_classnames, imagenet_templates
from sharpscope.errors import DatasetError, shown
from sharpscope.vocabulary import PRIMARY_METRICS

__all__ = ["find_imagenet_vid_robust", "find_ytbb_robust"]

_REACH: Final = 10
"""The largest distance in frames between an anchor and a neighbour (k of pm-k)."""
_VID_DOWNLOAD: Final = "the download of ImageNet-Vid-Robust"
_YTBB_METADATA: Final = "ytbb-robust_metadata"
_YTBB_DOWNLOAD: Final = "src/datasets/ytbb-robust_metadata in WiSE-FT's repository"
_DISSIMILAR: Final = frozenset(
    {"dissimilar", "problematic", "incorrect", "dont know", "deformation", "background-change", "occlusion-increased",
     "blur-increase", "bad-anchor"}
)  # fmt: skip
"""The reviewers' words for a pair of frames that does not count as similar."""
_FRAME = re.compile(r"[^/]+/frame-(\d+)\.jpg")
_SWAPPED: Final = {22: 23, 23: 22}
"""Two class numbers (none and car) that are exchanged in the table of anchors; WiSE-FT's code exchanges them too."""


@dataclass(frozen=True)
class _Set:
    """One anchor frame and its neighbours: the path of each and its right classes, the first of which is its label."""

    anchor: tuple[str, Sequence[int]]
    neighbours: Sequence[tuple[str, Sequence[int]]]


def find_imagenet_vid_robust(request: Request) -> Found:
    """``imagenet-vid-robust``: frames in ``val/``, 30 classes that each unite ImageNet classes; all sets are reviewed.

    ``metadata/pmsets.json``: anchor -> its neighbours; ``metadata/labels.json``: frame -> its right classes;
    ``misc/imagenet_vid_class_index.json``: class -> [WordNet id, name]; ``misc/rev_wnid_map.json``: that id -> the
    WordNet ids of its ImageNet classes. The primary metric is pm-0. Source: Shankar et al. 2019, arXiv 1906.02168
    (layout: modestyachts/imagenet-vid-robust-example, score_predictions.py).
    """
    root = place(request)
    misc = root / "misc"
    index = _numbered(misc / "imagenet_vid_class_index.json", _VID_DOWNLOAD)
    members = read_json(misc / "rev_wnid_map.json", _VID_DOWNLOAD)
    numbers = {w: i for i, w in enumerate(wnids())}
    names, projection = [], [-1] * len(numbers)
    for target, entry in enumerate(index):
        _need(isinstance(entry, list) and len(entry) == 2, misc / "imagenet_vid_class_index.json", f"class {target}")
        wnid, name = map(str, entry)
        names.append(spoken(name))
        of_class = members.get(wnid)
        known = isinstance(of_class, list) and all(w in numbers for w in of_class)
        _need(known, misc / "rev_wnid_map.json", f"'{shown(wnid, 60)}'")
        for w in of_class or ():
            projection[numbers[w]] = target
    file = root / "metadata" / "labels.json"
    labels = read_json(file, _VID_DOWNLOAD)

    def right(frame: str) -> tuple[str, list[int]]:
        own = labels.get(frame)
        fits = isinstance(own, list) and len(own) > 0 and all(isinstance(c, int) for c in own)
        _need(fits, file, f"'{shown(frame)}'")
        return frame, own or []

    sets = []
    for anchor, near in read_json(root / "metadata" / "pmsets.json", _VID_DOWNLOAD).items():
        _need(isinstance(near, list), root / "metadata" / "pmsets.json", f"'{shown(anchor)}'")
        sets.append(_Set(right(anchor), [right(str(f)) for f in near if f != anchor]))
    return _found(request, root, sets, names, projection, file, bare_targets=False)


def find_ytbb_robust(request: Request) -> Found:
    """``ytbb-robust``: frames in ``ytbb_videos/``, 24 classes, some of which no ImageNet class belongs to.

    The folder ``ytbb-robust_metadata`` of WiSE-FT's repository lies in the set's folder or beside it, with
    ``anchor_labels.json`` and ``pmk_labels.json`` (what reviewers said of anchors and of pairs of frames),
    ``ytbb_robustness_test_anchors_full.csv`` (the class of each anchor), ``ytbb_class_index.json`` and
    ``rev_class_idx_map.json`` (class -> ImageNet classes). As there, an anchor counts where it was found good, a
    neighbour where the pair was found similar; frames have the classes of their anchor. The primary metric is pm-0.
    Source: Shankar et al. 2019, arXiv 1906.02168 (layout: mlfoundations/wise-ft, src/datasets/ytbb_robust.py).
    """
    root = place(request)
    tried = (root / _YTBB_METADATA, root.parent / _YTBB_METADATA)
    metadata = next((t for t in tried if t.is_dir()), None)
    if metadata is None:
        raise DatasetError(
            f"data set {shown(request.spec)}: no folder {_YTBB_METADATA} in {shown(root)} or beside it.\n"
            f"Remedy: copy {_YTBB_DOWNLOAD} there."
        )
    names = [str(n) for n in _numbered(metadata / "ytbb_class_index.json", _YTBB_DOWNLOAD)]
    projection = _ytbb_projection(metadata / "rev_class_idx_map.json", len(names))
    anchors = _reviews(metadata / "anchor_labels.json", "good")
    pairs = _reviews(metadata / "pmk_labels.json", "similar")
    bad = {pair[0] for pair, said in pairs.items() if "bad-anchor" in said}
    near: dict[str, list[str]] = {}
    for pair, said in pairs.items():
        _need(len(pair) == 2, metadata / "pmk_labels.json", f"'{shown(pair[0])}'")
        if "similar" in said and not said & _DISSIMILAR and _within_reach(*pair):
            near.setdefault(pair[0], []).append(pair[1])
    file = metadata / "ytbb_robustness_test_anchors_full.csv"
    initial, number = _initial_labels(file), {name: i for i, name in enumerate(names)}
    sets = []
    for (anchor, *_), said in anchors.items():
        if "good" not in said or said & {"bad", "unsure"} or anchor in bad:
            continue
        label = initial.get(anchor.partition("/")[0])
        _need(label is not None, file, f"'{shown(anchor)}'")
        right = [label or 0, *sorted(number[w] for w in said if w in number and number[w] != label)]
        frames = [(f"ytbb_videos/{frame}", right) for frame in (anchor, *sorted(near.get(anchor, ())))]
        sets.append(_Set(frames[0], frames[1:]))
    return _found(request, root, sets, names, projection, file, bare_targets=True)


def _found(
    request: Request,
    root: Path,
    sets: Sequence[_Set],
    names: Sequence[str],
    projection: Sequence[int],
    file: Path,
    *,
    bare_targets: bool,
) -> Found:
    """All frames, set by set with the anchor first; a frame that is near two anchors is there twice."""
    paths, labels, numbers, also = list[str](), list[int](), list[int](), list[Sequence[int]]()
    for v, one in enumerate(sets):
        for part, (path, right) in enumerate((one.anchor, *one.neighbours)):
            if os.path.isabs(path) or ".." in path.split("/"):
                raise DatasetError(f"{shown(root)}: the frame '{shown(path)}' lies outside the set's folder.")
            _need(all(0 <= c < len(names) for c in right), file, f"'{shown(path)}'")
            paths.append(path)
            labels.append(right[0])
            numbers.append(2 * v + (part > 0))
            also.append(right[1:])
    width = max(map(len, also), default=0)
    padded = [[*more, *[-1] * (width - len(more))] for more in also]
    return Found(
        Files(root, paths),
        np.array(labels, dtype=np.int64),
        imagenet_classnames(),
        str(root),
        "test",
        indexed=True,
        projection=tuple(projection),
        target_names=tuple(names),
        templates=imagenet_templates(),
        frames=Frames(torch.tensor(numbers), torch.tensor(padded, dtype=torch.long).reshape(len(paths), width)),
        bare_targets=bare_targets,
        metrics=(PRIMARY_METRICS[request.kind], "pm10", "top1"),
        said=("top1 counts every frame, pm0 and pm10 every anchor frame",),
    )


def _ytbb_projection(file: Path, count: int) -> list[int]:
    projection = [-1] * len(wnids())
    for target, members in read_json(file, _YTBB_DOWNLOAD).items():
        fits = target.isdecimal() and int(target) < count and isinstance(members, list)
        _need(fits and all(isinstance(m, int) and 0 <= m < len(projection) for m in members), file, f"class {target}")
        for member in members:
            projection[member] = int(target)
    return projection


def _reviews(file: Path, needed: str) -> dict[tuple[str, ...], frozenset[str]]:
    """(frame,) or (anchor, neighbour) -> the words that reviewers gave it; of several reviews, the last one."""
    data = read_json(file, _YTBB_DOWNLOAD)
    words, reviews = data.get("labels"), data.get("annotations")
    _need(isinstance(words, list) and needed in words, file, f"'labels' with '{needed}'")
    _need(isinstance(reviews, list), file, "'annotations'")
    out = {}
    for review in reviews or ():
        key = tuple("/".join(part.split("/")[-2:]) for part in str(review.get("key")).split(","))
        given = review.get("labels")
        fits = isinstance(given, list) and all(isinstance(i, int) and 0 <= i < len(words or ()) for i in given)
        _need(fits and all(_FRAME.fullmatch(frame) for frame in key), file, f"'{shown(','.join(key))}'")
        out[key] = frozenset(str((words or ())[i]) for i in given)
    return out


def _within_reach(anchor: str, frame: str) -> bool:
    """Whether the frame is of the anchor's video and at most ten frames away from it, but not the anchor itself."""
    first, second = _FRAME.fullmatch(anchor), _FRAME.fullmatch(frame)
    assert first is not None and second is not None  # _reviews has checked both
    same = anchor.partition("/")[0] == frame.partition("/")[0]
    return same and 0 < abs(int(first[1]) - int(second[1])) <= _REACH


def _initial_labels(file: Path) -> dict[str, int]:
    """``VIDEO_MILLISECONDS`` -> the class that the anchor had before the review."""
    try:
        table = pd.read_csv(file, dtype=str, keep_default_na=False)
        numbers = [int(n) for n in table["label"]]
        keys = [f"{video}_{ms}" for video, ms in zip(table["ytid"], table["time_ms"], strict=True)]
    except OSError as e:
        raise DatasetError(f"{shown(file)}: cannot be read ({e.strerror or e}); {_YTBB_DOWNLOAD} has it.") from e
    except (KeyError, ValueError) as e:
        raise DatasetError(f"{shown(file)}: not a table with ytid, time_ms and a number as label ({shown(e)}).") from e
    return {key: _SWAPPED.get(n, n) for key, n in zip(keys, numbers, strict=True)}


def _numbered(file: Path, download: str) -> list[Any]:
    """The values of a JSON object whose keys are the numbers 0, 1 ..., in that order."""
    data: Mapping[str, Any] = read_json(file, download)
    wanted: Iterable[str] = map(str, range(len(data)))
    _need(bool(data) and all(key in data for key in wanted), file, f"the numbers 0 to {len(data) - 1}")
    return [data[str(i)] for i in range(len(data))]


def _need(fits: bool, file: Path, what: str) -> None:
    """Raise DatasetError where the entry ``what`` of ``file`` is missing or not of the released form."""
    if not fits:
        raise DatasetError(f"{shown(file)}: the entry {what} is missing or not as in the release.")
