"""Writing checkpoints: any format as safetensors, one point of a path, or a point with some layers made sparse."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path as FilePath

from torch import Tensor

from sharpscope.clip.datasets.names import read_classnames
from sharpscope.clip.pair import LoadedPair, load_pair, resolve_checkpoint
from sharpscope.clip.points import PathChoice, alphas_by_layer
from sharpscope.clip.settings import check_used
from sharpscope.config.study import StudyConfig
from sharpscope.errors import ConfigError, did_you_mean, shown
from sharpscope.layers import HEAD_WEIGHT
from sharpscope.vocabulary import ClassPosition, PathName, SelectOrScore, Target
from sharpscope.weights import Checkpoint, read_checkpoint, write_checkpoint
from sharpscope.weights import sparsify as sparsified
from sharpscope.weights.compare import check_finite
from sharpscope.weights.heads import head_metadata
from sharpscope.weights.writing import in_huggingface_names

__all__ = ["convert", "interpolate", "sparsify", "write_theta"]


# ---------------------------------------------------------------------- one file for another
def convert(
    source: str | FilePath,
    out: str | FilePath,
    *,
    names: str = "open_clip",
    base: str | FilePath | None = None,
    head_file: str | FilePath | None = None,
    classnames: str | FilePath | None = None,
    quick_gelu: bool | None = None,
    adapter_scale: float | None = None,
    adapter_merged: bool | None = None,
    weights: str | None = None,
    head_scale_baked: bool | None = None,
    head_normalize: bool | None = None,
) -> Checkpoint:
    """Write any checkpoint as safetensors in open_clip's or Hugging Face's names, with its provenance in the metadata.

    Values and dtypes are unchanged, bit for bit. The file is written completely or not at all.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     convert("mini:zeroshot", f"{folder}/copy.safetensors").facts["safe"]
    True

    Args:
        source: file, folder or hub id, as for ``read_checkpoint``, or ``mini:NAME``.
        out: file to write.
        names: the naming of the tensors, open_clip | huggingface.
        base: zero-shot weights over which a partial file or an adapter is laid.
        head_file: a separate file that holds a classification head.
        classnames: file with the class names of the head, one per line, in the head's order.
        quick_gelu: whether the activation is QuickGELU; None: as stated in the file, if it is.
        adapter_scale: the factor by which an adapter's change is multiplied, see ``read_checkpoint``.
        adapter_merged: whether the weights already contain the change of a LoRA beside them, see ``read_checkpoint``.
        weights: key of the set of weights to read from a file that holds several, see ``read_checkpoint``.
        head_scale_baked: whether the head's weights contain exp(logit_scale); None: as stated in the file, or guessed.
        head_normalize: whether the head reads features of unit length; None: as stated in the file, or guessed.

    Returns the checkpoint that was read.

    Raises:
        CheckpointError, CorruptCheckpoint, UnsafeCheckpoint: as for ``read_checkpoint``, and where writing fails.
        NonFiniteWeights: NaN or infinite values.
        ConfigError: class names that do not fit the head, or a setting that changes nothing for the file.
    """
    under = None if base is None else read_checkpoint(resolve_checkpoint(base))
    read = read_checkpoint(
        resolve_checkpoint(source),
        base=under,
        head=head_file,
        adapter_scale=adapter_scale,
        adapter_merged=adapter_merged,
        weights=weights,
    )
    _check_used(read, base=base, classnames=classnames, scale=adapter_scale, merged=adapter_merged)
    said = {"scale_baked": head_scale_baked, "normalize": head_normalize}
    check_finite(read.tensors, shown(read.source, 200))
    tensors = in_huggingface_names(read) if names == "huggingface" else read.tensors
    write_checkpoint(out, tensors, _provenance(read, classnames, quick_gelu, said))
    return read


def _check_used(
    read: Checkpoint, *, base: object, classnames: object, scale: float | None, merged: bool | None
) -> None:
    """Raise ConfigError for a setting of ``convert`` that changes nothing for the file that was ``read``."""
    facts, source = read.facts, shown(read.source, 200)
    if base is not None and not facts["overlay"] and not (facts["adapter"] and merged is None):
        check_used("base", [False], [source])
    if classnames is not None and not facts["head"]:
        raise ConfigError(f"classnames: {source} holds no head whose classes they could name.\nRemedy: leave them out.")
    if scale is not None and (facts["adapter_inside"] or not facts["adapter"]):
        raise ConfigError(f"adapter_scale: no change of an adapter is added to {source}.\nRemedy: leave it out.")
    if merged is not None and not facts["adapter"]:
        raise ConfigError(f"adapter_merged: {source} holds no adapter.\nRemedy: leave it out.")
    if merged and not facts["adapter_inside"]:
        raise ConfigError(
            f"adapter_merged: {source} holds no weights beside its adapter that could contain the change."
        )


def _provenance(
    read: Checkpoint, classnames: str | FilePath | None, quick_gelu: bool | None, said: Mapping[str, bool | None]
) -> dict[str, str]:
    facts = read.facts
    kept = {k: v for k, v in facts["metadata"].items() if k.startswith("sharpscope.") or k == "format"}
    told = facts["quick_gelu"] if quick_gelu is None else quick_gelu
    written = {
        **kept,
        "sharpscope.converted_from": json.dumps({
            "file": FilePath(read.source).name, "sha256": read.sha256, "container": facts["container"],
            "naming": facts["naming"], "prefix": facts["prefix"], "producer": facts["producer"],
            "overlay": facts["overlay"], "adapter": facts["adapter"],
        }),
    }  # fmt: skip
    if told is not None:
        written["sharpscope.quick_gelu"] = json.dumps(told)
    if facts["head"]:
        named = None if classnames is None else read_classnames(classnames)
        if named is not None and len(named) != len(read.tensors[HEAD_WEIGHT]):
            raise ConfigError(
                f"classnames: {shown(classnames)} has {len(named)} names, but the head has "
                f"{len(read.tensors[HEAD_WEIGHT])} classes."
            )
        told_head = {key: facts["head"][key] if word is None else word for key, word in said.items()}
        assumed = [key for key in facts["head"].get("assumed", []) if said[key] is None]
        written |= head_metadata(**told_head, classnames=named, assumed=assumed)
    elif given := [key for key, word in said.items() if word is not None]:
        raise ConfigError(f"head_{given[0]}: {shown(read.source, 200)} holds no head.")
    return written


# ---------------------------------------------------------------------- one point of a path
def interpolate(
    zeroshot: str | FilePath,
    finetuned: str | FilePath,
    alpha: float | None,
    out: str | FilePath,
    model: str = "ViT-B-32",
    *,
    classnames: str | FilePath | Sequence[str] | None = None,
    extrapolate: bool = False,
    head: str = "auto",
    head_file: str | FilePath | None = None,
    class_position: ClassPosition | None = None,
    path: PathName = "linear",
    path_density: float | None = None,
    seed: int | None = None,
    fisher_0: str | FilePath | None = None,
    fisher_1: str | FilePath | None = None,
    layer_alphas: str | FilePath | Mapping[str, float] | None = None,
    granularity: str | None = None,
) -> None:
    """Write theta(alpha) as a safetensors file in open_clip's names, including the head and its facts.

    Args:
        zeroshot, finetuned, model, classnames, head, head_file, class_position: see ``load_pair``.
        alpha: the point of the path, 0 for the zero-shot and 1 for the fine-tuned model. With ``layer_alphas``, the
            point at which the layers stand that it does not name; None: it has to name all of them.
        out: file to write; it is written completely or not at all.
        extrapolate: allow an alpha outside [0, 1], where the path has such points.
        path: linear | lines | fisher | ties | dare | monosoup | random, see ``LoadedPair.path``.
        path_density, seed, fisher_0, fisher_1: the settings of some paths, see ``clip.points.PathChoice``.
        layer_alphas: an alpha of its own for single layers: layer -> alpha, or a CSV file (layer, alpha).
        granularity: whether such a layer is a tensor | module | block; None: a module.

    The file's metadata records the path, every setting, and the sha256 of all files that it was made from.

    Raises:
        ConfigError: an alpha outside [0, 1], an unknown path or layer, or a setting that the path does not have;
            ``load_pair`` raises further errors.
        PairMismatch: Fisher information of other weights.
        CheckpointError: the file cannot be written.

    Source: Wortsman et al. 2022, arXiv 2109.01903.
    """
    if alpha is None and layer_alphas is None:
        raise ConfigError("--alpha: is missing; it says which point of the path is written, e.g. --alpha 0.5.")
    choice = PathChoice(path, path_density, seed, fisher_0, fisher_1)
    pair = load_pair(
        zeroshot,
        finetuned,
        model=model,
        classnames=classnames,
        head=head,
        head_file=head_file,
        class_position=class_position,
    )
    chosen, facts = choice.path(pair, extrapolate)
    facts = ({} if alpha is None else {"alpha": repr(float(alpha))}) | facts
    if layer_alphas is None:
        assert alpha is not None
        _write_theta(out, chosen.at(alpha), pair, facts)
    else:
        grouped = granularity or StudyConfig.granularity
        own, named = alphas_by_layer(layer_alphas, pair.layers(grouped), alpha)
        told = {"layer_alphas": json.dumps(named), "granularity": grouped}
        # Without an alpha for the rest, what is in no layer (running statistics alone) stands where theta_1 does.
        _write_theta(out, chosen.at_layers(own, 1.0 if alpha is None else alpha), pair, facts | told)


def sparsify(
    zeroshot: str | FilePath,
    finetuned: str | FilePath,
    *,
    layers: Sequence[str],
    density: float,
    out: str | FilePath,
    target: Target = "delta",
    select: SelectOrScore = "random",
    alpha: float = 1.0,
    model: str = "ViT-B-32",
    granularity: str = "module",
    seed: int = 0,
    classnames: str | FilePath | Sequence[str] | None = None,
    extrapolate: bool = False,
    head: str = "auto",
    head_file: str | FilePath | None = None,
    class_position: ClassPosition | None = None,
    rescale: bool = False,
    scores: str | FilePath | None = None,
) -> None:
    """Write theta(alpha) as a safetensors file, keeping only a part of the change (or weights) of some layers.

    Args:
        zeroshot, finetuned, model, classnames, head, head_file, class_position: see ``load_pair``.
        layers: names of layers (``sharpscope.inspect(A, B)`` lists them).
        density: the fraction of each layer's entries that is KEPT, in [0, 1]; 1 gives theta(alpha) itself.
        out: file to write; it is written completely or not at all.
        target: delta (dropped entries return to theta_0) | weight (dropped entries become 0).
        select: random | magnitude (the largest entries are kept) | score (those with the largest ``scores``).
        alpha: the point of the path.
        granularity: whether a layer is a tensor | module | block.
        seed: the seed of a random selection.
        extrapolate: allow an alpha outside [0, 1].
        rescale: divide what is kept by the density (DARE).
        scores: for select score, a file of tensors with the names and shapes of the weights (Fisher information, for
            example).

    Raises:
        ConfigError: an unknown layer or option, an alpha outside [0, 1], or scores that are missing or unused;
            ``load_pair`` raises further errors.
        CheckpointError: the file cannot be written, or the scores cannot be read.

    Source: Abdollahpoorrostam 2024, arXiv 2410.16476; details and options: ``sharpscope.weights.sparsify``.
    """
    if (select == "score") != (scores is not None):
        raise ConfigError("--select, --scores: score takes the entries with the largest scores of a file (--scores).")
    scored = None if scores is None else read_checkpoint(scores, partial=True)
    pair = load_pair(
        zeroshot,
        finetuned,
        model=model,
        classnames=classnames,
        head=head,
        head_file=head_file,
        class_position=class_position,
    )
    known = {x.name: x for x in pair.layers(granularity)}
    for name in layers:
        if name not in known:
            raise ConfigError(
                f"--layers: no layer '{shown(name)}' at granularity {granularity}.{did_you_mean(name, known)}\n"
                "'sharpscope inspect A B' lists the layers."
            )
    path = pair.path(extrapolate=extrapolate)
    theta = sparsified(
        path.at(alpha), path.at(0.0), [known[n] for n in layers], density, target=target, select=select, seed=seed,
        rescale=rescale, scores=None if scored is None else scored.tensors,
    )  # fmt: skip
    _write_theta(out, theta, pair, {
        "alpha": repr(float(alpha)), "sparse_layers": json.dumps(list(layers)), "density": repr(float(density)),
        "target": target, "select": select, "seed": str(seed),
        **({"rescale": "true"} if rescale else {}), **({"scores_sha256": scored.sha256} if scored else {}),
    })  # fmt: skip


def _write_theta(out: str | FilePath, theta: Mapping[str, Tensor], pair: LoadedPair, facts: Mapping[str, str]) -> None:
    ends = {f"{end}_sha256": pair.facts[end]["sha256"] for end in ("zeroshot", "finetuned")}
    write_theta(out, theta, pair, {**facts, "alpha_on": "finetuned", **ends})


def write_theta(out: str | FilePath, theta: Mapping[str, Tensor], pair: LoadedPair, facts: Mapping[str, str]) -> None:
    """Write weights that belong to the classifier of ``pair`` as safetensors, with ``facts`` and those of its head.

    Raises CheckpointError when the file cannot be written.
    """
    classifier = pair.classifier
    metadata = {f"sharpscope.{k}": v for k, v in facts.items()}
    if pair.model.config:
        metadata["sharpscope.quick_gelu"] = json.dumps(bool(pair.model.config.get("quick_gelu", False)))
    if HEAD_WEIGHT in theta:
        metadata |= head_metadata(
            scale_baked=classifier.scale_baked, normalize=classifier.normalize, classnames=classifier.classnames
        )
    write_checkpoint(out, theta, metadata)
