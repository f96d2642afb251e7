"""The one training loop: named leaf tensors, a loss of the step, a learning rate a step, a state to resume from."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Final, Literal, get_args

import torch
from torch import Tensor

from sharpscope.clip.progress import Shown, bars_for
from sharpscope.errors import ConfigError, NumericalError, did_you_mean, shown
from sharpscope.finetuning.losslog import LossLog
from sharpscope.finetuning.schedule import SCHEDULES, Schedule, learning_rate
from sharpscope.machine.devices import all_finite
from sharpscope.vocabulary import Precision
from sharpscope.weights.theta import Theta

__all__ = [
    "AUTOCAST",
    "Ascent",
    "Decay",
    "Loss",
    "Optimizer",
    "Recipe",
    "State",
    "Trained",
    "check_precision",
    "epochs",
    "train",
]

Loss = Callable[[Theta, int], Tensor | Iterable[Tensor]]
"""(theta, step) -> scalar loss of that step's batch, differentiable in the trained tensors; or terms that sum to it.
The terms are computed, differentiated and freed one after the other, so that the largest one decides the memory."""
Ascent = Callable[[Theta], AbstractContextManager[None]]
"""A function from the trained tensors with their gradients to a context. Inside the context the tensors are perturbed;
behind it they have their old values, bit for bit. The optimizer gets the gradient that is taken inside."""
Optimizer = Literal["adamw", "sgd"]
Decay = Literal["all", "matrices"]
"""Which tensors decay: all that are trained, or those of two and more dimensions alone."""

AUTOCAST: Final[Mapping[str, torch.dtype]] = {"full": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""Word of ``vocabulary.Precision`` that training can use -> the type that autocast computes in on CUDA."""

_SLOTS: dict[Optimizer, tuple[str, ...]] = {"adamw": ("exp_avg", "exp_avg_sq", "step"), "sgd": ("momentum_buffer",)}


@dataclass(frozen=True)
class Recipe:
    """How to step: AdamW (Loshchilov & Hutter 2019, 1711.05101) or SGD, warm-up, cosine, clipped gradient norm."""

    lr: float
    """Peak learning rate, > 0."""
    steps: int
    """Total number of optimizer steps, >= 0."""
    warmup: float = 0.0
    """Number of warm-up steps; it need not be whole (1.5 % of 640 steps)."""
    weight_decay: float = 0.1
    """Weight decay of the tensors that ``decay`` names."""
    betas: tuple[float, float] = (0.9, 0.999)
    clip_norm: float | None = 1.0
    """Largest norm of the whole gradient; None: not clipped."""
    optimizer: Optimizer = "adamw"
    momentum: float = 0.9
    """Momentum of SGD."""
    warmup_lr: float | None = None
    """Constant rate during warm-up; None: a linear rise."""
    schedule: Schedule = "linear-cosine"
    """The curve of the learning rate (see ``schedule.learning_rate``)."""
    decay: Decay = "all"
    """all: every trained tensor decays, as in torch's own AdamW(parameters); matrices: only tensors of two and more
    dimensions, so that gains, biases and the logit scale do not."""
    per_epoch: int = 1
    """Number of steps of one epoch, >= 1, which ``epoch-cosine`` counts in."""

    def __post_init__(self) -> None:
        for name, value in (("lr", self.lr), ("warmup_lr", self.warmup_lr)):
            if value is not None and not (math.isfinite(value) and value > 0):
                raise ConfigError(f"recipe: {name} needs a positive number, got {value}.")
        if self.steps < 0 or self.warmup < 0 or self.weight_decay < 0 or self.per_epoch < 1:
            raise ConfigError("recipe: steps, warmup and weight_decay cannot be negative, and per_epoch must be >= 1.")
        words = {"optimizer": tuple(_SLOTS), "schedule": SCHEDULES, "decay": get_args(Decay)}
        for name, known in words.items():
            if getattr(self, name) not in known:
                raise ConfigError(f"recipe: {name} '{shown(getattr(self, name))}' is none of {', '.join(known)}.")

    @property
    def num_epochs(self) -> int:
        """Number of epochs, the last of which may be cut short."""
        return -(-self.steps // self.per_epoch)


@dataclass(frozen=True)
class Trained:
    """``theta`` after training (untrained tensors are the very objects that came in), and the loss of every step."""

    theta: Theta
    losses: tuple[float, ...]


@dataclass
class State:
    """Everything that the next step depends on; ``leaves``, ``slots`` and ``average`` are the live tensors themselves.

    ``slots``: the optimizer's memory, {tensor name: {slot: tensor}}; ``average``: the moving average of the leaves, or
    empty; ``scaler``: the loss scale's state for float16. ``settle()`` waits for the device, brings ``losses``,
    ``slots`` and ``scaler`` up to the step, and raises NumericalError where a loss or a weight is not finite: call it
    before anything of a running training is used.
    """

    step: int
    leaves: Theta
    slots: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    average: Theta = field(default_factory=dict)
    losses: list[float] = field(default_factory=list)
    scaler: dict[str, Any] = field(default_factory=dict)
    settle: Callable[[], None] = field(default=lambda: None, repr=False, compare=False)

    @property
    def kept(self) -> Theta:
        """The tensors to evaluate and save: the averaged leaves if there is an average, else the leaves."""
        return {name: tensor.detach() for name, tensor in (self.average or self.leaves).items()}


def check_precision(precision: str) -> None:
    """Raise ConfigError for a precision that training cannot use, with the reason."""
    if precision == "tf32":
        raise ConfigError(
            "precision: only run and plan take tf32; finetune multiplies in float32 (full) or under autocast.\n"
            "Remedy: bf16, which every GPU with tf32 has."
        )
    if precision not in AUTOCAST:
        near = did_you_mean(precision, AUTOCAST)
        raise ConfigError(f"precision: '{shown(precision, 60)}' is none of {', '.join(AUTOCAST)}.{near}")


def epochs(n: int, batch_size: int, count: int, seed: int) -> Iterator[Tensor]:
    """Indices of each step's batch, ``count`` times over ``n`` examples, shuffled anew each time; incomplete batches
    are dropped.

    Raises ConfigError if the examples do not fill one batch.
    """
    if not 1 <= batch_size <= n:
        raise ConfigError(f"finetune: batch size {batch_size} does not fit {n} training examples.")
    return _epochs(n, batch_size, count, torch.Generator().manual_seed(seed))


def _epochs(n: int, batch_size: int, count: int, generator: torch.Generator) -> Iterator[Tensor]:
    for _ in range(count):
        yield from torch.randperm(n, generator=generator)[: n // batch_size * batch_size].view(-1, batch_size)


def train(
    theta: Mapping[str, Tensor],
    trained: Sequence[str],
    loss: Loss,
    recipe: Recipe,
    *,
    constrain: Callable[[Theta], None] | None = None,
    ascent: Ascent | None = None,
    ema: float | None = None,
    ema_debias: bool = False,
    precision: Precision = "full",
    resume: State | None = None,
    after: Callable[[State], None] | None = None,
    meter: Mapping[str, Tensor] | None = None,
    description: str = "training",
    progress: Shown = False,
) -> Trained:
    """Minimise ``loss`` over the tensors named in ``trained``, starting from ``theta``, which is left as it is.

    loss       called once a step with theta, the trained tensors as leaves; draws its own batches (see ``epochs``)
    constrain  called after every step, without gradients, to bring the leaves back into their range, in place
    ascent     where the gradient of every step is taken, for sharpness-aware training; it asks ``loss`` a second time
    ema        decay d of the average a <- d a + (1 - d) theta that is returned instead of the last theta
    ema_debias the average starts at 0 and is divided by 1 - d^t after t steps, so that the start has no part in it
    precision  bf16, fp16: autocast on CUDA, the weights stay float32; the CPU always computes in float32
    resume     a state that ``after`` was given: training resumes there and gives the bits of an uninterrupted run
    after      called with the state after every step; it has to settle the state before use and to copy what it keeps
    meter      numbers that the progress bar shows beside the loss, on the device
    description  label of the progress bar
    progress   True shows a bar, a function of total and desc (such as tqdm) makes one

    The same theta, loss and recipe give the same bits on the same machine and thread count.
    Raises ConfigError for a name that theta lacks or a precision that training cannot use, NumericalError when the loss
    or a weight is no longer finite: on a GPU some steps later (``losses.READ_EVERY``), but before ``after`` has settled
    the state, and before the end.
    """
    check_precision(precision)
    unknown = [name for name in trained if name not in theta]
    if unknown or not trained:
        raise ConfigError(
            f"finetune: theta has no tensor called {', '.join(map(shown, unknown[:5])) or '(no name)'} to train."
        )
    start: Mapping[str, Tensor] = theta if resume is None else resume.leaves
    leaves = {name: start[name].detach().clone().requires_grad_() for name in trained}
    current = {**theta, **leaves}
    optimizer = _optimizer(leaves, recipe)
    device = next(iter(leaves.values())).device
    half = device.type == "cuda" and precision != "full"
    scaler = torch.amp.GradScaler(device.type, enabled=half and precision == "fp16")
    state = State(0, leaves, average={n: t.detach().clone() for n, t in leaves.items()} if ema is not None else {})
    if resume is not None:
        _take_up(state, resume, optimizer, scaler)
    losses = LossLog(state.losses, recipe.steps, recipe.lr)

    def backward(step: int) -> Tensor:
        """Add the gradient of the step's loss to the leaves, and return the loss in float64."""
        total, terms = torch.zeros((), dtype=torch.float64, device=device), _terms(loss, current, step)
        while True:
            with torch.autocast(device.type, dtype=AUTOCAST[precision], enabled=half):
                term = next(terms, None)
            if term is None:
                return total
            total = total + term.detach().double()
            scaler.scale(term).backward()

    def settle() -> None:
        state.losses = losses.read()
        if not bool(all_finite(*leaves.values())):
            raise NumericalError(
                f"finetune: the weights are not finite after step {state.step} of {recipe.steps}; lower lr "
                f"({recipe.lr:g})."
            )
        state.slots = {n: _slots(optimizer, leaf, recipe) for n, leaf in leaves.items()}
        state.scaler = scaler.state_dict()

    state.settle = settle

    bar = bars_for(progress)(total=recipe.steps, desc=description)
    bar.update(state.step)
    for step in range(state.step, recipe.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(recipe, step)
        optimizer.zero_grad()
        losses.add(step, backward(step))
        if ascent is not None:
            with ascent(leaves):
                optimizer.zero_grad()
                losses.add(step, backward(step), counts=False)
        if recipe.clip_norm is not None:
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(list(leaves.values()), recipe.clip_norm)
        scaler.step(optimizer)
        scaler.update()
        with torch.no_grad():
            if constrain is not None:
                constrain(current)
            for name, average in state.average.items():
                average.lerp_(leaves[name], _share(ema or 0.0, step + 1, ema_debias))
        state.step = step + 1
        if after is not None:
            after(state)
        bar.update()
        if not getattr(bar, "disable", False) and not losses.waiting:
            beside = {"loss": f"{losses.read()[-1]:.3f}"} | {n: f"{float(v):.2f}" for n, v in (meter or {}).items()}
            bar.set_postfix_str(", ".join(f"{name}={value}" for name, value in beside.items()))
    bar.close()
    state.settle()
    return Trained({**theta, **state.kept}, tuple(state.losses))


def _terms(loss: Loss, theta: Theta, step: int) -> Iterator[Tensor]:
    value = loss(theta, step)
    yield from (value,) if isinstance(value, Tensor) else value


def _share(decay: float, steps: int, debias: bool) -> float:
    """The newest weights' share of the average after so many ``steps``.

    Without bias the average is sum_i (1 - d) d^(t - i) theta_i / (1 - d^t), whose newest share is (1 - d) / (1 - d^t).
    """
    return (1 - decay) / (1 - decay**steps) if debias and decay else 1 - decay


def _optimizer(leaves: Theta, recipe: Recipe) -> torch.optim.Optimizer:
    decays = [p for p in leaves.values() if recipe.decay == "all" or p.ndim >= 2]
    groups = [
        {"params": decays, "weight_decay": recipe.weight_decay},
        {"params": [p for p in leaves.values() if recipe.decay != "all" and p.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [g for g in groups if g["params"]]
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=recipe.lr, momentum=recipe.momentum)
    # One kernel instead of several on a GPU; the CPU keeps the formulas whose bits it always had.
    fused = True if next(iter(leaves.values())).device.type == "cuda" else None
    return torch.optim.AdamW(groups, lr=recipe.lr, betas=recipe.betas, fused=fused)


def _slots(optimizer: torch.optim.Optimizer, leaf: Tensor, recipe: Recipe) -> dict[str, Tensor]:
    """The optimizer's memory of one leaf; empty where no gradient has reached it yet."""
    held: MutableMapping[str, Any] = optimizer.state.get(leaf, {})
    return {slot: held[slot] for slot in _SLOTS[recipe.optimizer] if isinstance(held.get(slot), Tensor)}


def _take_up(state: State, resume: State, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler) -> None:
    state.step, state.losses = resume.step, list(resume.losses)
    for name, average in state.average.items():
        average.copy_(resume.average[name])
    for name, leaf in state.leaves.items():
        if slots := resume.slots.get(name):
            # Adam counts its steps on the CPU, but where it is one kernel.
            steps = leaf.device if optimizer.defaults.get("fused") else torch.device("cpu")
            optimizer.state[leaf] = {
                slot: t.detach().to(steps if slot == "step" else leaf.device, copy=True) for slot, t in slots.items()
            }
    if resume.scaler:
        scaler.load_state_dict(resume.scaler)
