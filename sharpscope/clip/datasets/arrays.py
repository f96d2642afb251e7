"""Images in arrays: .npy and .npz files, and the CIFAR family with STL-10. Nothing is unpickled."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from sharpscope.clip.datasets.folder import own_texts
from sharpscope.clip.datasets.found import Found, Request
from sharpscope.clip.datasets.images import Arrays
from sharpscope.clip.datasets.names import read_classnames
from sharpscope.errors import DatasetError, shown

__all__ = ["CIFAR10", "find_cifar", "find_npz", "find_stl10"]

CIFAR10: Final = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_STL10: Final = ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck")


def find_npz(request: Request) -> Found:
    """``npz:PATH``: a folder with ``test_images.npy`` (uint8 [n, H, W, 3]) and ``test_labels.npy`` (integers [n]).

    Lipsum-FT's code reads the same files. PATH may also be a ``.npz`` file with ``images`` and ``labels``. A
    ``classnames.txt`` in the same folder is read.
    """
    path = Path(request.root).expanduser() / Path(request.rest).expanduser()
    if path.suffix == ".npz":
        images, labels = _npz(path, "images"), _npz(path, "labels")
        split, texts = None, own_texts(path.parent)
    else:
        split, texts = request.split, own_texts(path)
        images, labels = _npy(path / f"{split}_images.npy"), _npy(path / f"{split}_labels.npy")
    labels = _checked(images, labels, path)
    count = int(labels.max(initial=-1)) + 1
    classes = texts[0] or request.classnames or tuple(str(i) for i in range(count))
    return Found(Arrays(images, path.name), labels, classes, str(path), split, indexed=True, templates=texts[1])


def find_cifar(request: Request) -> Found:
    """``cifar10``, ``cifar100``, ``cifar10.1`` and ``cifar10.2`` in the folders of their releases."""
    root = Path(request.root).expanduser()
    train = request.split == "train"
    if request.kind == "cifar10.1":
        folder = root / "CIFAR-10.1"
        images, labels = (_npy(folder / f"cifar10.1_v6_{what}.npy") for what in ("data", "labels"))
    elif request.kind == "cifar10.2":
        folder = root / "CIFAR-10.2"
        file = folder / f"cifar102_{'train' if train else 'test'}.npz"
        images, labels = _npz(file, "images"), _npz(file, "labels")
    else:
        return _cifar(request, root, train)
    labels = _checked(images, labels, folder)
    return Found(Arrays(images, folder.name), labels, CIFAR10, str(folder), request.split, indexed=True)


def _cifar(request: Request, root: Path, train: bool) -> Found:
    coarse = request.kind == "cifar10"
    folder = root / ("cifar-10-batches-bin" if coarse else "cifar-100-binary")
    if folder.is_dir():
        files = [f"data_batch_{i}.bin" for i in range(1, 6)] if train else ["test_batch.bin"]
        if not coarse:
            files = ["train.bin" if train else "test.bin"]
        parts = [_records(folder / f, 1 if coarse else 2) for f in files]
        labels = np.concatenate([p[0] for p in parts])
        images = np.concatenate([p[1] for p in parts])
        names = CIFAR10 if coarse else read_classnames(folder / "fine_label_names.txt")
        return Found(Arrays(images, folder.name), labels, names, str(folder), request.split, indexed=True)
    # The Python version is a pickle, which torchvision opens only if its checksum is the published one.
    from torchvision import datasets  # type: ignore[import-untyped]

    try:
        theirs = (datasets.CIFAR10 if coarse else datasets.CIFAR100)(str(root), train=train, download=False)
    except RuntimeError as e:
        raise DatasetError(
            f"data set {shown(request.spec)}: {shown(root)} holds neither {folder.name} nor an unchanged "
            f"{'cifar-10-batches-py' if coarse else 'cifar-100-python'} (as released, checksums compared)."
        ) from e
    labels = np.array(theirs.targets, dtype=np.int64)
    pixels, names = Arrays(theirs.data, request.kind), tuple(theirs.classes)
    return Found(pixels, labels, names, str(root), request.split, indexed=True)


def find_stl10(request: Request) -> Found:
    """``stl10`` (``stl10_binary/{test,train}_{X,y}.bin``).

    For a head with CIFAR-10's classes, ``car`` is matched to automobile and the monkeys are left out (Kumar et al.
    2022, arXiv 2202.10054, appendix). Accuracy is then measured among the nine classes that both sets have.
    """
    folder = Path(request.root).expanduser() / "stl10_binary"
    split = "train" if request.split == "train" else "test"
    pixels = _bytes(folder / f"{split}_X.bin")
    labels = _bytes(folder / f"{split}_y.bin").astype(np.int64) - 1
    if len(pixels) != len(labels) * 3 * 96 * 96:
        raise DatasetError(f"{shown(folder)}: {split}_X.bin does not hold the {len(labels)} images of {split}_y.bin.")
    images = pixels.reshape(-1, 3, 96, 96).transpose(0, 3, 2, 1)  # the file stores the columns first
    cifar = request.classnames is not None and "automobile" in request.classnames
    names = tuple("automobile" if n == "car" and cifar else n for n in _STL10)
    return Found(Arrays(images, folder.name), labels, names, str(folder), split, partial=cifar)


def _records(path: Path, label_bytes: int) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    """(labels, images) of CIFAR's binary version: the last label byte is the class."""
    data = _bytes(path)
    if len(data) % (label_bytes + 3072):
        raise DatasetError(f"{shown(path)}: {len(data)} bytes are not a whole number of records.")
    rows = data.reshape(-1, label_bytes + 3072)
    images = rows[:, label_bytes:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return rows[:, label_bytes - 1].astype(np.int64), np.ascontiguousarray(images)


def _checked(images: NDArray[Any], labels: NDArray[Any], where: Path) -> NDArray[np.int64]:
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
        raise DatasetError(
            f"{shown(where)}: the images are {images.dtype} {list(images.shape)}, but must be uint8 [n, H, W, 3]."
        )
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer) or len(labels) != len(images):
        raise DatasetError(
            f"{shown(where)}: the labels are {labels.dtype} {list(labels.shape)} for {len(images)} images, but "
            "must be one integer per image."
        )
    return labels.astype(np.int64)


def _npy(path: Path) -> NDArray[Any]:
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError, SyntaxError) as e:
        raise DatasetError(f"{shown(path)}: not a plain array ({shown(getattr(e, 'strerror', None) or e)}).") from e


def _npz(path: Path, key: str) -> NDArray[Any]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            return archive[key]
    except KeyError as e:
        raise DatasetError(f"{shown(path)}: there is no array '{key}' in it.") from e
    except Exception as e:  # zipfile, zlib and numpy raise many kinds of errors for a broken file
        raise DatasetError(f"{shown(path)}: not plain arrays ({shown(getattr(e, 'strerror', None) or e)}).") from e


def _bytes(path: Path) -> NDArray[np.uint8]:
    try:
        return np.fromfile(path, dtype=np.uint8)
    except OSError as e:
        raise DatasetError(f"{shown(path)}: cannot be read: {e.strerror or e}.") from e
