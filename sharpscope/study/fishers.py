"""The step ``fisher``: the diagonal Fisher information of both ends of a pair, as files for the path ``fisher``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path as FilePath

from sharpscope.clip.datasets.spec import load_dataset
from sharpscope.clip.pair import load_pair, pick_device
from sharpscope.clip.probe import Probe
from sharpscope.curvature.fisher import FisherDiagonal, diagonal_fisher
from sharpscope.seeds import derive
from sharpscope.vocabulary import FISHER_FILES, ClassPosition
from sharpscope.weights.fisherfile import write_fisher
from sharpscope.weights.theta import on_device

__all__ = ["FisherFiles", "fisher"]

File = str | FilePath


@dataclass(frozen=True)
class FisherFiles:
    """What ``fisher`` has written: the files, and the Fisher information of theta_0 and theta_1."""

    paths: tuple[FilePath, FilePath]
    zeroshot: FisherDiagonal
    finetuned: FisherDiagonal

    def summary(self) -> str:
        """One line for each end: file, trace with its error over images, images and how labels were averaged."""
        lines = []
        for path, end in zip(self.paths, (self.zeroshot, self.finetuned), strict=True):
            how = "exactly" if end.exact else "by random signs"
            lines.append(
                f"wrote {path}: trace {end.trace:.4g} +- {end.stderr:.2g} over {end.n} images, labels averaged {how}"
            )
        return "\n".join(lines)


def fisher(
    zeroshot: File,
    finetuned: File,
    probe: str,
    out: File,
    *,
    model: str = "ViT-B-32",
    head: str = "auto",
    head_file: File | None = None,
    classnames: File | Sequence[str] | None = None,
    templates: File | Sequence[str] | None = None,
    class_position: ClassPosition | None = None,
    probe_size: int = 1024,
    data_root: str | None = None,
    device: str = "auto",
    seed: int = 0,
) -> FisherFiles:
    """Write the diagonal Fisher information of theta_0 and theta_1 into ``out``: fisher_0 and fisher_1.safetensors.

    ``interpolate --path fisher`` and ``evaluate --paths fisher`` take the files; ``run --paths fisher`` computes the
    same on its probe set. Only parameters that move are in them.

    Args:
        zeroshot, finetuned, model, head, head_file, classnames, templates, class_position: see ``load_pair``.
        probe: data set spec of the images, whose train split is read.
        out: the folder of the two files; it is made where it does not exist.
        probe_size: the number of images. The cost is one gradient for each image, and up to 20 classes one for each
            image and class.
        data_root: folder under which named data sets and relative paths are looked up.
        device: cpu, cuda, or auto.
        seed: the seed of the choice of images, and of the signs that stand for labels with more than 20 classes.

    Raises:
        ConfigError, DatasetError, CheckpointError, PairMismatch: as ``load_pair`` and ``load_dataset`` do.

    Source: Matena and Raffel 2022, arXiv 2111.09832; see ``curvature.diagonal_fisher``.
    """
    pair = load_pair(
        zeroshot, finetuned, model=model, head=head, head_file=head_file, classnames=classnames, templates=templates,
        class_position=class_position,
    )  # fmt: skip
    images = load_dataset(
        probe,
        model=pair.model,
        split="train",
        data_root=data_root,
        classnames=pair.classifier.classnames,
        by_name=classnames is None,
    )
    where = pick_device(device)
    chosen = Probe(pair.classifier, images, size=probe_size, seed=seed, device=where)
    folder = FilePath(out)
    folder.mkdir(parents=True, exist_ok=True)
    path, found, paths = pair.path(), [], []
    for end, name, file_name in zip((0.0, 1.0), ("zeroshot", "finetuned"), FISHER_FILES, strict=True):
        theta = on_device(path.at(end), where)
        one = diagonal_fisher(chosen, theta, pair.moving, seed=derive(seed, "fisher", end))
        file = folder / file_name
        facts = {
            "of": pair.facts[name]["source"], "of_sha256": pair.facts[name]["sha256"], "probe": probe, "images": one.n,
            "labels": "exact" if one.exact else "signs", "seed": seed, "model": pair.model.name,
            "trace": one.trace, "trace_stderr": one.stderr,
        }  # fmt: skip
        write_fisher(file, on_device(one.values, "cpu"), facts)
        found.append(one)
        paths.append(file)
    return FisherFiles((paths[0], paths[1]), found[0], found[1])
