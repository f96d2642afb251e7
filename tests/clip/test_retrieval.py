"""R@k of images and captions: a plain restatement in numpy, invariances, ties, intervals, and files in real layouts."""

from __future__ import annotations

import json
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F  # noqa: N812

from sharpscope.cli.main import main
from sharpscope.clip import retrieval
from sharpscope.clip.accuracy import accuracy_rows
from sharpscope.clip.datasets.spec import load_captions, load_dataset
from sharpscope.clip.evaluate import evaluate
from sharpscope.clip.model import ClipModel
from sharpscope.clip.retrieval import Retrieved, expected_hits, retrieved_from
from sharpscope.config.study import PairConfig, StudyConfig
from sharpscope.errors import ConfigError, DatasetError, PairMismatch
from sharpscope.scores import RETRIEVAL
from sharpscope.vocabulary import METRICS
from sharpscope.weights import write_checkpoint
from sharpscope.weights.path import InterpolationPath

Theta = dict[str, torch.Tensor]


def drawn(n: int = 23, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(unit features of n images, of their captions, each caption's image): one to five captions an image."""
    rng = torch.Generator().manual_seed(seed)
    image_of = torch.arange(n).repeat_interleave(torch.randint(1, 6, (n,), generator=rng))
    images = torch.randn(n, 6, generator=rng, dtype=torch.float64)
    texts = images[image_of] + 1.5 * torch.randn(len(image_of), 6, generator=rng, dtype=torch.float64)
    return F.normalize(images, dim=1), F.normalize(texts, dim=1), image_of


def values(found: Retrieved) -> dict[str, float]:
    return {m: s.value() for m in RETRIEVAL if (s := found.statistic(m)) is not None}


def test_it_is_the_plain_definition(monkeypatch: pytest.MonkeyPatch) -> None:
    """CLIP_benchmark's: an image counts where any of its captions is among the first k, a caption where its image."""
    images, texts, image_of = drawn()
    monkeypatch.setattr(retrieval, "_AT_ONCE", 200)  # several blocks
    found = values(retrieved_from(images, texts, image_of))
    cosines, own = (images @ texts.T).numpy(), image_of.numpy()
    for k in (1, 5, 10):
        rows = np.argsort(-cosines, axis=1)[:, :k]
        assert found[f"i2t_r{k}"] == np.mean([i in own[row] for i, row in enumerate(rows)])
        columns = np.argsort(-cosines.T, axis=1)[:, :k]
        assert found[f"t2i_r{k}"] == np.mean([own[t] in row for t, row in enumerate(columns)])
    assert set(found) == set(RETRIEVAL) <= set(METRICS)
    assert len(set(found.values())) == 6


def test_the_order_of_images_and_captions_changes_nothing_and_k_only_helps() -> None:
    images, texts, image_of = drawn()
    images, texts = images.round(decimals=1), texts.round(decimals=1)  # with ties, and cosines without rounding
    first = values(retrieved_from(images, texts, image_of))
    rng = torch.Generator().manual_seed(1)
    order, lines = torch.randperm(len(images), generator=rng), torch.randperm(len(texts), generator=rng)
    place = torch.argsort(order)
    again = values(retrieved_from(images[order], texts[lines], place[image_of[lines]]))
    assert again == pytest.approx(first, abs=1e-12)
    for way in ("i2t", "t2i"):
        assert 0 <= first[f"{way}_r1"] < first[f"{way}_r5"] < first[f"{way}_r10"] <= 1


def test_ties_count_as_all_orders_do() -> None:
    for above, wrong, right in ((0, 0, 1), (0, 1, 1), (1, 2, 1), (0, 2, 2), (2, 1, 2), (3, 0, 1)):
        tied = [False] * wrong + [True] * right
        for k in (1, 2, 3):
            orders = [any(([False] * above + list(order))[:k]) for order in permutations(tied)]
            (hit,) = expected_hits(*(np.array([x]) for x in (above, wrong, right)), k)
            assert hit == pytest.approx(np.mean(orders))
    same = torch.ones(8, 1), torch.ones(24, 1), torch.arange(24) // 3  # a model that says the same of everything
    found = values(retrieved_from(*same))
    assert found["t2i_r1"] == pytest.approx(1 / 8) and found["t2i_r5"] == pytest.approx(5 / 8)
    assert found["i2t_r1"] == pytest.approx(3 / 24) and found["t2i_r10"] == 1


def test_intervals_resample_images_with_their_captions() -> None:
    """Ten equal captions an image: t2i's interval is that of the images alone, not of ten times as many examples."""
    hits = np.arange(40) % 2
    rows = {}
    for each in (1, 10):
        found = dict.fromkeys(RETRIEVAL, hits * each * 1.0) | {"i2t_r1": hits * 1.0}
        given = Retrieved(found, np.full(40, each))
        table = accuracy_rows("a", 0.0, "dense", {"s": given}, {"s": "test"}, {"s": tuple(RETRIEVAL)})
        rows[each] = {r["metric"]: r for r in table}
    for row in (rows[1]["t2i_r1"], rows[10]["t2i_r1"], rows[10]["i2t_r1"]):
        assert row["n"] == 40 and row["estimate"] == 0.5
        assert (row["ci_low"], row["ci_high"]) == (rows[1]["i2t_r1"]["ci_low"], rows[1]["i2t_r1"]["ci_high"])
    assert rows[1]["i2t_r1"]["ci_high"] - 0.5 == pytest.approx(1.96 * 0.5 / 40**0.5, rel=0.2)


# ---------------------------------------------------------------------- files
def karpathy(root: Path, name: str = "coco", folder: str = "val2014", **changed: Any) -> Path:
    """Twelve images and their captions, two to four each, as Karpathy's files have them."""
    rng, images = np.random.default_rng(0), []
    (root / folder).mkdir(parents=True, exist_ok=True)
    for i in range(12):
        file = f"{name.upper()}_{folder}_{i:012d}.jpg"
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(root / folder / file)
        texts = [f"a {('photo', 'sketch', 'cup', 'key')[j]} of {i}" for j in range(2 + i % 3)]
        sentences = [{"tokens": t.split(), "raw": t, "imgid": i, "sentid": 10 * i + j} for j, t in enumerate(texts)]
        split = ("test", "train", "restval", "val")[max(0, i - 8)]
        image = {"filename": file, "imgid": i, "split": split, "sentences": sentences, "sentids": [10 * i]}
        images.append(image | ({"filepath": folder, "cocoid": i} if name == "coco" else {}))
    images[0] |= changed
    (root / f"dataset_{name}.json").write_text(json.dumps({"images": images, "dataset": name}))
    return root / f"dataset_{name}.json"


def test_both_layouts_are_read(tmp_path: Path, tiny_model: ClipModel) -> None:
    coco, flickr = karpathy(tmp_path / "c"), karpathy(tmp_path / "f", "flickr30k", "flickr30k-images")
    sets = [load_captions(f"retrieval:{file}", model=tiny_model) for file in (coco, flickr)]
    for one in sets:
        assert len(one.images) == 9 and one.images.facts["split"] == "test"
        assert one.texts[:3] == ("a photo of 0", "a sketch of 0", "a photo of 1")
        assert np.bincount(one.image_of).tolist() == [2, 3, 4] * 3
    first, second = (next(s.images.batches(16))[0] for s in sets)
    assert torch.equal(first, second) and not torch.equal(first[0], first[1])
    assert load_captions(f"retrieval:{coco}@restval", model=tiny_model).texts[0] == "a photo of 10"
    some = load_captions(f"retrieval:{coco}", model=tiny_model, limit=4)
    assert [f"of {i}" in t for i, t in zip(some.image_of, some.texts, strict=True)] == [True] * len(some.texts)
    assert len(some.images) == len(set(some.image_of.tolist())) == 4
    (coco.parent / "val2014").rename(tmp_path / "pictures")  # the data root may be the folder of images itself
    assert len(load_captions(f"retrieval:{coco}", model=tiny_model, data_root=tmp_path / "pictures").images) == 9


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"filename": "../x.jpg"}, r"images\[0\].filename"),
        ({"split": 3}, r"images\[0\].split"),
        ({"sentences": None}, r"images\[0\].sentences"),
        ({"sentences": [{"raw": "a"}, {"raw": " "}]}, r"images\[0\].sentences\[1\].raw"),
        ({"filename": "COCO_val2014_000000000001.jpg"}, "listed 2 times"),
        ({"filename": "gone.jpg"}, "gone.jpg is in none of the folders .*\nRemedy: --data-root"),
    ],
)
def test_a_wrong_file_is_named(changed: dict[str, Any], words: str, tmp_path: Path, tiny_model: ClipModel) -> None:
    file = karpathy(tmp_path, **changed)
    with pytest.raises(DatasetError, match=f"(?s)dataset_coco.json.*{words}"):
        load_captions(f"retrieval:{file}", model=tiny_model)


def test_no_json_and_no_such_split(tmp_path: Path, tiny_model: ClipModel) -> None:
    (tmp_path / "x.json").write_text("[" * 100_000)
    for spec in ("x.json", "y.json"):
        with pytest.raises(DatasetError, match=f"captions: .*{spec}"):
            load_captions(f"retrieval:{spec}", model=tiny_model, data_root=tmp_path)
    file = karpathy(tmp_path)
    with pytest.raises(ConfigError, match="unknown split 'tset'. Did you mean 'test'"):
        load_captions(f"retrieval:{file}@tset", model=tiny_model)


# ---------------------------------------------------------------------- evaluate
@pytest.fixture
def ends(tmp_path: Path, tiny_theta: Theta) -> tuple[Path, Path]:
    """Two models that differ in both towers; the second has a head of its own, which has to play no part."""
    rng = torch.Generator().manual_seed(0)
    other = {n: t + 0.1 * torch.randn(t.shape, generator=rng) if t.ndim > 1 else t for n, t in tiny_theta.items()}
    write_checkpoint(tmp_path / "zero.safetensors", tiny_theta, {})
    facts = {"sharpscope.head.scale_baked": "true", "sharpscope.head.normalize": "true"}
    write_checkpoint(tmp_path / "one.safetensors", {**other, "head.weight": torch.ones(4, 12)}, facts)
    return tmp_path / "zero.safetensors", tmp_path / "one.safetensors"


def test_both_towers_are_those_of_the_point(
    ends: tuple[Path, Path], tmp_path: Path, tiny_paths: dict[str, Path], tiny_model: ClipModel
) -> None:
    file, model = karpathy(tmp_path), str(tiny_paths["vit"])
    broken = next((tmp_path / "val2014").glob("*03.jpg"))
    broken.write_bytes(broken.read_bytes()[:90])  # its captions leave with it
    alone = [evaluate(end, model, [f"retrieval:{file}"], bootstrap=60) for end in ends]
    along = evaluate(
        ends[1], model, [f"retrieval:{file}"], base=ends[0], paths=("linear",), alphas=(0, 0.5, 1), bootstrap=60
    )
    for alpha, table in ((0.0, alone[0]), (1.0, alone[1])):
        assert (along[along["alpha"] == alpha]["estimate"].to_numpy() == table["estimate"].to_numpy()).all()
    assert not np.array_equal(alone[0]["estimate"], alone[1]["estimate"])
    assert set(along["n"]) == {8}
    assert all(note.startswith("25 captions; 1 unreadable images skipped") for note in along["note"])
    # alpha .5 again, by hand
    zero, one = _theta(ends[0]), _theta(ends[1])
    theta = InterpolationPath(zero, {n: one[n] for n in zero}).at(0.5)
    captions = load_captions(f"retrieval:{file}", model=tiny_model)
    kept = [i for i in range(9) if i != 3]
    pixels, labels = next(captions.images.batches(16))
    assert labels.tolist() == kept
    texts = [t for t, i in zip(captions.texts, captions.image_of, strict=True) if i != 3]
    own = torch.tensor([kept.index(i) for i in captions.image_of if i != 3])
    found = values(
        retrieved_from(
            tiny_model.encode_image(theta, pixels), tiny_model.encode_text(theta, tiny_model.tokenize(texts)), own
        )
    )
    assert along[along["alpha"] == 0.5].set_index("metric")["estimate"].to_dict() == pytest.approx(found)


def _theta(file: Path) -> Theta:
    from safetensors.torch import load_file

    return {n: t for n, t in load_file(file).items() if not n.startswith("head.")}


def test_captions_where_classes_are_needed_are_refused(
    ends: tuple[Path, Path], tmp_path: Path, tiny_paths: dict[str, Path], tiny_theta: Theta, capsys: Any
) -> None:
    spec, model = f"retrieval:{karpathy(tmp_path)}", str(tiny_paths["vit"])
    pair = PairConfig("a", *map(str, ends))
    with pytest.raises(ConfigError, match=r"ood: retrieval:.*has captions and no classes.*\nRemedy: 'sharpscope eval"):
        StudyConfig(pairs=(pair,), ood=(spec,)).check_complete()
    with pytest.raises(ConfigError, match="has captions and no classes"):
        load_dataset(spec)
    with pytest.raises(ConfigError, match="captions have no classes, so there is no #base"):
        evaluate(ends[0], model, [f"{spec}#base"])
    with pytest.raises(ConfigError, match="change nothing, because all data sets have captions"):
        evaluate(ends[0], model, [spec], head="stored")
    image = {n: t for n, t in tiny_theta.items() if n.startswith("visual.")}
    write_checkpoint(tmp_path / "image.safetensors", image, {})
    with pytest.raises(PairMismatch, match="R@k needs the text tower"):
        evaluate(tmp_path / "image.safetensors", model, [spec])
    said = main(["evaluate", str(ends[0]), "--model", model, "--datasets", spec, "--metrics", "t2i_r5", "top1"])
    told = capsys.readouterr()
    assert said == 0 and "t2i_r5" in told.out and "top1 has no meaning" in told.err
