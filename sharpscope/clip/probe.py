"""The fixed set of ID examples on which the loss and its curvature are measured."""

from __future__ import annotations

import copy
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from sharpscope.card import card
from sharpscope.clip.datasets.dataset import Dataset, stratified
from sharpscope.clip.head import Classifier
from sharpscope.errors import ConfigError, DatasetError, NonDeterministicProbe
from sharpscope.machine.arithmetic import full_float32
from sharpscope.machine.devices import onto
from sharpscope.machine.team import ALONE, Team

__all__ = ["Objective", "Probe"]


class Objective(Protocol):
    """A mean over samples in batches: the protocol ``curvature.operator.Objective``, which ``clip`` may not import."""

    @property
    def weights(self) -> Sequence[float]: ...

    def batch_loss(self, i: int, theta: Mapping[str, Tensor]) -> Tensor: ...


class Probe:
    """Mean cross-entropy of a classifier over a fixed, balanced choice of examples; no augmentation, eval mode.

    L(theta) = 1/n sum_i CE(logits_theta(x_i), y_i), in nats. It is a mean over SAMPLES: the weight of batch i is
    ``weights[i]`` = its size / n (with equal weights, the Hessian of batches of 8 and 2 would be wrong by 22 %).

    Args:
        classifier: computes the logits.
        dataset: the images and labels; the chosen ones are all kept on ``device``.
        size: the number of examples, chosen balanced over the classes; None, or more than the set has: all of them.
        batch_size: the largest number of examples per batch. A larger batch needs more memory and changes the loss by
            rounding only.
        seed: the seed of the choice.
        device, dtype: the device and dtype in which the images are kept.
        normalize_logits: whether the logits f of each example are first replaced by (f - mean f) / ||f - mean f||,
            which makes the loss independent of their scale.

    Attributes: ``batches``, the (images, labels); ``n``, the number of examples; ``indices``, their indices in the data
    set; ``team``, the processes that share the batches (see ``shared``).

    Raises:
        ConfigError: a size or batch size below 1.
        DatasetError: labels that do not fit the classifier's class names, or number its classes otherwise.

    Source: Andriushchenko et al. 2023, arXiv 2302.07011 (normalised logits; n = 1024 in batches of 128).
    """

    def __init__(
        self,
        classifier: Classifier,
        dataset: Dataset,
        *,
        size: int | None = 1024,
        batch_size: int = 128,
        seed: int = 0,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        normalize_logits: bool = False,
    ) -> None:
        if batch_size < 1 or (size is not None and size < 1):
            raise ConfigError(f"probe: size and batch size must be at least 1, got {size} and {batch_size}.")
        if int(dataset.labels.max()) >= len(classifier.classnames):
            raise DatasetError(
                f"{dataset.name}: label {int(dataset.labels.max())} is out of range for the classifier's "
                f"{len(classifier.classnames)} class names."
            )
        if dataset.projection is not None:
            raise DatasetError(
                f"{dataset.name}: its {len(dataset.target_names)} classes each unite several of the classifier's "
                f"{len(classifier.classnames)} classes, so its labels cannot be targets of the cross-entropy.\n"
                "Remedy: a probe data set that has the classifier's own classes."
            )
        dataset.check_classes(classifier.classnames)
        self.classifier, self.dataset, self.normalize_logits = classifier, dataset, normalize_logits
        self.team: Team = ALONE
        self.device, self.dtype = torch.device(device), dtype
        self.indices = tuple(stratified(dataset.labels, size, seed, "probe", dataset.name))
        with torch.inference_mode(False):  # these tensors are used in passes with gradients
            self.batches: tuple[tuple[Tensor, Tensor], ...] = tuple(
                (images.to(dtype), onto(labels, self.device))
                for images, labels in dataset.subset(self.indices).batches(batch_size, self.device)
            )
        self.n = sum(self.batch_sizes)  # in a large data set, an unreadable image is noticed only here
        self.weights: tuple[float, ...] = tuple(len(labels) / self.n for _, labels in self.batches)

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        """The number of examples in every batch."""
        return tuple(len(labels) for _, labels in self.batches)

    @property
    def batch_size(self) -> int:
        """The number of examples in the largest batch."""
        return max(len(labels) for _, labels in self.batches)

    def rebatched(self, batch_size: int) -> Probe:
        """The same examples with the batches split into at most ``batch_size`` examples: the same loss up to rounding.

        Batches that are small enough are not changed, and no image is loaded again. Raises ConfigError for a size below
        1.
        """
        if batch_size < 1:
            raise ConfigError(f"probe: the batch size must be at least 1, got {batch_size}.")
        other = copy.copy(self)
        other.batches = tuple(
            part
            for images, labels in self.batches
            for part in zip(images.split(batch_size), labels.split(batch_size), strict=True)
        )
        other.weights = tuple(len(labels) / self.n for _, labels in other.batches)
        return other

    def shared(self, team: Team) -> Probe:
        """The same examples, of whose batches each process of the ``team`` computes its own; no image is loaded again.

        Every process holds all images, and what it measures is the loss of all of them.
        """
        other = copy.copy(self)
        other.team = team
        return other

    def part(self, n: int) -> Probe:
        """``n`` of the examples, spread evenly over all, as one batch; no image is loaded again."""
        places = torch.linspace(0, self.n - 1, n).round().long().split(1)
        first = torch.tensor(self.batch_sizes).cumsum(0)
        found = []
        for place in places:
            i = int(torch.searchsorted(first, place, right=True))
            at = int(place) - (int(first[i - 1]) if i else 0)
            found.append(tuple(t[at : at + 1] for t in self.batches[i]))
        other = copy.copy(self)
        other.batches = ((torch.cat([x for x, _ in found]), torch.cat([y for _, y in found])),)
        other.n, other.weights = n, (1.0,)
        return other

    def thinned(self, n: int) -> Probe:
        """About ``n`` of the examples, as many batches as there are, each with its share; no image is loaded again.

        The share of a batch is rounded up and spread evenly over it, so that none is without an example. A probe of at
        most ``n`` examples is returned unchanged.
        """
        if n >= self.n:
            return self
        other = copy.copy(self)
        other.batches = tuple(
            (images[kept], labels[kept])
            for images, labels in self.batches
            for kept in [torch.linspace(0, len(labels) - 1, math.ceil(len(labels) * n / self.n)).round().long()]
        )
        other.n = sum(other.batch_sizes)
        other.weights = tuple(len(labels) / other.n for _, labels in other.batches)
        return other

    def normalized(self) -> Probe:
        """The same examples with ``normalize_logits``; no image is loaded again."""
        other = copy.copy(self)
        other.normalize_logits = True
        return other

    def attention_heads(self) -> dict[str, int]:
        """{name of an attention module: number of its heads}, see ``clip.attention``."""
        return self.classifier.model.attention_heads()

    def __len__(self) -> int:
        return self.n

    def __repr__(self) -> str:
        return f"Probe({self.dataset.name!r}, {self.n} examples in {len(self.batches)} batches, {self.dtype})"

    def _repr_html_(self) -> str:
        facts = {
            "data set": self.dataset.name, "examples": self.n, "batches": len(self.batches),
            "dtype": str(self.dtype).removeprefix("torch."), "logits": "normalised" if self.normalize_logits else None,
        }  # fmt: skip
        return card("Probe: the loss whose curvature is measured", facts)

    def batch_logits(self, i: int, theta: Mapping[str, Tensor]) -> Tensor:
        """Logits [B, C] of batch ``i``, normalised if ``normalize_logits``; the loss is their cross-entropy.

        Differentiable in ``theta``.
        """
        logits = self.classifier.logits(theta, self.batches[i][0])
        if not self.normalize_logits:
            return logits
        return F.normalize(logits - logits.mean(dim=1, keepdim=True), dim=1)

    def batch_loss(self, i: int, theta: Mapping[str, Tensor]) -> Tensor:
        """Mean cross-entropy of batch ``i``, a scalar; the loss is sum_i weights[i] * batch_loss(i). Differentiable."""
        return F.cross_entropy(self.batch_logits(i, theta), self.batches[i][1])

    def batch_labels(self, i: int) -> Tensor:
        """Classes of batch ``i``, int64 [B]."""
        return self.batches[i][1]

    def suffix(self, theta: Mapping[str, Tensor], names: Collection[str]) -> Objective:
        """The same loss, bit for bit, for weights that differ from ``theta`` only in ``names``, with less work.

        The part of the forward pass before the first use of these weights is computed once per batch, and class vectors
        that cannot change are computed once for all batches. Only the last batch is remembered, so that batches should
        be evaluated one after the other.
        """
        return _Suffix(self, theta, tuple(names))

    def sample_losses(self, theta: Mapping[str, Tensor]) -> Tensor:
        """Cross-entropy of every example [n], in the probe's order, on its device; without gradients."""
        with torch.no_grad(), full_float32():
            frozen = self.classifier.frozen(theta)

            def losses(i: int) -> Tensor:
                return F.cross_entropy(self.batch_logits(i, frozen), self.batches[i][1], reduction="none")

            return torch.cat(self.team.each("losses", len(self.batches), losses)).to(self.device)

    def loss(self, theta: Mapping[str, Tensor]) -> float:
        """Mean cross-entropy over the examples, summed in float64; without gradients."""
        return float(self.sample_losses(theta).double().mean())

    def check_deterministic(self, theta: Mapping[str, Tensor]) -> None:
        """Raise NonDeterministicProbe unless two evaluations of the first and the last batch agree bit for bit."""
        with torch.no_grad():
            for i in sorted({0, len(self.batches) - 1}):
                first, second = self.batch_loss(i, theta), self.batch_loss(i, theta)
                if not torch.equal(first, second) and not bool(first.isnan() & second.isnan()):
                    raise NonDeterministicProbe(
                        f"two losses of the same batch differ: {first.item():.9g} and {second.item():.9g}.\n"
                        "Dropout, augmentation or another random operation is active: such a loss has no curvature."
                    )


class _Suffix:
    """See :meth:`Probe.suffix`."""

    def __init__(self, probe: Probe, theta: Mapping[str, Tensor], names: tuple[str, ...]) -> None:
        self.probe, self.weights, self.team = probe, probe.weights, probe.team
        self._theta, self._names = theta, names
        classifier = probe.classifier
        text = classifier.mode == "text" and not set(names) & set(classifier.model.text_names)
        vectors = classifier.frozen(theta) if text else {}
        self._fixed = {k: v for k, v in vectors.items() if k not in theta}
        self._prefix = classifier.model.prefix(names)
        self._batch: int | None = None

    def batch_loss(self, i: int, theta: Mapping[str, Tensor]) -> Tensor:
        if self._batch != i:
            with self._prefix.recording([self._theta[n] for n in self._names if n in self._theta]):
                self.probe.batch_loss(i, {**self._theta, **self._fixed})
            self._batch = i
        with self._prefix.replaying():
            return self.probe.batch_loss(i, {**theta, **self._fixed})
