"""Whole pickled modules, whose classes are not loaded: the state dict is collected from the values of their pickle.

``torch.save(model)`` and ``pickle.dump(model)`` store every ``nn.Module`` as its ``__dict__``: ``_parameters``,
``_buffers``, ``_modules`` and plain attributes. TorchScript stores attributes only. Neither needs the classes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from sharpscope.weights.files.inert import MAX_NAME, DamagedPickleError, Inert, like_tensor

__all__ = ["ModuleFacts", "is_module", "module_state"]

MAX_DEPTH: Final = 50
MAX_WORK: Final = 500_000
"""The most modules, tensors and names that are visited in one file; a pickle may refer to one module without end."""


@dataclass
class ModuleFacts:
    """``kind``: class of the outermost module. ``heads``: name of a classification head -> its plain attributes.
    ``kinds``: classes of all modules in it. ``eval_scale``: R-Adapter's."""

    kind: str = ""
    eval_scale: float | None = None
    heads: dict[str, dict[str, Any]] = field(default_factory=dict)
    kinds: set[str] = field(default_factory=set)

    @property
    def quick_gelu(self) -> bool | None:
        """Whether the blocks use QuickGELU, by the classes of their activations; None if these do not show it."""
        if any(k.rpartition(".")[2] == "QuickGELU" for k in self.kinds):
            return True
        return False if "torch.nn.modules.activation.GELU" in self.kinds else None


def is_module(value: object) -> bool:
    """Whether ``value`` is what became of a pickled ``nn.Module`` (or of a TorchScript one)."""
    return isinstance(value, Inert) and (
        isinstance(value.state.get("_modules"), dict)
        or (value.kind.startswith("__torch__.") and any(_part(v) for v in value.state.values()))
    )


def _part(value: object) -> bool:
    """Whether an attribute of a TorchScript module is a tensor or a module (not looked into: there may be cycles)."""
    return like_tensor(value) or (isinstance(value, Inert) and value.kind.startswith("__torch__."))


def module_state(root: Inert) -> tuple[dict[str, Any], ModuleFacts]:
    """``(state dict, facts)`` as ``module.state_dict()`` gives it; raises DamagedPickleError for endless modules."""
    facts = ModuleFacts(kind=root.kind)
    state: dict[str, Any] = {}
    count = 0
    open_: list[tuple[str, Inert, int]] = [("", root, 0)]
    while open_:
        prefix, module, depth = open_.pop()
        count += 1 + sum(len(v) for v in module.state.values() if isinstance(v, (dict, list))) + len(module.state)
        if depth > MAX_DEPTH or count > MAX_WORK or len(prefix) > MAX_NAME:
            raise DamagedPickleError("modules without end")
        facts.kinds.add(module.kind)
        if isinstance(scale := module.state.get("eval_scale"), (int, float)):
            facts.eval_scale = float(scale)
        if module.kind.rpartition(".")[2] == "ClassificationHead" or prefix == "classification_head.":
            facts.heads[prefix] = {k: v for k, v in module.state.items() if isinstance(v, (bool, int, float, str))}
        for name, value in _own(module):
            if value is not None:
                state[prefix + name] = value
        children = [(prefix + name + ".", child, depth + 1) for name, child in _children(module)]
        open_ += reversed(children)
    return state, facts


def _own(module: Inert) -> Iterator[tuple[str, Any]]:
    if module.kind.startswith("__torch__."):
        yield from ((_text(k), v) for k, v in module.state.items() if like_tensor(v))
        return
    listed = module.state.get("_non_persistent_buffers_set")
    hidden = {n for n in listed if isinstance(n, str)} if isinstance(listed, list) else set()
    for group in ("_parameters", "_buffers"):
        entries = module.state.get(group) or {}
        if not isinstance(entries, dict):
            raise DamagedPickleError(f"a module whose {group} are not a dictionary")
        for name, value in entries.items():
            if group == "_parameters" or name not in hidden:
                yield _text(name), value


def _children(module: Inert) -> Iterator[tuple[str, Inert]]:
    script = module.kind.startswith("__torch__.")
    entries = module.state if script else module.state.get("_modules") or {}
    if not isinstance(entries, dict):
        raise DamagedPickleError("a module whose _modules are not a dictionary")
    for name, child in entries.items():
        if isinstance(child, Inert) and (not script or _part(child)):
            yield _text(name), child


def _text(name: Any) -> str:
    if not isinstance(name, str) or len(name) > MAX_NAME:
        raise DamagedPickleError("a tensor whose name is not text, or is very long")
    return name
