"""Every layout that users have, as tiny trees of real files, with answers known beforehand."""

from __future__ import annotations

import dataclasses
import io
import json
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sharpscope.clip.datasets.dataset import Dataset, Memory
from sharpscope.clip.datasets.imagenet import wnids
from sharpscope.clip.datasets.spec import check_spec, load_dataset
from sharpscope.clip.metrics import Answers, estimates
from sharpscope.clip.model import ClipModel, imagenet_classnames, imagenet_templates
from sharpscope.config.collections import expand_specs
from sharpscope.config.specs import check_folders
from sharpscope.errors import ConfigError, DatasetError
from sharpscope.vocabulary import COLLECTIONS

TENCH, GOLDFISH, SHARK = "n01440764", "n01443537", "n01484850"  # ImageNet's classes 0, 1, 2


def picture(shade: int, size: tuple[int, int] = (20, 18), kind: str = "JPEG") -> bytes:
    """An image file of one grey."""
    file = io.BytesIO()
    Image.new("RGB", size, (shade,) * 3).save(file, kind)
    return file.getvalue()


def tree(root: Path, files: Mapping[str, bytes | str]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return root


def shades(dataset: Dataset) -> list[int]:
    """The grey of every image, in the set's order."""
    images = torch.cat([x for x, _ in dataset.batches(2)])
    mean, std = dataset._mean, dataset._std
    return [round(float(v)) for v in ((images * std + mean) * 255).mean(dim=(1, 2, 3))]


def tar(members: Mapping[str, bytes]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return file.getvalue()


# ---------------------------------------------------------------------- projections
def toy(labels: list[int], **more: object) -> Dataset:
    pixels = torch.zeros(len(labels), 3, 2, 2, dtype=torch.uint8)
    names = tuple(f"class {i}" for i in range(5))
    return Dataset("toy", names, torch.tensor(labels), Memory(pixels), mean=(0.5,) * 3, std=(0.5,) * 3, **more)  # type: ignore[arg-type]


def test_many_to_one_projection_by_hand() -> None:
    dataset = toy([0, 1], projection=(1, -1, 0, 0, -1), target_names=("chair", "mug"))
    logits = torch.tensor([[1.0, 9.0, 2.0, 3.0, 8.0], [5.0, 0.0, -1.0, 4.0, 0.0]])
    assert dataset.project(logits).tolist() == [[3.0, 1.0], [4.0, 5.0]]
    own = torch.tensor([[1.0, 2.0]])
    assert dataset.project(own) is own  # a head of the two targets themselves
    with pytest.raises(DatasetError, match=r"3 columns, but need 5 \(one per class\) or 2 \(one per target\)"):
        dataset.project(torch.zeros(1, 3))


def test_three_of_five_classes_by_hand() -> None:
    scores = toy([4, 0], classes=(0, 2, 4)).project(torch.tensor([[1.0, 9.0, 2.0, 8.0, 3.0]]))
    assert scores.tolist() == [[1.0, -np.inf, 2.0, -np.inf, 3.0]]
    assert int(scores.argmax()) == 4


def test_a_projection_has_to_be_whole() -> None:
    with pytest.raises(DatasetError, match="no class belongs to 'mug'"):
        toy([0], projection=(0, 0, 0, -1, -1), target_names=("chair", "mug"))
    with pytest.raises(DatasetError, match="the projection has 2 entries for 5"):
        toy([0], projection=(0, 0), target_names=("chair",))
    with pytest.raises(DatasetError, match="group 2 is out of range for 1 group names"):
        toy([0], groups=torch.tensor([2]), group_names=("Asia",))


# ---------------------------------------------------------------------- ImageNet and its shifts
@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A data root as WiSE-FT's users have it."""
    assert wnids()[:3] == (TENCH, GOLDFISH, SHARK)
    return tree(
        tmp_path,
        {
            f"imagenet/val/{GOLDFISH}/a.JPEG": picture(10),
            f"imagenet/val/{TENCH}/b.JPEG": picture(20),
            f"imagenet/train/{SHARK}/c.JPEG": picture(30),
            f"imagenet/train/{TENCH}/d.JPEG": picture(40),
            "probe.txt": f"{TENCH}/d.JPEG\n",
            "imagenetv2-matched-frequency-format-val/10/x.jpeg": picture(50),
            "imagenetv2-matched-frequency-format-val/2/x.jpeg": picture(60),
            "imagenetv2-matched-frequency-format-val/999/x.jpeg": picture(70),
            f"imagenet-r/{GOLDFISH}/a.jpg": picture(80),
            f"sketch/{SHARK}/a.JPEG": picture(90),
            "living.txt": f"fish: {TENCH} {GOLDFISH}\n",
            "objectnet-1.0/images/chair/a.png": bordered(100),
            "objectnet-1.0/images/mug/a.png": bordered(110),
            "objectnet-1.0/images/zebra/a.png": bordered(120),
            "objectnet-1.0/mappings/folder_to_objectnet_label.json": json.dumps(
                {"chair": "Chair", "mug": "Mug", "zebra": "Zebra"}
            ),
            "objectnet-1.0/mappings/objectnet_to_imagenet_1k.json": json.dumps(
                {"Mug": "coffee mug", "Chair": "barber chair; rocking chair, rocker"}
            ),
            # line 0 of the words is class 7, line 1 class 3, line 2 class 5
            "objectnet-1.0/mappings/imagenet_to_label_2012_v2": "barber chair\ncoffee mug\nrocking chair, rocker\n",
            "objectnet-1.0/mappings/pytorch_to_imagenet_2012_id.json": json.dumps({"7": 0, "3": 1, "5": 2}),
        },
    )


def bordered(shade: int) -> bytes:
    """A grey with ObjectNet's red border of two pixels."""
    image = Image.new("RGB", (20, 18), (255, 0, 0))
    image.paste((shade,) * 3, (2, 2, 18, 16))
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize(
    ("spec", "labels", "greys"),
    [
        ("imagenet", [0, 1], [20, 10]),
        ("imagenet@train", [0, 2], [40, 30]),
        ("imagenet@probe.txt", [0], [40]),
        ("imagenet-v2", [2, 10, 999], [60, 50, 70]),  # numbers, not text: 10 comes after 2
        ("imagenet-r", [1], [80]),
        ("imagenet-sketch", [2], [90]),
    ],
)
def test_imagenet_family(spec: str, labels: list[int], greys: list[int], root: Path, tiny_model: ClipModel) -> None:
    dataset = load_dataset(spec, model=tiny_model, data_root=root)
    assert dataset.labels.tolist() == labels
    assert shades(dataset) == greys
    assert dataset.classnames == imagenet_classnames()
    assert dataset.templates == imagenet_templates()
    assert len(dataset.classes or range(1000)) == (200 if spec == "imagenet-r" else 1000)


def test_objectnet_is_many_to_one_without_its_border(root: Path, tiny_model: ClipModel) -> None:
    dataset = load_dataset("objectnet", model=tiny_model, data_root=root)
    assert dataset.target_names == ("chair", "mug")
    assert dataset.labels.tolist() == [0, 1]  # the zebra is no class of ImageNet here
    assert shades(dataset) == [100, 110]
    assert dataset.projection is not None
    assert {c: t for c, t in enumerate(dataset.projection) if t >= 0} == {7: 0, 5: 0, 3: 1}
    logits = torch.zeros(1, 1000)
    logits[0, [3, 5, 0]] = torch.tensor([1.0, 2.0, 9.0])
    assert dataset.project(logits).tolist() == [[2.0, 1.0]]
    own = load_dataset("objectnet", model=tiny_model, data_root=root, classnames=("Mug", "Chair"))
    assert (own.labels.tolist(), own.projection) == ([1, 0], None)


def test_heads_of_other_lists_of_imagenets_names(root: Path, tiny_model: ClipModel) -> None:
    other = [f"word {n}" for n in imagenet_classnames()]
    assert load_dataset("imagenet", model=tiny_model, data_root=root, classnames=other).labels.tolist() == [0, 1]
    with pytest.raises(DatasetError, match="a different order"):
        load_dataset("imagenet", model=tiny_model, data_root=root, classnames=sorted(imagenet_classnames()))
    of_r = [imagenet_classnames()[wnids().index(w)] for w in wnids("imagenet_r")]
    small = load_dataset("imagenet-r", model=tiny_model, data_root=root, classnames=of_r)
    assert (small.labels.tolist(), small.classes) == ([0], None)
    assert (
        load_dataset("imagenet", model=tiny_model, data_root=root, classnames="imagenet").facts["matching"] == "order"
    )


def test_classes_that_unite_several(root: Path, tiny_model: ClipModel) -> None:
    dataset = load_dataset("subset:living.txt", model=tiny_model, data_root=root)
    assert (dataset.classnames, dataset.labels.tolist(), shades(dataset)) == (("fish",), [0, 0], [20, 10])
    tree(root, {"twice.txt": f"fish: {TENCH}\nmore: {TENCH}\n"})
    with pytest.raises(DatasetError, match="twice.txt, line 2: 'n01440764' is unknown or in two"):
        load_dataset("subset:twice.txt", model=tiny_model, data_root=root)


# ---------------------------------------------------------------------- shards and arrays
def shard_tree(path: Path) -> Path:
    first = {"s0.jpg": picture(10), "s0.cls": b"1", "s1.cls": b"0", "s1.png": picture(20, kind="PNG")}
    return tree(
        path,
        {
            "test/0.tar": tar(first),
            "test/1.tar": tar({"../s2.webp": picture(30, kind="WEBP"), "../s2.cls": b"1\n", "notes.txt": b"?"}),
            "test/nshards.txt": "2",
            "classnames.txt": "cat\ndog\n",
            "zeroshot_classification_templates.txt": "a photo of a {c}.\n",
        },
    )


@pytest.mark.parametrize("spec", ["wds:set", "wds:set/test/{0..1}.tar"])
def test_shards(spec: str, tmp_path: Path, tiny_model: ClipModel) -> None:
    shard_tree(tmp_path / "set")
    before = sorted(p for p in tmp_path.rglob("*"))
    dataset = load_dataset(spec, model=tiny_model, data_root=tmp_path)
    assert dataset.labels.tolist() == [1, 0, 1]
    assert shades(dataset) == [10, 20, 30]
    assert (dataset.classnames, dataset.templates) == (("cat", "dog"), ("a photo of a {}.",))
    assert sorted(p for p in tmp_path.rglob("*")) == before  # '../s2' went nowhere


def test_clip_benchmarks_folder(tmp_path: Path, tiny_model: ClipModel) -> None:
    texts = {"set/classnames.txt": "a cat\na dog\n", "set/zeroshot_classification_templates.txt": "this is {c}\n"}
    tree(tmp_path, {"set/test/x1/a.png": picture(10), "set/test/x2/a.png": picture(20), **texts})
    dataset = load_dataset("folder:set", model=tiny_model, data_root=tmp_path)
    assert (dataset.classnames, dataset.templates) == (("a cat", "a dog"), ("this is {}",))
    assert (shades(dataset), dataset.facts["split"]) == ([10, 20], "test")
    given = load_dataset("folder:set", model=tiny_model, data_root=tmp_path, templates=("{}!",))
    assert given.templates == ("{}!",)


def greys(*values: int, size: int = 32) -> np.ndarray:
    return np.stack([np.full((size, size, 3), v, dtype=np.uint8) for v in values])


def test_arrays(tmp_path: Path, tiny_model: ClipModel) -> None:
    np.save(tmp_path / "test_images.npy", greys(5, 6))
    np.save(tmp_path / "test_labels.npy", np.array([1, 0]))
    np.savez(tmp_path / "both.npz", images=greys(7), labels=np.array([0]))
    dataset = load_dataset(f"npz:{tmp_path}", model=tiny_model)
    assert (dataset.labels.tolist(), shades(dataset), dataset.classnames) == ([1, 0], [5, 6], ("0", "1"))
    assert shades(load_dataset(f"npz:{tmp_path}/both.npz", model=tiny_model)) == [7]


def test_cifars_and_stl10(tmp_path: Path, tiny_model: ClipModel) -> None:
    chw = greys(9, 8).transpose(0, 3, 1, 2).reshape(2, -1)
    with_labels = np.concatenate([np.array([[3], [0]], dtype=np.uint8), chw], axis=1)
    tree(tmp_path, {"cifar-10-batches-bin/test_batch.bin": with_labels.tobytes()})
    dataset = load_dataset("cifar10", model=tiny_model, data_root=tmp_path)
    assert (dataset.labels.tolist(), shades(dataset), dataset.classnames[3]) == ([3, 0], [9, 8], "cat")

    (tmp_path / "CIFAR-10.1").mkdir()
    np.save(tmp_path / "CIFAR-10.1" / "cifar10.1_v6_data.npy", greys(1))
    np.save(tmp_path / "CIFAR-10.1" / "cifar10.1_v6_labels.npy", np.array([9]))
    assert load_dataset("cifar10.1", model=tiny_model, data_root=tmp_path).labels.tolist() == [9]

    stl = greys(1, 2, 3, size=96).transpose(0, 3, 2, 1)
    labels = np.array([3, 8, 1], dtype=np.uint8)  # car, monkey, airplane; counted from 1
    tree(tmp_path, {"stl10_binary/test_X.bin": stl.tobytes(), "stl10_binary/test_y.bin": labels.tobytes()})
    assert load_dataset("stl10", model=tiny_model, data_root=tmp_path).labels.tolist() == [2, 7, 0]
    seen = load_dataset("stl10", model=tiny_model, data_root=tmp_path, classnames=dataset.classnames)
    assert (seen.labels.tolist(), shades(seen)) == ([1, 0], [1, 3])
    assert seen.classes == (0, 1, 2, 3, 4, 5, 7, 8, 9)  # no frogs there


# ---------------------------------------------------------------------- DomainNet and WILDS
def test_domainnet(tmp_path: Path, tiny_model: ClipModel) -> None:
    tree(
        tmp_path / "domainnet",
        {
            "sketch/The_Eiffel_Tower/a.jpg": picture(10),
            "sketch/ant/a.jpg": picture(20),
            "sketch/ant/train.jpg": picture(30),
            "sketch_test.txt": "sketch/ant/a.jpg 1\nsketch/The_Eiffel_Tower/a.jpg 0\n",
            "real/ant/a.jpg": picture(40),
        },
    )
    dataset = load_dataset("domainnet:sketch", model=tiny_model, data_root=tmp_path)
    assert (dataset.labels.tolist(), shades(dataset)) == ([1, 0], [20, 10])
    assert dataset.classnames == ("The Eiffel Tower", "ant")
    head = load_dataset(
        "domainnet:sketch", model=tiny_model, data_root=tmp_path, classnames=("Ant", "the eiffel tower")
    )
    assert head.labels.tolist() == [0, 1]
    assert shades(load_dataset("domainnet:real", model=tiny_model, data_root=tmp_path)) == [40]
    tree(tmp_path / "domainnet", {"sketch_test.txt": "sketch/ant/a.jpg 1\nsketch/bee/a.jpg 1\n"})
    with pytest.raises(DatasetError, match="_test.txt, line 2: label 1 stands for 'bee' here, but stood for 'ant'"):
        load_dataset("domainnet:sketch", model=tiny_model, data_root=tmp_path)


def test_wilds(tmp_path: Path, tiny_model: ClipModel) -> None:
    tree(
        tmp_path,
        {
            "iwildcam_v2.0/metadata.csv": "split,filename,y\ntest,a.jpg,2\nid_test,b.jpg,0\ntest,c.jpg,1\n",
            "iwildcam_v2.0/categories.csv": "y,category_id,name\n0,0,empty\n1,2,lion\n2,3,zebra\n99999,4,none\n",
            **{f"iwildcam_v2.0/train/{n}.jpg": picture(v) for n, v in (("a", 10), ("b", 20), ("c", 30))},
            "fmow_v1.1/rgb_metadata.csv": (
                "split,category,country_code,timestamp\n"
                "test,zoo,FRA,2017-01-01T00:00:00Z\n"  # since 2016: test
                "test,dam,XXX,2016-01-01T00:00:00Z\n"
                "test,dam,FRA,2012-05-05T00:00:00Z\n"  # before 2013: id_test
                "val,dam,KEN,2014-05-05T00:00:00Z\n"  # 2013 ... 2015: val
                "train,dam,KEN,2016-05-05T00:00:00Z\n"  # late, but no test image: in no split
            ),
            "fmow_v1.1/country_code_mapping.csv": "alpha-3,region\nFRA,Europe\nKEN,Africa\n",
            **{f"fmow_v1.1/images/rgb_img_{i}.png": picture(40 + i, kind="PNG") for i in range(5)},
        },
    )
    cam = load_dataset("iwildcam", model=tiny_model, data_root=tmp_path)
    assert (cam.labels.tolist(), shades(cam), cam.metrics) == ([2, 1], [10, 30], ("macro_f1", "top1"))
    assert cam.classnames == ("empty", "lion", "zebra")
    assert shades(load_dataset("iwildcam@id_test", model=tiny_model, data_root=tmp_path)) == [20]

    fmow = load_dataset("fmow", model=tiny_model, data_root=tmp_path)
    assert (fmow.labels.tolist(), shades(fmow), fmow.classnames) == ([1, 0], [40, 41], ("dam", "zoo"))
    assert fmow.group_names == ("Africa", "Europe", "Other")
    assert fmow.groups is not None
    assert fmow.groups.tolist() == [1, 2]
    assert fmow.metrics == ("worst_group", "top1")
    assert shades(load_dataset("fmow@id_test", model=tiny_model, data_root=tmp_path)) == [42]
    assert shades(load_dataset("fmow@val", model=tiny_model, data_root=tmp_path)) == [43]
    with pytest.raises(DatasetError, match=r"no split 'tset'\. Known: id_test, test, val\."):
        load_dataset("fmow@tset", model=tiny_model, data_root=tmp_path)


def test_waterbirds(tmp_path: Path, tiny_model: ClipModel) -> None:
    """The columns and folders of the published tar file; groups are bird x background."""
    root = tmp_path / "waterbird_complete95_forest2water2"
    head = "img_id,img_filename,y,split,place,place_filename\n"
    lines = (
        "1,001.Black_footed_Albatross/a.jpg,1,2,0,/b/a.jpg\n"
        "2,001.Black_footed_Albatross/b.jpg,1,2,1,/o/b.jpg\n"
        "3,018.Spotted_Catbird/c.jpg,0,2,1,/o/c.jpg\n"
        "4,018.Spotted_Catbird/d.jpg,0,0,0,/b/d.jpg\n"
        "5,018.Spotted_Catbird/e.jpg,0,1,0,/b/e.jpg\n"
    )
    images = zip(lines.splitlines(), (10, 20, 30, 40, 50), strict=True)
    tree(root, {"metadata.csv": head + lines, **{row.split(",")[1]: picture(v) for row, v in images}})
    test = load_dataset("waterbirds", model=tiny_model, data_root=tmp_path)
    assert (test.labels.tolist(), shades(test), test.classnames) == ([1, 1, 0], [10, 20, 30], ("landbird", "waterbird"))
    assert test.groups is not None and [test.group_names[g] for g in test.groups.tolist()] == [
        "waterbird on land", "waterbird on water", "landbird on water",
    ]  # fmt: skip
    assert test.metrics == ("worst_group", "top1")
    assert shades(load_dataset("waterbirds@train", model=tiny_model, data_root=tmp_path, split="train")) == [40]
    assert shades(load_dataset("waterbirds@val", model=tiny_model, data_root=tmp_path)) == [50]
    turned = load_dataset("waterbirds", model=tiny_model, data_root=tmp_path, classnames=("waterbird", "landbird"))
    assert turned.labels.tolist() == [0, 0, 1] and turned.groups.tolist() == test.groups.tolist()
    answers = Answers.of(torch.tensor([[0.0, 1.0], [0.0, 1.0], [0.0, 1.0]]), test.labels)  # says waterbird to all
    answers = dataclasses.replace(answers, groups=np.asarray(test.groups))
    found = {metric: value for metric, (value, _, _) in estimates(answers, test.metrics, bootstrap=50).items()}
    assert found == {"worst_group": 0.0, "top1": pytest.approx(2 / 3)}
    tree(root, {"metadata.csv": head + "1,a.jpg,2,2,0,x\n"})
    with pytest.raises(DatasetError, match=r"metadata.csv, line 2: y is '2', not 0 or 1"):
        load_dataset("waterbirds", model=tiny_model, data_root=tmp_path)


# ---------------------------------------------------------------------- libraries
def test_torchvision(tmp_path: Path, tiny_model: ClipModel) -> None:
    folders = {f"eurosat/2750/{n}/a.jpg": picture(v) for n, v in (("Forest", 10), ("AnnualCrop", 20))}
    tree(tmp_path, folders)
    dataset = load_dataset("torchvision:EuroSAT", model=tiny_model, data_root=tmp_path)
    assert (dataset.labels.tolist(), shades(dataset)) == ([0, 1], [20, 10])
    with pytest.raises(ConfigError, match="Did you mean 'EuroSAT'"):
        load_dataset("torchvision:EuroSat", model=tiny_model, data_root=tmp_path)


def test_hf(tmp_path: Path, tiny_model: ClipModel) -> None:
    datasets = pytest.importorskip("datasets")
    images = [Image.new("RGB", (20, 20), (v,) * 3) for v in (10, 20)]
    features = datasets.Features({"pic": datasets.Image(), "y": datasets.ClassLabel(names=["cat", "hot_dog"])})
    datasets.Dataset.from_dict({"pic": images, "y": [1, 0]}, features=features).save_to_disk(str(tmp_path / "set"))
    dataset = load_dataset("hf:set", model=tiny_model, data_root=tmp_path)
    assert (dataset.labels.tolist(), shades(dataset)) == ([1, 0], [10, 20])
    assert dataset.classnames == ("cat", "hot dog")


# ---------------------------------------------------------------------- corruptions
def test_corrupted_sets(image_folder: Callable[..., Path], tiny_model: ClipModel) -> None:
    spec = f"folder:{image_folder({'a': 2, 'b': 1})}"
    clean = load_dataset(spec, model=tiny_model)
    noisy, again = (load_dataset(f"{spec}+gaussian_noise@3", model=tiny_model) for _ in range(2))
    (x, y), (z, w), (v, _) = (next(iter(d.batches(3))) for d in (clean, noisy, again))
    assert torch.equal(y, w)
    assert torch.equal(z, v)
    assert not torch.equal(x, z)
    mini = load_dataset("mini:photo@val+jpeg_compression@5", limit=4)
    assert not torch.equal(
        next(iter(mini.batches(4)))[0], next(iter(load_dataset("mini:photo@val", limit=4).batches(4)))[0]
    )


# ---------------------------------------------------------------------- specs
def test_collections() -> None:
    assert expand_specs(["imagenet", "imagenet-shifts"]) == ("imagenet", *COLLECTIONS["imagenet-shifts"])
    assert expand_specs(["imagenet-a", "lipsum-imagenet"]) == (
        "imagenet-a",
        "imagenet-v2",
        "imagenet-r",
        "imagenet-sketch",
    )
    for members in COLLECTIONS.values():
        for spec in members:
            check_spec(spec)


def test_half_of_a_collection_is_the_half_of_each_member_where_all_have_the_same_classes() -> None:
    assert expand_specs(["domainnet:real#new", "domainnet-real#new"]) == (
        "domainnet:real#new",
        *(f"{member}#new" for member in COLLECTIONS["domainnet-real"]),
    )
    for name in ("imagenet-shifts", "lipsum-imagenet"):
        with pytest.raises(ConfigError, match=f"{name}#base: imagenet-r, imagenet-a.* have other classes") as caught:
            expand_specs([f"{name}#base"])
        assert str(caught.value).endswith("imagenet-v2#base imagenet-sketch#base.")
    with pytest.raises(ConfigError, match=r"unknown half 'nwe' of the classes. Did you mean 'new'\?"):
        expand_specs(["domainnet-real#nwe"])


def test_missing_folders_are_named_together(tmp_path: Path) -> None:
    (tmp_path / "imagenet-r").mkdir()
    (tmp_path / "sketch").mkdir()
    with pytest.raises(DatasetError) as caught:
        check_folders(expand_specs(["imagenet-shifts"]), tmp_path)
    said = str(caught.value)
    assert "imagenetv2-matched-frequency-format-val/), imagenet-a (imagenet-a/), objectnet (objectnet-1.0/)" in said
    assert "sketch (" not in said.splitlines()[0]
    assert len(said.splitlines()) == 2
