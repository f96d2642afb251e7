"""Training recipes by name: every hyperparameter of a method on one kind of data, and where its authors set it.

A row is data. ``finetune --recipe NAME`` trains by it; what is changed beside it is recorded in the file that comes
out. The rows at the end, ``mini-...``, are ours, for the embedded world.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from sharpscope.errors import ConfigError, did_you_mean, shown
from sharpscope.finetuning.methods.starft import BACKGROUNDS

__all__ = ["NEUTRAL", "RECIPES", "Published", "Source", "published"]


@dataclass(frozen=True)
class Source:
    """Lines of a public repository, and the hyperparameters whose values they set."""

    repository: str
    """Owner and name on GitHub."""
    commit: str
    path: str
    lines: str
    """Line numbers at that commit: ``80-93``."""
    sets: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.repository}@{self.commit} {self.path}:{self.lines}"


@dataclass(frozen=True)
class Published:
    """A recipe: ``settings`` holds every hyperparameter of ``method``, so that no later default changes it."""

    name: str
    method: str
    what: str
    """What it is for, in words."""
    paper: str
    """Authors, year, arXiv id."""
    settings: Mapping[str, Any]
    sources: tuple[Source, ...] = ()
    ours: tuple[str, ...] = ()
    """Hyperparameters that the authors' public material does not give, or that we set otherwise on purpose."""
    why: str = ""
    """Why they are ours, in words; empty where ``ours`` is."""


NEUTRAL: Final[dict[str, Any]] = {
    "steps": None, "accumulate": 1, "optimizer": "adamw", "momentum": 0.9, "beta2": 0.999, "warmup": 0.0,
    "warmup_epochs": 0.0, "warmup_lr": None, "schedule": "linear-cosine", "decay": "all", "clip_norm": None,
    "shots": None, "ema": None, "ema_debias": False, "keep_best": False, "judge_every": None, "crop": None, "flip": 0.0,
    "jitter": None,
}  # fmt: skip
"""Values that switch a part off, or that are torch's own defaults: they need no source."""

_WISE_PAPER: Final = "Wortsman et al. 2022, arXiv 2109.01903"
_FLYP_PAPER: Final = "Goyal et al. 2023, arXiv 2212.00638"
_LIPSUM_PAPER: Final = "Nam et al. 2024, arXiv 2404.00860"
_COOP_PAPER: Final = "Zhou et al. 2022, arXiv 2109.01134"
_CLIPFIT_PAPER: Final = "Li et al. 2024, arXiv 2409.16718"


# ---------------------------------------------------------------------- WiSE-FT and what starts from it
def _wise(path: str, lines: str, *sets: str) -> Source:
    return Source("mlfoundations/wise-ft", "58b7a4b", path, lines, sets)


_WISE_CODE: Final = (
    _wise("src/args.py", "82-101", "weight_decay", "label_smoothing", "warmup", "epochs"),
    _wise("src/models/utils.py", "15-32", "schedule"),
    _wise("src/models/finetune.py", "61-62", "decay", "optimizer"),
    _wise("src/models/finetune.py", "89", "clip_norm"),
    _wise("src/models/modeling.py", "35-50", "head_bias"),
    _wise("src/models/zeroshot.py", "53", "scale_baked"),
)
_WISE_CROP: Final = _wise("clip/clip.py", "68", "crop")
_WISE: Final[dict[str, Any]] = NEUTRAL | {
    "lr": 3e-5, "epochs": 10, "batch_size": 512, "warmup": 500.0, "weight_decay": 0.1, "clip_norm": 1.0,
    "crop": (0.9, 1.0), "label_smoothing": 0.0, "head_bias": True, "scale_baked": True,
}  # fmt: skip


# ---------------------------------------------------------------------- FLYP and what starts from it
def _flyp(lines: str) -> tuple[Source, ...]:
    def of(path: str, lines: str, *sets: str) -> Source:
        return Source("locuslab/FLYP", "215d5bb", path, lines, sets)

    return (
        of("README.md", lines, "lr", "epochs", "batch_size", "weight_decay"),
        of("src/args.py", "87-90", "warmup"),
        of("src/models/utils.py", "19-34", "schedule"),
        of("src/models/flyp_loss.py", "66-69", "decay", "optimizer"),
        of("clip/clip.py", "70", "crop"),
    )


_FLYP: Final[dict[str, Any]] = NEUTRAL | {
    "lr": 1e-5, "epochs": 10, "batch_size": 512, "warmup": 500.0, "weight_decay": 0.1, "crop": (0.9, 1.0),
}  # fmt: skip
_FLYP_WILD: Final[dict[str, Any]] = _FLYP | {"epochs": 20, "weight_decay": 0.2, "batch_size": 256}


# ---------------------------------------------------------------------- Lipsum-FT
def _lipsum(command: str) -> tuple[Source, ...]:
    def of(path: str, lines: str, *sets: str) -> Source:
        return Source("cs-giung/lipsum-ft", "1331873", path, lines, sets)

    script = "scripts/Lipsum-FT.py"
    return (
        of("README.md", command, "steps", "lr"),
        of(script, "234-251", "schedule", "warmup", "decay", "optimizer"),
        of(script, "290-340", "judge_every", "keep_best"),
        of(script, "165-173", "kind", "captions"),
        of(script, "450-487", "label_smoothing", "strength", "texts", "text_length", "weight_decay", "clip_norm"),
        of("scripts/defaults.py", "37-39", "batch_size"),
        of("src/input_pipeline.py", "53-69", "crop"),
        of("src/input_pipeline.py", "48-50", "flip"),
    )


_LIPSUM: Final[dict[str, Any]] = NEUTRAL | {
    "lr": 1e-5, "epochs": 10, "steps": 50_000, "batch_size": 256, "warmup": 0.1, "schedule": "zero-linear-cosine",
    "weight_decay": 0.0, "keep_best": True, "judge_every": 1000, "crop": (0.08, 1.0), "flip": 0.5,
    "label_smoothing": 0.0, "strength": 1.0, "texts": 80, "text_length": 8, "kind": "random", "captions": None,
}  # fmt: skip


# ---------------------------------------------------------------------- what Dassl trains: CoOp, KgCoOp, CLIPFit
def _dassl(path: str, lines: str, *sets: str) -> Source:
    return Source("KaiyangZhou/Dassl.pytorch", "c61a1b5", f"dassl/{path}", lines, sets)


_DASSL_CODE: Final = (
    _dassl("config/defaults.py", "153-154", "weight_decay", "momentum"),
    _dassl("config/defaults.py", "40", "crop"),
    _dassl("data/transforms/transforms.py", "239", "flip"),
    _dassl("optim/lr_scheduler.py", "35-54", "warmup_epochs", "schedule"),
    _dassl("optim/optimizer.py", "105-113", "decay"),
)
_OF_CONFIG: Final = (
    "lr",
    "epochs",
    "batch_size",
    "optimizer",
    "warmup_epochs",
    "warmup_lr",
    "schedule",
    "flip",
    "crop",
)
_DASSL: Final[dict[str, Any]] = NEUTRAL | {
    "lr": 2e-3, "epochs": 100, "batch_size": 32, "optimizer": "sgd", "warmup_epochs": 1.0, "warmup_lr": 1e-5,
    "schedule": "epoch-cosine", "weight_decay": 5e-4, "shots": 16, "crop": (0.08, 1.0), "flip": 0.5,
}  # fmt: skip
_CLIPFIT: Final[dict[str, Any]] = _DASSL | {"strength": 8.0, "distance": "cosine"}
_PROMPT: Final[dict[str, Any]] = _DASSL | {
    "words": "a photo of a", "length": None, "class_specific": False, "strength": 0.0
}  # fmt: skip


def _coop(config: str, *more: Source) -> tuple[Source, ...]:
    config = f"configs/trainers/CoOp/{config}.yaml"
    own = (
        Source("KaiyangZhou/CoOp", "ff61507", config, "1-22", _OF_CONFIG),
        Source("KaiyangZhou/CoOp", "ff61507", "train.py", "90-95", ("class_specific",)),
        Source("KaiyangZhou/CoOp", "ff61507", "trainers/coop.py", "273", ("strength",)),
    )
    return (*own, *more, *_DASSL_CODE)


_COOP_WORDS: Final = Source(
    "KaiyangZhou/CoOp", "ff61507", "configs/trainers/CoOp/vit_b16_ctxv1.yaml", "31-33", ("words", "length")
)
_COOP_SHOTS: Final = Source("KaiyangZhou/CoOp", "ff61507", "COOP.md", "17-22", ("shots", "length", "class_specific"))
_COOP_IMAGENET: Final = Source("KaiyangZhou/CoOp", "ff61507", "COOP.md", "13", ("epochs",))
_KGCOOP: Final = (
    Source("htyao89/KgCoOp", "c43ccc3", "KgCoOp/configs/trainers/KgCoOp/vit_b16_ep100_ctxv1.yaml", "1-22", _OF_CONFIG),
    Source("htyao89/KgCoOp", "c43ccc3", "KgCoOp/trainers/kgcoop.py", "94-104", ("words", "length")),
    Source("htyao89/KgCoOp", "c43ccc3", "KgCoOp/scripts/base2new_train.sh", "14-15", ("shots", "class_specific")),
    Source("htyao89/KgCoOp", "c43ccc3", "KgCoOp/scripts/run.sh", "2-11", ("strength",)),
    *_DASSL_CODE,
)


def _few(shots: int, epochs: int, config: str) -> Published:
    return Published(
        f"coop-{shots}shots", "coop", f"{shots} images a class, 16 random context vectors; not for ImageNet",
        _COOP_PAPER, _PROMPT | {"epochs": epochs, "shots": shots, "length": 16}, _coop(config, _COOP_SHOTS), ("words",),
        "words are not used where length is given",
    )  # fmt: skip


def _clipfit(name: str, what: str, line: str, config: str = "vit_b16_ep100_ctxv1", **own: Any) -> Published:
    def of(path: str, lines: str, *sets: str) -> Source:
        return Source("minglllli/CLIPFit", "4dde049", path, lines, sets)

    sources = (
        of(f"CLIPFit/configs/trainers/ClipFit/{config}.yaml", "1-22", *_OF_CONFIG),
        of("README.md", line, "strength", "epochs"),
        of("CLIPFit/scripts/ClipFit/base2new_train.sh", "27", "shots"),
        of("CLIPFit/trainers/ClipFit.py", "292", "decay"),
        of("CLIPFit/trainers/ClipFit.py", "116-129", "distance"),
        *_DASSL_CODE,
    )
    return Published(name, "clipfit", what, _CLIPFIT_PAPER, _CLIPFIT | own, sources)


_TEN: Final[dict[str, Any]] = {"config": "vit_b16_ep10_ctxv1", "epochs": 10}
_NEW: Final = "10"  # the README's line on base-to-new
_SHOT: Final = "23"  # and that on few shots


# ---------------------------------------------------------------------- CLIP-LoRA
def _clip_lora(shots: int) -> Published:
    def of(path: str, lines: str, *sets: str) -> Source:
        return Source("MaxZanella/CLIP-LoRA", "358f0d7", path, lines, sets)

    sources = (
        of("run_utils.py", "24-37", "shots", "lr", "batch_size", "towers", "targets", "rank", "alpha", "dropout"),
        of("lora.py", "73-76", "steps", "weight_decay", "decay", "optimizer", "schedule"),
        of("loralib/layers.py", "41-42", "scaling"),
        of("main.py", "39-40", "crop", "flip"),
    )
    return Published(
        f"cliplora-{shots}shots", "lora", f"{shots} images a class", "Zanella & Ben Ayed 2024, arXiv 2405.18541",
        _LORA | {"shots": shots, "steps": 500 * shots}, sources, ("epochs", "dropout"),
        "epochs are not used where steps is given; the authors draw the dropped inputs for every token anew, here one "
        "draw holds for all tokens of a step",
    )  # fmt: skip


_LORA: Final[dict[str, Any]] = NEUTRAL | {
    "lr": 2e-4, "epochs": 10, "batch_size": 32, "schedule": "floored-cosine", "weight_decay": 0.01,
    "crop": (0.08, 1.0), "flip": 0.5, "rank": 2, "alpha": 1.0, "scaling": "sqrt", "dropout": 0.25,
    "targets": ("q", "k", "v"), "towers": "both",
}  # fmt: skip


# ---------------------------------------------------------------------- StarFT, R-Adapter, L2-SP
def _starft(path: str, lines: str, *sets: str) -> Source:
    return Source("alinlab/StarFT", "4d11b94", path, lines, sets)


_STARFT_CODE: Final = (
    _starft("README.md", "34", "base", "strength", "spurious_type"),
    _starft("scripts/train.sh", "25-41", "lr", "epochs", "batch_size", "weight_decay"),
    _starft("src/args.py", "92-96", "warmup"),
    _starft("src/main.py", "185", "decay", "optimizer"),
    _starft("src/main.py", "229-230", "schedule"),
    _starft("src/main.py", "264-266", "falls"),
    _starft("clip/clip.py", "70", "crop"),
)
_STARFT: Final[dict[str, Any]] = _FLYP | {
    "base": "contrastive", "strength": 0.5, "falls": "epochs", "spurious_type": "star", "spurious": BACKGROUNDS,
}  # fmt: skip
_NOT_PUBLIC: Final = "not public to us; our choice"


# ---------------------------------------------------------------------- the embedded world
_MINI: Final[dict[str, Any]] = {
    "shots": 128, "epochs": 5, "steps": None, "batch_size": 64, "warmup": 0.1, "warmup_epochs": 0.0, "warmup_lr": None,
    "schedule": "product", "decay": "matrices", "judge_every": None, "crop": None, "flip": 0.0,
}  # fmt: skip
_MINI_WHY: Final = "the rate was chosen there; the rest is that with which the shipped files and tables were made"


def _mini(recipe: str, **own: Any) -> Published:
    """The published ``recipe`` as the embedded world trains by it."""
    start = next(row for row in _PUBLISHED if row.name == recipe)
    settings = {**start.settings, **_MINI, **own}
    if "head_bias" in settings:
        settings["head_bias"] = False
    what = "the embedded world, as analyses/finetuners.py compares the methods"
    return Published(
        f"mini-{start.method}", start.method, what, start.paper, settings, ours=tuple(settings), why=_MINI_WHY
    )


_WISE_ROW: Final = _WISE | {"scope": "tower"}
_PROBE: Final[dict[str, Any]] = _WISE | {
    "lr": 1e-3, "batch_size": 128, "crop": None, "head_start": "zeroshot", "l1": 0.0,
}  # fmt: skip
_LP_FT: Final[dict[str, Any]] = _WISE | {
    "lr": 1e-5, "probe_lr": 1e-3, "probe_share": 0.5, "head_start": "zeroshot",
}  # fmt: skip
_L2_SP: Final[dict[str, Any]] = NEUTRAL | {
    "lr": 0.01, "epochs": 10, "steps": 9000, "batch_size": 64, "optimizer": "sgd", "weight_decay": 0.0,
    "clip_norm": 1.0, "crop": (0.9, 1.0), "label_smoothing": 0.0, "strength": 0.1, "scale_baked": True,
    "distance": "l2", "scope": "tower",
}  # fmt: skip
_R_ADAPTER: Final[dict[str, Any]] = _FLYP | {
    "lr": 5e-4, "weight_decay": 0.0, "clip_norm": 1.0, "ema": 0.999, "drop": 0.2, "margin": 0.05, "smoothing": 0.05,
    "rank": None, "scale": None, "bias": False,
}  # fmt: skip
_KG: Final[dict[str, Any]] = _PROMPT | {"batch_size": 128, "strength": 8.0}
_LP_PAPER: Final = "Kumar et al. 2022, arXiv 2202.10054"
_L2_PAPER, _STARFT_PAPER = "Li et al. 2018, arXiv 1802.01483", "Kim et al. 2025, arXiv 2505.13232"
_KG_PAPER, _CONT_PAPER = "Yao et al. 2023, arXiv 2303.13283", "Wang et al. 2024, arXiv 2412.20895"
_TPGM_PROJECT: Final[dict[str, Any]] = NEUTRAL | {
    "lr": 0.01, "epochs": 10, "steps": 200, "batch_size": 64, "weight_decay": 0.0, "schedule": "constant", "norm": "l2",
    "file": None,
}  # fmt: skip
_TPGM_PAPER: Final = "Tian et al. 2023, arXiv 2303.10720"
_R_PAPER: Final = "Kim et al. 2024, arXiv 2408.05749"

_ON_WISE: Final = (
    _wise("README.md", "80-86", "lr", "epochs", "batch_size"),
    *_WISE_CODE,
    _WISE_CROP,
    _wise("README.md", "95", "scope"),
)


def _ldifs(lines: str, *sets: str) -> Source:
    return Source("omegafragger/ldifs_code", "5ffdeef", "args.py", lines, sets)


def _tpgm(path: str, lines: str, *sets: str) -> Source:
    return Source("PotatoTian/TPGM", "17be509", f"ImageNet_ViT_Exp/{path}", lines, sets)


def _rival(name: str, what: str, paper: str, sources: tuple[Source, ...], why: str, **own: Any) -> Published:
    """WiSE-FT's fine-tuning with something on top; what no source sets is ours."""
    sourced = {setting for source in sources for setting in source.sets}
    ours = tuple(setting for setting in own if setting not in sourced)
    return Published(name, name, what, paper, _WISE_ROW | own, (*_ON_WISE, *sources), ours, why)


_PUBLISHED: Final = (
    Published("wise-ft-imagenet", "wise-ft", "ImageNet", _WISE_PAPER, _WISE_ROW, _ON_WISE),
    Published(
        "linear-probe-imagenet", "linear-probe", "WiSE-FT's linear classifier on frozen features", _WISE_PAPER, _PROBE,
        (
            _wise("src/args.py", "71-81", "lr", "batch_size"), *_WISE_CODE,
            _wise("src/models/finetune.py", "30", "crop"), _wise("src/models/finetune.py", "56-59", "l1"),
            _wise("src/wise_ft.py", "46-56", "head_start"),
        ),
    ),
    Published(
        "lp-ft", "lp-ft", "any classification", _LP_PAPER, _LP_FT, (*_WISE_CODE, _WISE_CROP),
        ("lr", "probe_lr", "probe_share", "batch_size", "head_start"),
        "the paper and its code (AnanyaKumar/transfer_learning@13c3e2b scripts/run_adaptation_experiments.py:1379) "
        "take the best rate of a grid for each data set; all else is WiSE-FT's",
    ),
    Published(
        "l2-sp", "l2-sp", "any classification", _L2_PAPER, _L2_SP, (), tuple(_L2_SP),
        "from the text of the paper, whose rate falls in steps and whose strength is chosen for each data set; "
        "clip_norm and crop are our choice",
    ),
    Published(
        "lipsum-imagenet", "lipsum-ft", "ImageNet", _LIPSUM_PAPER, _LIPSUM, _lipsum("128"), ("epochs",),
        "not used where steps is given",
    ),
    Published(
        "lipsum-domainnet", "lipsum-ft", "DomainNet-Real", _LIPSUM_PAPER, _LIPSUM | {"steps": 5000}, _lipsum("109"),
        ("epochs",), "not used where steps is given",
    ),
    Published("flyp-imagenet", "flyp", "ImageNet", _FLYP_PAPER, _FLYP, _flyp("34")),
    Published("flyp-iwildcam", "flyp", "iWildCam", _FLYP_PAPER, _FLYP_WILD, _flyp("45")),
    Published("flyp-fmow", "flyp", "FMoW", _FLYP_PAPER, _FLYP_WILD, _flyp("54")),
    Published(
        "starft-imagenet", "starft", "ImageNet", _STARFT_PAPER, _STARFT, _STARFT_CODE, ("spurious",),
        "eleven contexts of our own in place of the released pool of backgrounds, which a language model wrote",
    ),
    _clipfit("clipfit-base-to-new", "base-to-new, but for Food-101 and ImageNet", _NEW),
    _clipfit("clipfit-base-to-new-food101", "base-to-new on Food-101", _NEW, **_TEN),
    _clipfit("clipfit-base-to-new-imagenet", "base-to-new on ImageNet", _NEW, **_TEN),
    _clipfit("clipfit-few-shot", "few shots, but for the four sets below", _SHOT, strength=2.0),
    _clipfit("clipfit-few-shot-dtd", "few shots of DTD", _SHOT),
    _clipfit("clipfit-few-shot-sun397", "few shots of SUN397", _SHOT),
    _clipfit("clipfit-few-shot-food101", "few shots of Food-101", _SHOT, strength=2.0, **_TEN),
    _clipfit("clipfit-few-shot-imagenet", "few shots of ImageNet", _SHOT, strength=2.0, **_TEN),
    Published(
        "coop-words", "coop", "16 shots from the words 'a photo of a'", _COOP_PAPER, _PROMPT | {"epochs": 200},
        _coop("vit_b16_ctxv1", _COOP_WORDS, Source("KaiyangZhou/CoOp", "ff61507", "COOP.md", "22", ("shots",))),
    ),
    _few(16, 200, "vit_b16"),
    _few(8, 200, "vit_b16"),
    _few(4, 100, "vit_b16_ep100"),
    _few(2, 100, "vit_b16_ep100"),
    _few(1, 50, "vit_b16_ep50"),
    Published(
        "coop-imagenet", "coop", "16 shots of ImageNet (--set shots=N for fewer: the epochs stay)", _COOP_PAPER,
        _PROMPT | {"epochs": 50, "length": 16}, _coop("vit_b16_ep50", _COOP_IMAGENET, _COOP_SHOTS), ("words",),
        "words are not used where length is given",
    ),
    Published("kgcoop", "kgcoop", "base-to-new, 16 shots", _KG_PAPER, _KG, _KGCOOP),
    Published(
        "contcoop", "contcoop", "few shots; the prompts are carried to another backbone", _CONT_PAPER, _KG, (),
        tuple(_KG), f"{_NOT_PUBLIC}: KgCoOp's",
    ),
    Published(
        "r-adapter", "r-adapter", "ImageNet", _R_PAPER, _R_ADAPTER, (), tuple(_R_ADAPTER),
        f"from the text and summaries of the paper; its code is {_NOT_PUBLIC}: smoothing, clip_norm, and FLYP's value "
        "for what the text leaves open",
    ),
    *map(_clip_lora, (16, 8, 4, 2, 1)),
    _rival(
        "kd", "any classification", "Hinton et al. 2015, arXiv 1503.02531", (),
        "the weight and the temperature are our choice, all else is WiSE-FT's", strength=1.0, temperature=1.0,
    ),
    _rival(
        "car-ft", "any classification", "Mao et al. 2022, arXiv 2211.16175", (),
        f"its code is {_NOT_PUBLIC}, all else is WiSE-FT's", strength=1.0, contexts=(),
    ),
    _rival(
        "ldifs", "any classification", "Mukhoti et al. 2024, arXiv 2308.13320",
        (_ldifs("32-36", "batch_size"), _ldifs("89-94", "strength")),
        "the released default, 1e-3, belongs to their sweep of rates; WiSE-FT's scale of rates is our choice",
        lr=1e-5, batch_size=128, strength=10.0,
    ),
    _rival(
        "tpgm", "any classification", _TPGM_PAPER,
        (_tpgm("main_finetune.py", "65-74", "radius_steps", "radius_lr", "norm"),),
        "theirs learns the radii on ImageNet's validation set; a share of the training images is our choice",
        held_out=0.1, radius_steps=200, radius_lr=0.01, norm="l2",
    ),
    Published(
        "tpgm-project", "tpgm-project", "on top of another method's file: --set file=FILE", _TPGM_PAPER, _TPGM_PROJECT,
        (
            _tpgm("main_finetune.py", "58-74", "batch_size", "steps", "lr", "norm"),
            _tpgm("utils/tpgm.py", "131", "weight_decay", "schedule"),
        ),
        ("epochs", "file"), "epochs are not used where steps is given; the file is the user's",
    ),
    _rival(
        "sam", "the intervention test of a claim about sharpness", "Foret et al. 2021, arXiv 2010.01412", (),
        "no configuration for CLIP is public: rho is that of google-research/sam's command for ImageNet, all else is "
        "WiSE-FT's", rho=0.1,
    ),
    _rival(
        "asam", "the intervention test of a claim about sharpness", "Kwon et al. 2021, arXiv 2102.11600",
        (Source("SamsungLabs/ASAM", "dc9b513", "example_cifar.py", "115", ("rho",)),),
        "eta is our choice of the values in the authors' code, all else is WiSE-FT's", rho=0.5, eta=0.01,
    ),
)  # fmt: skip

_WORLD: Final = (
    Published(
        "mini-world", "wise-ft", "the embedded world's mini:success; its other pairs change lr, epochs, warmup, images",
        _WISE_PAPER, {**_WISE_ROW, **_MINI, "lr": 1e-3, "shots": None, "warmup": 0.015, "scale_baked": False,
                      "head_bias": False}, (), tuple(_WISE_ROW), _MINI_WHY,
    ),
    _mini("wise-ft-imagenet", lr=3e-3),
    _mini("linear-probe-imagenet", lr=0.3),
    _mini("lp-ft", lr=1e-3, probe_lr=0.03),
    _mini("l2-sp", lr=0.1),
    _mini("lipsum-imagenet", lr=3e-3),
    _mini("flyp-imagenet", lr=3e-3),
    _mini("starft-imagenet", lr=3e-3, falls="steps"),
    _mini("clipfit-base-to-new", lr=0.3, weight_decay=0.0),
    _mini("coop-words", lr=0.01),
    _mini("kgcoop", lr=0.01),
    _mini("contcoop", lr=0.01),
    _mini("r-adapter", lr=3e-3, ema=0.9),  # 160 steps are too few for an average over 1000
)  # fmt: skip

RECIPES: Final[Mapping[str, Published]] = {row.name: row for row in (*_PUBLISHED, *_WORLD)}
"""Every recipe by name, the papers' first."""


def published(name: str) -> Published:
    """The recipe called ``name``; ConfigError with the nearest name for one that is not there."""
    if name not in RECIPES:
        near = did_you_mean(name, RECIPES) or " 'sharpscope finetune --list' shows them."
        raise ConfigError(f"recipe: unknown recipe '{shown(name, 60)}'.{near}")
    return RECIPES[name]
