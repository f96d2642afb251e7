"""The command ``status``: how far a run is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from tyro.conf import Positional, arg

from sharpscope.cli.options import Plugins, given
from sharpscope.cli.outcome import Outcome

__all__ = ["Status"]


@dataclass(frozen=True)
class Status(Plugins):
    """Say how far a run is: what is done, who works on what, what failed and why, and how long the rest may take."""

    run: Annotated[Positional[str], arg(metavar="RUN")]
    """Run directory. Nothing in it is changed, and it may be in use."""

    def __call__(self) -> Outcome:
        from sharpscope.study.status import status

        return Outcome(str(status(**given(self, run="root"))))
