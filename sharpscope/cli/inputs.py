"""What can be wrong with the inputs that a command names, told before torch is imported."""

from __future__ import annotations

from collections.abc import Iterable

from sharpscope.config.collections import expand_specs
from sharpscope.config.inputs import check_checkpoint, lines_of
from sharpscope.config.models import check_model
from sharpscope.config.specs import check_folders, check_root, read_spec
from sharpscope.miniworld.shipped import checkpoint_path

__all__ = ["check_inputs"]


def check_inputs(
    checkpoints: Iterable[str | None],
    specs: Iterable[str | None] = (),
    data_root: str | None = None,
    *,
    classnames: str | None = None,
    templates: str | None = None,
    model: str | None = None,
) -> None:
    """Raise for a data set spec that means nothing, and for a file that does not exist; None stands for no input.

    Raises:
        ConfigError: an unknown architecture, a spec of an unknown kind, domain, split or corruption, an unknown
            checkpoint of the world, or a data root under which no set is looked up.
        CheckpointError: no such checkpoint file.
        DatasetError: a text file that is missing or has a blank line, or an ImageNet variant without its folder.
    """
    every = expand_specs(spec for spec in specs if spec)
    for spec in every:
        read_spec(spec)
    if every:
        check_root(every, data_root)
    for source in filter(None, checkpoints):
        if source.startswith("mini:"):
            checkpoint_path(source)
        else:
            check_checkpoint(source)
    check_folders(every, data_root)
    for path, what in ((classnames, "class names"), (templates, "templates")):
        if path is not None and path != "imagenet":
            lines_of(path, what)
    if model is not None:
        check_model(model)
