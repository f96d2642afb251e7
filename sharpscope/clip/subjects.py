"""What the step ``evaluate`` evaluates: checkpoint files as they are, or the points of paths to them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path as FilePath
from typing import Any

from sharpscope.clip.pair import load_pair, resolve_checkpoint
from sharpscope.clip.points import PathChoice, as_checkpoint
from sharpscope.clip.prompts import holds_prompts
from sharpscope.clip.settings import check_used
from sharpscope.config.study import checkpoint_stem
from sharpscope.errors import ConfigError, shown
from sharpscope.vocabulary import DENSE, ClassPosition, path_variant
from sharpscope.weights import Checkpoint, read_checkpoint
from sharpscope.weights.checkpoint import with_head

__all__ = ["File", "check_needed", "checkpoint_labels", "read_over", "subjects"]

File = str | FilePath


def read_over(file: File, base: Checkpoint | None, head_file: File | None) -> Checkpoint:
    """The checkpoint ``file``, laid over ``base`` and with the head in ``head_file`` where it needs them."""
    weights = read_checkpoint(resolve_checkpoint(file), base=base)
    return weights if head_file is None or weights.facts["head"] else with_head(weights, head_file)


def check_needed(
    files: Sequence[File],
    read: Callable[[File], Checkpoint],
    base: File | None,
    head_file: File | None,
    position: ClassPosition | None,
) -> None:
    """Raise ConfigError where a base, a head's file or a position of class names would change nothing for any file."""
    if base is None and head_file is None and position is None:
        return
    ends = ((end.facts, holds_prompts(end)) for end in map(read, files))  # the tensors of one file at a time
    laid, own, prompts = [], [], []
    for facts, learnt in ends:
        laid.append(bool(facts["overlay"] or facts["adapter"]))
        own.append("file_sha256" in (facts["head"] or {}))
        prompts.append(learnt)
    names = [str(f) for f in files]
    if base is not None:
        check_used("base", laid, names)
    if head_file is not None:
        check_used("head_file", own, names)
    if position is not None:
        check_used("class_position", prompts, names)


def subjects(
    files: Sequence[File],
    read: Callable[[File], Checkpoint],
    base: File | None,
    choices: Sequence[PathChoice],
    alphas: Sequence[float],
    options: Mapping[str, Any],
) -> Iterator[tuple[str, str, float, Checkpoint]]:
    """(label, variant, alpha, weights) of everything that is evaluated: the files, or the points of paths to them."""
    for label, file in zip(checkpoint_labels(files, "evaluate"), files, strict=True):
        if not choices:
            yield label, DENSE, math.nan, read(file)
            continue
        assert base is not None
        pair = load_pair(base, file, **options)
        for choice in choices:
            path, _ = choice.path(pair)
            for alpha in alphas:
                yield label, path_variant(choice.kind), float(alpha), as_checkpoint(pair, path.at(alpha), str(file))


def checkpoint_labels(files: Sequence[File], command: str) -> list[str]:
    """The names of checkpoints in a table: the stems of their files where these differ, else their paths.

    Raises ConfigError, naming ``command``, for a file that is given twice.
    """
    stems = [checkpoint_stem(f) for f in files]
    labels = stems if len(set(stems)) == len(stems) else [str(f) for f in files]
    if len(set(labels)) != len(labels):
        raise ConfigError(f"{command}: a checkpoint is given twice ({shown(', '.join(labels))}).")
    return labels
