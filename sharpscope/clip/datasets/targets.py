"""Images that a user brings as the target: a few with labels in a CSV file, or any without labels."""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torchvision.datasets.folder import IMG_EXTENSIONS  # type: ignore[import-untyped]

from sharpscope.clip.datasets.dataset import Dataset, stratified
from sharpscope.clip.datasets.images import Decoded, Files, fits
from sharpscope.clip.datasets.names import folded
from sharpscope.clip.datasets.spec import load_dataset
from sharpscope.clip.model import ClipModel
from sharpscope.config.specs import read_spec
from sharpscope.errors import DatasetError, did_you_mean, shown

__all__ = ["labelled_files", "unlabelled_images"]

_COLUMNS = ("filepath", "label")


@dataclass(frozen=True)
class _Row:
    line: int
    file: Path
    label: int


def labelled_files(source: str | Path, model: ClipModel, classnames: Sequence[str], *, fewest: int = 1) -> Dataset:
    """The images of a CSV file with the columns ``filepath`` (relative to the file) and ``label`` (a class name).

    Labels are compared with ``classnames`` as class names are everywhere: ignoring case and Unicode form, with ``_`` as
    space. Further columns are ignored.

    Raises:
        DatasetError: a file that cannot be read, lacks a column or has fewer than ``fewest`` rows; a row whose image is
            missing, given twice or cannot be read, or whose label is not exactly one of the class names.
    """
    path = Path(source).expanduser()
    rows = _read(path, classnames)
    if len(rows) < fewest:
        raise DatasetError(
            f"{shown(path)}: {len(rows)} labelled images; advice needs at least {fewest}.\nRemedy: label more images."
        )
    labels = torch.tensor([row.label for row in rows])
    dataset = _of_files(str(path), [str(row.file) for row in rows], labels, model, classnames)
    if lost := dataset.facts["skipped_names"]:
        row = next(r for r in rows if str(r.file) == lost[0])
        raise DatasetError(
            f"{shown(path)}, line {row.line}: {shown(lost[0])} cannot be read as an image.\n"
            "Remedy: correct or remove the row."
        )
    return dataset


def _read(path: Path, classnames: Sequence[str]) -> list[_Row]:
    numbers: dict[str, list[int]] = {}
    for i, name in enumerate(classnames):
        numbers.setdefault(folded(name), []).append(i)
    rows: list[_Row] = []
    seen: dict[str, int] = {}
    for line, values in _lines(path):
        file = path.parent / Path(values["filepath"]).expanduser()
        where, label = f"{shown(path)}, line {line}", values["label"]
        if not file.is_file():
            raise DatasetError(
                f"{where}: no image file {shown(file)}.\nRemedy: paths are relative to the CSV file's folder."
            )
        before = seen.setdefault(os.path.realpath(file), line)
        if before != line:
            raise DatasetError(f"{where}: {shown(file)} is on line {before} already.\nRemedy: give every image once.")
        found = numbers.get(folded(label), [])
        if len(found) != 1:
            what = "names no class of the head" if not found else f"names {len(found)} classes of the head"
            near = did_you_mean(label, classnames) or f" Known: {', '.join(shown(n, 30) for n in classnames[:5])} ..."
            raise DatasetError(f"{where}: label '{shown(label, 60)}' {what}.{near if not found else ''}")
        rows.append(_Row(line, file, found[0]))
    return rows


def _lines(path: Path) -> list[tuple[int, dict[str, str]]]:
    """(line number, values) of every row that is not empty; DatasetError for a file of another form."""
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            names = [name.strip() for name in reader.fieldnames or ()]
            if missing := [c for c in _COLUMNS if c not in names]:
                raise DatasetError(
                    f"{shown(path)}: no column '{missing[0]}'; its columns are {shown(', '.join(names) or 'none')}.\n"
                    "Remedy: a first line 'filepath,label', then one line per image."
                )
            reader.fieldnames = names
            out = []
            for row in reader:
                values = {c: (row[c] or "").strip() for c in _COLUMNS}
                if empty := [c for c in _COLUMNS if not values[c]]:
                    raise DatasetError(f"{shown(path)}, line {reader.line_num}: {empty[0]} is empty.")
                out.append((reader.line_num, values))
            return out
    except UnicodeDecodeError as e:
        raise DatasetError(f"{shown(path)}: not UTF-8 text.") from e
    except csv.Error as e:
        raise DatasetError(f"{shown(path)}: not CSV ({shown(e)}).") from e
    except OSError as e:
        raise DatasetError(f"{shown(path)}: cannot be read ({e.strerror or e}).") from e


def unlabelled_images(
    spec: str,
    model: ClipModel,
    classnames: Sequence[str],
    *,
    data_root: str | None = None,
    limit: int | None = None,
    seed: int = 0,
    by_name: bool = False,
) -> Dataset:
    """The images of any data set spec, whose labels mean nothing here; all of the set's classes compete.

    ``folder:PATH``, or ``PATH`` of a folder alone: every image file in the folder and the folders in it, whatever these
    are called; no class folders are needed. Other specs are read by ``load_dataset``, with the rules for class names
    that it has. ``limit``: the largest number of images, chosen by ``seed``.

    Raises:
        DatasetError: a folder without images, or any problem of the data set.
    """
    top = _folder(spec, data_root)
    if top is None:
        return load_dataset(
            spec, model=model, data_root=data_root, classnames=classnames, limit=limit, seed=seed, by_name=by_name
        )
    if not top.is_dir():
        raise DatasetError(f"target_images: {shown(spec)}: no folder {shown(top)}.")
    files = sorted(
        str(Path(where) / name)
        for where, folders, names in os.walk(top)
        if _visible(folders)
        for name in names
        if name.lower().endswith(IMG_EXTENSIONS) and not name.startswith(".")
    )
    if not files:
        raise DatasetError(f"target_images: no image files ({', '.join(IMG_EXTENSIONS)}) in {shown(top)}.")
    labels = torch.zeros(len(files), dtype=torch.long)
    chosen = sorted(stratified(labels, limit, seed, spec))
    return _of_files(spec, [files[i] for i in chosen], labels[chosen], model, classnames)


def _folder(spec: str, data_root: str | None) -> Path | None:
    """The folder that ``spec`` names: ``folder:PATH``, or a path that is one; None for another kind of spec."""
    root = Path(data_root or ".").expanduser()
    if Path(spec).expanduser().is_dir():
        return Path(spec).expanduser()
    if (root / spec).is_dir():
        return root / spec
    asked = read_spec(spec)
    plain = asked.kind == "folder" and asked.corruption is None and asked.half is None
    return root / Path(asked.rest).expanduser() if plain else None


def _visible(folders: list[str]) -> bool:
    """Keeps hidden folders out of the walk that ``folders`` steer, and its order fixed."""
    folders[:] = sorted(f for f in folders if not f.startswith("."))
    return True


def _of_files(
    name: str, files: Sequence[str], labels: torch.Tensor, model: ClipModel, classnames: Sequence[str]
) -> Dataset:
    source = Decoded(Files("", files), model)
    rows = list(range(len(files)))
    if not (streamed := not fits(len(rows), model)):
        source.keep(rows)
    facts: dict[str, Any] = {"spec": name, "kind": "files", "split": None, "streamed": streamed, "said": []}
    return Dataset(name, classnames, labels, source, mean=model.mean, std=model.std, facts=facts)
