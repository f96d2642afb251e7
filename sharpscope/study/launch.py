"""Signals between the ranks of one ``torchrun``: words that one rank announces and for which the others wait.

Ranks share a study's units by the claims in its run directory, as any other processes do. These few words only put the
beginning and the end in order, so no collective operation can hang on a rank that has died. Ranks that measure a unit
together (``split_units``) have more to say: ``study.together``.
"""

from __future__ import annotations

import time
from typing import Final

from torch.distributed import DistError, Store
from torch.distributed.rendezvous import rendezvous

from sharpscope.errors import SharpscopeError
from sharpscope.machine.ranks import Ranks, ranks

__all__ = ["Launch"]

_POLL: Final = 0.2


class Launch:
    """The processes that were started together. A process that is alone announces nothing and never waits."""

    def __init__(self) -> None:
        self.ranks: Ranks = ranks()
        self.store: Store | None = next(iter(rendezvous("env://")))[0] if self.ranks.several else None

    @property
    def leads(self) -> bool:
        """Whether this process opens the run directory and writes what is derived."""
        return self.ranks.leads

    def say(self, word: str) -> None:
        """Announce ``word`` to all ranks."""
        if self.store is not None:
            self.store.set(f"sharpscope/{word}", "1")

    def wait_for(self, word: str) -> None:
        """Return when a rank has announced ``word``.

        torchrun ends a rank that waits here for one that has died. Raises SharpscopeError where the host is gone that
        keeps the words.
        """
        while self.store is not None and not self._said(self.store, word):
            time.sleep(_POLL)  # in Python, so that a signal is heard at once

    def _said(self, store: Store, word: str) -> bool:
        try:
            return store.check([f"sharpscope/{word}"])
        except (DistError, RuntimeError) as error:
            raise SharpscopeError(
                "the host of rank 0 cannot be reached any more; finished units are kept.\n"
                "Remedy: the same torchrun command again, which resumes the run."
            ) from error
