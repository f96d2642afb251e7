"""A forward pass that is run many times with only a few of its tensors changed: what comes before them runs once."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

__all__ = ["Prefix"]


@dataclass
class _Output:
    """What a submodule returned (a tensor, or a tuple of tensors and None); ``in_place``: its own input, written into.

    ``copies`` where somebody may later have written into it.
    """

    value: Any
    versions: list[int]
    copies: list[Tensor] | None
    in_place: bool

    def again(self) -> Any:
        if self.copies is None:
            return self.value
        copies = (t.clone() for t in self.copies)
        if isinstance(self.value, Tensor):
            return next(copies)
        return tuple(None if x is None else next(copies) for x in self.value)


class _FirstUse(TorchFunctionMode):
    """Notices the first operation that is given one of some tensors."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        super().__init__()
        self._ids = {id(t) for t in tensors}
        self.seen = False

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        given = not self.seen and any(id(t) in self._ids for t in _tensors((args, tuple(kwargs.values()))))
        out = func(*args, **kwargs)
        # Asking for its shape, dtype or device is no use of a tensor: what these give is the same when it changes.
        if given and (getattr(func, "__name__", "") != "__get__" or isinstance(out, Tensor)):
            self.seen = True
        return out


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _tensors(item)


class Prefix:
    """Outputs of the submodules that end before any of the ``changed`` tensors is first used.

    ``recording(tensors)`` around one forward pass notes them, in the order of the calls; around later passes with the
    same inputs, ``replaying()`` puts the noted outputs in the place of these calls: bit for bit what they would compute
    again. The cut is found by watching the tensors themselves, so that weights which another module reads, or which are
    used twice, are no exception; writing in place into an input or an output is respected. It assumes that a pass is
    deterministic and calls its submodules in the same order each time (eval mode).

    ``module``: whose submodules are looked at. ``changed``: parameter names in it, others are ignored.
    """

    def __init__(self, module: nn.Module, changed: Collection[str]) -> None:
        self._modules = list(dict.fromkeys(_untouched(module, tuple(changed))))
        self._outputs: list[_Output] = []

    def __len__(self) -> int:
        """How many calls are noted."""
        return len(self._outputs)

    @contextlib.contextmanager
    def recording(self, tensors: Sequence[Tensor]) -> Iterator[None]:
        """Note the calls of one forward pass that end before one of ``tensors`` is first used; no gradients."""
        self._outputs = []
        watch, depth = _FirstUse(tensors), 0
        entered: list[list[int]] = []

        def enter(module: nn.Module, args: tuple[Any, ...]) -> None:
            nonlocal depth
            depth += 1
            entered.append([t._version for t in _tensors(args)])

        def leave(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            nonlocal depth
            depth -= 1
            before = entered.pop()
            if watch.seen or depth:
                return
            written = [t for t, version in zip(_tensors(args), before, strict=True) if t._version != version]
            in_place = bool(written) and len(args) == 1 and output is args[0]
            plain = isinstance(output, Tensor) or (
                type(output) is tuple and all(x is None or isinstance(x, Tensor) for x in output)
            )
            if not plain or (written and not in_place):
                watch.seen = True  # nothing that could be put in its place: the prefix ends here
                return
            found = list(_tensors(output))
            self._outputs.append(_Output(output, [t._version for t in found], [t.clone() for t in found], in_place))

        with contextlib.ExitStack() as stack:
            for m in self._modules:
                stack.callback(m.register_forward_pre_hook(enter).remove)
                stack.callback(m.register_forward_hook(leave).remove)
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.no_grad())
            stack.enter_context(watch)
            yield
        for noted in self._outputs:
            if [t._version for t in _tensors(noted.value)] == noted.versions:
                noted.copies = None

    @contextlib.contextmanager
    def replaying(self) -> Iterator[None]:
        """Put what was noted in the place of the calls."""
        rest = iter(self._outputs)

        def replaced(forward: Callable[..., Any]) -> Callable[..., Any]:
            def call(*args: Any, **kwargs: Any) -> Any:
                noted = next(rest, None)
                if noted is None:
                    return forward(*args, **kwargs)
                return args[0].copy_(noted.again()) if noted.in_place else noted.again()

            return call

        own = {m: m.__dict__["forward"] for m in self._modules if "forward" in m.__dict__}
        try:
            for m in self._modules:
                m.forward = replaced(m.forward)
            yield
        finally:
            for m in self._modules:
                del m.__dict__["forward"]
                if m in own:
                    m.forward = own[m]


def _untouched(module: nn.Module, changed: tuple[str, ...]) -> Iterator[nn.Module]:
    """The largest submodules that own none of the changed parameters."""
    for name, child in module.named_children():
        inside = tuple(k.removeprefix(f"{name}.") for k in changed if k.startswith(f"{name}."))
        if inside:
            yield from _untouched(child, inside)
        elif not isinstance(child, (nn.ModuleList, nn.ModuleDict)):  # these are never called themselves
            yield child
        else:
            yield from _untouched(child, ())
