"""The command ``sweep``."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

from tyro.conf import Positional, arg

from sharpscope.cli.options import Plugins
from sharpscope.cli.outcome import Outcome, finished, progress_of_units
from sharpscope.config.idle import check_no_idle
from sharpscope.config.sweep import load_sweep
from sharpscope.errors import shown

__all__ = ["Sweep"]


@dataclass(frozen=True)
class Sweep(Plugins):
    """Fine-tune by a grid or random draws of hyperparameters, by methods and seeds, then analyse all as one run."""

    file: Annotated[Positional[str], arg(metavar="SWEEP.yaml")]
    """Sweep file (YAML): zeroshot, train, methods, recipes, grid (hyperparameter: list of values), draw (number of
    random configurations), ranges (hyperparameter: {low, high, scale, whole} or list of values), design, draw_seed,
    seeds, set (hyperparameters in common), val, and study (the fields of a study file, without pairs)."""
    out: str | None = None
    """Run directory, which correlate takes; the same command again resumes it. Default: runs/NAME, after the file."""
    keeps_state: ClassVar[bool] = True

    def __call__(self) -> Outcome:
        sweep = load_sweep(self.file)
        planned = sweep.planned()  # mistakes are told before torch is imported
        planned.check_complete()
        check_no_idle(planned)
        from sharpscope.study.sweep import run_sweep

        done = run_sweep(sweep, self.out or f"runs/{Path(self.file).stem}", progress=progress_of_units())
        said = finished(done.run)
        if not done.diverged:
            return said
        name, reason = next(iter(done.diverged.items()))
        told = f"{len(done.diverged)} fine-tunings diverged and have no pair, e.g. {shown(name)}: {shown(reason)}"
        return dataclasses.replace(said, complaint="\n".join(filter(None, (told, said.complaint))), code=1)
