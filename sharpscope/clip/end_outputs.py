"""The outputs of the two ends of a path on test sets, kept so that every point can be compared with them."""

from __future__ import annotations

import torch

from sharpscope.clip.agreement import Energies, Outputs, Seen
from sharpscope.clip.answering import FeatureCache, answers
from sharpscope.clip.datasets.dataset import Dataset
from sharpscope.clip.pair import LoadedPair
from sharpscope.clip.text_energies import TextEnergies
from sharpscope.weights.path import InterpolationPath
from sharpscope.weights.theta import Theta, on_device

__all__ = ["EndOutputs"]


class EndOutputs:
    """The outputs of theta_0 and theta_1 on data sets, computed when they are first asked for.

    At most ``limit`` bytes are kept, on the CPU; the outputs on a set that does not fit are computed each time.
    """

    def __init__(
        self,
        pair: LoadedPair,
        path: InterpolationPath,
        batch_size: int,
        device: torch.device,
        cache: FeatureCache | None,
        seed: int,
        limit: int = 4 * 2**30,
    ) -> None:
        self.pair, self.path, self.batch_size, self.device = pair, path, batch_size, device
        self.cache, self.seed, self.limit = cache, seed, limit
        self._kept: dict[tuple[float, Dataset], Outputs] = {}
        self._energies: dict[float, Energies | None] = {}
        self._texts = TextEnergies(pair.model, seed)

    def at(self, end: float, dataset: Dataset) -> Outputs:
        """The outputs at alpha = ``end``, which is 0 or 1."""
        if (end, dataset) not in self._kept:
            theta, seen = on_device(self.path.at(end), self.device), Seen()
            answers(self.pair.classifier, theta, dataset, self.batch_size, self.device, cache=self.cache, seen=seen)
            outputs = seen.outputs(self.energies(end, theta))
            self.keep(end, dataset, outputs)
            return outputs
        return self._kept[end, dataset]

    def has(self, end: float, dataset: Dataset) -> bool:
        """Whether the outputs at alpha = ``end`` are kept."""
        return (end, dataset) in self._kept

    def keep(self, end: float, dataset: Dataset, outputs: Outputs) -> None:
        """Keep ``outputs``, which were computed elsewhere, where they fit."""
        if sum(o.nbytes for o in self._kept.values()) + outputs.nbytes <= self.limit:
            self._kept.setdefault((end, dataset), outputs)

    def energies(self, alpha: float, theta: Theta | None = None) -> Energies | None:
        """The features of Lipsum-FT's random texts under theta(alpha), and the scale; None where there are none.

        They follow theta where the head is made from its text tower, and are theta_0's everywhere else. ``theta``:
        theta(alpha), if it is at hand.
        """
        at = alpha if self.pair.classifier.mode == "text" else 0.0
        if at not in self._energies:
            there = theta if theta is not None and at == alpha else on_device(self.path.at(at), self.device)
            self._energies[at] = self._texts.under(there)
        return self._energies[at]
