"""An open_clip model as a pure function of named tensors: the only file of sharpscope that imports open_clip."""

from __future__ import annotations

import contextlib
import copy
import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.pretrained import get_pretrained_cfg, list_pretrained_tags_by_model
from open_clip.tokenizer import HFTokenizer, SimpleTokenizer
from open_clip.transform import PreprocessCfg, image_transform_v2, merge_preprocess_dict
from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES, OPENAI_IMAGENET_TEMPLATES
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F  # noqa: N812

from sharpscope.clip.attention import attention_heads
from sharpscope.clip.prefix import Prefix
from sharpscope.clip.text_end import CausalText
from sharpscope.config.inputs import looks_like_tag
from sharpscope.config.models import MINI, unknown_model
from sharpscope.errors import ConfigError, PairMismatch, listing, shown
from sharpscope.layers import tower_of
from sharpscope.miniworld import world as miniworld

__all__ = ["ClipModel", "imagenet_classnames", "imagenet_templates", "is_clip", "pretrained_tag"]

Tokenizer = Callable[[list[str]], Tensor]
_DECODER = "text_decoder."
"""The prefix of the tensors of CoCa's captioning decoder, on which the text features do not depend."""


def imagenet_classnames() -> tuple[str, ...]:
    """The 1000 class names of ImageNet in the usual order, as in open_clip (those of Radford et al. 2021, revised)."""
    return tuple(IMAGENET_CLASSNAMES)


def imagenet_templates() -> tuple[str, ...]:
    """The 80 prompts of Radford et al. 2021 (arXiv 2103.00020) for ImageNet, ``{}`` for the class name."""
    return tuple(template("{}") for template in OPENAI_IMAGENET_TEMPLATES)


@contextlib.contextmanager
def no_fast_path() -> Iterator[None]:
    """Make nn.MultiheadAttention run its Python implementation, because its fast path has no derivatives."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def is_clip(module: nn.Module) -> bool:
    """Whether ``module`` is a model of open_clip, whose parameters have the names that ``layers.place`` knows."""
    return isinstance(module, (open_clip.CLIP, open_clip.CustomTextCLIP, open_clip.CoCa))


class ClipModel:
    """A CLIP without weights: a function from theta (named tensors) and images or texts to features.

    ``encode_image(theta, images)`` equals open_clip's model with the weights ``theta`` in eval mode (no dropout,
    running statistics in BatchNorm). Inside :func:`second_order` it is differentiable to any order in ``theta``.
    ``theta`` has to contain every parameter and persistent buffer of the tower in use, under open_clip's names, in
    float32 or float64, on any device; other keys are ignored. The object itself holds only shapes. Do not share it
    between threads.

    ``shapes``: {name: shape} of parameters and buffers. ``image_size``: (height, width). ``mean``, ``std``: of the
    normalisation. ``preprocess``: PIL image -> float32 [3, H, W]. ``geometry``: the steps of ``preprocess`` before
    pixels become floats.
    """

    def __init__(
        self,
        skeleton: nn.Module,
        *,
        name: str,
        config: Mapping[str, Any] | None = None,
        preprocess_cfg: Mapping[str, Any] | None = None,
        tokenizer: Tokenizer | None = None,
        constants: Mapping[str, Tensor] | None = None,
    ) -> None:
        skeleton.eval()
        skeleton.requires_grad_(False)
        self.name = name
        self._config = copy.deepcopy(dict(config)) if config is not None else None
        self._image, self._text = _Tower(skeleton, "encode_image"), _Tower(skeleton, "encode_text")
        self._constants = dict(constants or {})
        self._moved: dict[tuple[str, torch.device, torch.dtype], Tensor] = {}
        self._causal = CausalText.of(skeleton, self._constants)
        self._tokenizer = tokenizer
        self.shapes: dict[str, torch.Size] = {k: v.shape for k, v in skeleton.state_dict().items()}
        self.parameter_names: tuple[str, ...] = tuple(k for k, _ in skeleton.named_parameters())
        # Looking for tied tensors takes a fourth of a small tower's forward pass; almost no model has any.
        self._tied = len(list(skeleton.named_parameters(remove_duplicate=False))) > len(self.parameter_names)
        self.buffer_names: tuple[str, ...] = tuple(k for k in self.shapes if k not in set(self.parameter_names))
        self.image_names: tuple[str, ...] = tuple(k for k in self.shapes if tower_of(k) == "image")
        self.text_names: tuple[str, ...] = tuple(
            k for k in self.shapes if tower_of(k) == "text" and not k.startswith(_DECODER)
        )
        visual: Any = skeleton.visual
        size = visual.image_size
        self.image_size: tuple[int, int] = (size, size) if isinstance(size, int) else tuple(size)
        cfg = merge_preprocess_dict(PreprocessCfg(), dict(preprocess_cfg or {}))
        square = self.image_size[0] if self.image_size[0] == self.image_size[1] else self.image_size
        self._preprocess_cfg = PreprocessCfg(**{**cfg, "size": square})
        self.mean: tuple[float, ...] = tuple(self._preprocess_cfg.mean)
        self.std: tuple[float, ...] = tuple(self._preprocess_cfg.std)
        self.preprocess = image_transform_v2(self._preprocess_cfg, is_train=False)
        steps = [type(t).__name__ for t in self.preprocess.transforms]
        self.geometry: tuple[Callable[[Any], Any], ...] = tuple(
            self.preprocess.transforms[: steps.index("MaybeToTensor")]
        )

    # ------------------------------------------------------------------ making one
    @classmethod
    def load(cls, name_or_json: str, *, tokenizer: Tokenizer | None = None) -> ClipModel:
        """The architecture ``name_or_json``: an open_clip name, an open_clip config JSON (or its folder), or ``mini``.

        Nothing is downloaded and no weights are allocated, so that a ViT-L costs as little as a ViT-B. Raises
        ConfigError for an unknown name (with the nearest known one), an unreadable or incomplete JSON, or a tower whose
        description would have to be downloaded.
        """
        if name_or_json == MINI:
            return cls._load_mini(tokenizer)
        path = Path(name_or_json.removeprefix("local-dir:"))
        if path.is_dir():
            path = path / "open_clip_config.json"
        if path.suffix == ".json" or path.is_file():
            config, preprocess_cfg = _read_json(path)
            return cls._from_config(config, str(path), preprocess_cfg, tokenizer, folder=path.parent)
        known = open_clip.list_models()
        name = name_or_json.replace("/", "-")
        if name not in known:
            raise unknown_model(name_or_json, known)
        return cls._from_config(open_clip.get_model_config(name), name, _published_preprocess(name), tokenizer)

    @staticmethod
    def named_like(shapes: Mapping[str, Sequence[int]]) -> tuple[str, ...]:
        """Names of open_clip's models whose config agrees with the sizes of the image tower in ``shapes``.

        No model is built, so that the answer is only a guess; ``shapes`` of the model itself confirms it.
        """
        told = _told_sizes(shapes)
        return tuple(n for n in open_clip.list_models() if told and _sizes_of(open_clip.get_model_config(n)) == told)

    @classmethod
    def _load_mini(cls, tokenizer: Tokenizer | None) -> ClipModel:
        config, preprocess_cfg = _read_json(miniworld.config_path())
        if tokenizer is None:
            bpe, length = str(miniworld.tokenizer_path()), config["text_cfg"]["context_length"]
            tokenizer = SimpleTokenizer(bpe_path=bpe, context_length=length)
        return cls._from_config(config, "mini", preprocess_cfg, tokenizer)

    @classmethod
    def _from_config(
        cls,
        config: dict[str, Any],
        name: str,
        preprocess_cfg: Mapping[str, Any],
        tokenizer: Tokenizer | None,
        folder: Path | None = None,
    ) -> ClipModel:
        skeleton, constants = _skeleton_of_config(config, name)
        return cls(
            skeleton,
            name=name,
            config=config,
            preprocess_cfg=preprocess_cfg,
            tokenizer=tokenizer or _LazyTokenizer(config["text_cfg"], name, folder),
            constants=constants,
        )

    @classmethod
    def from_module(
        cls,
        module: nn.Module,
        *,
        name: str = "module",
        tokenizer: Tokenizer | None = None,
        preprocess_cfg: Mapping[str, Any] | None = None,
    ) -> ClipModel:
        """The architecture of a live open_clip model, which is not changed (:meth:`theta_of` returns its weights)."""
        skeleton, constants = _skeleton_of_module(module)
        cfg = {
            "context_length": getattr(module, "context_length", 77),
            "vocab_size": getattr(module, "vocab_size", 49408),
        }
        return cls(
            skeleton,
            name=name,
            preprocess_cfg=preprocess_cfg or getattr(module.visual, "preprocess_cfg", None),
            tokenizer=tokenizer or _LazyTokenizer(cfg, name, None),
            constants=constants,
        )

    @staticmethod
    def theta_of(module: nn.Module) -> dict[str, Tensor]:
        """theta of a live model: detached copies of its parameters and persistent buffers."""
        return {k: v.detach().clone() for k, v in module.state_dict().items()}

    def init(self, seed: int) -> dict[str, Tensor]:
        """Newly initialised theta, equal to that of ``torch.manual_seed(seed); open_clip.CLIP(**config)``.

        The global random number generator is left unchanged.

        Raises ConfigError for a model that was made from a live module and has no config.
        """
        if self._config is None:
            raise ConfigError(
                f"model '{shown(self.name)}' was made from a live module and has no config to initialise weights from."
            )
        with torch.random.fork_rng(devices=[]):
            torch.random.default_generator.manual_seed(seed)
            return self.theta_of(_build(self._config, self.name))

    # ------------------------------------------------------------------ what it knows
    @property
    def config(self) -> dict[str, Any]:
        """open_clip's config of this model (a copy); empty for one made from a live module."""
        return copy.deepcopy(self._config) if self._config is not None else {}

    def __repr__(self) -> str:
        count = sum(self.shapes[k].numel() for k in self.parameter_names)
        size = "x".join(str(s) for s in self.image_size)
        return f"ClipModel({self.name!r}, {count:,} parameters, images {size})"

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Token ids of ``texts``: int64 [T, context_length].

        Raises ConfigError where there is no tokenizer, it cannot be built, or it has more tokens than the text tower.
        """
        if self._tokenizer is None:
            raise ConfigError(f"model '{shown(self.name)}' has no tokenizer; give one with tokenizer=...")
        if isinstance(self._tokenizer, _LazyTokenizer):
            self._tokenizer = self._tokenizer.build()
        tokens = self._tokenizer(list(texts))
        assert isinstance(tokens, Tensor)
        return tokens.long()

    # ------------------------------------------------------------------ features
    def encode_image(self, theta: Mapping[str, Tensor], images: Tensor, normalize: bool = True) -> Tensor:
        """Features [B, D] of ``images`` [B, 3, H, W] normalised by mean and std; unit rows if ``normalize``.

        Raises PairMismatch where ``theta`` lacks tensors of the image tower.
        """
        return self._encode(self._image, self.image_names, theta, images, normalize)

    def encode_text(self, theta: Mapping[str, Tensor], tokens: Tensor, normalize: bool = True) -> Tensor:
        """Features [T, D] of ``tokens`` int64 [T, context_length], unit rows if ``normalize``.

        A causal tower reads the tokens up to the last end of a text alone (``clip.text_end``), which gives open_clip's
        features up to rounding. Raises PairMismatch where ``theta`` lacks tensors of the text tower.
        """
        tokens = tokens if self._causal is None else self._causal.read(tokens)
        return self._encode(self._text, self.text_names, theta, tokens, normalize)

    def embed_tokens(self, theta: Mapping[str, Tensor], tokens: Tensor) -> Tensor:
        """The token embeddings [T, L, W] of ``tokens`` [T, L], the first activations of the text tower.

        Raises ConfigError for a text tower without a ``token_embedding``, PairMismatch where ``theta`` lacks it.
        """
        _require(theta, (name := f"{self._token_embedding()}.weight",), self.name)
        return F.embedding(tokens.to(theta[name].device), theta[name])

    def encode_embedded(self, theta: Mapping[str, Tensor], tokens: Tensor, embeddings: Tensor) -> Tensor:
        """Text features [T, D], unit rows, from ``embeddings`` [T, L, W] instead of the token embeddings of ``tokens``.

        ``tokens`` still determine where each text ends. Differentiable in ``theta`` and ``embeddings``. With the
        embeddings that :meth:`embed_tokens` returns, the result equals ``encode_text``. Raises ConfigError for a text
        tower without a ``token_embedding``.
        """
        module = self._text.get_submodule(f"clip.{self._token_embedding()}")
        hook = module.register_forward_hook(lambda _, read, __: embeddings[:, : read[0].shape[1]])
        try:
            return self.encode_text(theta, tokens)
        finally:
            hook.remove()

    def _token_embedding(self) -> str:
        """The name of the module that embeds tokens."""
        for name in ("token_embedding", "text.token_embedding"):
            if f"{name}.weight" in self.shapes:
                return name
        raise ConfigError(f"model '{shown(self.name)}': learnt prompts need a text tower with a token_embedding.")

    def _encode(
        self, tower: nn.Module, names: tuple[str, ...], theta: Mapping[str, Tensor], inputs: Tensor, normalize: bool
    ) -> Tensor:
        _require(theta, names, self.name)
        like = next(theta[k] for k in names if theta[k].is_floating_point())
        state = {f"clip.{k}": theta[k] for k in names if k in theta}
        state |= {f"clip.{k}": self._constant(k, like) for k in self._constants}
        if tower is self._text and self._causal is not None:
            state = self._causal.fit(state, inputs.shape[1], "clip.")
        inputs = inputs.to(like.device, like.dtype) if inputs.is_floating_point() else inputs.to(like.device)
        with no_fast_path():
            features = functional_call(tower, state, (inputs,), tie_weights=self._tied)
        return F.normalize(features, dim=-1) if normalize else features

    def image_part(self, name: str) -> nn.Module:
        """The submodule ``name`` (``visual...``) of the image tower, without weights: a place for forward hooks."""
        return self._image.get_submodule(f"clip.{name}")

    def prefix(self, changed: Collection[str]) -> Prefix:
        """The part of both towers before the first use of a ``changed`` parameter, to be computed only once."""
        return Prefix(self._image.clip, changed)

    def attention_heads(self) -> dict[str, int]:
        """{name of an attention module: number of its heads}, see ``clip.attention``."""
        return attention_heads(self._image.clip)

    def _constant(self, name: str, like: Tensor) -> Tensor:
        """A non-persistent buffer (the causal mask), on the device and in the dtype of ``like``."""
        key = (name, like.device, like.dtype)
        if key not in self._moved:
            value = self._constants[name]
            with torch.inference_mode(False):  # a tensor made in inference mode could never take part in a gradient
                self._moved[key] = value.to(like.device, like.dtype if value.is_floating_point() else value.dtype)
        return self._moved[key]


class _Tower(nn.Module):
    """A module whose ``forward`` is one ``encode_*`` of a model, because functional_call can only call ``forward``."""

    def __init__(self, clip: nn.Module, method: str) -> None:
        super().__init__()
        self.clip, self.method = clip, method

    def forward(self, inputs: Tensor) -> Tensor:
        features = getattr(self.clip, self.method)(inputs, normalize=False)
        return (
            features[0] if isinstance(features, tuple) else features
        )  # towers with output_tokens give (pooled, tokens)


class _LazyTokenizer:
    """The tokenizer that a text config describes, built on its first use, because image-only work does not need it."""

    def __init__(self, text_cfg: Mapping[str, Any], name: str, folder: Path | None) -> None:
        self.text_cfg, self.name, self.folder = dict(text_cfg), name, folder

    def __call__(self, texts: list[str]) -> Tensor:
        return self.build()(texts)

    def build(self) -> Tokenizer:
        kwargs = dict(self.text_cfg.get("tokenizer_kwargs") or {})
        context_length = int(self.text_cfg.get("context_length", 77))
        hf_name = self.text_cfg.get("hf_tokenizer_name")
        try:
            if hf_name:
                mode = self.text_cfg.get("tokenizer_mode")
                return HFTokenizer(self._local(hf_name), context_length=context_length, tokenizer_mode=mode, **kwargs)
            if "bpe_path" in kwargs:
                kwargs["bpe_path"] = self._local(kwargs["bpe_path"])
            tokenizer = SimpleTokenizer(context_length=context_length, **kwargs)
        except Exception as e:
            what = shown(hf_name or kwargs.get("bpe_path") or "SimpleTokenizer")
            why = f"{type(e).__name__}: {shown(e)}"
            raise ConfigError(
                f"model '{shown(self.name)}': the tokenizer '{what}' cannot be built here ({why}).\n"
                "Remedy: put its files beside the config JSON, or pass tokenizer=... to ClipModel.load."
            ) from e
        vocab_size = int(self.text_cfg.get("vocab_size", 49408))
        if tokenizer.vocab_size > vocab_size:  # open_clip would only notice it as an index out of range
            raise ConfigError(
                f"model '{shown(self.name)}': the tokenizer has {tokenizer.vocab_size} tokens, but the text tower "
                f"embeds only {vocab_size}.\n"
                "Remedy: name the tower's BPE file in text_cfg.tokenizer_kwargs.bpe_path of the config JSON."
            )
        return tokenizer

    def _local(self, path: str) -> str:
        """``path`` in the folder of the config JSON where that exists, otherwise ``path`` itself."""
        beside = self.folder / path if self.folder is not None else None
        return str(beside) if beside is not None and beside.exists() else str(path)


def _told_sizes(shapes: Mapping[str, Sequence[int]]) -> tuple[Any, ...] | None:
    """The sizes of the image tower; None for other towers than the two kinds below.

    ("vit", embedding, width, patch, blocks, positions), or ("resnet", embedding, width, blocks of each stage).
    """
    if "visual.attnpool.c_proj.weight" in shapes and "visual.layer1.0.conv1.weight" in shapes:
        stages = [{n.split(".")[2] for n in shapes if n.startswith(f"visual.layer{i}.")} for i in range(1, 5)]
        width = shapes["visual.layer1.0.conv1.weight"][0]
        return "resnet", shapes["visual.attnpool.c_proj.weight"][0], width, tuple(map(len, stages))
    if "visual.conv1.weight" in shapes and "visual.proj" in shapes:
        width, _, patch = shapes["visual.conv1.weight"][:3]
        blocks = {n.split(".")[3] for n in shapes if n.startswith("visual.transformer.resblocks.")}
        cells = shapes["visual.positional_embedding"][0] if "visual.positional_embedding" in shapes else 0
        return "vit", shapes["visual.proj"][1], width, patch, len(blocks), cells
    return None  # timm trunks: their configs name a class and no sizes


def _sizes_of(config: Mapping[str, Any]) -> tuple[Any, ...] | None:
    """The sizes that ``_told_sizes`` returns, from an open_clip config."""
    vision, embedding = config["vision_cfg"], config["embed_dim"]
    if "timm_model_name" in vision:
        return None
    if isinstance(vision.get("layers"), list):
        return "resnet", embedding, vision.get("width", 64), tuple(vision["layers"])
    patch, size = vision.get("patch_size", 16), vision.get("image_size", 224)
    cells = (size // patch) ** 2 + 1 if isinstance(size, int) and isinstance(patch, int) else 0
    return "vit", embedding, vision.get("width", 768), patch, vision.get("layers", 12), cells


def _require(theta: Mapping[str, Tensor], names: Sequence[str], model: str) -> None:
    # num_batches_tracked only counts training steps: eval mode never reads it, and some converters drop it
    missing = [k for k in names if k not in theta and not k.endswith("num_batches_tracked")]
    if missing:
        some = ", ".join(shown(k) for k in missing[:10]) + ", ..." * (len(missing) > 10)
        raise PairMismatch(f"theta lacks {len(missing)} tensors of the model '{shown(model)}': {some}")


def _read_json(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """(model config, preprocess config) of an open_clip config JSON, flat or with ``model_cfg``; raises ConfigError."""
    try:
        data = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as e:
        raise ConfigError(f"model: cannot read {shown(path)}: {e.strerror or e}.") from e
    except ValueError as e:
        raise ConfigError(f"model: {shown(path)} is not an open_clip config JSON: {shown(e)}.") from e
    config = data.get("model_cfg", data) if isinstance(data, dict) else None
    wanted = ("embed_dim", "vision_cfg", "text_cfg")
    if not isinstance(config, dict) or any(k not in config for k in wanted):
        raise ConfigError(
            f"model: {shown(path)} is not an open_clip config JSON: it needs the keys {', '.join(wanted)}."
        )
    if not isinstance(config["vision_cfg"], dict) or not isinstance(config["text_cfg"], dict):
        raise ConfigError(f"model: {shown(path)}: vision_cfg and text_cfg must be objects.")
    return config, dict(data.get("preprocess_cfg") or {})


def _published_preprocess(name: str) -> dict[str, Any]:
    """The mean, std and resizing that ALL published weights of ``name`` share; settings that differ are left out."""
    found = [get_pretrained_cfg(name, tag) for tag in list_pretrained_tags_by_model(name)]
    keys = ("mean", "std", "interpolation", "resize_mode")
    shared = {k: found[0].get(k) for k in keys if found and all(c.get(k) == found[0].get(k) for c in found)}
    return {k: v for k, v in shared.items() if v is not None}


def _build(config: Mapping[str, Any], name: str) -> nn.Module:
    """open_clip's module of ``config``, freshly initialised, in train mode; nothing is downloaded."""
    cfg = copy.deepcopy(dict(config))  # open_clip changes the dictionary that it is given
    hf_model = cfg["text_cfg"].get("hf_model_name")
    if hf_model:
        raise ConfigError(
            f"model '{shown(name)}': its text tower '{shown(hf_model)}' is described only on the Hugging Face hub.\n"
            "Remedy: build the module yourself and pass sharpscope.load_pair model=ClipModel.from_module(module)."
        )
    if "timm_model_name" in cfg["vision_cfg"]:
        cfg["vision_cfg"]["timm_model_pretrained"] = False
    custom_text = cfg.pop("custom_text", False)
    kind = open_clip.CoCa if "multimodal_cfg" in cfg else open_clip.CustomTextCLIP if custom_text else open_clip.CLIP
    try:
        return kind(**cfg)
    except (TypeError, ValueError, KeyError, AssertionError, ZeroDivisionError) as e:
        raise ConfigError(f"model: open_clip cannot build {shown(name)}: {type(e).__name__}: {shown(e)}.") from e


def _skeleton_of_config(config: Mapping[str, Any], name: str) -> tuple[nn.Module, dict[str, Tensor]]:
    """(module on the meta device, its non-persistent buffers with their values). Raises ConfigError."""
    try:
        with torch.device("meta"):
            module = _build(config, name)
    except (NotImplementedError, RuntimeError):  # some timm trunks compute while they are built
        module = None
    if module is not None and not _has_plain_tensors(module):
        constants = _non_persistent(module)
        if all(
            k.endswith("attn_mask") for k in constants
        ):  # open_clip's causal mask: TextTransformer.build_causal_mask
            return module, {k: torch.full(v.shape, float("-inf")).triu_(1) for k, v in constants.items()}
    with torch.random.fork_rng(devices=[]):
        return _skeleton_of_module(_build(config, name))


def _skeleton_of_module(module: nn.Module) -> tuple[nn.Module, dict[str, Tensor]]:
    """(copy of ``module`` on the meta device, its non-persistent buffers); no weights are copied."""
    constants = {k: v.detach().clone() for k, v in _non_persistent(module).items()}
    memo: dict[int, Any] = {}
    for p in module.parameters():
        memo[id(p)] = nn.Parameter(torch.empty_like(p, device="meta"), requires_grad=False)
    for b in module.buffers():
        memo[id(b)] = torch.empty_like(b, device="meta")
    return copy.deepcopy(module, memo), constants


def _non_persistent(module: nn.Module) -> dict[str, Tensor]:
    kept = set(module.state_dict())
    return {k: b for k, b in module.named_buffers() if k not in kept}


def _has_plain_tensors(module: nn.Module) -> bool:
    """Whether a tensor is a plain attribute of a submodule, where neither state_dict nor functional_call reaches it."""
    return any(isinstance(v, Tensor) for m in module.modules() for v in vars(m).values())


def pretrained_tag(text: str) -> str:
    """What to pass instead of one of open_clip's pretrained tags (``laion2b_s34b_b79k``, also behind a model's name, as
    in ``ViT-B-32/openai``): an error's last sentences. Empty where ``text`` is no such tag."""
    model, _, tag = text.replace(":", "/").replace("//", "/").rpartition("/")
    if not looks_like_tag(text):
        return ""
    models = [m for m, t in open_clip.list_pretrained() if t == tag and model in ("", m)]
    if not models:
        return ""
    hubs = [(get_pretrained_cfg(m, tag) or {}).get("hf_hub") for m in models]
    hub = next((h.strip("/") for h in hubs if isinstance(h, str) and "/" in h), "OWNER/NAME")
    return (
        f"'{tag}' is one of open_clip's pretrained tags ({listing(models, 3)}), whose weights the hub has.\n"
        f"Pass hf-hub:{hub}, or a downloaded file."
    )
