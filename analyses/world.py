"""Make everything that ships with the embedded world again, from the seed.

    python analyses/world.py --out DIR [--only NAME ...]     train the checkpoints (about ten minutes, one thread)
    python analyses/world.py --out DIR --tables              measure all pairs: across-pair tables (about six minutes)

Writes NAME.safetensors, manifest.json and mini_bpe.txt.gz, and pairs_{path,sharpness,accuracy,stragglers}.csv.gz: the
files of sharpscope/clip/miniworld_data. The bits, and some tenths of a point of accuracy, depend on torch's version and
the processor.
"""

from __future__ import annotations

import functools
import gzip
import sys
from pathlib import Path

import torch
import tyro
from tqdm import tqdm

import sharpscope
from sharpscope.finetuning.world import train_world
from sharpscope.miniworld import world as miniworld
from sharpscope.miniworld.tokenizer import mini_bpe, vocabulary
from sharpscope.study.demo import demo_config, mini_ood


def study() -> sharpscope.StudyConfig:
    """All pairs of the world at four points of the path, more precisely than the demo has time for."""
    return sharpscope.StudyConfig(
        pairs=tuple(
            sharpscope.PairConfig(name, "mini:zeroshot", f"mini:{name}")
            for name in miniworld.checkpoint_names()
            if name not in ("zeroshot", "upgraded")
        ),
        model="mini",
        probe="mini:photo",
        id=("mini:photo",),
        ood=mini_ood(),
        alphas=(0.0, 0.3, 0.5, 1.0),
        measures=demo_config().measures,
        probe_size=64,
        batch_size=64,
        rtol=0.15,
        atol_share=0,  # the default when the tables that ship were measured
        max_matvecs=16,
        noise_samples=4,
        perturbation_alphas=(0.5,),
        pgd_steps=10,
        layer_alphas=(0.0, 0.5, 1.0),
        criticality_noise=(1.0,),
        densities=(),
        threads=1,
        jobs=2,
    )


def measure(out: Path) -> None:
    """Run the study in ``out``/run (resumable) and write its tables, compressed to reproducible bytes."""
    bar = functools.partial(tqdm, file=sys.stderr, disable=None)
    run = sharpscope.run(study(), out / "run", progress=bar)
    for name in ("path", "sharpness", "accuracy", "stragglers"):
        data = (run.root / "tables" / f"{name}.csv").read_bytes()
        (out / f"pairs_{name}.csv.gz").write_bytes(gzip.compress(data, mtime=0))


def main(out: str, only: tuple[str, ...] = (), tables: bool = False) -> None:
    """Train the checkpoints of the embedded world, or measure its pairs.

    Args:
        out: Folder for the files.
        only: Names of the checkpoints to train; default: all.
        tables: Measure the packaged checkpoints instead.
    """
    if tables:
        measure(Path(out))
    else:
        train_world(out, only)
        (Path(out) / miniworld.tokenizer_path().name).write_bytes(mini_bpe(vocabulary()))


if __name__ == "__main__":
    torch.set_num_threads(1)  # like the shipped files: sums in another order differ in the last bit
    tyro.cli(main)
