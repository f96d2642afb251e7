"""Lipsum-FT's random texts under a model, for the energies that agreement compares."""

from __future__ import annotations

import torch
from torch import Tensor

from sharpscope.clip.agreement import Energies
from sharpscope.clip.model import ClipModel
from sharpscope.clip.random_texts import RANDOM_TEXT_LENGTH, RANDOM_TEXTS, random_texts
from sharpscope.errors import ConfigError
from sharpscope.seeds import derive
from sharpscope.weights.theta import Theta

__all__ = ["TextEnergies"]


class TextEnergies:
    """The random texts of a study: they depend on the seed alone, so that they are the same for every model and set."""

    def __init__(self, model: ClipModel, seed: int) -> None:
        self.model, self.seed = model, seed
        self._tokens: Tensor | None = None

    def under(self, theta: Theta) -> Energies | None:
        """The texts' features and the scale under ``theta``; None without text tower or where texts cannot be made."""
        if not all(name in theta for name in (*self.model.text_names, "logit_scale")):
            return None
        if self._tokens is None:
            generator = torch.Generator().manual_seed(derive(self.seed, "agreement", "texts"))
            try:
                self._tokens = random_texts(self.model, RANDOM_TEXTS, RANDOM_TEXT_LENGTH, generator)
            except ConfigError:  # a tokenizer that does not end texts with its highest token
                return None
        with torch.inference_mode():
            features = self.model.encode_text(theta, self._tokens.to(theta["logit_scale"].device))
        return Energies(features.cpu(), float(theta["logit_scale"].exp()))
