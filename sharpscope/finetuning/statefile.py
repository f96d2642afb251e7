"""The state of an interrupted fine-tuning as one safetensors file: tensors, and JSON in the metadata; no pickle."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import torch

from sharpscope.atomic import write_atomic
from sharpscope.errors import ConfigError, CorruptCheckpoint, shown
from sharpscope.finetuning.trainer import State
from sharpscope.weights.files.safetensorsfile import serialise
from sharpscope.weights.theta import Theta

__all__ = ["Progress", "StateFile", "differences"]


@dataclass(frozen=True)
class Progress:
    """How far a method has come: the finished stages, and the state inside the current one."""

    stage: int = 0
    """Number of finished stages."""
    moved: Theta = field(default_factory=dict)
    """Tensors that finished stages have moved."""
    losses: list[float] = field(default_factory=list)
    """Losses of the finished stages."""
    accuracies: list[tuple[int, float]] = field(default_factory=list)
    best: Theta = field(default_factory=dict)
    best_accuracy: float = -1.0
    state: State | None = None


@dataclass(frozen=True)
class StateFile:
    """The file ``path`` of the run that ``belongs`` describes (JSON); another run's state is refused."""

    path: Path
    belongs: Mapping[str, Any]

    def save(self, at: Progress) -> None:
        """Write ``at``, whole or not at all."""
        state = at.state
        tensors = {f"moved/{n}": t for n, t in at.moved.items()} | {f"best/{n}": t for n, t in at.best.items()}
        facts: dict[str, Any] = {
            "stage": at.stage, "accuracies": at.accuracies, "best_accuracy": at.best_accuracy,
            "belongs": dict(self.belongs), "step": None, "scaler": {},
        }  # fmt: skip
        if state is not None:
            facts |= {"step": state.step, "scaler": state.scaler}
            tensors |= {f"leaf/{n}": t for n, t in state.leaves.items()}
            tensors |= {f"average/{n}": t for n, t in state.average.items()}
            tensors |= {f"slot/{slot}/{n}": t for n, slots in state.slots.items() for slot, t in slots.items()}
        tensors["losses"] = torch.tensor(at.losses, dtype=torch.float64)
        tensors["state/losses"] = torch.tensor(state.losses if state else [], dtype=torch.float64)
        write_atomic(self.path, b"".join(serialise(tensors, {"sharpscope.finetuning": json.dumps(facts)})))

    def load(self, device: torch.device) -> Progress | None:
        """What ``save`` wrote, None if there is no file; raises ConfigError for the state of another run."""
        if not self.path.exists():
            return None
        tensors, facts = self._read(device)
        if different := differences(facts["belongs"], json.loads(json.dumps(dict(self.belongs)))):
            raise ConfigError(
                f"{shown(self.path)}: belongs to another fine-tuning: {different}.\n"
                "Remedy: use the settings of that one, or choose another --out."
            )

        def part(prefix: str) -> Theta:
            return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}

        state = None
        if facts["step"] is not None:
            slots: dict[str, dict[str, torch.Tensor]] = {}
            for name, tensor in part("slot/").items():
                slot, _, leaf = name.partition("/")
                slots.setdefault(leaf, {})[slot] = tensor
            losses = tensors["state/losses"].tolist()
            state = State(facts["step"], part("leaf/"), slots, part("average/"), losses, facts["scaler"])
        return Progress(
            stage=facts["stage"],
            moved=part("moved/"),
            losses=tensors["losses"].tolist(),
            accuracies=[(int(step), float(value)) for step, value in facts["accuracies"]],
            best=part("best/"),
            best_accuracy=facts["best_accuracy"],
            state=state,
        )

    def _read(self, device: torch.device) -> tuple[Theta, dict[str, Any]]:
        try:
            with safetensors.safe_open(self.path, "pt") as file:
                facts = json.loads((file.metadata() or {})["sharpscope.finetuning"])
                return {n: file.get_tensor(n).to(device) for n in file.keys()}, facts  # noqa: SIM118 (no mapping)
        except (safetensors.SafetensorError, KeyError, ValueError, OSError) as error:
            raise CorruptCheckpoint(
                f"{shown(self.path)}: cannot be read as the state of a fine-tuning ({shown(error)}).\n"
                "Remedy: remove the file to start again from the first step."
            ) from None


def differences(old: Mapping[str, Any], new: Mapping[str, Any], of: str = "") -> str:
    """What of a fine-tuning differs, in words; of a setting that has parts (hyperparameters) each part by itself.

    A hyperparameter that ``old`` does not state is a difference, because nothing tells which value the version of
    sharpscope that wrote it had. Empty where nothing differs.
    """
    said = []
    for key, was in {**new, **old}.items():
        now, name = new.get(key), of + key
        if isinstance(was, Mapping) and isinstance(now, Mapping) and key in old:
            said.append(differences(was, now, f"{name}."))
        elif key not in old:
            said.append(f"{name} is not stated there and is now {shown(now, 40)}")
        elif was != now:
            said.append(f"{name} was {shown(was, 40)} and is now {shown(now, 40)}")
    return "; ".join(filter(None, said))
