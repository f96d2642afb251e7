"""From image features to class logits: zero-shot, stored and text-rebuilt heads, with an explicit logit scale."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import get_args

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from sharpscope.clip.model import ClipModel
from sharpscope.errors import ConfigError, PairMismatch, shown
from sharpscope.layers import HEAD_BIAS, HEAD_WEIGHT, tower_of
from sharpscope.miniworld import world as miniworld
from sharpscope.vocabulary import HeadKind

__all__ = ["DEFAULT_TEMPLATES", "Classifier", "default_templates", "zero_shot_head"]

DEFAULT_TEMPLATES: tuple[str, ...] = ("a photo of a {}.",)
"""The default templates: the plain prompt of CLIP (Radford et al. 2021, arXiv 2103.00020)."""

_PRECOMPUTED = "head.class_vectors"  # the tensor that Classifier.frozen adds; it is never part of a checkpoint
_TEXTS_AT_ONCE = 1024


def default_templates(model: ClipModel) -> tuple[str, ...]:
    """The prompts where the user gives none: the embedded world's for ``mini``, else :data:`DEFAULT_TEMPLATES`."""
    return tuple(miniworld.TEMPLATES) if model.name == "mini" else DEFAULT_TEMPLATES


def zero_shot_head(
    model: ClipModel, theta: Mapping[str, Tensor], classnames: Sequence[str], templates: Sequence[str]
) -> Tensor:
    """Class vectors [C, D], unit rows: normalise(mean over templates of normalise(text feature)).

    Equal to the transpose of open_clip's ``build_zero_shot_classifier``; differentiable in ``theta``. Templates
    contain ``{}`` for the class name. Raises ConfigError for no class, no template, or a template without ``{}``.
    Source: Radford et al. 2021 (arXiv 2103.00020), section 3.1.4.
    """
    return _class_vectors(model, theta, _prompts(model, classnames, templates), len(classnames))


def _prompts(model: ClipModel, classnames: Sequence[str], templates: Sequence[str]) -> Tensor:
    """Token ids [C * T, context_length]; the T templates of one class are consecutive rows."""
    if not classnames or not templates:
        raise ConfigError("head: needs at least one class name and one template.")
    _check_templates(templates)
    texts = [template.replace("{}", name) for name in classnames for template in templates]
    with torch.inference_mode(False):  # the tokens are kept and used again in passes with gradients
        return model.tokenize(texts)


def _check_templates(templates: Sequence[str]) -> None:
    for template in templates:
        if "{}" not in template:
            raise ConfigError(f"templates: '{shown(template)}' has no {{}} where the class name goes.")


def _class_vectors(model: ClipModel, theta: Mapping[str, Tensor], tokens: Tensor, num_classes: int) -> Tensor:
    chunks = [model.encode_text(theta, chunk, normalize=True) for chunk in tokens.split(_TEXTS_AT_ONCE)]
    vectors = torch.cat(chunks).unflatten(0, (num_classes, -1)).mean(dim=1)
    return vectors / vectors.norm(dim=1, keepdim=True)


class Classifier:
    """Logits of images under theta: scale * <image feature, class vector> (+ bias), [B, C].

    ========  ==================================================  ===============================================
    mode      class vectors                                       scale
    ========  ==================================================  ===============================================
    zeroshot  ``head.weight``, made from theta_0's text, frozen   exp(``logit_scale``) of theta_0
    stored    ``head.weight`` (and ``head.bias``) on the path     1 if ``scale_baked``, else exp(``logit_scale``)
    text      rebuilt from the text tower of the theta at hand    exp(``logit_scale``) of that theta
    ========  ==================================================  ===============================================

    Args:
        model: the architecture.
        mode: zeroshot | stored | text, see the table.
        classnames: C names, in the order of the logits' columns.
        templates: prompts with ``{}`` for the name; default: the model's own or "a photo of a {}.".
        scale_baked: whether the head's weights already contain the scale, as in WiSE-FT and not in Lipsum-FT.
        normalize: whether image features are first scaled to unit length (True for every CLIP head, False for a head
            trained on raw features).
        bias: whether :meth:`attach` adds a ``head.bias`` of zeros to a stored head that it builds from text, so that
            the head matches a fine-tuned head with a bias.

    Raises:
        ConfigError: an unknown mode, no class names, or a baked-in scale in a head that is not stored.

    Sources: Radford et al. 2021, arXiv 2103.00020 (heads from text); Wortsman et al. 2022, arXiv 2109.01903 (stored
    heads); Nam et al. 2024, arXiv 2404.00860 (heads without the scale).
    """

    def __init__(
        self,
        model: ClipModel,
        mode: HeadKind = "stored",
        classnames: Sequence[str] = (),
        templates: Sequence[str] | None = None,
        scale_baked: bool = False,
        normalize: bool = True,
        bias: bool = False,
    ) -> None:
        if mode not in get_args(HeadKind):
            raise ConfigError(f"head: '{shown(mode)}' is none of {', '.join(get_args(HeadKind))}.")
        if scale_baked and mode != "stored":
            raise ConfigError(f"head: a scale can be baked into a stored head only, not with head '{mode}'.")
        if not classnames:
            raise ConfigError("head: needs the class names (--classnames FILE).")
        self.model, self.mode, self.scale_baked, self.normalize, self.bias = model, mode, scale_baked, normalize, bias
        self.classnames = tuple(classnames)
        self.templates = tuple(templates) if templates else default_templates(model)
        self._tokens: Tensor | None = None

    def __repr__(self) -> str:
        return f"Classifier({self.model.name!r}, {self.mode!r}, {len(self.classnames)} classes)"

    # ------------------------------------------------------------------ theta in, theta out
    def makes_head(self, thetas: Sequence[Mapping[str, Tensor]]) -> bool:
        """Whether :meth:`attach` needs a head made from text for any of these thetas."""
        return self.mode == "zeroshot" or (self.mode == "stored" and any(HEAD_WEIGHT not in t for t in thetas))

    def made_head(
        self, theta_0: Mapping[str, Tensor], *, device: torch.device | str | None = None, one_template: bool = False
    ) -> Tensor:
        """The zero-shot head [C, D] of ``theta_0``, times its scale if ``scale_baked``, on the device of ``theta_0``.

        Args:
            theta_0: named tensors of the text tower.
            device: where the prompts are encoded; None: where ``theta_0`` is. With 1,000 classes and 80 templates a
                ViT-B-32 takes a quarter of an hour on one core of a CPU.
            one_template: encode the first template alone, which is quick and gives another head: to time what comes
                after it.

        Raises ConfigError for a template without ``{}``, or a tokenizer that cannot be built; PairMismatch where
        ``theta_0`` lacks tensors of the text tower.
        """
        read = {k: v for k, v in theta_0.items() if tower_of(k) == "text"}
        where = theta_0["logit_scale"].device if "logit_scale" in theta_0 else next(iter(read.values())).device
        there = {k: v.to(device or v.device) for k, v in read.items()}
        with torch.no_grad():
            weight = self._vectors_from_text(there, one_template).to(where)
            return _scale(theta_0) * weight if self.scale_baked else weight

    def attach(
        self, theta: Mapping[str, Tensor], theta_0: Mapping[str, Tensor] | None = None, head: Tensor | None = None
    ) -> dict[str, Tensor]:
        """``theta`` with the ``head.*`` that this mode reads, as a new dictionary that shares the tensors.

        zeroshot: the head and ``logit_scale`` of ``theta_0`` (default: ``theta``), so that only the image tower
        changes.
        stored: the head of ``theta``; if it has none, the zero-shot head of ``theta_0``, times its scale if
        ``scale_baked``. text: no head. ``head``: that of :meth:`made_head`, where it is known already.

        Raises:
            PairMismatch: a stored head without one row for each class, or a theta that lacks tensors of the model.
            ConfigError: a template without ``{}``, or a tokenizer that cannot be built.
        """
        base = theta if theta_0 is None else theta_0
        body = {k: v for k, v in theta.items() if tower_of(k) != "head"}
        if self.mode == "text":
            return body
        if not self.makes_head([theta]):
            self._check_head(theta[HEAD_WEIGHT])
            return dict(theta)
        weight = self.made_head(base) if head is None else head
        if self.mode == "zeroshot":
            body["logit_scale"] = base["logit_scale"]
        body[HEAD_WEIGHT] = weight
        if self.bias and self.mode == "stored":
            body[HEAD_BIAS] = weight.new_zeros(len(weight))
        return body

    def frozen(self, theta: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What the logits of images read of ``theta``, for evaluation only: the text tower gives way to class vectors.

        These are computed once and do not follow later changes. Raises as :meth:`class_vectors` does.
        """
        read = {k: v for k, v in theta.items() if tower_of(k) != "text"}
        if self.mode != "text" or _PRECOMPUTED in theta:
            return read
        with torch.no_grad():
            return {**read, _PRECOMPUTED: self.class_vectors(theta)}

    # ------------------------------------------------------------------ logits
    def class_vectors(self, theta: Mapping[str, Tensor]) -> Tensor:
        """Class vectors [C, D] under ``theta``; differentiable in it.

        Raises PairMismatch where theta has no fitting head or lacks tensors of the text tower, ConfigError for a
        template without ``{}``.
        """
        if self.mode == "text":
            return theta[_PRECOMPUTED] if _PRECOMPUTED in theta else self._vectors_from_text(theta)
        if HEAD_WEIGHT not in theta:
            raise PairMismatch(f"head '{self.mode}' needs head.weight in theta: Classifier.attach adds it.")
        self._check_head(theta[HEAD_WEIGHT])
        return theta[HEAD_WEIGHT]

    def logits(self, theta: Mapping[str, Tensor], images: Tensor) -> Tensor:
        """Logits [B, C] of ``images`` [B, 3, H, W], normalised by mean and std; differentiable in ``theta``.

        Raises PairMismatch where theta lacks tensors of the model, a fitting head or the scale.
        """
        return self.logits_of(theta, self.features(theta, images))

    def features(self, theta: Mapping[str, Tensor], images: Tensor) -> Tensor:
        """The image features [B, D] that the head reads, of unit length where ``normalize``."""
        return self.model.encode_image(theta, images, normalize=self.normalize)

    def logits_of(self, theta: Mapping[str, Tensor], features: Tensor) -> Tensor:
        """Logits [B, C] of image ``features`` [B, D]: the part of :meth:`logits` after the image tower.

        Raises PairMismatch where theta has no fitting head or no ``logit_scale``.
        """
        logits = F.linear(features, self.class_vectors(theta))
        if not self.scale_baked:
            logits = _scale(theta) * logits
        return logits + theta[HEAD_BIAS] if self.mode == "stored" and HEAD_BIAS in theta else logits

    # ------------------------------------------------------------------ what the loss depends on
    def parameters(self, theta: Mapping[str, Tensor]) -> tuple[str, ...]:
        """The names in ``theta``, without buffers, on which the logits depend; only these can belong to layers.

        zeroshot: the image tower (the head stays theta_0's). stored: image tower and head, and ``logit_scale`` unless
        it is baked in. text: both towers and ``logit_scale``.
        """
        depends = {*self.model.image_names}
        if self.mode == "stored":
            depends |= {HEAD_WEIGHT, HEAD_BIAS} | (set() if self.scale_baked else {"logit_scale"})
        if self.mode == "text":
            depends |= {*self.model.text_names, "logit_scale"}
        known = (*self.model.parameter_names, HEAD_WEIGHT, HEAD_BIAS)
        return tuple(k for k in known if k in theta and k in depends)

    def reached(self, theta: Mapping[str, Tensor]) -> tuple[str, ...]:
        """The :meth:`parameters` that a gradient reaches, found by one backward pass over one blank image.

        This leaves out parameters of the tower that the logits do not depend on, e.g. a trunk's unused classifier.
        Raises the errors of :meth:`logits`.
        """
        names = self.parameters(theta)
        with torch.inference_mode(False), torch.enable_grad():
            leaves = {k: theta[k].detach().clone().requires_grad_() for k in names}
            like = leaves[names[0]]
            image = torch.zeros(1, 3, *self.model.image_size, dtype=like.dtype, device=like.device)
            logits = self.logits({**theta, **leaves}, image)
            grads = torch.autograd.grad(logits.sum(), list(leaves.values()), allow_unused=True)
        return tuple(k for k, g in zip(names, grads, strict=True) if g is not None)

    # ------------------------------------------------------------------ inside
    def _vectors_from_text(self, theta: Mapping[str, Tensor], one_template: bool = False) -> Tensor:
        if one_template:
            _check_templates(self.templates)  # those that are not encoded too
            return zero_shot_head(self.model, theta, self.classnames, self.templates[:1])
        if self._tokens is None:
            self._tokens = _prompts(self.model, self.classnames, self.templates)
        return _class_vectors(self.model, theta, self._tokens, len(self.classnames))

    def _check_head(self, weight: Tensor) -> None:
        if weight.ndim != 2 or len(weight) != len(self.classnames):
            raise PairMismatch(
                f"head.weight has shape {list(weight.shape)}, which does not fit {len(self.classnames)} class names.\n"
                "Remedy: give the head's own class names, in its order (--classnames FILE)."
            )


def _scale(theta: Mapping[str, Tensor]) -> Tensor:
    if "logit_scale" not in theta:
        raise PairMismatch("theta lacks logit_scale; a head that has it baked in needs scale_baked=True.")
    return theta["logit_scale"].exp().reshape(())
