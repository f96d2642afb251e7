"""Small files in the layout of the papers' data sets, drawn from the embedded world, for the commands of papers.py.

    python analyses/papers_data.py --out data

The layouts are those that sharpscope reads from the released sets (docs/data.md). The pictures are shapes:
accuracies on these sets say nothing, and neither do their class names.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgpack
import numpy as np
import torch
import tyro
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file

from sharpscope import convert
from sharpscope.clip.datasets.imagenet import wnids
from sharpscope.clip.model import ClipModel
from sharpscope.config.coopsets import COOP
from sharpscope.miniworld import world
from sharpscope.miniworld.shipped import checkpoint_path
from sharpscope.weights.checkpoint import read_checkpoint, write_checkpoint

WNIDS: Final = 4
"""Number of ImageNet's 1,000 classes that have pictures."""
Pixels = NDArray[np.uint8]
_MODELS: Final = "dataset,id_accuracy,ood_accuracy\n" + "".join(
    f"mini:{style},{accuracy},{accuracy - gap:.2f}\n"
    for style, gap in (("sketch", 0.2), ("neon", 0.3))
    for accuracy in (0.4, 0.5, 0.6, 0.7, 0.8)
)
_SWEEP: Final = """\
zeroshot: mini:zeroshot
train: mini:photo
methods: [wise-ft]
recipes: [mini-linear-probe]
grid: {lr: [1.0e-4, 1.0e-3], epochs: [1, 2]}
seeds: [0]
set: {batch_size: 64, shots: 8, warmup: 0}
study:
  {model: mini, probe: "mini:photo", id: ["mini:photo"], ood: ["mini:sketch", "mini:neon"], alphas: [0, 0.5, 1],
   measures: [hessian_trace], granularity: block, probe_size: 16, batch_size: 16, limit: 64, rtol: 0.5, max_matvecs: 4,
   densities: [], layer_alphas: [0, 1], criticality_noise: [1], bootstrap: 100, threads: 1}
"""

_DRAWN: Final = """\
zeroshot: mini:zeroshot
train: mini:photo
methods: [linear-probe]
draw: 64
ranges:
  lr: {low: 1.0e-3, high: 1.0, scale: log}
  weight_decay: {low: 1.0e-3, high: 1.0, scale: log}
  epochs: {low: 1, high: 4, whole: true}
  batch_size: [32, 64]
  head_start: [zeroshot, random]
set: {shots: 8, warmup: 0}
study:
  {model: mini, probe: "mini:photo", id: ["mini:photo"], ood: ["mini:sketch"], alphas: [0, 1], measures: [],
   granularity: block, straggler_criterion: rewind, probe_size: 16, batch_size: 16, limit: 64, densities: [],
   layer_alphas: [0, 1], bootstrap: 100, threads: 1}
"""


def pictures(count: int, seed: str, domain: str = "photo", size: int = 64) -> list[Image.Image]:
    """``count`` pictures of the embedded world; neighbours are of different classes."""
    images = world.make(domain, count, world.SEEDS[seed]).images
    return [Image.fromarray(image).resize((size, size)) for image in images]


def save(folder: Path, images: Sequence[Image.Image], suffix: str = ".JPEG") -> None:
    """One file for each picture, in a folder that is made."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, image in enumerate(images):
        image.save(folder / f"{number}{suffix}")


def imagenet(root: Path) -> None:
    """ImageNet with its validation images, and its shifts V2, A, R and Sketch."""
    names = wnids()
    for place, split, each, domain in (
        ("imagenet/train", "train", 8, "photo"),
        ("imagenet/val", "test", 3, "photo"),
        ("imagenet-r", "test", 2, "painting"),
        ("sketch", "test", 2, "sketch"),
    ):
        shown = pictures(WNIDS * each, split, domain)
        for c in range(WNIDS):
            if place != "imagenet-r" or names[c + 1] in wnids("imagenet_r"):
                save(root / place / names[c + 1], shown[c::WNIDS])
    shown = pictures(2 * WNIDS, "test", "photo-noise")
    for c in range(WNIDS):
        save(root / "imagenetv2-matched-frequency-format-val" / str(c + 1), shown[c::WNIDS], ".jpeg")
    save(root / "imagenet-a" / "n01498041", pictures(3, "test", "photo-clutter"))
    (root / "living.txt").write_text(f"fish: {names[1]}\nshark: {names[2]} {names[3]} {names[4]}\n", encoding="utf-8")


def cifar(root: Path) -> None:
    """CIFAR-10 in its binary version, CIFAR-10.1, CIFAR-10.2 and STL-10."""
    labels = np.arange(40, dtype=np.uint8) % 10
    for domain, name, split in (("photo", "data_batch_{}.bin", "train"), ("photo", "test_batch.bin", "test")):
        pixels = _arrays(len(labels), split, domain, 32)
        records = np.concatenate([labels[:, None], pixels.transpose(0, 3, 1, 2).reshape(len(labels), -1)], axis=1)
        folder = root / "cifar-10-batches-bin"
        folder.mkdir(parents=True, exist_ok=True)
        for part in range(1, 6) if split == "train" else (0,):
            records.tofile(folder / name.format(part))
    for folder in ("CIFAR-10.1", "CIFAR-10.2", "stl10_binary"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    shifted = _arrays(len(labels), "test", "photo-dark", 32)
    np.save(root / "CIFAR-10.1" / "cifar10.1_v6_data.npy", shifted)
    np.save(root / "CIFAR-10.1" / "cifar10.1_v6_labels.npy", labels.astype(np.int64))
    np.savez(root / "CIFAR-10.2" / "cifar102_test.npz", images=shifted, labels=labels.astype(np.int64))
    _arrays(len(labels), "test", "photo", 96).transpose(0, 3, 2, 1).tofile(root / "stl10_binary" / "test_X.bin")
    (labels + 1).tofile(root / "stl10_binary" / "test_y.bin")


def _arrays(count: int, split: str, domain: str, size: int) -> Pixels:
    return np.stack([np.asarray(image) for image in pictures(count, split, domain, size)])


def domainnet(root: Path) -> None:
    """DomainNet's five domains that Lipsum-FT uses, with their lists of training and test images."""
    for domain, drawn in (
        ("real", "photo"), ("painting", "painting"), ("clipart", "clipart"), ("infograph", "neon"), ("sketch", "sketch")
    ):  # fmt: skip
        for split in ("train", "test"):
            shown, lines = pictures(24, split, drawn), []
            for c, name in enumerate(("ant", "bee", "cup", "drum")):
                save(root / "domainnet" / domain / name, shown[c::4], f"-{split}.jpg")
                lines += [f"{domain}/{name}/{i}-{split}.jpg {c}" for i in range(len(shown[c::4]))]
            (root / "domainnet" / f"{domain}_{split}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def wilds(root: Path) -> None:
    """iWildCam and FMoW of WILDS: three classes each, in and out of distribution."""
    cam, fmow = root / "iwildcam_v2.0", root / "fmow_v1.1"
    save(cam / "train", pictures(18, "test"), ".jpg")
    rows = [f"{('train', 'id_test', 'test')[i // 6]},{i}.jpg,{i % 3}" for i in range(18)]
    (cam / "metadata.csv").write_text("split,filename,y\n" + "\n".join(rows) + "\n", encoding="utf-8")
    (cam / "categories.csv").write_text("y,category_id,name\n0,0,empty\n1,2,lion\n2,3,zebra\n", encoding="utf-8")
    fmow.mkdir(parents=True, exist_ok=True)
    (fmow / "images").mkdir(exist_ok=True)
    table = ["split,category,country_code,timestamp"]
    for i, image in enumerate(pictures(36, "test", "photo-tilt")):
        image.save(fmow / "images" / f"rgb_img_{i}.png")
        split, year = (("train", 2010), ("test", 2011), ("test", 2017))[i // 12]
        table.append(f"{split},{('dam', 'port', 'zoo')[i % 3]},{('FRA', 'KEN')[i % 2]},{year}-01-01T00:00:00Z")
    (fmow / "rgb_metadata.csv").write_text("\n".join(table) + "\n", encoding="utf-8")
    (fmow / "country_code_mapping.csv").write_text("alpha-3,region\nFRA,Europe\nKEN,Africa\n", encoding="utf-8")


def eurosat(root: Path) -> None:
    """EuroSAT as torchvision reads it."""
    shown = pictures(24, "test")
    for c, name in enumerate(("AnnualCrop", "Forest", "River")):
        save(root / "eurosat" / "2750" / name, shown[c::3], ".jpg")


def coop(root: Path) -> None:
    """Sets of CoOp, with its split files: four classes each."""
    for kind in (COOP[name] for name in ("dtd", "food101", "sun397", "cars")):
        split: dict[str, list[list[object]]] = {}
        for part in ("train", "val", "test"):
            shown = pictures(16, "select" if part == "val" else part)
            split[part] = [[f"{part}/{i}.jpg", i % 4, f"thing {i % 4}"] for i in range(len(shown))]
            save(root / kind.folder / kind.images / part, shown, ".jpg")
        (root / kind.folder / kind.split_file).write_text(json.dumps(split), encoding="utf-8")


def waterbirds(root: Path) -> None:
    """Waterbirds: birds of land or water on land or water, two pictures of each in every split."""
    folder, rows = root / "waterbird_complete95_forest2water2", ["img_id,img_filename,y,split,place,place_filename"]
    save(folder / "birds", pictures(24, "test"), ".jpg")
    rows += [f"{i},birds/{i}.jpg,{i % 2},{i // 8},{i // 2 % 2},x.jpg" for i in range(24)]
    (folder / "metadata.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")


def objectnet(root: Path) -> None:
    """ObjectNet with three of its classes; one of them stands for two of ImageNet's."""
    folder = root / "objectnet-1.0"
    for c, name in enumerate(("chair", "mug", "zebra")):
        save(folder / "images" / name, pictures(9, "test", "photo-tilt")[c::3], ".png")
    (folder / "mappings").mkdir(exist_ok=True)
    for name, text in (
        ("folder_to_objectnet_label.json", json.dumps({"chair": "Chair", "mug": "Mug", "zebra": "Zebra"})),
        ("objectnet_to_imagenet_1k.json", json.dumps({"Mug": "coffee mug", "Chair": "barber chair; rocking chair"})),
        ("imagenet_to_label_2012_v2", "barber chair\ncoffee mug\nrocking chair\n"),
        ("pytorch_to_imagenet_2012_id.json", json.dumps({"423": 0, "504": 1, "765": 2})),
    ):
        (folder / "mappings" / name).write_text(text, encoding="utf-8")


def videos(root: Path) -> None:
    """ImageNet-Vid-Robust and YTBB-Robust: two videos each, an anchor frame and one neighbour."""
    vid, ytbb = (root / "imagenet_vid_ytbb_robust" / name for name in ("imagenet-vid-robust", "ytbb-robust"))
    metadata, shown = ytbb.parent / "ytbb-robust_metadata", pictures(4, "test", "photo-noise")
    save(vid / "val" / "a", shown[:2])
    save(vid / "val" / "b", shown[2:])
    for number, name in enumerate(("dog_1", "dog_2")):
        (ytbb / "ytbb_videos" / name).mkdir(parents=True, exist_ok=True)
        for frame in (0, 1):
            shown[2 * number + frame].save(ytbb / "ytbb_videos" / name / f"frame-{frame + 7}.jpg")
    dogs = list(wnids()[151:154])
    anchors = {"dog_1/frame-7.jpg": ["good"], "dog_2/frame-7.jpg": ["good"]}
    pairs = {f"dog_{i}/frame-7.jpg,dog_{i}/frame-8.jpg": ["similar"] for i in (1, 2)}
    rest = {str(i): [i] for i in range(24) if i != 19}
    for file, content in (
        (vid / "metadata/pmsets.json", {"val/a/0.JPEG": ["val/a/1.JPEG"], "val/b/0.JPEG": ["val/b/1.JPEG"]}),
        (vid / "metadata/labels.json", {f"val/{v}/{i}.JPEG": [0] for v in "ab" for i in (0, 1)}),
        (vid / "misc/imagenet_vid_class_index.json", {"0": ["n1", "dog"]}),
        (vid / "misc/rev_wnid_map.json", {"n1": dogs}),
        (metadata / "anchor_labels.json", _reviews(["good", "bad"], anchors)),
        (metadata / "pmk_labels.json", _reviews(["similar", "dissimilar"], pairs)),
        (metadata / "ytbb_class_index.json", {str(i): "dog" if i == 19 else f"class {i}" for i in range(24)}),
        (metadata / "rev_class_idx_map.json", {**rest, "19": [151, 152]}),
    ):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(content), encoding="utf-8")
    table = "ytid,time_ms,label\ndog_1,7,19\ndog_2,7,19\ndog,1,19\ndog,2,19\n"
    (metadata / "ytbb_robustness_test_anchors_full.csv").write_text(table, encoding="utf-8")


def _reviews(words: list[str], given: dict[str, list[str]]) -> dict[str, object]:
    annotations = [{"key": k, "notes": "", "labels": [words.index(w) for w in v]} for k, v in given.items()]
    return {"annotations": annotations, "labels": words}


def folders(root: Path) -> None:
    """The embedded world's own classes as class folders, with training and test images, and a table of captions."""
    for split, count in (("train", 320), ("test", 160)):
        labels = world.labels("photo", count, world.SEEDS[split])
        for c, name in enumerate(world.CLASSES):
            kept = [image for image, label in zip(pictures(count, split), labels, strict=True) if label == c]
            save(root / "shapes" / split / name, kept, ".png")
    rows = [f"shapes/train/{name}/0.png\ta photo of a {name}" for name in world.CLASSES]
    (root / "captions.tsv").write_text("filepath\ttitle\n" + "\n".join(rows) + "\n", encoding="utf-8")


def captions(root: Path) -> None:
    """COCO and Flickr30k with five captions an image, in the layout of Karpathy's files."""
    for name, folder, stem in (
        ("coco", "val2014", "COCO_val2014_{:012d}.jpg"),
        ("flickr30k", "flickr30k-images", "{}.jpg"),
    ):
        drawn, images = world.make("photo", 96, world.SEEDS["test"]), []
        for i, picture in enumerate(pictures(96, "test")):
            (root / name / folder).mkdir(parents=True, exist_ok=True)
            picture.save(root / name / folder / stem.format(i + 1))
            own = [drawn.labels[i]] * 5, "photo", [drawn.colours[i]] * 5
            texts = world.captions(*own, np.random.default_rng(i), noise=0, confuse=0)
            image = {"filename": stem.format(i + 1), "split": "test" if i % 3 else "val", "sentences": texts}
            images.append(image | ({"filepath": folder} if name == "coco" else {}))
        for image in images:
            image["sentences"] = [{"raw": text, "tokens": text.split()} for text in image["sentences"]]
        text = json.dumps({"images": images, "dataset": name})
        (root / name / f"dataset_{name}.json").write_text(text, encoding="utf-8")


def towers(root: Path) -> None:
    """Three untrained image towers beside the world's text tower: a ResNet, a ViT of timm's, and a deeper ViT."""
    config = json.loads(json.dumps(ClipModel.load("mini").config))
    vision, known = config["vision_cfg"], read_checkpoint(checkpoint_path("mini:upgraded")).tensors
    shutil.copy(world.tokenizer_path(), root / "mini_bpe.txt.gz")
    resnet = {"image_size": 32, "layers": [1, 1, 1, 1], "width": 16, "patch_size": None}
    timm = {"timm_model_name": "test_vit3", "timm_pool": "", "timm_proj": "linear", "timm_model_pretrained": False}
    deeper = {**vision, "layers": vision["layers"] + 1}
    for name, tower in (("resnet", resnet), ("timm", {**timm, "image_size": 160}), ("deeper", deeper)):
        (root / f"{name}.json").write_text(json.dumps({**config, "vision_cfg": tower}), encoding="utf-8")
        weights = ClipModel.load(str(root / f"{name}.json")).init(0)
        weights |= {n: t for n, t in known.items() if n in weights and weights[n].shape == t.shape}
        write_checkpoint(root / f"{name}.safetensors", weights, {})


def foreign(root: Path) -> None:
    """The world's fine-tuned image tower as Lipsum-FT's flax file, and a context of CoOp's as Dassl's file."""
    convert("mini:success", root / "hf.safetensors", names="huggingface")
    tree: dict[str, Any] = {}
    for name, tensor in load_file(root / "hf.safetensors").items():
        *path, leaf = name.split(".")
        if path[:1] != ["vision_model"]:
            continue
        if "norm" in path[-1] or "layrnorm" in path[-1]:
            leaf = leaf.replace("weight", "scale")
        elif path[-1] == "position_embedding":
            leaf = "embedding"
        elif leaf == "weight":  # flax keeps the inputs first
            leaf, tensor = "kernel", tensor.permute(2, 3, 1, 0) if tensor.ndim == 4 else tensor.T
        node = tree
        for part in path:
            node = node.setdefault(part, {})
        node[leaf] = tensor
    base = read_checkpoint(checkpoint_path("mini:zeroshot"))
    theta = read_checkpoint(checkpoint_path("mini:success"), base=base).tensors
    head = torch.nn.functional.normalize(theta["head.weight"], dim=1)
    ext = {**tree, "visual_projection": theta["visual.proj"], "logit_scale": base.tensors["logit_scale"]}
    packed = msgpack.packb({"cls": head.T, "ext": ext}, default=_leaf, use_bin_type=True, strict_types=True)
    (root / "best_acc.ckpt").write_bytes(packed)
    (root / "prompt_learner").mkdir(exist_ok=True)
    context = 0.02 * torch.randn(4, len(base.tensors["ln_final.weight"]), generator=torch.Generator().manual_seed(0))
    state = {"state_dict": {"ctx": context}, "epoch": 50, "optimizer": {}, "scheduler": {}}
    torch.save(state, root / "prompt_learner" / "model.pth.tar-50")


def _leaf(value: torch.Tensor) -> msgpack.ExtType:
    array = np.ascontiguousarray(value.numpy())
    return msgpack.ExtType(1, msgpack.packb((array.shape, str(array.dtype), array.tobytes()), use_bin_type=True))


@dataclass(frozen=True, kw_only=True)
class Command:
    """Write all of them."""

    out: Path = Path("data")
    """Folder to write into; it becomes the --data-root of the commands."""

    def __call__(self) -> int:
        for make in (
            imagenet,
            cifar,
            domainnet,
            wilds,
            eurosat,
            coop,
            waterbirds,
            objectnet,
            videos,
            folders,
            captions,
            towers,
            foreign,
        ):
            make(self.out)
        (self.out / "own.txt").write_text("chair\nmug\nzebra\n", encoding="utf-8")
        (self.out / "one.txt").write_text("a photo of a {}.\n", encoding="utf-8")
        (self.out / "models.csv").write_text(_MODELS, encoding="utf-8")
        (self.out / "sweep.yaml").write_text(_SWEEP, encoding="utf-8")
        (self.out / "drawn.yaml").write_text(_DRAWN, encoding="utf-8")
        (self.out / "made.txt").write_text("Made by analyses/papers_data.py.\n", encoding="utf-8")
        return 0


if __name__ == "__main__":
    sys.exit(tyro.cli(Command, description=__doc__)())
