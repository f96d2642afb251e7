"""The ranks of one ``torchrun`` as a team that measures units together (``--split-units``).

A rank computes its own batches of the probe set; what they give is summed or collected over the ranks. All that ranks
say to each other is said here. Words (errors among them) go over gloo, sums of a GPU's tensors over NCCL.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import Any, Final, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from sharpscope.clip.pair import pick_device
from sharpscope.config.study import StudyConfig
from sharpscope.curvature.hvp import NoSecondDerivative
from sharpscope.errors import ConfigError, NumericalError, SharpscopeError
from sharpscope.machine.devices import name_of
from sharpscope.machine.team import ALONE, Team
from sharpscope.study.claims import Claim
from sharpscope.study.launch import Launch
from sharpscope.study.store import RunDirectory
from sharpscope.study.tasks import Task
from sharpscope.study.unitfile import Unit

__all__ = ["RankTeam", "measured_together", "team_of_ranks"]

T = TypeVar("T")

PATIENCE: Final = timedelta(hours=1)
"""How long a rank waits for another one. A smaller value notices a host that hangs sooner, and takes a slow one for it.
A rank that has died is noticed at once."""
_POLL: Final = 0.5
_AGAIN: Final = "Remedy: the same torchrun command again, which resumes the run."


@contextlib.contextmanager
def team_of_ranks(config: StudyConfig, launch: Launch, threads: int) -> Iterator[Team]:
    """The team that measures the study's units: all ranks of the ``launch`` if units are split, else this process.

    ``threads``: how many this rank computes with. Raises ConfigError where units are to be split and there is one rank
    alone, or ranks that would not come to the same bits.
    """
    if not config.split_units:
        yield ALONE
        return
    if launch.store is None:
        raise ConfigError(
            "split_units: there are no other ranks to split a unit with.\n"
            "Remedy: torchrun --nproc-per-node N -m sharpscope run ... --split-units."
        )
    ours = not dist.is_initialized()  # a script of the user's may have done it
    if ours:
        store = dist.PrefixStore("sharpscope", launch.store)
        with _heard():
            dist.init_process_group(
                "gloo", store=store, rank=launch.ranks.rank, world_size=launch.ranks.world, timeout=PATIENCE
            )
    try:
        team = RankTeam(launch.ranks.rank, launch.ranks.world, pick_device(config.device))
        team.check_alike(threads)
        yield team
    finally:
        if ours:
            dist.destroy_process_group()


class RankTeam(Team):
    """Rank ``rank`` of ``size`` with its ``device``; torch's process group has been made."""

    def __init__(self, rank: int, size: int, device: torch.device) -> None:
        self.rank, self.size, self.device = rank, size, device
        self._told: BaseException | None = None
        """The last error that has been reported to all ranks."""
        self._words: Any = None
        if dist.get_backend() != "gloo":
            self._words = dist.new_group(backend="gloo", timeout=PATIENCE)
        places = self.gather("the devices", lambda: (socket.gethostname(), _place(device)))
        own_gpus = device.type == "cuda" and len(set(places)) == size  # NCCL refuses two ranks on one GPU
        self._tensors: Any = dist.new_group(backend="nccl", timeout=PATIENCE) if own_gpus else None

    def check_alike(self, threads: int) -> None:
        """Raise ConfigError unless all ranks compute alike, so that they take the same branches."""
        asked = {"device": name_of(self.device), "threads": threads, "torch": torch.__version__}
        every = self.gather("how ranks compute", lambda: asked)
        for what in asked:
            if other := [x[what] for x in every if x[what] != every[0][what]]:
                raise ConfigError(
                    f"split_units: rank 0 has {what} {every[0][what]}, another rank {other[0]}; their results would "
                    "not be equal bit for bit.\nRemedy: ranks on equal hosts with equal devices, and --threads N."
                )

    # ------------------------------------------------------------------ Team
    def combine(self, what: str, work: Callable[[], tuple[T, dict[str, Tensor]]]) -> tuple[list[T], dict[str, Tensor]]:
        tensors: dict[str, Tensor] = {}

        def said() -> tuple[T, dict[str, tuple[torch.Size, torch.dtype]]]:
            small, found = work()
            tensors.update(found)
            return _on_cpu(small), {name: (t.shape, t.dtype) for name, t in found.items()}

        heard = self._exchange(what, *self._tried(said))
        every: dict[str, tuple[torch.Size, torch.dtype]] = {}
        for _, kinds in heard:
            every |= {name: kind for name, kind in kinds.items() if name not in every}
        with self._lost():
            sums = {
                name: self._sum(tensors.get(name, torch.zeros(shape, dtype=dtype, device=self.device)))
                for name, (shape, dtype) in every.items()
            }
        return [small for small, _ in heard], sums

    def agreed(self, work: Callable[[], T]) -> T:
        try:
            result = work()
        except Exception as error:
            if error is not self._told:
                self._exchange("an error", None, error)
            raise
        self._exchange("the end", None)
        return result

    # ------------------------------------------------------------------ what ranks say to each other
    @staticmethod
    def _tried(work: Callable[[], T]) -> tuple[T | None, Exception | None]:
        try:
            return work(), None
        except Exception as error:
            return None, error

    def _exchange(self, what: str, word: Any, error: Exception | None = None) -> list[Any]:
        """The ``word`` of every rank. An error of any rank is raised in all of them."""
        heard: list[Any] = [None] * self.size
        with self._lost():
            dist.all_gather_object(heard, (what, word, _portable(error)), group=self._words)
        for _, _, failed in heard:
            if failed is not None:
                self._told = failed
                raise failed from error
        if len(steps := sorted({step for step, _, _ in heard})) > 1:
            self._told = SharpscopeError(
                f"split_units: ranks have gone different ways ({', '.join(steps)}); finished units are kept.\n"
                "Remedy: ranks on hosts of one kind, with one version of every library, and that command again."
            )
            raise self._told
        return [word for _, word, _ in heard]

    def _sum(self, t: Tensor) -> Tensor:
        """The sum over all ranks, the same bits in each."""
        t = t.detach().contiguous()
        if self._tensors is not None:
            dist.all_reduce(t, group=self._tensors)
            return t
        there = t.cpu()
        dist.all_reduce(there, group=self._words)
        return there.to(t.device)

    @contextlib.contextmanager
    def _lost(self) -> Iterator[None]:
        try:
            with _heard():
                yield
        except SharpscopeError as error:
            self._told = error  # it cannot be told to anybody
            raise


@contextlib.contextmanager
def _heard() -> Iterator[None]:
    """Raise SharpscopeError where another rank has died or does not answer."""
    try:
        yield
    except (RuntimeError, ValueError) as error:  # torch's DistError is a RuntimeError; gloo says what it says
        raise SharpscopeError(
            f"another rank of this torchrun has ended or does not answer; finished units are kept.\n{_AGAIN}"
        ) from error


_KINDS: Final = (
    NoSecondDerivative, NumericalError, ConfigError, SharpscopeError, torch.OutOfMemoryError, MemoryError,
)  # fmt: skip
"""The errors that someone handles or that have an exit code, the narrower ones first."""


def _portable(error: Exception | None) -> Exception | None:
    """The error as another process can have it: one of ``_KINDS``, or a RuntimeError that says what it was."""
    if error is None:
        return None
    kind = next((kind for kind in _KINDS if isinstance(error, kind)), None)
    return RuntimeError(f"{type(error).__name__}: {error}") if kind is None else kind(str(error))


def _place(device: torch.device) -> str:
    """What tells a GPU from others of its host, by whatever number this rank knows it."""
    if device.type != "cuda":
        return str(device)
    return str(getattr(torch.cuda.get_device_properties(device), "uuid", device))


def _on_cpu(value: Any) -> Any:
    """Nested tuples, lists and dicts with their tensors on the CPU and without graphs."""
    if isinstance(value, Tensor):
        return value.detach().cpu()
    if isinstance(value, dict):
        return {k: _on_cpu(v) for k, v in value.items()}
    return type(value)(_on_cpu(v) for v in value) if type(value) in (tuple, list) else value


# ---------------------------------------------------------------------- units
def measured_together(
    team: Team,
    directory: RunDirectory,
    tasks: Sequence[Task],
    compute: Callable[[Task], tuple[Unit | str, float]],
) -> Iterator[tuple[Task, Unit | str, float | None]]:
    """Every task with its unit, or the reason why it failed, and the seconds that it took; in the order of ``tasks``.

    Rank 0 says of each whether it is there already, and holds its claim meanwhile. Seconds are None for what another
    launch has done, and in all ranks but rank 0, which alone has to save the unit.
    """
    for task in tasks:
        claims: list[Claim] = []
        while (said := team.first("the next unit", lambda: _found(directory, task, claims))) == "taken":  # noqa: B023
            time.sleep(_POLL)  # by another launch in the same directory
        if said == "free":
            with contextlib.ExitStack() as held:
                for claim in claims:
                    held.enter_context(claim)
                result, seconds = compute(task)
                yield task, result, seconds if team.rank == 0 else None
        elif said == "done":
            unit = directory.load(task.key)
            if unit is None:
                raise SharpscopeError(f"{task.key}: rank 0 sees this unit in {directory.root}, and this rank does not.")
            yield task, unit, None
        else:
            yield task, said.removeprefix("failed "), None


def _found(directory: RunDirectory, task: Task, claims: list[Claim]) -> str:
    """What rank 0 says of a unit: done, free (and claimed), taken, or failed with the reason."""
    if directory.load(task.key) is not None:
        return "done"
    if (claim := directory.claim(task.key)) is not None:
        claims.append(claim)
        return "free"
    reason = directory.history.failures().get(task.key)
    return "taken" if reason is None else f"failed {reason}"
