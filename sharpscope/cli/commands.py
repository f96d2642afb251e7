"""The subcommands, one dataclass each. Its fields are the flags; calling an instance does the work and returns text."""

from __future__ import annotations

from typing import Any

from sharpscope.cli.across import Correlate, Robustness
from sharpscope.cli.advise import Advise
from sharpscope.cli.doctor import Doctor
from sharpscope.cli.evaluate import Evaluate
from sharpscope.cli.figures import Figures
from sharpscope.cli.files import Convert, Inspect, Interpolate, Sparsify
from sharpscope.cli.finetune import Finetune
from sharpscope.cli.listing import List
from sharpscope.cli.merging import Fisher, Merge
from sharpscope.cli.protocol import Protocol
from sharpscope.cli.status import Status
from sharpscope.cli.studies import Demo, Plan, Report, Run
from sharpscope.cli.sweep import Sweep
from sharpscope.cli.tables import Table

__all__ = ["COMMANDS"]


COMMANDS: dict[str, Any] = {
    "demo": Demo,
    "run": Run,
    "plan": Plan,
    "inspect": Inspect,
    "convert": Convert,
    "interpolate": Interpolate,
    "sparsify": Sparsify,
    "merge": Merge,
    "fisher": Fisher,
    "evaluate": Evaluate,
    "finetune": Finetune,
    "protocol": Protocol,
    "sweep": Sweep,
    "advise": Advise,
    "correlate": Correlate,
    "robustness": Robustness,
    "table": Table,
    "figures": Figures,
    "report": Report,
    "status": Status,
    "list": List,
    "doctor": Doctor,
}
