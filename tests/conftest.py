"""Fixtures shared by all rooms: tiny open_clip architectures with random weights, and folders of tiny images.

Everything heavy is imported inside the fixtures: tests of rooms without torch stay without it.
"""

from __future__ import annotations

import contextlib
import gc
import json
import shutil
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings

from tests.scripts import loaded

settings.register_profile("laws", deadline=None, derandomize=True)  # how long a machine takes is no law
settings.load_profile("laws")

# The files that take longest are started first, so that no worker is left alone with one of them at the end.
_FIRST = ("test_study.py", "test_split_units.py", "test_plots.py", "test_ranks.py", "test_killed.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: _FIRST.index(item.path.name) if item.path.name in _FIRST else len(_FIRST))


def pytest_collection_finish() -> None:
    """What the imports made lives to the end, so that no garbage collection has to look at it again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def one_process() -> Iterator[None]:
    """A study that does not say how many processes share it has one: the tests themselves fill the cores."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sharpscope.machine.cores.processes", lambda: 1)
        yield


@pytest.fixture(scope="session")
def emulated() -> Any:
    """The module of the emulated accelerator, ``tests/device/emulated.py``."""
    return loaded("tests/device/emulated.py")


_TEXT: dict[str, Any] = {
    "context_length": 16,
    "vocab_size": 708,
    "width": 16,
    "heads": 2,
    "layers": 1,
    "tokenizer_kwargs": {"bpe_path": "mini_bpe.txt.gz"},
}
_VIT: dict[str, Any] = {
    "image_size": 16,
    "layers": 2,
    "width": 16,
    "head_width": 8,
    "patch_size": 8,
    "mlp_ratio": 2.0,
}
TINY: dict[str, dict[str, Any]] = {
    "vit": {"embed_dim": 12, "vision_cfg": _VIT, "text_cfg": _TEXT},
    "quickgelu": {"embed_dim": 12, "quick_gelu": True, "vision_cfg": _VIT, "text_cfg": _TEXT},
    "resnet": {
        "embed_dim": 12,
        "vision_cfg": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "patch_size": None},
        "text_cfg": _TEXT,
    },
    "customtext": {"embed_dim": 12, "custom_text": True, "vision_cfg": _VIT, "text_cfg": _TEXT},
}
"""Tiny open_clip configs: a ViT, the same with QuickGELU, a ModifiedResNet, a CustomTextCLIP."""


@pytest.fixture(scope="session")
def tiny_paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """kind -> path of its config JSON, its BPE file beside it; "nested" is "vit" as {model_cfg, preprocess_cfg}."""
    from sharpscope.miniworld import world as miniworld

    folder = tmp_path_factory.mktemp("tiny")
    shutil.copy(miniworld.tokenizer_path(), folder / "mini_bpe.txt.gz")
    preprocess_cfg = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4]}
    files = {**TINY, "nested": {"model_cfg": TINY["vit"], "preprocess_cfg": preprocess_cfg}}
    for kind, config in files.items():
        (folder / f"{kind}.json").write_text(json.dumps(config), encoding="utf-8")
    return {kind: folder / f"{kind}.json" for kind in files}


@pytest.fixture(scope="session")
def tiny_thetas(tiny_paths: dict[str, Path]) -> dict[str, tuple[Any, dict[str, Any]]]:
    """kind -> (ClipModel, theta); theta random but nowhere degenerate (open_clip starts biases and some norms at 0).

    Treat theta as read-only: it is shared by the whole session.
    """
    import torch

    from sharpscope.clip.model import ClipModel

    made = {}
    for kind in TINY:
        model = ClipModel.load(str(tiny_paths[kind]))
        generator = torch.Generator().manual_seed(0)
        theta = model.init(0)
        for name, value in theta.items():
            if not value.is_floating_point() or name == "logit_scale":
                continue
            noise = torch.randn(value.shape, generator=generator)
            theta[name] = value + 0.1 * (noise.abs() if name.endswith("running_var") else noise)
        made[kind] = (model, theta)
    return made


@pytest.fixture
def tiny_model(tiny_thetas: dict[str, tuple[Any, dict[str, Any]]]) -> Any:
    """The ClipModel of the tiny ViT: 16 x 16 images, 2 blocks, 12-dimensional features."""
    return tiny_thetas["vit"][0]


@pytest.fixture
def tiny_theta(tiny_thetas: dict[str, tuple[Any, dict[str, Any]]]) -> dict[str, Any]:
    """Weights of ``tiny_model``; a fresh dict, tensors shared."""
    return dict(tiny_thetas["vit"][1])


@pytest.fixture
def task(tiny_model: Any, tiny_theta: dict[str, Any]) -> Any:
    """A fine-tuning's task: three classes, twelve images, the tiny ViT with random weights."""
    from sharpscope.finetuning.method import Task

    return Task(tiny_model, tiny_theta, ("circle", "square", "star"), ("a photo of a {}", "a {}"), n=12, seed=3)


@pytest.fixture
def examples(tiny_model: Any, task: Any) -> Any:
    """The twelve images of ``task``: noise with balanced labels."""
    import torch

    from sharpscope.finetuning.examples import TensorExamples

    images = torch.randn(task.n, 3, *tiny_model.image_size, generator=torch.Generator().manual_seed(1))
    return TensorExamples(images, torch.arange(task.n) % len(task.classnames))


@pytest.fixture(scope="module")
def undrawn() -> Iterator[None]:
    """Reports without figures, which take the longest of a small study, for modules that do not look at them.

    Those that do are tests/study/test_study.py and tests/present, and those that ask for ``drawing``.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sharpscope.study.report.all_figures", lambda *_: {})
        yield


@pytest.fixture(scope="session")
def drawing() -> Callable[..., AbstractContextManager[None]]:
    """``with drawing("sharpness"):`` lets reports have the figures of these tables only."""

    @contextlib.contextmanager
    def some(*names: str) -> Iterator[None]:
        from sharpscope.present.plots import all_figures

        def figures(tables: dict[str, Any], *how: Any) -> dict[str, Any]:
            return all_figures({n: tables[n] for n in names}, *how)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("sharpscope.study.report.all_figures", figures)
            yield

    return some


@pytest.fixture
def image_folder(tmp_path: Path) -> Callable[..., Path]:
    """``image_folder({"cat": 3, "dog": 2}, name="val", size=20)`` -> a folder of class folders with random PNGs.

    The pictures depend on ``name``: a study refuses two sets that show the same ones.
    """
    from PIL import Image

    def make(counts: dict[str, int], name: str = "images", size: int = 20) -> Path:
        rng = np.random.default_rng(zlib.crc32(name.encode()))
        for folder, count in counts.items():
            (tmp_path / name / folder).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 256, (size, size + 4, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / name / folder / f"{i:03d}.png")
        return tmp_path / name

    return make
