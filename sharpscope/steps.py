"""Each step of the method alone: what a study would cost, what is in a file, one point of a path, one evaluation."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path as FilePath
from typing import Any

import torch
from torch import Tensor

from sharpscope.clip.data import read_classnames
from sharpscope.clip.evaluate import correct
from sharpscope.clip.model import ClipModel, second_order
from sharpscope.clip.probe import Probe
from sharpscope.config import StudyConfig
from sharpscope.curvature.graphs import MemoryPlan, plan_memory
from sharpscope.curvature.hvp import HessianEngine
from sharpscope.errors import CheckpointError, ConfigError, PairMismatch, UnsafeCheckpoint, did_you_mean, shown
from sharpscope.pairs import LoadedPair, load_pair, resolve_checkpoint
from sharpscope.present.tables import number, percent
from sharpscope.schema import ALL
from sharpscope.units import Context, plan_curvature, variants
from sharpscope.weights import (
    Checkpoint,
    InterpolationPath,
    Pair,
    check_pair,
    describe,
    read_checkpoint,
    split_layers,
    write_checkpoint,
)
from sharpscope.weights import sparsify as sparsified
from sharpscope.weights.checkpoint import read_head_file
from sharpscope.weights.compare import check_finite, check_model
from sharpscope.weights.naming import Tower, is_buffer, listing
from sharpscope.weights.pair import alike_heads
from sharpscope.weights.producers import trains_openai_weights
from sharpscope.weights.writing import in_huggingface_names

__all__ = ["convert", "fitting_models", "inspect", "interpolate", "plan", "sparsify"]

_PRODUCTS = {"trace": 40, "eigen": 6}
"""Products a layer that ``plan`` reckons with, where ``max_matvecs`` allows: typical for rtol 0.05."""


# ---------------------------------------------------------------------- what would it cost
def plan(config: StudyConfig) -> str:
    """Units of work and their estimated time, memory and disk, from one timed gradient graph; writes nothing."""
    contexts = {p.name: Context.load(config, p) for p in config.pairs}
    if not contexts:
        raise ConfigError("pairs: give two checkpoints (--zeroshot A --finetuned B).")
    context = next(iter(contexts.values()))
    costs, layout = _costs(context)
    layers, alphas = len(context.layers), len(config.alphas)
    inner = len([a for a in config.alphas if 0 < a < 1]) if config.repair_alphas is None else len(config.repair_alphas)
    repairs = len(variants(config, context.layers, [context.layers[0].name])) * inner
    seconds = {
        "curvature": alphas * costs["curvature"],
        "single layers": (3 * len(config.layer_alphas) + len(config.layer_alphas) * len(config.criticality_noise))
        * layers * costs["loss"],
        "path": alphas * (costs["loss"] + costs["evaluate"]),
        "repair": repairs * costs["evaluate"],
    }  # fmt: skip
    units = {"curvature": len(plan_curvature(config.alphas)), "single layers": 4, "path": alphas, "repair": repairs}
    if config.upgraded or config.output_baselines:
        passes = alphas * bool(config.upgraded) + 2 * bool(config.output_baselines)
        seconds["beside it"] = passes * costs["evaluate"]
        units["beside it"] = alphas * bool(config.upgraded) + bool(config.output_baselines)
    total = sum(seconds.values()) * len(contexts) / config.jobs
    images = sum(len(d) for d in context.datasets.values())
    disk = (units["path"] + units["repair"]) * images + layers * context.probe.n * 8 * 20
    lines = [
        f"{len(contexts)} pair(s) of {context.pair.model.name}: {layers} layers ({config.granularity}), {alphas} "
        f"alphas, probe {context.probe.n} in {len(context.probe.batches)} batches, {images:,} test images, "
        f"{context.device}",
        *(f"  {kind:<14}{units[kind]:>5} units  {_duration(s):>9} a pair" for kind, s in seconds.items()),
        f"estimated time: {_duration(total)} with {config.jobs} job(s) (traces {_PRODUCTS['trace']}, eigenvalues "
        f"{_PRODUCTS['eigen']} products a layer, at most {config.max_matvecs})",
        f"one Hessian-vector product of the whole model: {costs['hvp']:.3g} s; of every layer: {costs['sweep']:.3g} s",
        f"memory: {layout}",
        f"disk: about {disk * len(contexts) / 2**20:,.0f} MiB of units, and the report",
    ]
    return "\n".join(lines)


def _costs(context: Context) -> tuple[dict[str, float], MemoryPlan]:
    """Seconds of the parts of the work, each timed once at the middle of the path, and how memory will be used."""
    config, probe = context.config, context.probe
    theta = context.theta(0.5 if 0.5 in config.alphas else config.alphas[len(config.alphas) // 2])
    blocks = {ALL: [n for x in context.layers for n in x.params]} | {x.name: x.params for x in context.layers}
    with second_order():
        cut, layout = plan_memory(probe, theta, blocks[ALL], context.settings.memory)
        assert isinstance(cut, Probe)
        batches = len(cut.batches)
        first = cut.rebatched(cut.batch_size)
        first.batches, first.weights = cut.batches[:1], (1.0,)
        start = time.perf_counter()
        engine = HessianEngine(first, theta, blocks)
        build = (time.perf_counter() - start) * batches
        times = {}
        for layer, spec in engine.blocks.items():
            v = torch.ones(spec.size, 1, dtype=engine.dtype, device=engine.device)
            start = time.perf_counter()
            engine.products({layer: v})
            times[layer] = (time.perf_counter() - start) * batches
    start = time.perf_counter()
    probe.sample_losses(theta)
    loss = time.perf_counter() - start
    dataset = next(iter(context.datasets.values()))
    few = dataset.subset(range(min(len(dataset), 2 * config.batch_size)))
    start = time.perf_counter()
    correct(context.pair.classifier, theta, few, config.batch_size, context.device)
    images = sum(len(d) for d in context.datasets.values())
    evaluate = (time.perf_counter() - start) / len(few) * images
    sweep = sum(times.values())
    wanted = (("trace", ("hessian_trace", "weighted_trace")), ("eigen", ("lambda_max", "lambda_min", "lambda_abs")))
    products = sum(
        min(_PRODUCTS[kind], config.max_matvecs) for kind, names in wanted if set(names) & set(config.measures)
    )
    layers = len(context.layers) + 1
    averages = sum(m.startswith("sharpness_avg") for m in config.measures) * 2 * config.noise_samples * layers * loss
    perturbed = config.alphas if config.perturbation_alphas is None else config.perturbation_alphas
    chosen = len(perturbed) / len(config.alphas)
    worst = sum(m.startswith("sharpness_max") for m in config.measures) * config.pgd_steps * layers * build / 2 * chosen
    ggn = ("ggn_trace" in config.measures) * min(40, config.max_matvecs) * build / 2
    rebuilt = (layout.batches - layout.kept) / layout.batches * build
    curvature = (products > 0) * build + products * (sweep + rebuilt) + averages * chosen + worst + ggn
    costs = {
        "curvature": curvature, "loss": loss, "evaluate": evaluate, "hvp": times[ALL], "sweep": sweep - times[ALL],
    }  # fmt: skip
    return costs, layout


def _duration(seconds: float) -> str:
    for unit, size in (("h", 3600.0), ("min", 60.0)):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"


# ---------------------------------------------------------------------- what is in a file
def inspect(a: str | FilePath, b: str | FilePath | None = None, model: str | None = None) -> str:
    """What one checkpoint holds, or how two of them differ layer by layer; raises as ``read_checkpoint`` does.

    A partial file (Dassl, adapters) is shown as it is when it is alone, and laid over the first when it is the second.
    """
    try:
        first = read_checkpoint(resolve_checkpoint(a), partial=True)
    except UnsafeCheckpoint:
        raise
    except CheckpointError as error:
        try:
            head, facts = read_head_file(resolve_checkpoint(a))
        except CheckpointError:
            raise error from None
        if b is not None:
            raise ConfigError(f"{shown(a)}: is a classification head alone; there is nothing to compare.") from None
        return _described_head(str(a), head, facts)
    text = [_described(first, model)]
    if b is not None:
        second = read_checkpoint(resolve_checkpoint(b), base=first)
        text += [_described(second, model), _compared(*alike_heads(first, second))]
    return "\n\n".join(text)


def _described_head(source: str, head: Mapping[str, Tensor], facts: Mapping[str, Any]) -> str:
    return "\n".join([
        shown(source, 300),
        f"  format        {facts['container']}, read without running any of its code",
        "  written by    WiSE-FT or task_vectors: a classification head in a file of its own",
        f"  safety        {_safety_line(facts)}",
        f"  sha256        {facts['file_sha256']}",
        *([f"  classes       {listing(facts['classes'], 30)}"] if facts["classes"] else []),
        "  holds         head",
        f"  head          {_head_line(facts, head)}",
    ])  # fmt: skip


def _described(checkpoint: Checkpoint, model: str | None) -> str:
    facts, tensors = checkpoint.facts, checkpoint.tensors
    head = facts.get("head")
    lines = [
        shown(checkpoint.source, 300),
        f"  format        {facts['container']}, read without running any of its code",
        f"  written by    {shown(facts['producer'])}",
        f"  safety        {_safety_line(facts)}",
        f"  sha256        {checkpoint.sha256}",
        f"  checksum      {_CHECKSUMS[facts['container'] in ('torch zip', 'TorchScript archive')]}",
        f"  names         {shown(facts['naming'])}"
        + (f", prefix '{shown(facts['prefix'])}'" if facts.get("prefix") else ""),
        f"  tensors       {facts['num_tensors']}, {facts['num_params']:,} parameters, "
        + ", ".join(f"{count} {dtype}" for dtype, count in facts["dtypes"].items()),
        f"  holds         {', '.join(facts['towers']) or 'nothing of a CLIP by itself'}",
    ]
    for title, names in (("classes", facts["classes"]), ("calls", facts["calls"]), ("not used", facts["dropped"])):
        if names:
            lines.append(f"  {title:<12}  {listing(names, 30)}")
    if facts["adapter"]:
        lines.append(f"  adapter       {facts['adapter']} changes of weights, merged")
    if facts["partial"]:
        lines.append("  partial       only what was tuned; it needs the zero-shot weights below it (inspect BASE FILE)")
        return "\n".join(lines)
    lines += [
        f"  looks like    {describe(tensors)}",
        f"  activation    {_activation(facts)}",
        "  head          " + (_head_line(head, tensors) if head else "none stored: built from the text tower"),
    ]
    if model is not None:
        clip = ClipModel.load(model)
        check_model(tensors, clip.shapes, clip.name, source=shown(checkpoint.source, 300), require=_IMAGE)
        lines.append(f"  fits          {shown(clip.name)}, {_activation_of(clip)}, every tensor of its image tower")
    elif fitting := fitting_models(tensors, facts["quick_gelu"]):
        lines.append(f"  fits          {listing(fitting, 4)}: every tensor of the image tower")
    else:
        lines.append("  fits          nothing that could be guessed; --model NAME or CONFIG.json checks it")
    return "\n".join(lines)


_IMAGE: tuple[Tower, ...] = ("image",)
_CHECKSUMS = {
    True: "every entry has its own, those that were read match",
    False: "the format has none: compare the sha256 with its source's",
}


def _activation(facts: Mapping[str, Any]) -> str:
    """GELU or QuickGELU, and how that is known: names and shapes are the same with both."""
    if (told := facts["quick_gelu"]) is not None:
        return f"{'QuickGELU' if told else 'GELU'} (told by the file)"
    if trains_openai_weights(facts["producer"]):
        return "QuickGELU (inferred: this system trains OpenAI's weights; --model NAME-quickgelu)"
    return "not told by the file: OpenAI's weights and their descendants need QuickGELU (--model NAME-quickgelu)"


def _activation_of(clip: ClipModel) -> str:
    return "QuickGELU" if clip.config.get("quick_gelu") else "GELU"


def _safety_line(facts: Mapping[str, Any]) -> str:
    if facts["safe"]:
        return "plain tensors"
    classes, calls = len(facts["classes"]), len(facts["calls"])
    return f"nothing was run; other programs would import {classes} classes of it and call {calls} functions"


def fitting_models(tensors: Mapping[str, Tensor], quick_gelu: bool | None = None) -> list[str]:
    """open_clip's own models whose config has these sizes and whose image tower is made of exactly these tensors.

    ``quick_gelu``: keep those with this activation, where it is known; else both kinds fit.
    """
    fitting = []
    for name in ClipModel.named_like({n: tuple(t.shape) for n, t in tensors.items()}):
        try:
            clip = ClipModel.load(name)
            check_model(tensors, clip.shapes, clip.name, require=_IMAGE)
        except (ConfigError, PairMismatch):
            continue
        if quick_gelu is None or bool(clip.config.get("quick_gelu")) == quick_gelu:
            fitting.append(name)
    return fitting


def _head_line(head: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    classes, width = tensors["head.weight"].shape
    baked = "logit scale baked in" if head["scale_baked"] else "logit scale not baked in"
    return f"{classes} classes x {width}, {baked}, features {'' if head['normalize'] else 'not '}normalised"


def _compared(first: Checkpoint, second: Checkpoint) -> str:
    pair = check_pair(first, second)
    shapes = {n: t.shape for n, t in pair.theta_0.items() if t.is_floating_point() and not is_buffer(n)}
    path = (
        InterpolationPath(pair.theta_0, pair.theta_1) if pair.facts["head_in"] in ("both", "none") else _headless(pair)
    )
    rows = []
    for layer in split_layers({n: s for n, s in shapes.items() if n in path.theta_0}, "module"):
        distance = path.layer_distance(layer)
        size = float(sum(path.theta_0[n].double().square().sum() for n in layer.params)) ** 0.5
        rows.append((layer.name, layer.tower, layer.num_params, distance, distance / size if size else float("nan")))
    width = max(len(shown(r[0], 60)) for r in rows)
    lines = [repr(pair), f"{'layer':<{width}}  tower  {'parameters':>11}  {'distance':>9}  relative"]
    for name, tower, count, distance, relative in rows:
        moved = f"{number(distance):>9}  {percent(relative)}" if distance else "        0  does not move"
        lines.append(f"{shown(name, 60):<{width}}  {tower:<5}  {count:>11,}  {moved}")
    return "\n".join(lines)


def _headless(pair: Pair) -> InterpolationPath:
    zero, one = (
        {n: t for n, t in theta.items() if not n.startswith("head.")} for theta in (pair.theta_0, pair.theta_1)
    )
    return InterpolationPath(zero, one)


# ---------------------------------------------------------------------- one file for another
def convert(
    source: str | FilePath,
    out: str | FilePath,
    *,
    names: str = "open_clip",
    base: str | FilePath | None = None,
    head: str | FilePath | None = None,
    classnames: str | FilePath | None = None,
    quick_gelu: bool | None = None,
    adapter_scale: float | None = None,
) -> Checkpoint:
    """Write any checkpoint as safetensors in open_clip's names (or ``huggingface``'s), the facts in its metadata.

    ``base``: zero-shot weights that a partial file or an adapter is laid over; ``head``: a file with a head of its own;
    ``classnames``: the head's names, in its order; ``quick_gelu``: the activation, where the file does not tell;
    ``adapter_scale``: see ``read_checkpoint``. Values and dtypes are the file's own, bit for bit. Atomic; raises as
    ``read_checkpoint`` does.
    """
    under = None if base is None else read_checkpoint(resolve_checkpoint(base))
    read = read_checkpoint(resolve_checkpoint(source), base=under, head=head, adapter_scale=adapter_scale)
    check_finite(read.tensors, shown(read.source, 200))
    tensors = in_huggingface_names(read) if names == "huggingface" else read.tensors
    write_checkpoint(out, tensors, _provenance(read, classnames, quick_gelu))
    return read


def _provenance(read: Checkpoint, classnames: str | FilePath | None, quick_gelu: bool | None) -> dict[str, str]:
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
        written["sharpscope.head.scale_baked"] = json.dumps(facts["head"]["scale_baked"])
        written["sharpscope.head.normalize"] = json.dumps(facts["head"]["normalize"])
        if classnames is not None:
            named = read_classnames(classnames)
            if len(named) != len(read.tensors["head.weight"]):
                raise ConfigError(
                    f"classnames: {shown(classnames)} has {len(named)} names, the head "
                    f"{len(read.tensors['head.weight'])} classes."
                )
            written["sharpscope.classnames"] = json.dumps(list(named))
    return written


# ---------------------------------------------------------------------- one point of a path
def interpolate(
    zeroshot: str | FilePath,
    finetuned: str | FilePath,
    alpha: float,
    out: str | FilePath,
    model: str = "ViT-B-32",
    *,
    classnames: str | FilePath | Sequence[str] | None = None,
    extrapolate: bool = False,
    head: str = "auto",
    head_file: str | FilePath | None = None,
) -> None:
    """Write theta(alpha) as a safetensors file in open_clip's names, head and its facts included; see ``load_pair``."""
    pair = load_pair(zeroshot, finetuned, model=model, classnames=classnames, head=head, head_file=head_file)
    path = pair.path(extrapolate=extrapolate)
    _write_theta(out, path.at(alpha), pair, {"alpha": repr(float(alpha))})


def sparsify(
    zeroshot: str | FilePath,
    finetuned: str | FilePath,
    *,
    layers: Sequence[str],
    density: float,
    out: str | FilePath,
    target: str = "delta",
    select: str = "random",
    alpha: float = 1.0,
    model: str = "ViT-B-32",
    granularity: str = "module",
    seed: int = 0,
    classnames: str | FilePath | Sequence[str] | None = None,
    extrapolate: bool = False,
    head: str = "auto",
    head_file: str | FilePath | None = None,
) -> None:
    """Write theta(alpha) with ``layers`` made sparse; see ``weights.sparsify``. Raises ConfigError for an unknown
    layer."""
    pair = load_pair(zeroshot, finetuned, model=model, classnames=classnames, head=head, head_file=head_file)
    known = {x.name: x for x in pair.layers(granularity)}
    for name in layers:
        if name not in known:
            raise ConfigError(
                f"--layers: no layer '{shown(name)}' at granularity {granularity}.{did_you_mean(name, known)}\n"
                "'sharpscope inspect A B' lists the layers."
            )
    path = pair.path(extrapolate=extrapolate)
    theta = sparsified(
        path.at(alpha), path.at(0.0), [known[n] for n in layers], density, target=target, select=select, seed=seed,  # type: ignore[arg-type]
    )  # fmt: skip
    _write_theta(out, theta, pair, {
        "alpha": repr(float(alpha)), "sparse_layers": json.dumps(list(layers)), "density": repr(float(density)),
        "target": target, "select": select, "seed": str(seed),
    })  # fmt: skip


def _write_theta(out: str | FilePath, theta: Mapping[str, Tensor], pair: LoadedPair, facts: Mapping[str, str]) -> None:
    classifier = pair.classifier
    metadata = {f"sharpscope.{k}": v for k, v in facts.items()} | {
        "sharpscope.alpha_on": "finetuned",
        "sharpscope.zeroshot_sha256": pair.facts["zeroshot"]["sha256"],
        "sharpscope.finetuned_sha256": pair.facts["finetuned"]["sha256"],
    }
    if "head.weight" in theta:
        metadata |= {
            "sharpscope.head.scale_baked": json.dumps(classifier.scale_baked),
            "sharpscope.head.normalize": json.dumps(classifier.normalize),
            "sharpscope.classnames": json.dumps(list(classifier.classnames)),
        }
    write_checkpoint(out, theta, metadata)
