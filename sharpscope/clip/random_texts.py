"""Texts of random tokens, on which Lipsum-FT measures how far an image's energies move (Nam et al. 2024)."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from sharpscope.clip.model import ClipModel
from sharpscope.errors import ConfigError

__all__ = ["RANDOM_TEXTS", "RANDOM_TEXT_LENGTH", "random_texts"]

RANDOM_TEXTS: Final = 80
"""The number M of random texts per step in the authors' code."""
RANDOM_TEXT_LENGTH: Final = 8
"""The number L of random tokens of each text in the authors' code."""


def random_texts(model: ClipModel, count: int, length: int, generator: torch.Generator) -> Tensor:
    """Token ids [count, context_length]: start, ``length`` tokens drawn uniformly from the vocabulary, end, padding.

    Raises ConfigError if these do not fit the context, or if the end token is not the tokenizer's highest id (CLIP's
    text tower takes its feature at the highest id).
    """
    empty = model.tokenize([""])
    start, end, context = int(empty[0, 0]), int(empty[0, 1]), empty.shape[1]
    if length < 1 or length + 2 > context:
        raise ConfigError(f"lipsum-ft: text_length {length} does not fit a context of {context} tokens.")
    if not start + 1 == end == int(empty.max()):
        raise ConfigError(f"lipsum-ft: the tokenizer of '{model.name}' does not end texts with its highest token.")
    tokens = empty.repeat(count, 1)
    tokens[:, 1 : 1 + length] = torch.randint(0, start, (count, length), generator=generator)
    tokens[:, 1 + length] = end
    return tokens
