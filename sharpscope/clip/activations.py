"""The activations of an image tower's blocks, recorded while the model runs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor, nn

from sharpscope.clip.model import ClipModel
from sharpscope.errors import ConfigError, shown
from sharpscope.layers import split_layers

__all__ = ["image_blocks", "recording"]


def image_blocks(model: ClipModel) -> tuple[str, ...]:
    """The names of the image tower's residual blocks, in the order of the forward pass.

    Raises ConfigError for a tower without such blocks.
    """
    layers = split_layers({n: model.shapes[n] for n in model.image_names}, "block")
    blocks = tuple(layer.name for layer in layers if layer.kind == "block")
    if not blocks:
        raise ConfigError(f"model '{shown(model.name)}': its image tower has no blocks whose activations can be taken.")
    return blocks


@contextlib.contextmanager
def recording(model: ClipModel, first: str, blocks: Sequence[str]) -> Iterator[list[Tensor]]:
    """A list that forward passes inside fill: what enters the block ``first``, then what leaves each of ``blocks``.

    The activations belong to the pass's graph, so that a loss of them has gradients. Every pass starts the list anew.
    """
    seen: list[Tensor] = []

    def enter(module: nn.Module, args: tuple[Any, ...]) -> None:
        seen[:] = [args[0]]

    def leave(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        seen.append(output[0] if isinstance(output, tuple) else output)

    with contextlib.ExitStack() as stack:
        stack.callback(model.image_part(first).register_forward_pre_hook(enter).remove)
        for block in blocks:
            stack.callback(model.image_part(block).register_forward_hook(leave).remove)
        yield seen
