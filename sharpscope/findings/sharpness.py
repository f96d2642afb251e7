"""The sharpness table of one pair as arrays [layers, alphas], and random draws of them within their standard errors."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from sharpscope.errors import ConfigError, shown
from sharpscope.findings.frames import alpha_index
from sharpscope.scores import resample_counts
from sharpscope.tables.rows import has_value, image_error, measures_in, ordered, own_error, unique_in_order
from sharpscope.vocabulary import ALL, GROUP_TITLES, MEASURES, OTHERS, STRAGGLERS, AddsUp

__all__ = [
    "SHARE",
    "Cube",
    "ImageParts",
    "SharpnessGrid",
    "sharpness_cube",
    "sharpness_grids",
    "together",
]


@dataclass(frozen=True)
class SharpnessGrid:
    """One measure of one pair; every array is [L, A] with NaN where the table has no finite estimate."""

    measure: str
    layers: tuple[str, ...]
    alphas: tuple[float, ...]
    estimate: np.ndarray
    error: np.ndarray
    """The error of the estimate on these images: the stderr where known, else the residual (an upper bound), else 0."""
    images: np.ndarray
    """The error over draws of images, which includes the error on these images; NaN where it is not known."""
    share: np.ndarray
    num_params: np.ndarray
    whole: np.ndarray
    """[A] the estimate of the whole model."""
    unconverged: np.ndarray
    frozen: frozenset[str]
    parts: np.ndarray | None = None
    """[L, A, n] what each of the n probe images adds to the estimate; NaN where images are not told apart."""

    @property
    def total_error(self) -> np.ndarray:
        """[L, A] the error over draws of images, or that on these images where the other is not known."""
        return np.where(np.isfinite(self.images), self.images, self.error)

    def values(self, form: str, log: bool) -> np.ndarray:
        """The values [L, A] that a sharpness criterion judges, or with ``log`` their logarithm (NaN where <= 0).

        ``form`` is the criterion's name: sharpness (the estimate itself), per_param (the estimate divided by the
        layer's number of parameters) or share (the layer's share of the whole model).

        At each alpha the log of the share differs from the log of the estimate by a constant and would single out the
        same layers. Shares are therefore judged on the linear scale, which also has values <= 0.

        Raises:
            ValueError: another form.
        """
        return _logged(self._form(self.estimate, form), log)

    def draws(self, form: str, log: bool, replicates: int, rng: np.random.Generator) -> np.ndarray:
        """Random draws [R, L, A] of ``values`` from the errors of the estimates.

        Where ``parts`` are known, a draw takes n of the n images with replacement, the same ones for every layer and
        alpha, and stretches the deviation to the error ``images``. Elsewhere it is
        estimate + error x + sqrt(images^2 - error^2) y. The standard normal x is independent for every layer and alpha.
        y is independent for every layer; it is one number for theta_0 and another for all other alphas, so that a
        difference from theta_0 has at least the error that it would have if the images were paired. Where ``images`` is
        not known, the term with y is left out.
        """
        noise = np.zeros((replicates, *self.estimate.shape))
        told = np.zeros(self.estimate.shape, bool)
        if self.parts is not None:
            noise, told = self._resampled(self.parts, replicates, rng)
        if not told.all():
            noise = np.where(told, noise, self._deviations(replicates, rng))
        if form == "share":
            with np.errstate(divide="ignore", invalid="ignore"):
                noise = noise / np.abs(self.whole)
            return _logged(self.share + noise, log)
        return _logged(self._form(self.estimate + noise, form), log)

    def _deviations(self, replicates: int, rng: np.random.Generator) -> np.ndarray:
        """Deviations [R, L, A] of other draws of the images, by the errors alone."""
        noise = rng.standard_normal((replicates, *self.estimate.shape)) * self.error
        beyond = np.sqrt(np.maximum(np.nan_to_num(self.images) ** 2 - self.error**2, 0.0))
        common = rng.standard_normal((2, replicates, len(self.layers), 1))
        return noise + np.where(np.asarray(self.alphas) == 0.0, common[0], common[1]) * beyond

    def _resampled(self, parts: np.ndarray, replicates: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Deviations [R, L, A] of other draws of the images, by what each adds; and where that is known [L, A]."""
        n = parts.shape[-1]
        spread = parts - parts.mean(axis=-1, keepdims=True)
        size = np.sqrt((spread**2).sum(axis=-1))
        told = np.isfinite(size) & (size > 0) & np.isfinite(self.images)
        stretch = np.where(told, self.images, 0.0) / np.where(told, size, 1.0)
        counts = resample_counts(n, replicates, rng).astype(float)
        flat = np.where(told[..., None], spread * stretch[..., None], 0.0).reshape(-1, n)
        return (counts @ flat.T).reshape(replicates, *told.shape), told

    def _form(self, estimate: np.ndarray, form: str) -> np.ndarray:
        if form == "sharpness":
            return estimate
        if form == "per_param":
            return estimate / self.num_params[:, None]
        if form == "share":
            return self.share
        raise ValueError(f"'{form}' is not a form of sharpness; the forms are sharpness, per_param and share.")


def _logged(values: np.ndarray, log: bool) -> np.ndarray:
    finite = np.where(np.isfinite(values), values, np.nan)
    if not log:
        return finite
    positive = finite > 0
    return np.where(positive, np.log(np.where(positive, finite, 1.0)), np.nan)


ImageParts = Mapping[tuple[str, float], Mapping[str, np.ndarray]]
"""(measure, alpha) -> layer -> what each of the n probe images adds to the estimate [n]."""


def sharpness_grids(sharpness: pd.DataFrame, pair: str, parts: ImageParts | None = None) -> Iterator[SharpnessGrid]:
    """One grid per measure, in the schema's order. The whole model is not among the layers; it fills ``whole``."""
    rows = sharpness[sharpness["pair"] == pair]
    for measure in measures_in(rows):
        part = rows[rows["measure"] == measure]
        layers = [name for name in unique_in_order(part["layer"]) if name != ALL]
        alphas = sorted(unique_in_order(float(a) for a in part["alpha"]))
        shape = (len(layers) + 1, len(alphas))
        row_of = {name: i for i, name in enumerate([*layers, ALL])}
        i = part["layer"].map(row_of).to_numpy()
        j = np.searchsorted(alphas, part["alpha"].to_numpy(dtype=float))
        status = part["status"].to_numpy()
        usable = np.isfinite(part["estimate"].to_numpy(dtype=float)) & has_value(part).to_numpy()

        def grid(
            values: np.ndarray,
            fill: float = np.nan,
            at: tuple[np.ndarray, np.ndarray, np.ndarray] = (i, j, usable),
            shape: tuple[int, int] = shape,
        ) -> np.ndarray:
            out = np.full(shape, fill)
            out[at[0][at[2]], at[1][at[2]]] = values[at[2]]
            return out

        error = own_error(part).fillna(0.0).to_numpy()
        sizes = part.groupby("layer")["num_params"].first()
        estimate = grid(part["estimate"].to_numpy(dtype=float))
        still = frozenset(part.loc[part["status"] == "frozen", "layer"]) - {ALL}
        if layers:
            yield SharpnessGrid(
                measure=measure,
                layers=tuple(layers),
                alphas=tuple(alphas),
                estimate=estimate[:-1],
                error=grid(error, 0.0)[:-1],
                images=grid(image_error(part).to_numpy())[:-1],
                share=grid(part["share"].to_numpy(dtype=float))[:-1],
                num_params=np.array([float(sizes[name]) for name in layers]),
                whole=estimate[-1],
                unconverged=grid((status == "not_converged").astype(float), 0.0)[:-1] > 0,
                frozen=still,
                parts=_stacked_parts(parts or {}, measure, layers, alphas),
            )


def _stacked_parts(
    parts: ImageParts, measure: str, layers: Sequence[str], alphas: Sequence[float]
) -> np.ndarray | None:
    """``parts`` of one measure as [L, A, n], or None where there are none or the numbers of images differ."""
    known = {alpha: parts.get((measure, alpha), {}) for alpha in alphas}
    sizes = {len(part) for of_alpha in known.values() for part in of_alpha.values()}
    if len(sizes) != 1:
        return None
    none = np.full(sizes.pop(), np.nan)
    return np.array([[known[alpha].get(layer, none) for alpha in alphas] for layer in layers], dtype=float)


SHARE = "share:"
"""Prefix of the ``measure`` in rows that hold a layer's share of the whole model's sharpness."""


@dataclass(frozen=True)
class Cube:
    """The sharpness of several pairs as one array [measures M, layers L, pairs P, alphas A].

    ``values`` [M, L, P, A] is NaN where there is no finite estimate; ``present`` [M, L] says which combinations of
    measure and layer the table has.
    """

    measures: tuple[str, ...]
    """Each measure, followed by its ``share:`` of the whole model (left out for the whole model, whose share is 1)."""
    layers: tuple[str, ...]
    pairs: tuple[str, ...]
    alphas: tuple[float, ...]
    values: np.ndarray
    present: np.ndarray

    def columns(self) -> list[tuple[int, int]]:
        """The index pairs (measure, layer) that the table has, in the order of the measures."""
        return [(m, int(layer)) for m in range(len(self.measures)) for layer in np.flatnonzero(self.present[m])]


def together(values: np.ndarray, adds_up: AddsUp) -> np.ndarray:
    """Combine the layers along axis 0 by the measure's rule; NaN where a layer is missing, or if the rule is none."""
    match adds_up:
        case "sum":
            return values.sum(axis=0)
        case "norm":
            return np.sqrt(np.square(values).sum(axis=0))
        case "max":
            return values.max(axis=0)
        case "min":
            return values.min(axis=0)
        case "magnitude":
            largest = np.abs(np.where(np.isnan(values), -1.0, values)).argmax(axis=0)
            picked = np.take_along_axis(values, largest[None], axis=0)[0]
            return np.where(np.isnan(values).any(axis=0), np.nan, picked)
        case "none":
            return np.full(values.shape[1:], np.nan)
    raise ConfigError(f"measures: '{shown(adds_up, 60)}' is not a rule by which layers can be combined.")


def sharpness_cube(
    sharpness: pd.DataFrame,
    pairs: Sequence[str],
    alphas: Sequence[float],
    stragglers: Mapping[str, Collection[str]] | None = None,
) -> Cube:
    """Arrange the rows of ``pairs`` at ``alphas`` in one array; rows with status failed or undefined have no value.

    Args:
        sharpness: the sharpness table.
        pairs: the pairs, in the order of the third axis.
        alphas: the alphas, in the order of the last axis.
        stragglers: pair -> its straggler layers. With it the cube also has the layers ``(stragglers)`` and
            ``(others)``, each combined by the measure's own rule: traces and mean rises are added up (exact for traces,
            which are sums over the diagonal blocks of H); of eigenvalues and worst cases the extreme one is taken. A
            pair without stragglers, or with a layer whose estimate is missing, has no value there.

    Raises:
        ConfigError: an unknown measure, or a measure whose rule for combining layers is unknown.
    """
    rows = sharpness[sharpness["pair"].isin(list(pairs))]
    measures = measures_in(rows)
    layers = ordered(rows["layer"], (ALL,))
    place = {name: i for i, name in enumerate(pairs)}
    column = {a: alpha_index(alphas, float(a)) for a in unique_in_order(rows["alpha"])}
    at_alpha = np.array([-1 if column[a] is None else column[a] for a in rows["alpha"]], dtype=int)
    at_measure = pd.Categorical(rows["measure"], categories=measures).codes.astype(int)
    at_layer = pd.Categorical(rows["layer"], categories=layers).codes.astype(int)
    at_pair = np.array([place[p] for p in rows["pair"]], dtype=int)
    bad = ~has_value(rows).to_numpy()
    shape = (len(measures), len(layers), len(pairs), len(alphas))
    present = np.zeros(shape[:2], dtype=bool)
    present[at_measure, at_layer] = True

    def filled(name: str) -> np.ndarray:
        numbers = rows[name].to_numpy(dtype=float)
        keep = (at_alpha >= 0) & np.isfinite(numbers) & ~bad
        out = np.full(shape, np.nan)
        out[at_measure[keep], at_layer[keep], at_pair[keep], at_alpha[keep]] = numbers[keep]
        return out

    raw, share = filled("estimate"), filled("share")
    shared = present.copy()
    if ALL in layers:
        shared[:, layers.index(ALL)] = False
    if stragglers is not None and measures:
        raw, share = _with_groups(raw, share, measures, layers, pairs, stragglers)
        layers = [*layers, STRAGGLERS, OTHERS]
        more = np.ones((len(measures), 2), dtype=bool)
        present, shared = np.hstack([present, more]), np.hstack([shared, more])
    names = [name for m in measures for name in (m, SHARE + m)]
    both = np.stack([raw, share], axis=1).reshape(2 * len(measures), *raw.shape[1:])
    seen = np.stack([present, shared], axis=1).reshape(2 * len(measures), present.shape[1])
    order = [layers.index(n) for n in ordered(layers, tuple(GROUP_TITLES))]
    return Cube(
        measures=tuple(names),
        layers=tuple(layers[i] for i in order),
        pairs=tuple(pairs),
        alphas=tuple(float(a) for a in alphas),
        values=both[:, order],
        present=seen[:, order],
    )


def _with_groups(
    raw: np.ndarray,
    share: np.ndarray,
    measures: Sequence[str],
    layers: Sequence[str],
    pairs: Sequence[str],
    stragglers: Mapping[str, Collection[str]],
) -> tuple[np.ndarray, np.ndarray]:
    groups = np.full((raw.shape[0], 2, *raw.shape[2:]), np.nan)
    for p, pair in enumerate(pairs):
        chosen = set(stragglers.get(pair, ()))
        members = [i for i, name in enumerate(layers) if name in chosen and name != ALL]
        others = [i for i, name in enumerate(layers) if name not in chosen and name != ALL]
        for m, measure in enumerate(measures):
            for g, group in enumerate((members, others)):
                if group and members:
                    groups[m, g, p] = together(raw[m, group, p], MEASURES.find(measure, "sharpness table").adds_up)
    whole = raw[:, [layers.index(ALL)]] if ALL in layers else np.full_like(groups[:, :1], np.nan)
    with np.errstate(divide="ignore", invalid="ignore"):
        shares = groups / whole
    shares[~np.isfinite(shares)] = np.nan
    return np.concatenate([raw, groups], axis=1), np.concatenate([share, shares], axis=1)
