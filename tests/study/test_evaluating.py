"""Points that share a pass over the test images: the same numbers as alone, and few openings of every image."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import sharpscope
from sharpscope.clip.answering import FeatureCache, answers, answers_each
from sharpscope.clip.datasets import images
from sharpscope.clip.datasets.dataset import Dataset, Memory
from sharpscope.clip.datasets.images import Files
from sharpscope.clip.head import Classifier
from sharpscope.config.study import PairConfig, StudyConfig
from sharpscope.errors import NumericalError
from sharpscope.study import evaluating, overlap, workers
from sharpscope.study.tasks import Task
from sharpscope.study.unitfile import Unit

pytestmark = pytest.mark.usefixtures("undrawn")
NAMES = ("tabby cat", "red dog", "owl")
PATH, REPAIR = 1, 1
"""What opens an image that is not kept: the path, and the repairs."""


@pytest.fixture
def study(tiny_paths: dict[str, Path], tiny_theta: dict[str, Any], image_folder: Any, tmp_path: Path) -> StudyConfig:
    """One pair of tiny ViTs on folders of images; two further paths and agreement, so that every family is there."""
    generator = torch.Generator().manual_seed(1)
    moved = {
        n: v + 0.05 * torch.randn(v.shape, generator=generator) if n.startswith("visual.") else v
        for n, v in tiny_theta.items()
    }
    for name, theta in (("zeroshot", tiny_theta), ("finetuned", moved)):
        sharpscope.write_checkpoint(tmp_path / f"{name}.safetensors", theta)
    for folder in ("train", "val", "shifted"):
        image_folder({n.replace(" ", "_"): 4 for n in NAMES}, name=folder)
    (tmp_path / "names.txt").write_text("\n".join(NAMES), encoding="utf-8")
    pair = PairConfig("p", str(tmp_path / "zeroshot.safetensors"), str(tmp_path / "finetuned.safetensors"))
    return StudyConfig(
        pairs=(pair,), model=str(tiny_paths["vit"]), head="zeroshot", classnames=str(tmp_path / "names.txt"),
        data_root=str(tmp_path), probe="folder:train", id=("folder:val",), ood=("folder:shifted",),
        alphas=(0.0, 0.5, 1.0), measures=(), granularity="block", probe_size=6, batch_size=5, layer_alphas=(0.0, 1.0),
        straggler_criterion="rewind", densities=(0.5,), targets=("delta",), repair_alphas=(0.5, 1.0), masks=2,
        bootstrap=20, threads=1, paths=("linear", "lines"), agreement=True, output_baselines=("ose",),
    )  # fmt: skip


@pytest.fixture
def openings(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[str]]:
    """Test image -> how often its file was opened."""
    counts: Counter[str] = Counter()
    before = Files.open

    def open_(self: Files, i: int) -> Any:
        counts[f"{self.root}/{self.paths[i]}"] += 1
        return before(self, i)

    monkeypatch.setattr(Files, "open", open_)
    yield counts


def tables(run: Any) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted((run.root / "tables").glob("*.csv"))}


def test_without_a_cache_an_image_is_opened_once_a_stage_and_every_table_is_the_same(
    study: StudyConfig, openings: Counter[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (images, overlap):
        monkeypatch.setattr(module, "REMEMBERED", 4)
    kept = sharpscope.run(study, tmp_path / "kept")
    assert set(openings.values()) == {1}
    openings.clear()
    lazy = sharpscope.run(dataclasses.replace(study, image_cache=0.0), tmp_path / "lazy")
    outputs = 1  # the two ends for the output baseline
    tests = {name: n for name, n in openings.items() if "/train/" not in name}
    # Four of the twelve images of each set are looked at beforehand, and stay.
    assert len(tests) == 24 and Counter(tests.values()) == {1: 2 * 4, PATH + outputs + REPAIR: 2 * 8}
    assert tables(lazy) == tables(kept) and len(tables(kept)["accuracy.csv"].splitlines()) > 50
    assert not lazy.failed_units


def test_a_run_may_be_taken_up_with_another_cache(study: StudyConfig, tmp_path: Path) -> None:
    first = sharpscope.run(study, tmp_path / "run")
    (first.root / "units" / "path+p+0.5.unit").unlink()
    assert tables(sharpscope.run(dataclasses.replace(study, image_cache=0.0), tmp_path / "run")) == tables(first)


def test_points_share_a_pass_as_far_as_memory_allows_and_jobs_have_work(
    study: StudyConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    lazy = dataclasses.replace(study, image_cache=0.0)
    context = workers.Context.load(lazy, lazy.pairs[0])
    each = sum(t.nbytes for n, t in context.pair.classifier.frozen(context.path.at(0.0)).items())
    outputs = 4 * 12 * (12 + 3)  # what agreement keeps of a set: features and scores of its images
    context.__dict__["free_memory"] = 4 * (5 * each + each // 2)
    assert evaluating.points_at_once(context, "repair") == 5
    context.__dict__["free_memory"] = 4 * (3 * (each + outputs) + each // 2)
    assert evaluating.points_at_once(context, "path") == 3
    context.__dict__["free_memory"] = 1
    assert evaluating.points_at_once(context, "path") == 1
    every = workers.Context.load(study, study.pairs[0])
    assert evaluating.points_at_once(every, "path") == 1  # nothing is read twice anyway
    monkeypatch.setattr(workers, "points_at_once", lambda context, family: 100)
    todo = [Task(f"path/p/{a}") for a in range(7)] + [Task(f"repair/p/v/{a}") for a in range(4)] + [Task("noise/p")]
    crew = workers.Crew(study)
    crew.add_contexts({"p": context})
    assert crew._chunk_sizes(todo) == {("p", "path"): 7, ("p", "repair"): 4}
    crew.config = dataclasses.replace(study, jobs=4)  # two families for four jobs: each is halved
    assert crew._chunk_sizes(todo) == {("p", "path"): 4, ("p", "repair"): 2}


@pytest.mark.usefixtures("untimed")
def test_the_plan_says_how_often_images_are_decoded(study: StudyConfig) -> None:
    small = dataclasses.replace(study, measures=("gradient_norm",), agreement=False)
    assert "images: 1.7e-05 GiB of decoded test images stay in memory\n" in sharpscope.plan(small) + "\n"
    lazy = sharpscope.plan(dataclasses.replace(small, image_cache=0.0))
    assert "24 do not fit into --image-cache 0 and are decoded 1 time(s) for the path and 1 for the repairs" in lazy


def test_a_point_that_fails_takes_no_other_with_it(study: StudyConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def compute_each(context: Any, tasks: Any, progress: Any) -> list[Unit]:
        calls.append(len(tasks))
        if any(t.key == "path/p/3" for t in tasks):
            raise NumericalError("logits are not finite")
        if len(tasks) > 2:
            raise MemoryError
        return [Unit({"path": [{"pair": t.key}]}) for t in tasks]

    monkeypatch.setattr(workers, "compute_each", compute_each)
    context = workers.Context.load(study, study.pairs[0])
    tasks = [Task(f"path/p/{i}") for i in range(8)]
    found = [result for result, _ in workers._guarded(context, tasks, lambda what: None)]
    assert found[3] == "logits are not finite"
    assert [u.rows["path"][0]["pair"] for u in found if isinstance(u, Unit)] == [
        t.key for t in tasks if "3" not in t.key
    ]
    assert calls == [8, 4, 2, 2, 1, 1, 4, 2, 2]


# ---------------------------------------------------------------------- several thetas in one pass
def _set(model: Any, n: int = 11) -> Dataset:
    pixels = torch.randint(
        0, 256, (n, 3, *model.image_size), dtype=torch.uint8, generator=torch.Generator().manual_seed(2)
    )
    return Dataset("made", NAMES, torch.arange(n) % 3, Memory(pixels), mean=model.mean, std=model.std)


@pytest.mark.parametrize("mode", ["zeroshot", "text"])
@pytest.mark.parametrize("moving", ["visual.", "logit_scale", ""])
@pytest.mark.parametrize("cached", [False, True])
def test_every_theta_answers_as_it_does_alone(
    mode: Any, moving: str, cached: bool, tiny_model: Any, tiny_theta: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    classifier, dataset = Classifier(tiny_model, mode, NAMES), _set(tiny_model)
    base = classifier.attach(tiny_theta)
    generator = torch.Generator().manual_seed(3)
    thetas = [
        {n: v + s * torch.randn(v.shape, generator=generator) if n.startswith(moving) else v for n, v in base.items()}
        for s in (0.0, 0.1, 0.3)
    ]
    alone = [answers(classifier, theta, dataset, 4) for theta in thetas]
    passes: list[int] = []
    encode = type(tiny_model).encode_image
    monkeypatch.setattr(type(tiny_model), "encode_image", lambda *a, **k: passes.append(1) or encode(*a, **k))
    seen: list[list[int]] = [[], [], []]
    together = answers_each(
        classifier, thetas, dataset, 4, cache=FeatureCache() if cached else None,
        seen=[lambda features, scores, own=own: own.append(len(scores)) for own in seen],
    )  # fmt: skip
    for one, other in zip(alone, together, strict=True):
        for field in ("labels", "predicted", "confidence", "nll"):
            assert np.array_equal(getattr(one, field), getattr(other, field))
    assert seen == [[4, 4, 3]] * 3
    assert len(passes) == (3 if moving == "logit_scale" else 9)  # thetas with one tower share their features
    different = [not np.array_equal(together[0].nll, other.nll) for other in together[1:]]
    assert all(different)


def test_the_pass_says_which_set_has_logits_that_are_not_finite(tiny_model: Any, tiny_theta: dict[str, Any]) -> None:
    classifier = Classifier(tiny_model, "zeroshot", NAMES)
    good = classifier.attach(tiny_theta)
    bad = good | {"visual.proj": torch.full_like(good["visual.proj"], torch.nan)}
    with pytest.raises(NumericalError, match="made: logits are not finite"):
        answers_each(classifier, [good, bad], _set(tiny_model), 4)


def test_images_are_moved_as_bytes_and_normalised_where_they_are_used(tiny_model: Any) -> None:
    dataset = _set(tiny_model)
    (here, labels), (meta, _) = (next(iter(dataset.batches(4, device))) for device in (None, "meta"))
    assert (meta.device.type, meta.dtype, meta.shape) == ("meta", torch.float32, here.shape)
    assert labels.tolist() == [0, 1, 2, 0]
    to_tensor = dataset._source.stream([range(4)]).__next__()[1].float() / 255  # type: ignore[attr-defined]
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (tiny_model.mean, tiny_model.std))
    assert torch.equal(here, (to_tensor - mean) / std)


def test_losses_and_accuracies_are_computed_in_full_float32(
    tiny_model: Any, tiny_theta: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    classifier, dataset = Classifier(tiny_model, "zeroshot", NAMES), _set(tiny_model)
    theta, found, encode = classifier.attach(tiny_theta), [], type(tiny_model).encode_image
    probe = sharpscope.Probe(classifier, dataset, size=4, batch_size=4)
    switch: Any = torch.backends.cudnn.conv

    def seen(*a: Any, **k: Any) -> Any:
        found.append(switch.fp32_precision)
        return encode(*a, **k)

    monkeypatch.setattr(type(tiny_model), "encode_image", seen)
    before = switch.fp32_precision
    probe.sample_losses(theta)
    answers(classifier, theta, dataset, 16)
    assert found == ["ieee", "ieee"] and switch.fp32_precision == before != "ieee"
