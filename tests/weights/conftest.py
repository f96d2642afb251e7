"""Files of exactly the structure that each system writes, made by classes that are gone when they are read."""

from __future__ import annotations

import json
import pickle
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgpack
import pytest
import torch
from torch import Tensor, nn

MODELING = """
import torch
class ImageEncoder(torch.nn.Module):
    def __init__(self, model, keep_lang, preprocess):
        super().__init__()
        self.model = model
        self.train_preprocess = preprocess
        if not keep_lang:
            delattr(self.model, "transformer")
    def forward(self, images):
        return self.model.encode_image(images)
class ClassificationHead(torch.nn.Linear):
    def __init__(self, normalize, weights):
        super().__init__(weights.shape[1], weights.shape[0])
        self.normalize = normalize
        self.weight = torch.nn.Parameter(weights.clone())
        self.bias = torch.nn.Parameter(torch.zeros_like(self.bias))
    def forward(self, inputs):
        if self.normalize:
            inputs = inputs / inputs.norm(dim=-1, keepdim=True)
        return super().forward(inputs)
class ImageClassifier(torch.nn.Module):
    def __init__(self, image_encoder, classification_head):
        super().__init__()
        self.image_encoder = image_encoder
        self.classification_head = classification_head
    def forward(self, inputs):
        return self.classification_head(self.image_encoder(inputs))
class CLIPEncoder(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model
class ModelWrapper(torch.nn.Module):
    def __init__(self, model, weights):
        super().__init__()
        self.model = model
        self.classification_head = torch.nn.Linear(weights.shape[1], weights.shape[0])
        self.classification_head.weight = torch.nn.Parameter(weights.clone())
"""


@dataclass
class Made:
    """A file, how to read it, and what the original module says: its tensors in open_clip's names, its logits."""

    path: str
    tensors: dict[str, Tensor]
    images: Tensor
    producer: str
    container: str
    features: Tensor | None = None
    logits: Tensor | None = None
    text: tuple[Tensor, Tensor] | None = None
    read: dict[str, Any] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    kind: str = "quickgelu"


@pytest.fixture
def modeling() -> Iterator[types.ModuleType]:
    """The module ``src.models.modeling``, there only while files are made."""
    names = ("src", "src.models", "src.models.modeling")
    for name in names:
        sys.modules[name] = types.ModuleType(name)
    module = sys.modules[names[-1]]
    exec(compile(MODELING, "modeling.py", "exec"), module.__dict__)
    yield module
    for name in names:
        sys.modules.pop(name, None)


def _clip(tiny_thetas: Any, kind: str) -> nn.Module:
    import open_clip

    model, theta = tiny_thetas[kind]
    config = model.config
    made = open_clip.CustomTextCLIP if config.pop("custom_text", False) else open_clip.CLIP
    module = made(**config)
    module.load_state_dict(theta)
    return module.eval()


@pytest.fixture
def systems(
    tmp_path: Path, tiny_thetas: Any, tiny_paths: dict[str, Path], modeling: types.ModuleType
) -> Callable[[str], Made]:
    """``systems("WiSE-FT")`` -> the file that WiSE-FT writes; its classes cannot be imported afterwards."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(3, 3, 16, 16, generator=generator)
    tokens = torch.randint(1, 600, (4, 16), generator=generator)
    tokens[:, -1] = 707  # the end of the text has the largest id
    head = 20 * nn.functional.normalize(torch.randn(5, 12, generator=generator), dim=-1)

    def make(system: str) -> Made:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # jit is deprecated; OpenAI's files are not
            made: Made = _MAKERS[system](tmp_path, tiny_thetas, tiny_paths, modeling, images, tokens, head)
        for name in ("src", "src.models", "src.models.modeling"):
            sys.modules.pop(name, None)
        return made

    return make


def _whole(clip: nn.Module, images: Tensor, tokens: Tensor) -> dict[str, Any]:
    return {"features": clip.encode_image(images), "text": (tokens, clip.encode_text(tokens))}


def _openai(tmp: Path, thetas: Any, paths: Any, modeling: Any, images: Tensor, tokens: Tensor, head: Tensor) -> Made:
    clip = _clip(thetas, "quickgelu")
    expected = dict(clip.state_dict())

    class Release(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for name, child in clip.named_children():
                self.add_module(name, child)
            for name, parameter in clip._parameters.items():
                self.register_parameter(name, parameter)
            for name, value in (("input_resolution", 16), ("context_length", 16), ("vocab_size", 708)):
                self.register_buffer(name, torch.tensor(value))

        def forward(self, image: Tensor) -> Tensor:
            return self.visual(image)

    script = torch.jit.trace(Release().eval(), images, check_trace=False)
    expected = {n: t.half() if n != "logit_scale" else t for n, t in expected.items()}
    for name, parameter in script.named_parameters():
        if name != "logit_scale":
            parameter.data = parameter.data.half()
    torch.jit.save(script, tmp / "ViT-B-32.pt")
    half = _clip(thetas, "quickgelu")
    half.load_state_dict({n: t.float() for n, t in expected.items()})
    facts = {"quick_gelu": True, "dropped": ["input_resolution", "context_length", "vocab_size"]}
    whole = _whole(half, images, tokens)
    return Made(str(tmp / "ViT-B-32.pt"), expected, images, "OpenAI CLIP", "TorchScript archive", **whole, facts=facts)


def _script(tmp: Path, thetas: Any, paths: Any, modeling: Any, images: Tensor, tokens: Tensor, head: Tensor) -> Made:
    clip = _clip(thetas, "vit")
    torch.jit.save(torch.jit.script(clip.visual), tmp / "visual.pt")

    class Holder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.visual = clip.visual

        def forward(self, x: Tensor) -> Tensor:
            return self.visual(x)

    torch.jit.save(torch.jit.script(Holder().eval()), tmp / "scripted.pt")
    tensors = {n: t for n, t in clip.state_dict().items() if n.startswith("visual.")}
    return Made(
        str(tmp / "scripted.pt"), tensors, images, "TorchScript", "TorchScript archive",
        features=clip.encode_image(images), kind="vit", facts={"quick_gelu": None},
    )  # fmt: skip


def _training(tmp: Path, thetas: Any, paths: Any, modeling: Any, images: Tensor, tokens: Tensor, head: Tensor) -> Made:
    clip = _clip(thetas, "customtext")
    state = {f"module.{n}": t for n, t in clip.state_dict().items()}
    optimizer = torch.optim.AdamW(clip.parameters())
    content = {"epoch": 3, "name": "run", "state_dict": state, "optimizer": optimizer.state_dict()}
    torch.save(content, tmp / "epoch_3.pt")
    return Made(
        str(tmp / "epoch_3.pt"), dict(clip.state_dict()), images, "open_clip training", "torch zip",
        **_whole(clip, images, tokens), kind="customtext", facts={"prefix": "module.", "safe": True},
    )  # fmt: skip


def _hub(tmp: Path, thetas: Any, paths: Any, modeling: Any, images: Tensor, tokens: Tensor, head: Tensor) -> Made:
    from safetensors.torch import save_file

    clip = _clip(thetas, "quickgelu")
    save_file({n: t.contiguous() for n, t in clip.state_dict().items()}, tmp / "open_clip_model.safetensors")
    config = {"model_cfg": json.loads(paths["quickgelu"].read_text()), "preprocess_cfg": {}}
    (tmp / "open_clip_config.json").write_text(json.dumps(config))
    return Made(
        f"local-dir:{tmp}", dict(clip.state_dict()), images, "open_clip", "safetensors",
        **_whole(clip, images, tokens), facts={"quick_gelu": True},
    )  # fmt: skip


def _preprocess() -> Any:
    from torchvision import transforms
    from torchvision.transforms import InterpolationMode

    size = transforms.Resize(16, interpolation=InterpolationMode.BICUBIC)
    return transforms.Compose([size, transforms.ToTensor(), transforms.Normalize((0.5,) * 3, (0.5,) * 3)])


def _wise_ft(tmp: Path, thetas: Any, paths: Any, modeling: Any, images: Tensor, tokens: Tensor, head: Tensor) -> Made:
    clip = _clip(thetas, "quickgelu")
    encoder = modeling.ImageEncoder(clip, False, _preprocess())
    classifier = modeling.ImageClassifier(encoder, modeling.ClassificationHead(True, head)).eval()
    logits = classifier(images)
    with open(tmp / "checkpoint_10.pt", "wb") as handle:
        pickle.dump(classifier.cpu(), handle)
    tensors = {n: t for n, t in _clip(thetas, "quickgelu").state_dict().items() if not n.startswith("transformer.")}
    tensors |= {"head.weight": head, "head.bias": torch.zeros(5)}
    facts = {
        "quick_gelu": True, "safe": False, "prefix": "image_encoder.model.",
        "head": {"scale_baked": True, "normalize": True, "classnames": None, "told_by": "names", "assumed": []},
    }  # fmt: skip
    return Made(
        str(tmp / "checkpoint_10.pt"), tensors, images, "WiSE-FT (VRF, PAINT)", "raw pickle", logits=logits, facts=facts
    )


def _flyp(tmp: Path, thetas: Any, paths: Any, modeling: Any, images: Tensor, tokens: Tensor, head: Tensor) -> Made:
    clip = _clip(thetas, "quickgelu")
    with open(tmp / "checkpoint_0.pt", "wb") as handle:
        pickle.dump(modeling.CLIPEncoder(clip), handle)
    facts = {"quick_gelu": True, "head": None}
    whole = _whole(clip, images, tokens)
    return Made(
        str(tmp / "checkpoint_0.pt"), dict(clip.state_dict()), images, "FLYP", "raw pickle", **whole, facts=facts
    )


def _task_vectors(
    tmp: Path, thetas: Any, paths: Any, modeling: Any, images: Tensor, tokens: Tensor, head: Tensor
) -> Made:
    clip = _clip(thetas, "vit")
    encoder = modeling.ImageEncoder(clip, True, _preprocess())
    torch.save(encoder, tmp / "finetuned.pt")
    classifier = modeling.ClassificationHead(True, head)
    torch.save(classifier, tmp / "head_MNIST.pt")
    tensors = {**clip.state_dict(), "head.weight": head, "head.bias": torch.zeros(5)}
    return Made(
        str(tmp / "finetuned.pt"), tensors, images, "task_vectors (LiNeS)", "torch zip", kind="vit",
        logits=classifier(encoder(images)), read={"head": str(tmp / "head_MNIST.pt")}, facts={"quick_gelu": False},
    )  # fmt: skip


def _soups(tmp: Path, thetas: Any, paths: Any, modeling: Any, images: Tensor, tokens: Tensor, head: Tensor) -> Made:
    clip = _clip(thetas, "quickgelu")
    wrapper = modeling.ModelWrapper(clip, head)
    torch.save(wrapper.state_dict(), tmp / "model_3.pt")
    features = nn.functional.normalize(clip.encode_image(images), dim=-1)
    tensors = {**clip.state_dict(), "head.weight": head, "head.bias": wrapper.classification_head.bias.detach()}
    facts = {"prefix": "model.", "safe": True, "quick_gelu": None}
    return Made(
        str(tmp / "model_3.pt"), tensors, images, "model-soups", "torch zip",
        logits=wrapper.classification_head(features), facts=facts,
    )  # fmt: skip


def _starft(tmp: Path, thetas: Any, paths: Any, modeling: Any, images: Tensor, tokens: Tensor, head: Tensor) -> Made:
    clip = _clip(thetas, "quickgelu")
    state = nn.DataParallel(modeling.CLIPEncoder(clip)).state_dict()
    classifier = modeling.ClassificationHead(True, head)
    torch.save({"model_state_dict": state, "epoch": 9, "classification_head": classifier.state_dict()}, tmp / "star.pt")
    tensors = {**clip.state_dict(), "head.weight": head, "head.bias": torch.zeros(5)}
    return Made(
        str(tmp / "star.pt"), tensors, images, "StarFT or another DataParallel training", "torch zip",
        logits=classifier(clip.encode_image(images)), facts={"prefix": "module.model."},
    )  # fmt: skip


def _dassl(tmp: Path, thetas: Any, paths: Any, modeling: Any, images: Tensor, tokens: Tensor, head: Tensor) -> Made:
    from sharpscope.weights.checkpoint import checkpoint_of

    clip = _clip(thetas, "quickgelu")
    base = checkpoint_of({n: t.clone() for n, t in clip.state_dict().items()}, "base")
    generator = torch.Generator().manual_seed(2)
    for name, parameter in clip.named_parameters():
        if name.endswith(("ln_1.bias", "c_proj.bias", "ln_2.weight")):
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    tuned = {n: t for n, t in clip.state_dict().items() if n.startswith(("visual.", "transformer.", "ln_final."))}
    state = {
        ("image_encoder." + n.removeprefix("visual.")) if n.startswith("visual.") else f"text_encoder.{n}": t
        for n, t in tuned.items()
    }
    state["prompt_learner.ctx"] = torch.zeros(4, 12)
    folder = tmp / "prompt_learner"
    folder.mkdir()
    torch.save({"state_dict": state, "epoch": 50, "optimizer": {}, "scheduler": {}}, folder / "model.pth.tar-50")
    facts = {"dropped": ["prompt_learner.ctx"], "partial": False}
    return Made(
        str(folder / "model.pth.tar-50"), dict(clip.state_dict()), images, "Dassl (CoOp, CLIPFit, ContCoOp)",
        "torch zip", **_whole(clip, images, tokens), read={"base": base}, facts=facts,
    )  # fmt: skip


def flax_bytes(tree: Any) -> bytes:
    """The tree as ``flax.serialization.to_bytes`` writes it."""

    def leaf(value: Tensor) -> msgpack.ExtType:
        data = value.contiguous().view(torch.uint8).numpy().tobytes() if value.ndim else value.numpy().tobytes()
        name = str(value.dtype).removeprefix("torch.")
        return msgpack.ExtType(1, msgpack.packb((tuple(value.shape), name, data), use_bin_type=True))

    return bytes(msgpack.packb(tree, default=leaf, use_bin_type=True, strict_types=True))


def _hf(paths: Any) -> Any:
    import transformers
    from transformers import CLIPConfig, CLIPModel

    transformers.logging.set_verbosity_error()
    size = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
    text = {
        **size,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "vocab_size": 708,
        "max_position_embeddings": 16,
        "eos_token_id": 2,
    }
    vision = {**size, "num_hidden_layers": 2, "image_size": 16, "patch_size": 8}
    torch.manual_seed(0)
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=12))
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape)
    return model.eval()


def _from_hf(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """open_clip's tensors, written out by hand."""
    ours: dict[str, Tensor] = {
        "visual.class_embedding": state["vision_model.embeddings.class_embedding"],
        "visual.conv1.weight": state["vision_model.embeddings.patch_embedding.weight"],
        "visual.positional_embedding": state["vision_model.embeddings.position_embedding.weight"],
        "visual.proj": state["visual_projection.weight"].T,
        "token_embedding.weight": state["text_model.embeddings.token_embedding.weight"],
        "positional_embedding": state["text_model.embeddings.position_embedding.weight"],
        "text_projection": state["text_projection.weight"].T,
        "logit_scale": state["logit_scale"],
    }
    pairs = [("visual.ln_pre", "vision_model.pre_layrnorm"), ("visual.ln_post", "vision_model.post_layernorm")]
    pairs.append(("ln_final", "text_model.final_layer_norm"))
    for mine, theirs, count in (("visual.", "vision_model.", 2), ("", "text_model.", 1)):
        for i in range(count):
            block, layer = f"{mine}transformer.resblocks.{i}", f"{theirs}encoder.layers.{i}"
            pairs += [(f"{block}.ln_1", f"{layer}.layer_norm1"), (f"{block}.ln_2", f"{layer}.layer_norm2")]
            pairs += [(f"{block}.mlp.c_fc", f"{layer}.mlp.fc1"), (f"{block}.mlp.c_proj", f"{layer}.mlp.fc2")]
            pairs.append((f"{block}.attn.out_proj", f"{layer}.self_attn.out_proj"))
            for part in ("weight", "bias"):
                joined = [state[f"{layer}.self_attn.{p}_proj.{part}"] for p in "qkv"]
                ours[f"{block}.attn.in_proj_{part}"] = torch.cat(joined)
    for mine, theirs in pairs:
        ours |= {f"{mine}.{part}": state[f"{theirs}.{part}"] for part in ("weight", "bias")}
    return ours


def _hugging(tmp: Path, thetas: Any, paths: Any, modeling: Any, images: Tensor, tokens: Tensor, head: Tensor) -> Made:
    model = _hf(paths)
    model.save_pretrained(tmp / "hf")
    output = model(input_ids=tokens, pixel_values=images)
    return Made(
        f"local-dir:{tmp / 'hf'}", _from_hf(dict(model.state_dict())), images, "Hugging Face transformers",
        "safetensors", text=(tokens, output.text_embeds), features=output.image_embeds, facts={"quick_gelu": True},
    )  # fmt: skip


def _sharded(tmp: Path, thetas: Any, paths: Any, modeling: Any, images: Tensor, tokens: Tensor, head: Tensor) -> Made:
    from safetensors.torch import save_file

    model = _hf(paths)
    state = {n: t.contiguous() for n, t in model.state_dict().items()}
    names = sorted(state)
    shards = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for shard, held in shards.items():
        save_file({n: state[n] for n in held}, tmp / shard, metadata={"format": "pt"})
    weight_map = {n: shard for shard, held in shards.items() for n in held}
    index = tmp / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
    return Made(
        str(index), _from_hf(state), images, "Hugging Face transformers", "sharded safetensors",
        features=model(input_ids=tokens, pixel_values=images).image_embeds,
    )  # fmt: skip


def _lipsum(tmp: Path, thetas: Any, paths: Any, modeling: Any, images: Tensor, tokens: Tensor, head: Tensor) -> Made:
    model = _hf(paths)
    state = dict(model.state_dict())
    vision: dict[str, Any] = {}
    for name, tensor in state.items():
        if not name.startswith("vision_model."):
            continue
        *path, leaf = name.split(".")
        if "norm" in path[-1] or "layrnorm" in path[-1]:
            leaf = leaf.replace("weight", "scale")
        elif path[-1] == "position_embedding":
            leaf = "embedding"
        elif leaf == "weight":
            leaf, tensor = "kernel", tensor.permute(2, 3, 1, 0) if tensor.ndim == 4 else tensor.T
        node = vision
        for part in path:
            node = node.setdefault(part, {})
        node[leaf] = tensor.to(torch.bfloat16) if path[-1] == "fc1" else tensor
    unit = nn.functional.normalize(head, dim=-1)
    ext = {**vision, "visual_projection": state["visual_projection.weight"].T, "logit_scale": state["logit_scale"]}
    (tmp / "best_acc.ckpt").write_bytes(flax_bytes({"cls": unit.T, "ext": ext}))
    for layer in model.vision_model.encoder.layers:
        for part in (layer.mlp.fc1.weight, layer.mlp.fc1.bias):
            part.data = part.data.to(torch.bfloat16).float()
    rounded = model(input_ids=tokens, pixel_values=images).image_embeds
    tensors = {n: t for n, t in _from_hf(state).items() if n.startswith("visual.") or n == "logit_scale"}
    tensors = {n: t.to(torch.bfloat16) if ".c_fc." in n else t for n, t in tensors.items()} | {"head.weight": unit}
    baked = {"scale_baked": False, "normalize": True, "classnames": None, "told_by": "names", "assumed": []}
    return Made(
        str(tmp / "best_acc.ckpt"), tensors, images, "Lipsum-FT", "flax msgpack",
        logits=state["logit_scale"].exp() * rounded @ unit.T, facts={"head": baked},
    )  # fmt: skip


def _lora(tmp: Path, thetas: Any, paths: Any, modeling: Any, images: Tensor, tokens: Tensor, head: Tensor) -> Made:
    from safetensors.torch import save_file

    from sharpscope.weights.checkpoint import checkpoint_of

    model = _hf(paths)
    state = dict(model.state_dict())
    base = checkpoint_of({n: t.clone() for n, t in _from_hf(state).items()}, "base")
    adapter, layer = {}, "vision_model.encoder.layers.1"
    for target in (f"{layer}.self_attn.v_proj", f"{layer}.mlp.fc1"):
        down, up = torch.randn(2, 16), torch.randn(len(state[f"{target}.weight"]), 2)
        adapter |= {
            f"base_model.model.{target}.lora_A.weight": down,
            f"base_model.model.{target}.lora_B.weight": up,
        }
        model.get_submodule(target).weight.data += 8 / 2 * up @ down
    save_file(adapter, tmp / "adapter_model.safetensors")
    (tmp / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 8}))
    return Made(
        f"local-dir:{tmp}", _from_hf(dict(model.state_dict())), images, "Hugging Face transformers", "safetensors",
        features=model(input_ids=tokens, pixel_values=images).image_embeds, read={"base": base}, facts={"adapter": 2},
    )  # fmt: skip


def _r_adapter(tmp: Path, thetas: Any, paths: Any, modeling: Any, images: Tensor, tokens: Tensor, head: Tensor) -> Made:
    """R-Adapter's training checkpoint: adapters of one matrix and of two, each beside its average."""
    clip = _clip(thetas, "quickgelu")
    state = {f"module.model.{n}": t.clone() for n, t in clip.state_dict().items()}
    generator = torch.Generator().manual_seed(3)
    for i, block in enumerate(clip.visual.transformer.resblocks):
        for which, layer in (("attn", block.attn.out_proj), ("mlp", block.mlp.c_proj)):
            down, up = torch.randn(4, 16, generator=generator), 0.2 * torch.randn(16, 4, generator=generator)
            scale = torch.tensor([0.3])
            for copy, factor in (("", 2.0), ("_cache", 1.0)):
                name = f"module.model.visual.transformer.resblocks.{i}.adapter_{which}{copy}"
                two = {f"{name}.d.weight": down, f"{name}.u.weight": factor * up}
                state |= {f"{name}.s": scale, **(two if i else {f"{name}.f.weight": factor * up @ down})}
            change = 0.5 * scale * up @ down
            layer.weight.copy_(layer.weight + change @ layer.weight)
            layer.bias.copy_(layer.bias + change @ layer.bias)
    torch.save({"epoch": 1, "state_dict": state, "args": {"eval_scale": 0.5}}, tmp / "r_adapter.pt")
    return Made(
        str(tmp / "r_adapter.pt"), dict(clip.state_dict()), images, "R-Adapter", "torch zip",
        **_whole(clip, images, tokens), facts={"adapter": 4},
    )  # fmt: skip


def _clip_lora(tmp: Path, thetas: Any, paths: Any, modeling: Any, images: Tensor, tokens: Tensor, head: Tensor) -> Made:
    """CLIP-LoRA's own file, rank 1: there its two rules for the scale agree."""
    from sharpscope.weights.checkpoint import checkpoint_of

    clip = _clip(thetas, "quickgelu")
    base = checkpoint_of({n: t.clone() for n, t in clip.state_dict().items()}, "base")
    weights: dict[str, Any] = {}
    for i, block in enumerate(clip.visual.transformer.resblocks):
        pairs = {p: (torch.randn(1, 16), torch.randn(16, 1)) for p in ("q_proj", "v_proj", "proj")}
        weights[f"layer_{i}"] = {p: {"w_lora_A": a, "w_lora_B": b} for p, (a, b) in pairs.items()}
        for part, (a, b) in pairs.items():
            start = {"q_proj": 0, "v_proj": 32}.get(part)
            place = block.attn.out_proj.weight if start is None else block.attn.in_proj_weight[start : start + 16]
            place.add_(2 * b @ a)
    told = {"r": 1, "alpha": 2, "encoder": "vision", "params": ["q", "v", "o"], "position": "all"}
    torch.save({"weights": weights, "metadata": told}, tmp / "lora_weights.pt")
    return Made(
        str(tmp / "lora_weights.pt"), dict(clip.state_dict()), images, "CLIP-LoRA", "torch zip",
        **_whole(clip, images, tokens), read={"base": base}, facts={"adapter": 6},
    )  # fmt: skip


_MAKERS: dict[str, Callable[..., Made]] = {
    "OpenAI": _openai, "TorchScript": _script, "open_clip training": _training, "open_clip hub folder": _hub,
    "WiSE-FT": _wise_ft, "FLYP": _flyp, "task_vectors": _task_vectors, "model-soups": _soups, "StarFT": _starft,
    "Dassl": _dassl, "Lipsum-FT": _lipsum, "Hugging Face": _hugging, "sharded": _sharded, "LoRA": _lora,
    "R-Adapter": _r_adapter, "CLIP-LoRA": _clip_lora,
}  # fmt: skip
SYSTEMS = tuple(_MAKERS)


@pytest.fixture(params=SYSTEMS)
def made(request: pytest.FixtureRequest, systems: Callable[[str], Made]) -> Made:
    """One file of every system in turn."""
    return systems(request.param)
