"""Repeated forward passes in which only a few tensors change: the part before these tensors is computed only once."""

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
    """The recorded output of a submodule, ``value``: a tensor, or a tuple of tensors and None.

    ``versions``: the tensors' version counters when they were recorded. ``copies``: clones of the tensors; None where
    nothing wrote into the tensors later. ``in_place``: whether the submodule wrote into its input and returned it.
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
    """Notices the first operation that gets one of the given ``tensors`` as an argument."""

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
        # Reading a shape, dtype or device does not count as a use, because it stays the same when the tensor changes.
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
    """The outputs of the submodules whose calls end before any of the ``changed`` tensors is first used.

    ``recording(tensors)`` around one forward pass records these outputs, in the order of the calls. ``replaying()``
    around later passes with the same inputs returns the recorded outputs instead of calling the submodules; they are
    bit for bit what the calls would compute. The end of the prefix is found by watching the tensors themselves, so that
    weights that another module reads, or that are used twice, are handled correctly, and so are submodules that write
    into their input or output in place. A pass has to be deterministic and has to call its submodules in the same order
    each time (eval mode).

    ``module``: the module whose submodules are recorded. ``changed``: names of its parameters; other names are ignored.
    """

    def __init__(self, module: nn.Module, changed: Collection[str]) -> None:
        self._modules = list(dict.fromkeys(_untouched(module, tuple(changed))))
        self._outputs: list[_Output] = []

    def __len__(self) -> int:
        """The number of recorded calls."""
        return len(self._outputs)

    @contextlib.contextmanager
    def recording(self, tensors: Sequence[Tensor]) -> Iterator[None]:
        """Record the calls of one forward pass that end before any of ``tensors`` is first used, without gradients."""
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
                watch.seen = True  # such an output cannot be replayed, so that the prefix ends here
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
        """Return the recorded outputs instead of running the recorded calls."""
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
        elif not isinstance(child, (nn.ModuleList, nn.ModuleDict)):  # such containers are never called themselves
            yield child
        else:
            yield from _untouched(child, ())
