"""Train the embedded world's checkpoints again, from the seed: zero-shot CLIP, success, failure, and their relatives.

    python analyses/world.py --out DIR [--only NAME ...]

Writes NAME.safetensors and manifest.json, the files of sharpscope/clip/miniworld_data. About ten minutes in all, on
one thread. The bits, and some tenths of a point of accuracy, depend on torch's version and the processor.
"""

from __future__ import annotations

import torch
import tyro

from sharpscope.finetune.world import train_world


def main(out: str, only: tuple[str, ...] = ()) -> None:
    """Train the checkpoints of the embedded world.

    Args:
        out: Folder for the checkpoints and their manifest.
        only: Names of the checkpoints to train; default: all.
    """
    train_world(out, only)


if __name__ == "__main__":
    torch.set_num_threads(1)  # as the shipped files were made: sums in another order differ in the last bit
    tyro.cli(main)
