"""The place of this process among those that ``torchrun`` started together, read from the environment."""

from __future__ import annotations

import os
from dataclasses import dataclass

__all__ = ["Ranks", "ranks"]

_NEEDED = ("MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Ranks:
    """Rank ``rank`` of ``world`` processes, ``local_world`` of them on this host; alone unless torchrun says so."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    local_world: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process speaks, opens the run directory and writes what is derived: rank 0 or a lone process."""
        return self.rank == 0

    @property
    def several(self) -> bool:
        """Whether there are other ranks."""
        return self.world > 1


def ranks() -> Ranks:
    """What RANK, WORLD_SIZE, LOCAL_RANK and LOCAL_WORLD_SIZE say, if torchrun set all of them."""
    numbers = [os.environ.get(name, "") for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")]
    if not all(n.isdecimal() for n in numbers) or not all(os.environ.get(name) for name in _NEEDED):
        return Ranks()
    return Ranks(*map(int, numbers))
