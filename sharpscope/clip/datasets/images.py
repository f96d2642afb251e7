"""From image files, archives and arrays to uint8 pixels, decoded in order by all cores and only as far as needed."""

from __future__ import annotations

import functools
import hashlib
import io
import math
import os
import stat
import warnings
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar, Final, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from sharpscope.clip.datasets.augment import Augmentation
from sharpscope.clip.model import ClipModel
from sharpscope.config.study import StudyConfig
from sharpscope.errors import DatasetError, shown
from sharpscope.machine.cores import cores
from sharpscope.seeds import derive

__all__ = ["REMEMBERED", "Arrays", "Decoded", "Edit", "Files", "Images", "Indexed", "fits", "in_eight_bits", "opened"]

KEPT_BYTES: Final = int(StudyConfig.image_cache * 2**30)
"""Bytes of decoded pixels that all data sets of a process together may keep in memory, if not said otherwise. A set
that would exceed the limit is decoded again in every pass."""
REMEMBERED: Final = 128
"""The first images of a set that are decoded stay in memory, so many of them, whatever the limit: a study that compares
them with other sets before it begins does not decode them again. Of 224 pixels squared they take 18 MiB."""
PATIENCE: Final = 600.0
"""Seconds that reading one image may take before the run says which image it is waiting for."""
_AHEAD: Final = 256  # number of images that are decoded ahead of their use

Edit = Callable[[Image.Image, str], Image.Image]
"""A change of an image that may depend on its name."""


class Images(Protocol):
    """Images by number; nothing is read before :meth:`open`."""

    def __len__(self) -> int: ...

    def name(self, i: int) -> str:
        """The name of image ``i`` in messages, which is also the seed of its corruption."""
        ...

    def open(self, i: int) -> Image.Image:
        """Image ``i``; any exception means that it cannot be read. Called from several threads at once."""
        ...


class Files:
    """Image files ``paths`` below the folder ``root``."""

    def __init__(self, root: str | Path, paths: Sequence[str]) -> None:
        self.root, self.paths = str(root), paths

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, i: int) -> str:
        return self.paths[i]

    def open(self, i: int) -> Image.Image:
        return opened(self.data(i))

    def data(self, i: int) -> bytes:
        """The bytes of file ``i``; raises OSError where it cannot be read."""
        # opened without blocking and then checked, so that a named pipe or a device cannot hang the run
        fd = os.open(os.path.join(self.root, self.paths[i]), os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with open(fd, "rb", buffering=0) as file:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise OSError("not a regular file")
            return bytes(file.readall())


def opened(data: bytes) -> Image.Image:
    """The image in the bytes of a file, in any format of PIL's but EPS.

    An EPS file is a program, which PIL has Ghostscript execute; PIL goes by the content, whatever a file is called.
    Raises UnidentifiedImageError for a file of no such format.
    """
    try:
        return Image.open(io.BytesIO(data), formats=_formats())
    except UnidentifiedImageError:  # PIL's message names an address in memory
        raise UnidentifiedImageError("it has none of the image formats that are read") from None


@functools.cache
def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in Image.ID if name != "EPS")


class Arrays:
    """Images as one uint8 array [n, H, W, 3] (or [n, H, W]), possibly mapped from a file."""

    def __init__(self, pixels: NDArray[np.uint8], name: str) -> None:
        self.pixels, self.label = pixels, name

    def __len__(self) -> int:
        return len(self.pixels)

    def name(self, i: int) -> str:
        return f"{self.label}[{i}]"

    def open(self, i: int) -> Image.Image:
        return Image.fromarray(np.ascontiguousarray(self.pixels[i]))


class Indexed:
    """Images that a library provides by number, through ``get(i)``."""

    def __init__(self, count: int, get: Callable[[int], Any], name: str) -> None:
        self.count, self.get, self.label = count, get, name

    def __len__(self) -> int:
        return self.count

    def name(self, i: int) -> str:
        return f"{self.label}[{i}]"

    def open(self, i: int) -> Image.Image:
        image = self.get(i)
        return image if isinstance(image, Image.Image) else Image.fromarray(np.asarray(image))


class Decoded:
    """``images`` in the model's size, uint8 [3, H, W].

    The edits ``before`` are applied before the model's geometry (resizing and cropping), the edits ``after``
    afterwards. One thread per core decodes images while earlier images are used. Unreadable images are recorded in
    ``lost``. With :meth:`keep`, images are decoded once and stay in memory; without it, the first ``REMEMBERED`` do.
    With ``augment``, a stream with a seed augments every image so.
    """

    _alive: ClassVar[weakref.WeakSet[Decoded]] = weakref.WeakSet()

    def __init__(
        self,
        images: Images,
        model: ClipModel,
        before: Sequence[Edit] = (),
        after: Sequence[Edit] = (),
        augment: Augmentation | None = None,
    ) -> None:
        self.images, self.model, self.before, self.after = images, model, tuple(before), tuple(after)
        self.augment = augment
        self.lost: dict[int, str] = {}
        self._seen: set[int] = set()
        self._place: dict[int, int] = {}
        self._kept: Tensor | None = None
        self._remembered: dict[int, Tensor] = {}

    def keep(self, rows: Sequence[int]) -> None:
        """Decode ``rows`` now and keep them."""
        self._kept = torch.empty((len(rows), 3, *self.model.image_size), dtype=torch.uint8)
        Decoded._alive.add(self)
        chunks = [rows[start : start + 64] for start in range(0, len(rows), 64)]
        for good, pixels in self._decoded(chunks):
            at = len(self._place)
            self._kept[at : at + len(good)] = pixels
            self._place |= {row: at + i for i, row in enumerate(good)}

    @classmethod
    def kept_bytes(cls) -> int:
        """The bytes that all kept sets occupy together."""
        return sum(s._kept.nbytes for s in cls._alive if s._kept is not None)

    def stream(self, batches: Sequence[Sequence[int]], seed: int | None = None) -> Iterator[tuple[list[int], Tensor]]:
        """See ``dataset.ImageSource``; raises DatasetError for an image that was readable before."""
        if self._kept is None:
            yield from self._decoded(batches, seed)
            return
        for rows in batches:
            good = [r for r in rows if r not in self.lost]
            yield good, self._kept[torch.tensor([self._place[r] for r in good], dtype=torch.long)]

    def file_digests(self, rows: Sequence[int]) -> list[bytes]:
        """See ``dataset.ImageSource``."""
        files = self.images
        if not isinstance(files, Files) or self.before or self.after:
            return []

        def digest(row: int) -> bytes | None:
            try:
                return hashlib.blake2b(files.data(row), digest_size=16).digest()
            except OSError:
                return None

        with ThreadPoolExecutor(max_workers=cores(), thread_name_prefix="read") as pool:
            return [found for found in pool.map(digest, rows) if found is not None]

    def _decoded(self, batches: Sequence[Sequence[int]], seed: int | None = None) -> Iterator[tuple[list[int], Tensor]]:
        # PIL warns about odd metadata. A filter is used, because catch_warnings would also affect the code that runs
        # between two batches.
        warnings.filterwarnings("ignore", module=r"PIL\.")
        pool = ThreadPoolExecutor(max_workers=cores(), thread_name_prefix="decode")
        waiting: deque[list[tuple[int, Future[Tensor | None]]]] = deque()
        try:
            ahead, todo = 0, iter(batches)
            for _ in batches:
                while ahead < _AHEAD or not waiting:
                    if (rows := next(todo, None)) is None:
                        break
                    waiting.append([(r, pool.submit(self._once, r, seed)) for r in rows if r not in self.lost])
                    ahead += len(rows)
                batch = waiting.popleft()
                ahead -= len(batch)
                yield self._collected(batch)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _collected(self, batch: Sequence[tuple[int, Future[Tensor | None]]]) -> tuple[list[int], Tensor]:
        height, width = self.model.image_size
        pixels = torch.empty((len(batch), height, width, 3), dtype=torch.uint8)
        good: list[int] = []
        for row, future in batch:
            try:
                image = future.result(timeout=PATIENCE)
            except TimeoutError as e:
                raise DatasetError(
                    f"{shown(self.images.name(row))}: this image was not decoded within {PATIENCE:.0f} s. "
                    "Is the disk still attached?"
                ) from e
            if image is not None:
                pixels[len(good)] = image
                good.append(row)
            elif row in self._seen:
                name = shown(self.images.name(row))
                raise DatasetError(f"{name}: this image could be read earlier, but can no longer be read.")
            else:
                self.lost[row] = self.images.name(row)
        self._seen.update(good)
        return good, pixels[: len(good)].permute(0, 3, 1, 2).contiguous()

    def _once(self, row: int, seed: int | None) -> Tensor | None:
        """``_one``, which the first images without augmentation are asked of only once."""
        if seed is not None or self._kept is not None:
            return self._one(row, seed)
        image = self._remembered.get(row)
        if image is None and (image := self._one(row, None)) is not None and len(self._remembered) < REMEMBERED:
            self._remembered[row] = image
        return image

    def _one(self, row: int, seed: int | None) -> Tensor | None:
        """uint8 [H, W, 3] of one image, None where it cannot be read; decompression bombs count as unreadable."""
        try:
            image = self.images.open(row)
            if image.width * image.height > (Image.MAX_IMAGE_PIXELS or math.inf):  # PIL itself would only warn
                return None
            image, name = in_eight_bits(image).convert("RGB"), self.images.name(row)
            for edit in self.before:
                image = edit(image, name)
            # the steps of open_clip's image_transform before pixels become floats
            if self.augment is not None and seed is not None:
                image = self.augment(image, self.model.image_size, self.model.geometry, derive(seed, row))
            else:
                for transform in self.model.geometry:
                    image = transform(image)
            for edit in self.after:
                image = edit(image, name)
            return torch.from_numpy(np.array(image, dtype=np.uint8))
        except MemoryError:
            raise
        except Exception:  # broken files raise OSError, SyntaxError, struct.error, ..., depending on their format
            return None


def in_eight_bits(image: Image.Image) -> Image.Image:
    """``image`` with at most 8 bits per channel. PIL's own conversion would clip deeper images to white or to black.

    16-bit values are divided by 257 (65535 is white), and floats in [0, 1] are multiplied by 255. Raises ValueError for
    values in any other range, because the value of white is then unknown.
    """
    if image.mode[0] not in "IF":
        return image
    values = np.asarray(image)
    low, high = values.min(), values.max()
    white = 1 if image.mode == "F" else 65535
    if not 0 <= low <= high <= white:  # false for NaN
        raise ValueError(f"pixels from {low} to {high} in mode {image.mode}")
    return Image.fromarray(np.rint(values * (255 / white)).astype(np.uint8))


def fits(count: int, model: ClipModel, most: int | None = None) -> bool:
    """Whether ``count`` more images of ``model`` may stay in memory, of which all sets together take ``most`` bytes.

    None: ``KEPT_BYTES``.
    """
    limit = KEPT_BYTES if most is None else most
    return count * 3 * math.prod(model.image_size) + Decoded.kept_bytes() <= limit
