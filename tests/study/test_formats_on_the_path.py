"""`sharpscope run` between files of different systems: the same accuracies as from the same weights as safetensors."""

from __future__ import annotations

import json
import pickle
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgpack
import pytest
import torch
from torch import Tensor, nn

from sharpscope.cli.main import main
from sharpscope.tables.files import read_csv
from sharpscope.weights.checkpoint import read_checkpoint, write_checkpoint
from sharpscope.weights.schemes import huggingface_names

NAMES = ("cat", "dog", "owl")
pytestmark = pytest.mark.usefixtures("undrawn")


class ImageEncoder(nn.Module):
    """WiSE-FT's and task_vectors' wrapper around a CLIP."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model


class ClassificationHead(nn.Linear):
    """WiSE-FT's head."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__(weight.shape[1], weight.shape[0])
        self.normalize = True
        self.weight, self.bias = nn.Parameter(weight.clone()), nn.Parameter(torch.zeros(len(weight)))


class ImageClassifier(nn.Module):
    """WiSE-FT's whole classifier."""

    def __init__(self, image_encoder: nn.Module, classification_head: nn.Module) -> None:
        super().__init__()
        self.image_encoder, self.classification_head = image_encoder, classification_head


@pytest.fixture
def stranger() -> Iterator[None]:
    """The classes as a module that is gone when their pickles are read."""
    module = types.ModuleType("src_models_modeling")
    for kind in (ImageEncoder, ClassificationHead, ImageClassifier):
        kind.__module__, kind.__qualname__ = module.__name__, kind.__name__
        setattr(module, kind.__name__, kind)
    sys.modules[module.__name__] = module
    yield
    sys.modules.pop(module.__name__, None)


class World:
    """Weights of one pair, theta_0 and theta_1 in open_clip's names, and the files that systems make of them."""

    def __init__(self, folder: Path, theta: dict[str, Tensor], build: Callable[[dict[str, Tensor]], nn.Module]) -> None:
        self.folder, self.build = folder, build
        generator = torch.Generator().manual_seed(5)
        # OpenAI's files hold float16: what starts from them, in whatever file, is made of such numbers
        self.zero = {n: t.half().float() if t.is_floating_point() else t for n, t in theta.items()}
        self.one = {n: t + 0.05 * torch.randn(t.shape, generator=generator) if self._moves(n) else t
                    for n, t in self.zero.items()}  # fmt: skip
        self.scale = float(self.zero["logit_scale"].exp())
        self.head = nn.functional.normalize(torch.randn(3, 12, generator=generator), dim=-1)

    @staticmethod
    def _moves(name: str) -> bool:
        return name.startswith("visual.transformer") or name in ("visual.proj", "visual.ln_post.weight")

    def path(self, name: str) -> str:
        return str(self.folder / name)

    def plain(self, end: str, head: Tensor | None = None, baked: bool = True) -> str:
        """The reference: safetensors in open_clip's names, facts in its metadata."""
        theta = {"zero": self.zero, "one": self.one}[end]
        told = {"sharpscope.quick_gelu": "true"}
        if head is not None:
            theta = {**theta, "head.weight": head, "head.bias": torch.zeros(3)}
            told |= {"sharpscope.head.scale_baked": json.dumps(baked), "sharpscope.head.normalize": "true"}
        out = self.path(f"plain_{end}_{head is not None}.safetensors")
        write_checkpoint(out, theta, told)
        return out

    # ------------------------------------------------------------------ one file of each system
    def openai(self) -> str:
        clip = self.build(self.zero)

        class Release(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                for name, child in clip.named_children():
                    self.add_module(name, child)
                for name, parameter in clip._parameters.items():
                    self.register_parameter(name, parameter)
                for name, value in (("input_resolution", 16), ("context_length", 16), ("vocab_size", 708)):
                    self.register_buffer(name, torch.tensor(value))

            def forward(self, image: Tensor) -> Any:
                return self.visual(image)

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # jit is deprecated; OpenAI's files are not
            script = torch.jit.trace(Release().eval(), torch.zeros(1, 3, 16, 16), check_trace=False)
            for parameter in script.parameters():
                parameter.data = parameter.data.half()
            torch.jit.save(script, self.path("ViT.pt"))
        return self.path("ViT.pt")

    def wise_ft(self) -> str:
        clip = self.build(self.one)
        del clip.transformer
        with open(self.path("checkpoint_10.pt"), "wb") as handle:
            pickle.dump(ImageClassifier(ImageEncoder(clip), ClassificationHead(self.scale * self.head)), handle)
        return self.path("checkpoint_10.pt")

    def soups(self) -> str:
        head = {"classification_head.weight": self.scale * self.head, "classification_head.bias": torch.zeros(3)}
        torch.save({f"model.{n}": t for n, t in self.one.items()} | head, self.path("model_3.pt"))
        return self.path("model_3.pt")

    def training(self) -> str:
        state = {f"module.{n}": t for n, t in self.one.items()}
        torch.save({"epoch": 3, "name": "run", "state_dict": state, "optimizer": {}}, self.path("epoch_3.pt"))
        return self.path("epoch_3.pt")

    def hugging(self, theta: dict[str, Tensor]) -> dict[str, Tensor]:
        made = {}
        for name, places in huggingface_names(theta).items():
            pieces = theta[name].chunk(len(places)) if len(places) > 1 else (theta[name],)
            for place, piece in zip(places, pieces, strict=True):
                made[place.name] = (piece.T if place.how == "T" else piece).contiguous()
        return made

    def hf_folder(self) -> str:
        from safetensors.torch import save_file

        (self.folder / "hf").mkdir()
        save_file(self.hugging(self.zero), self.folder / "hf" / "model.safetensors")
        config = {"model_type": "clip", "vision_config": {"hidden_act": "quick_gelu"}, "text_config": {}}
        (self.folder / "hf" / "config.json").write_text(json.dumps(config))
        return f"local-dir:{self.folder / 'hf'}"

    def dassl(self) -> str:
        state = {
            f"image_encoder.{n.removeprefix('visual.')}": t for n, t in self.one.items() if n.startswith("visual.")
        }
        torch.save({"state_dict": state, "epoch": 50}, self.path("model.pth.tar-50"))
        return self.path("model.pth.tar-50")

    def task_vectors(self) -> str:
        torch.save(ImageEncoder(self.build(self.one)), self.path("finetuned.pt"))
        torch.save(ClassificationHead(self.scale * self.head), self.path("head_Owls.pt"))
        return self.path("finetuned.pt")

    def lipsum(self) -> str:
        vision: dict[str, Any] = {}
        for name, tensor in self.hugging(self.one).items():
            if not name.startswith("vision_model."):
                continue
            *path, leaf = name.split(".")
            if "norm" in path[-1] or "layrnorm" in path[-1]:
                leaf = leaf.replace("weight", "scale")
            elif leaf == "weight":
                leaf = "embedding" if path[-1] == "position_embedding" else "kernel"
                if leaf == "kernel":
                    tensor = tensor.permute(2, 3, 1, 0) if tensor.ndim == 4 else tensor.T
            node = vision
            for part in path:
                node = node.setdefault(part, {})
            node[leaf] = tensor
        ext = {**vision, "visual_projection": self.one["visual.proj"], "logit_scale": self.one["logit_scale"]}

        def leaf_of(value: Tensor) -> msgpack.ExtType:
            data = value.contiguous().numpy().tobytes()
            return msgpack.ExtType(1, msgpack.packb((tuple(value.shape), "float32", data), use_bin_type=True))

        packed = msgpack.packb({"cls": self.head.T, "ext": ext}, default=leaf_of, use_bin_type=True)
        (self.folder / "best_acc.ckpt").write_bytes(packed)
        return self.path("best_acc.ckpt")


@pytest.fixture
def world(tmp_path: Path, tiny_thetas: Any, stranger: None) -> World:
    import open_clip

    model, theta = tiny_thetas["quickgelu"]

    def build(weights: dict[str, Tensor]) -> nn.Module:
        made: nn.Module = open_clip.CLIP(**model.config)
        made.load_state_dict(weights)
        return made.eval()

    return World(tmp_path, theta, build)


RUNS: dict[str, Callable[[World], tuple[str, dict[str, str], list[str]]]] = {
    "heads of their own": lambda w: (
        w.openai(),
        {"wise_ft": w.wise_ft(), "soups": w.soups(), "lipsum": w.lipsum(), "plain": w.plain("one", w.scale * w.head)},
        [],
    ),
    "no heads": lambda w: (
        w.hf_folder(),
        {"training": w.training(), "dassl": w.dassl(), "plain": w.plain("one")},
        ["--head", "zeroshot"],
    ),
    "a head file": lambda w: (
        w.openai(),
        {"task_vectors": w.task_vectors(), "plain": w.plain("one")},
        ["--head-file", w.path("head_Owls.pt")],
    ),
}
"""Name -> (theta_0, {pair: theta_1}, flags); ``plain`` is the same weights as safetensors in open_clip's names."""


@pytest.mark.parametrize("name", RUNS)
def test_run_between_systems(
    name: str, world: World, tiny_paths: dict[str, Path], image_folder: Callable[..., Path], tmp_path: Path
) -> None:
    zeroshot, finetuned, flags = RUNS[name](world)
    sys.modules.pop("src_models_modeling", None)
    for folder in ("train", "val"):
        image_folder(dict.fromkeys(NAMES, 6), name=folder)
    (tmp_path / "names.txt").write_text("\n".join(NAMES))
    arguments = [
        "run", "--zeroshot", zeroshot, "--finetuned", *finetuned.values(), "--name", *finetuned, *flags,
        "--model", str(tiny_paths["quickgelu"]), "--data-root", str(tmp_path), "--probe", "folder:train",
        "--id", "folder:val", "--classnames", str(tmp_path / "names.txt"), "--alphas", "0", "0.5", "1",
        "--granularity", "block", "--probe-size", "4", "--batch-size", "8", "--measures", "hessian_trace",
        "--max-matvecs", "2", "--layer-alphas", "0", "1", "--criticality-noise", "1", "--densities", "0.5",
        "--selects", "random", "--targets", "delta", "--repair-alphas", "0.5", "--masks", "1", "--bootstrap", "20",
        "--threads", "1", "--out", str(tmp_path / "run"),
    ]  # fmt: skip
    assert main(arguments) == 0
    assert (tmp_path / "run" / "report.html").exists()
    assert not [module for module in sys.modules if module.startswith("src_models")]
    accuracy = read_csv(tmp_path / "run" / "tables" / "accuracy.csv", "accuracy")
    path = read_csv(tmp_path / "run" / "tables" / "path.csv", "path")
    dense = accuracy[accuracy["variant"] == "dense"].groupby("pair")["estimate"].apply(list)
    losses = path.groupby("pair")["loss"].apply(list)
    assert set(dense.index) == set(finetuned) and len(dense["plain"]) >= 3
    assert losses["plain"][0] != losses["plain"][-1]
    for pair in finetuned:
        assert dense[pair] == dense["plain"], pair
        assert losses[pair] == pytest.approx(losses["plain"], rel=1e-5), pair
    facts = json.loads((tmp_path / "run" / "manifest.json").read_text())["pairs"]
    assert all(("head_file" in f) == (name == "a head file") for f in facts.values())


def test_theta_0_is_the_same_in_every_container(world: World) -> None:
    for file in (world.openai(), world.hf_folder()):
        read = read_checkpoint(file).tensors
        assert {*read} == {*world.zero} and all(torch.equal(read[n].float(), t) for n, t in world.zero.items())


def test_two_stored_heads_of_different_kinds_make_one_path(
    world: World, tiny_paths: dict[str, Path], tmp_path: Path
) -> None:
    """WiSE-FT's head has the scale baked in and a bias, Lipsum-FT's neither; at both ends the logits are their own."""
    from sharpscope.clip.pair import load_pair

    zero = {**world.zero, "head.weight": world.head}
    write_checkpoint(tmp_path / "zero.safetensors", zero, {"sharpscope.head.scale_baked": "false"})
    pair = load_pair(
        tmp_path / "zero.safetensors", world.wise_ft(), model=str(tiny_paths["quickgelu"]), classnames=list(NAMES)
    )
    scale = world.zero["logit_scale"].exp()
    images = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    unit = pair.model.encode_image(world.zero, images)
    torch.testing.assert_close(pair.classifier.logits(pair.path().at(0.0), images), scale * unit @ world.head.T)
    ours = pair.classifier.logits(pair.path().at(1.0), images)
    torch.testing.assert_close(ours, world.scale * pair.model.encode_image(world.one, images) @ world.head.T)
    assert pair.classifier.scale_baked and not read_checkpoint(world.lipsum()).facts["head"]["scale_baked"]


def test_the_steps_take_a_head_file_and_a_base(
    world: World, tiny_paths: dict[str, Path], image_folder: Callable[..., Path], tmp_path: Path, capsys: Any
) -> None:
    zero, one, dassl = world.openai(), world.task_vectors(), world.dassl()
    sys.modules.pop("src_models_modeling", None)
    image_folder(dict.fromkeys(NAMES, 4), name="val")
    (tmp_path / "names.txt").write_text("\n".join(NAMES))
    head, out = str(tmp_path / "head_Owls.pt"), str(tmp_path / "half.safetensors")
    model = ["--model", str(tiny_paths["quickgelu"]), "--classnames", str(tmp_path / "names.txt")]
    ends = ["--zeroshot", zero, "--finetuned", one, *model, "--head-file", head, "--out", out]
    assert main(["interpolate", *ends, "--alpha", "0.5"]) == 0
    half = read_checkpoint(out)
    torch.testing.assert_close(half.tensors["head.weight"], world.scale * world.head)
    middle = (world.zero["visual.proj"] + world.one["visual.proj"]) / 2
    torch.testing.assert_close(half.tensors["visual.proj"], middle)
    assert main(["sparsify", *ends, "--layers", "visual.proj", "--density", "0", "--alpha", "1", "--overwrite"]) == 0
    torch.testing.assert_close(read_checkpoint(out).tensors["visual.proj"], world.zero["visual.proj"])
    data = ["--datasets", f"folder:{tmp_path / 'val'}", *model, "--csv"]
    capsys.readouterr()
    assert main(["evaluate", one, "--head-file", head, *data]) == 0
    with_file = capsys.readouterr().out
    assert main(["evaluate", world.plain("one", world.scale * world.head), *data]) == 0
    theirs, ours = (
        [line.split(",")[1:5] for line in text.splitlines()] for text in (with_file, capsys.readouterr().out)
    )
    assert theirs == ours and len(ours) > 1
    assert main(["evaluate", dassl, *data]) == 2
    assert "zero-shot weights that complete it are missing" in capsys.readouterr().err
    assert main(["evaluate", dassl, "--base", zero, *data]) == 0
    assert main(["run", "--zeroshot", zero, "--finetuned", world.soups(), *model, "--head", "zeroshot", "--head-file",
                 head, "--probe", "folder:val", "--id", "folder:val", "--out", str(tmp_path / "x")]) == 2  # fmt: skip
    assert "--head zeroshot does not use" in capsys.readouterr().err
