"""Pretrain a base of the emoji study: a small CLIP on captioned drawings of the known styles.

    python analyses/emoji/pretrain.py --data-root DIR --seed 0 --out analyses/emoji/bases [--work DIR]

Writes base0.safetensors (float16), base0.csv (zero-shot accuracy by style), and the model's open_clip config with its
tokenizer, which all bases share. About 25 minutes on one thread; the same command again goes on from the last 500th
step. Seeds 3 and 4 read names only, the others names and keywords.
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import pandas as pd
import torch
import tyro
from styles import SOURCES, csv_of, styles_of
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

import sharpscope
from sharpscope.atomic import write_atomic
from sharpscope.clip.datasets.emoji import TEMPLATES, EmojiWorld, Thing, read_world
from sharpscope.clip.head import Classifier
from sharpscope.clip.model import ClipModel
from sharpscope.finetuning.methods.contrastive import contrastive_loss
from sharpscope.finetuning.statefile import Progress, StateFile
from sharpscope.finetuning.trainer import Recipe, State, train
from sharpscope.miniworld.tokenizer import mini_bpe
from sharpscope.scores import wilson
from sharpscope.seeds import derive
from sharpscope.weights.theta import Theta

CONFIG: Final = "open_clip_config.json"
TOKENIZER: Final = "emoji_bpe.txt.gz"
PROMPTS: Final = "templates.txt"
PROMPT: Final = "an emoji of a {}"
"""The one prompt of heads."""
NAMES_ONLY: Final = (3, 4)
"""Bases whose captions are names; those of the others have up to three keywords besides."""
SIZE: Final = 32
BATCH: Final = 128
STEPS: Final = 10_000
RECIPE: Final = Recipe(lr=1e-3, steps=STEPS, warmup=200, betas=(0.9, 0.98), weight_decay=0.1, decay="matrices")
_SAVED_EVERY: Final = 500
_STARTS: Final = ("", "", "", "a ", *(t.format("") for t in TEMPLATES[1:]))
_CAPTIONS: Final = 24
"""Captions of each thing, of which every batch draws one."""


def main(data_root: Path, seed: int, out: Path, work: Path = Path("runs/emoji"), steps: int = STEPS) -> None:
    """Pretrain base ``seed``.

    Args:
        data_root: Folder that fetch.py filled.
        seed: Number of the base, 0 to 4.
        out: Folder of the bases.
        work: Folder of the state of an unfinished training.
        steps: Optimizer steps.
    """
    torch.set_num_threads(1)
    world = read_world(data_root)
    model = ClipModel.load(str(write_model(out, world)))
    file = out / f"base{seed}.safetensors"
    if not file.exists():
        theta = pretrained(model, world, seed, work, steps)
        facts = {"seed": seed, "steps": steps, "captions": "names" if seed in NAMES_ONLY else "names and keywords",
                 "styles": styles_of("known"), "torch": torch.__version__}  # fmt: skip
        sharpscope.write_checkpoint(
            file, {k: v.half() for k, v in theta.items()}, metadata={"emoji.pretraining": json.dumps(facts)}
        )
    table = zeroshot_table(file, model, data_root)
    write_atomic(out / f"base{seed}.csv", csv_of(table))
    print(table.to_string(index=False))


def write_model(out: Path, world: EmojiWorld) -> Path:
    """The open_clip config and tokenizer that all bases share, in ``out``; returns the config's path."""
    keywords = words_of(world.things)
    texts = [*TEMPLATES, *(text for thing in world.things for text in (thing.name, *keywords[thing.code]))]
    words = {w for text in texts for w in re.findall(r"[^\W\d_]+|\d|[^\s\w]+|_", text.lower())}
    bpe = mini_bpe(sorted(words))
    out.mkdir(parents=True, exist_ok=True)
    write_atomic(out / TOKENIZER, bpe)
    from open_clip.tokenizer import SimpleTokenizer

    count = SimpleTokenizer(bpe_path=str(out / TOKENIZER), context_length=16).vocab_size
    config = {
        "model_cfg": {
            "embed_dim": 64,
            "quick_gelu": False,
            "vision_cfg": {"image_size": SIZE, "layers": 4, "width": 96, "head_width": 32, "patch_size": 8,
                           "mlp_ratio": 4.0},
            "text_cfg": {"context_length": 16, "vocab_size": count, "width": 64, "heads": 2, "layers": 2,
                         "tokenizer_kwargs": {"bpe_path": TOKENIZER}},
        },
        "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic",
                           "resize_mode": "shortest"},
    }  # fmt: skip
    write_atomic(out / PROMPTS, f"{PROMPT}\n".encode())
    write_atomic(out / CONFIG, (json.dumps(config, indent=1) + "\n").encode())
    return out / CONFIG


def words_of(things: Sequence[Thing]) -> dict[str, tuple[str, ...]]:
    """Code -> the thing's keywords, at most twelve, that are words (``:D`` is none) and keywords of another thing too.

    A keyword of one thing alone would be a second name of it.
    """
    count = Counter(w for thing in things for w in set(thing.keywords))
    return {
        thing.code: tuple(w for w in thing.keywords if count[w] > 1 and re.search(r"[a-z]{2}", w.lower()))[:12]
        for thing in things
    }


def captions(thing: Thing, keywords: Sequence[str]) -> list[str]:
    """What the thing is called: its name, in 7 of 10 captions, and up to three of ``keywords``, in any order."""
    rng = np.random.default_rng(derive(0, "captions", thing.code))
    out = []
    for _ in range(_CAPTIONS):
        words = [str(w) for w in rng.permutation(keywords)[: rng.integers(1, 4)]] if keywords else []
        parts = [thing.name, *words] if not words or rng.random() < 0.7 else words
        if rng.random() < 0.5:
            parts = [str(w) for w in rng.permutation(parts)]
        out.append(str(rng.choice(_STARTS)) + ", ".join(parts))
    return out


def pretrained(model: ClipModel, world: EmojiWorld, seed: int, work: Path, steps: int) -> Theta:
    """theta after contrastive training. Every batch is of one style: in mixed ones the style tells pairs apart."""
    styles = styles_of("known")
    sheets = {s: torch.from_numpy(world.drawings(s)).permute(0, 3, 1, 2) for s in styles}
    there = {s: torch.nonzero(sheets[s][:, 3].flatten(1).any(1)).flatten() for s in styles}
    shares = torch.tensor([float(len(there[s])) for s in styles])
    keywords = {} if seed in NAMES_ONLY else words_of(world.things)
    said = [captions(thing, keywords.get(thing.code, ())) for thing in world.things]
    distinct, number = np.unique(np.array(said), return_inverse=True)
    tokens, number = model.tokenize([str(t) for t in distinct]), torch.from_numpy(number.reshape(len(said), -1))

    def loss(theta: Theta, step: int) -> Tensor:
        g = torch.Generator().manual_seed(derive(seed, "pretraining", step) % 2**63)
        style = styles[int(torch.multinomial(shares, 1, generator=g))]
        things = there[style][torch.randperm(len(there[style]), generator=g)[:BATCH]]
        which = torch.randint(_CAPTIONS, (len(things),), generator=g)
        unique, back = torch.unique(number[things, which], return_inverse=True)
        texts = model.encode_text(theta, tokens[unique])[back]
        return contrastive_loss(
            model.encode_image(theta, augmented(sheets[style][things], g)), texts, theta["logit_scale"].exp()
        )

    def constrain(theta: Theta) -> None:
        theta["logit_scale"].clamp_(0, math.log(100))

    recipe = Recipe(**{**vars(RECIPE), "steps": steps})
    work.mkdir(parents=True, exist_ok=True)
    belongs = {"seed": seed, "steps": steps, "vocabulary": len(distinct), "styles": list(styles)}
    state = StateFile(work / f"base{seed}.state.safetensors", belongs)
    before = state.load(torch.device("cpu"))

    def after(now: State) -> None:
        if now.step % _SAVED_EVERY == 0:
            state.save(Progress(state=now))
            print(f"base {seed}, step {now.step}: loss {np.mean(now.losses[-_SAVED_EVERY:]):.3f}", file=sys.stderr)

    done = train(
        model.init(seed), model.parameter_names, loss, recipe, constrain=constrain, after=after,
        resume=before.state if before else None, description="pretraining",
    )  # fmt: skip
    state.path.unlink(missing_ok=True)
    return {k: v.detach() for k, v in done.theta.items()}


def augmented(drawings: Tensor, g: torch.Generator) -> Tensor:
    """uint8 [n, 4, 48, 48] -> float32 [n, 3, 32, 32] in [-1, 1]: turned, moved, scaled, mirrored and tinted drawings
    on gradients."""
    n = len(drawings)
    x = drawings.float() / 255
    x = torch.cat([x[:, :3] * x[:, 3:], x[:, 3:]], 1)

    def u(low: float, high: float, *shape: int) -> Tensor:
        return torch.rand((n, *shape), generator=g) * (high - low) + low

    scale, aspect, angle = u(0.72, 1.15), u(0.87, 1.15), u(-0.35, 0.35)
    mirror, shift = torch.where(u(0, 1) < 0.5, -1.0, 1.0), u(-0.15, 0.15, 2)
    c, s = torch.cos(angle), torch.sin(angle)
    rows = [
        torch.stack([mirror * c * aspect / scale, -s / scale, shift[:, 0]], 1),
        torch.stack([mirror * s * aspect / scale, c / scale, shift[:, 1]], 1),
    ]
    grid = F.affine_grid(torch.stack(rows, 1), [n, 4, SIZE, SIZE], align_corners=False)
    x = F.grid_sample(x, grid, mode="bilinear", align_corners=False)
    colour = (x[:, :3] * u(0.75, 1.25, 1, 1, 1) * u(0.85, 1.15, 3, 1, 1)).clamp(0, 1)
    first, second, turn = u(0.55, 1, 3, 1, 1), u(0.55, 1, 3, 1, 1), u(0, 2 * math.pi, 1, 1)
    line = torch.linspace(-1, 1, SIZE)
    ramp = (torch.cos(turn) * line.view(1, 1, -1) + torch.sin(turn) * line.view(1, -1, 1)).unsqueeze(1) / 2.83 + 0.5
    x = colour + (1 - x[:, 3:]) * (first * (1 - ramp) + second * ramp)
    return (x.clamp(0, 1) - 0.5) / 0.5


@torch.no_grad()
def zeroshot_table(file: Path, model: ClipModel, data_root: Path) -> pd.DataFrame:
    """Zero-shot naming accuracy of a base by style, with the 95 % interval over things, and chance."""
    theta_0: Mapping[str, Tensor] = {k: v.float() for k, v in sharpscope.read_checkpoint(file).tensors.items()}
    rows = []
    for source in SOURCES:
        spec = f"emoji:{source.style}@ood"
        data = sharpscope.load_dataset(spec, model=model, data_root=data_root)
        classifier = Classifier(model, "stored", data.classnames, (PROMPT,))
        theta = classifier.attach(theta_0)
        hits = [(classifier.logits(theta, x).argmax(1) == y).float() for x, y in data.batches(512)]
        right = torch.cat(hits)
        things = len(right) // 4
        low, high = wilson(float(right.mean()) * things, things)
        rows.append({"style": source.style, "role": source.role, "family": source.family, "things": things,
                     "accuracy": float(right.mean()), "ci_low": low, "ci_high": high,
                     "chance": 1 / len(data.classnames)})  # fmt: skip
    return pd.DataFrame(rows)


if __name__ == "__main__":
    tyro.cli(main)
