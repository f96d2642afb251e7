"""The processes that measure one unit of work together: each computes the batches that are its own.

A loss says by its attribute ``team`` who shares its batches; without one a process computes all of them. What the
batches give is brought together in the order of the batches, so that every process holds the same numbers, takes the
same branches and comes to the same next request. A lone process is a team of one, to which nothing of this costs
anything; ``study.together`` has the team of torchrun's ranks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final, TypeVar, cast

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["ALONE", "Team", "team_of"]

T = TypeVar("T")


class Team:
    """Process ``rank`` of ``size``. Every process calls the same methods in the same order; this class is a lone one.

    An error that ``work`` raises in one process is raised in all of them.
    """

    rank: int = 0
    size: int = 1

    @property
    def several(self) -> bool:
        """Whether there are other processes."""
        return self.size > 1

    def own(self, count: int) -> range:
        """This process's share of ``count`` batches: neighbours, and as many as any other process has, or one more."""
        return range(count * self.rank // self.size, count * (self.rank + 1) // self.size)

    def most(self, count: int) -> int:
        """The largest share of ``count`` batches that a process has."""
        return -(-count // self.size)

    def combine(self, what: str, work: Callable[[], tuple[T, dict[str, Tensor]]]) -> tuple[list[T], dict[str, Tensor]]:
        """From (small things, tensors) of every process: the small things in the order of rank, the tensors' sums.

        The tensors stay on their device, and one that a process lacks counts as 0 there. The small things may hold
        tensors, which come back on the CPU where there are several processes. ``what``: names the step in errors.
        """
        found, sums = work()
        return [found], sums

    def agreed(self, work: Callable[[], T]) -> T:
        """``work()`` of every process, with steps of the team inside; fails in all processes if it fails in one."""
        return work()

    def gather(self, what: str, work: Callable[[], T]) -> list[T]:
        """``work()`` of every process, in the order of rank."""
        return self.combine(what, lambda: (work(), {}))[0]

    def first(self, what: str, work: Callable[[], T]) -> T:
        """``work()`` of rank 0 alone, known to all."""
        found = self.gather(what, lambda: work() if self.rank == 0 else None)
        return cast(T, found[0])

    def each(
        self, what: str, count: int, work: Callable[[int], T], skip: Callable[[int], object] = lambda i: None
    ) -> list[T]:
        """``work(i)`` of every batch i below ``count``, each done by the process that it belongs to, in their order.

        ``skip(i)`` is called in its place in all other processes: it draws from a generator what ``work(i)`` draws.
        """
        own = self.own(count)

        def mine() -> list[T]:
            found = []
            for i in range(count):
                if i in own:
                    found.append(work(i))
                else:
                    skip(i)
            return found

        return [one for part in self.gather(what, mine) for one in part]


ALONE: Final = Team()
"""A lone process."""


def team_of(objective: object) -> Team:
    """The team that shares the batches of ``objective``: its attribute ``team``, or this process alone."""
    team: Team = getattr(objective, "team", ALONE)
    return team
