"""DomainNet, Waterbirds and two data sets of WILDS, read from the folders of their releases."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

import numpy as np
import pandas as pd

from sharpscope.clip.datasets.folder import class_folders, class_images
from sharpscope.clip.datasets.found import Found, Request, numbered
from sharpscope.clip.datasets.images import Files
from sharpscope.clip.datasets.names import check_distinct, read_lines, spoken, two_orders
from sharpscope.config.specs import chosen_split
from sharpscope.errors import DatasetError, shown
from sharpscope.vocabulary import PRIMARY_METRICS

__all__ = ["find_domainnet", "find_fmow", "find_iwildcam", "find_waterbirds"]

_FMOW_TEMPLATES: Final = tuple(
    f"{how} photo of a {{}}{where}."
    for where in ("", " in asia", " in africa", " in the americas", " in europe", " in oceania")
    for how in ("satellite", "aerial")
)
_OTHER = "Other"
_BIRDS: Final = ("landbird", "waterbird")
_BACKGROUNDS: Final = ("land", "water")
_BIRD_SPLITS: Final = {"0": "train", "1": "val", "2": "test"}
"""The numbers in the column ``split`` of Waterbirds' metadata.csv."""


def find_domainnet(request: Request) -> Found:
    """``domainnet:DOMAIN``: the images listed in ``DOMAIN_test.txt``, one ``DOMAIN/CLASS/NAME.jpg LABEL`` per line.

    Without that file, all images in the class folders of ``DOMAIN`` are used.
    """
    root = _place(request, ("domainnet", "DomainNet"))
    split = "train" if request.split == "train" else "test"
    name = f"{request.rest}_{split}.txt"
    file = next((f for f in (root / name, root / "splits" / name) if f.is_file()), None)
    if file is None:
        chosen_split(request.spec, request.split, (), named=request.named)  # without the lists, the set has no splits
        folder = root / request.rest
        found = class_folders(folder, request.spec)
        paths, labels = class_images(folder, found)
        check_distinct(found, str(folder))
        said = (f"there is no {name}, so all images of {request.rest} were read",)
        both = two_orders(found)
        return Found(Files(folder, paths), labels, tuple(map(spoken, found)), str(folder), two_orders=both, said=said)
    paths, numbers = [], []
    folder_of: dict[int, str] = {}
    for line, text in enumerate(read_lines(file, "image list"), 1):
        path, _, label = text.rpartition(" ")
        parts = path.split("/")
        if not label.isdecimal() or len(parts) < 2 or ".." in parts or path.startswith("/"):
            raise DatasetError(
                f"{shown(file)}, line {line}: '{shown(text)}' is not of the form 'DOMAIN/CLASS/NAME.jpg LABEL'."
            )
        if folder_of.setdefault(int(label), parts[-2]) != parts[-2]:
            raise DatasetError(
                f"{shown(file)}, line {line}: label {label} stands for '{shown(parts[-2])}' here, but stood for "
                f"'{shown(folder_of[int(label)])}' on an earlier line."
            )
        paths.append(path)
        numbers.append(int(label))
    order = sorted(folder_of)
    place = {label: i for i, label in enumerate(order)}
    classes = tuple(spoken(folder_of[label]) for label in order)
    array = np.array([place[n] for n in numbers], dtype=np.int64)
    return Found(Files(root, paths), array, classes, str(file), split)


def find_iwildcam(request: Request) -> Found:
    """``iwildcam`` (``iwildcam_v2.0/metadata.csv``, images in ``train/``; ``@id_test``, ``@test`` ...): 182 species.

    The primary metric is macro F1 (Koh et al. 2021, arXiv 2012.07421). Class names come from ``categories.csv`` where
    that file exists and names the label.
    """
    root = _place(request, ("iwildcam_v2.0", os.path.join("wilds", "iwildcam_v2.0")))
    table = _csv(root / "metadata.csv", ("split", "filename", "y"))
    count = int(table["y"].max()) + 1  # of all splits
    table = _of_split(table, request, root)
    names = numbered(request, count)
    file = root / "categories.csv"
    if named := file.is_file():
        known = _csv(file, ("y", "name"))
        known = known[known["y"] < 99999]
        by_number = dict(zip(known["y"].astype(int), known["name"].astype(str), strict=True))
        names = tuple(by_number.get(i, str(i)) for i in range(max(count, max(by_number) + 1)))
    return Found(
        Files(root / "train", [str(f) for f in table["filename"]]),
        table["y"].to_numpy(dtype=np.int64),
        names,
        str(root),
        request.split,
        indexed=True,
        unnamed=not named,
        metrics=(PRIMARY_METRICS["iwildcam"], "top1"),
        templates=("a photo of {}.", "{} in the wild."),
    )


def find_fmow(request: Request) -> Found:
    """``fmow`` (``fmow_v1.1/rgb_metadata.csv``, ``images/rgb_img_ROW.png``; ``@id_test``, ``@test`` ...): 62 land uses.

    The primary metric is the accuracy in the worst of five regions (Koh et al. 2021, arXiv 2012.07421). As in that
    paper, images since 2016 are the out-of-distribution ``test``, those of 2013 to 2015 its validation ``val``, and
    earlier ones ``train``, ``id_val`` and ``id_test``; a country without a region is in ``Other``.
    """
    root = _place(request, ("fmow_v1.1", os.path.join("wilds", "fmow_v1.1")))
    table = _csv(root / "rgb_metadata.csv", ("split", "category", "country_code", "timestamp"))
    codes = _csv(root / "country_code_mapping.csv", ("alpha-3", "region"))
    regions = dict(zip(codes["alpha-3"].astype(str), codes["region"], strict=True))
    region = [r if isinstance(r := regions.get(str(c)), str) else _OTHER for c in table["country_code"]]
    years = pd.to_datetime(table["timestamp"], utc=True, format="ISO8601").dt.year
    ood = np.where(years >= 2016, "test", np.where(years >= 2013, "val", ""))
    own = table["split"].astype(str)
    inside = own.map({"train": "train", "val": "id_val", "test": "id_test"})
    table["split"] = np.where(ood == "", inside, np.where(ood == own, ood, "unused"))
    classes = sorted(set(table["category"].astype(str)))
    names = sorted(set(region))
    table["region"] = [names.index(r) for r in region]
    table = _of_split(table, request, root)
    numbers = {c: i for i, c in enumerate(classes)}
    return Found(
        Files(root / "images", [f"rgb_img_{row}.png" for row in table.index]),
        np.array([numbers[str(c)] for c in table["category"]], dtype=np.int64),
        tuple(map(spoken, classes)),
        str(root),
        request.split,
        indexed=True,
        groups=table["region"].to_numpy(dtype=np.int64),
        group_names=tuple(names),
        metrics=(PRIMARY_METRICS["fmow"], "top1"),
        templates=(*_FMOW_TEMPLATES, "a photo of a {}.", "{}."),
    )


def find_waterbirds(request: Request) -> Found:
    """``waterbirds`` (``waterbird_complete95_forest2water2/metadata.csv``, the folder of its tar file, or WILDS's own).

    Birds of land or water on a background of land or water: in the training images 95 % of the birds are where they
    belong, in the others half of them. The primary metric is the accuracy in the worst of the four groups (Sagawa et
    al. 2020, arXiv 1911.08731; layout: kohpangwei/group_DRO, data/cub_dataset.py).
    """
    root = _place(request, ("waterbird_complete95_forest2water2", "waterbirds_v1.0", "waterbirds"))
    file = root / "metadata.csv"
    table = _csv(file, ("img_filename", "y", "split", "place"))
    for column, known in (("y", {"0", "1"}), ("place", {"0", "1"}), ("split", set(_BIRD_SPLITS))):
        for line, value in enumerate(table[column].astype(str), 2):
            if value not in known:
                raise DatasetError(
                    f"{shown(file)}, line {line}: {column} is '{shown(value, 60)}', not {' or '.join(sorted(known))}."
                )
    table["split"] = table["split"].astype(str).map(_BIRD_SPLITS)
    table = _of_split(table, request, root)
    birds, places = (np.array(table[c].astype(int), dtype=np.int64) for c in ("y", "place"))
    return Found(
        Files(root, [str(f) for f in table["img_filename"]]),
        birds,
        _BIRDS,
        str(root),
        request.split,
        groups=2 * birds + places,
        group_names=tuple(f"{bird} on {place}" for bird in _BIRDS for place in _BACKGROUNDS),
        metrics=(PRIMARY_METRICS["waterbirds"], "top1"),
    )


def _place(request: Request, names: tuple[str, ...]) -> Path:
    root = Path(request.root).expanduser()
    for name in names:
        if (root / name).is_dir():
            return root / name
    raise DatasetError(
        f"data set {shown(request.spec)}: no folder {' or '.join(names)} under the data root {shown(root)}."
    )


def _csv(path: Path, columns: tuple[str, ...]) -> pd.DataFrame:
    try:
        table = pd.read_csv(path, keep_default_na=False)
    except OSError as e:
        raise DatasetError(f"{shown(path)}: cannot be read: {e.strerror or e}.") from e
    except (ValueError, UnicodeError, pd.errors.ParserError) as e:
        raise DatasetError(f"{shown(path)}: not a table ({shown(e)}).") from e
    if missing := [c for c in columns if c not in table.columns]:
        raise DatasetError(f"{shown(path)}: has no column '{missing[0]}'.")
    return table


def _of_split(table: pd.DataFrame, request: Request, root: Path) -> pd.DataFrame:
    part = table[table["split"] == request.split]
    if not len(part):
        known = ", ".join(sorted({str(s) for s in table["split"]} - {"unused", "nan"}))
        raise DatasetError(
            f"data set {shown(request.spec)}: {shown(root)} has no split '{request.split}'. Known: {known}."
        )
    return part
