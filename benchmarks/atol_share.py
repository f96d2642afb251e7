"""What a study of the embedded world loses when layers with next to no trace may stop early (``atol_share``).

    OMP_NUM_THREADS=1 python benchmarks/atol_share.py --runs DIR [--studies demo short ...] [--shares 0 0.01]

``demo`` is the demo's own study of success and failure; every other name is a pair of the embedded world, with the
demo's settings, of which only the traces are measured (no other measure depends on the share) and repairs are left out
(they follow from the stragglers). Each study is run once with every share, into DIR (a finished run is not done again),
and compared with that of the first share: the same stragglers by every criterion, the same verdicts? Writes
benchmarks/results/atol_share.csv, one line a study and share, and prints it as a table.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import pandas as pd

import sharpscope
from sharpscope.study.demo import demo_config
from sharpscope.study.log import Log
from sharpscope.tables.files import read_csv
from sharpscope.vocabulary import ALL

TRACES: Final = ("hessian_trace", "weighted_trace")
"""The measures whose products the share decides."""
OUT: Final = Path(__file__).parent / "results" / "atol_share.csv"
DEMO: Final = replace(demo_config(), jobs=1)


def study(name: str, share: float) -> sharpscope.StudyConfig:
    """The study called ``name`` (see above) with this share."""
    config = replace(DEMO, atol_share=share)
    if name != "demo":
        one = (sharpscope.PairConfig(name, "mini:zeroshot", f"mini:{name}"),)
        config = replace(config, pairs=one, measures=TRACES, perturbation_alphas=None, densities=(), repair_alphas=())
    return config


@dataclass(frozen=True)
class Done:
    """A finished run: its folder."""

    root: Path

    def table(self, name: str) -> pd.DataFrame:
        return read_csv(self.root / "tables" / f"{name}.csv", name)

    @property
    def seconds(self) -> float:
        """What the units of curvature took, one after the other."""
        units = (e for e in Log(self.root / "log.jsonl").events() if e["event"] == "unit")
        return sum(e["seconds"] for e in units if e["key"].startswith("curvature/"))

    @property
    def named(self) -> dict[Any, frozenset[str]]:
        """(pair, criterion, basis) -> the stragglers that it names."""
        rows = self.table("stragglers").groupby(["pair", "criterion", "base"], dropna=False)
        return {key: frozenset(own["layer"][own["chosen"]]) for key, own in rows}

    @property
    def verdicts(self) -> dict[Any, str]:
        """(pair, claim, group, source) -> verdict."""
        found: dict[Any, str] = (
            self.table("verdicts").set_index(["pair", "claim", "group", "source"])["verdict"].to_dict()
        )
        return found

    @property
    def traces(self) -> pd.DataFrame:
        """The traces of every layer, by pair, measure, alpha and layer."""
        rows = self.table("sharpness")
        return rows[rows["measure"].isin(TRACES)].set_index(["pair", "measure", "alpha", "layer"])


def run(name: str, share: float, runs: Path) -> Done:
    root = runs / f"{name}-{share:g}"
    if not (root / "report.html").exists():
        sharpscope.run(study(name, share), root)
    return Done(root)


def differing(before: dict[Any, Any], after: dict[Any, Any]) -> int:
    """How many keys have other values, or stand on one side only; each is printed."""
    found = [key for key in before | after if before.get(key) != after.get(key)]
    for key in found:
        print(f"{key}: {before.get(key)} before, {after.get(key)} now")
    return len(found)


def row(name: str, share: float, first: Done, done: Done) -> dict[str, Any]:
    """One line of the table: the run with this share, compared with that of the first one."""
    own, base = done.traces, first.traces
    layers = own[own.index.get_level_values("layer") != ALL]
    moved = ((own["estimate"] - base["estimate"]).abs() / own["stderr"]).where(own["stderr"] > 0, 0.0)
    return {
        "study": name, "atol_share": share, "products": int(layers["num_matvecs"].sum()),
        "curvature_seconds": round(done.seconds), "traces": len(layers),
        "not_converged": int((layers["status"] == "not_converged").sum()),
        "criteria": len(done.named), "name_others": differing(first.named, done.named),
        "verdicts": len(done.verdicts), "differ": differing(first.verdicts, done.verdicts),
        "largest_change_in_errors": round(float(moved.max()), 2),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--studies", nargs="+", default=["demo", "success", "failure", "lr5e-3", "short"])
    parser.add_argument("--shares", type=float, nargs="+", default=[0.0, 0.001, 0.002, 0.005, 0.01])
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    rows = []
    for name in options.studies:
        done = {share: run(name, share, options.runs) for share in options.shares}
        rows += [row(name, share, done[options.shares[0]], own) for share, own in done.items()]
        print(rows[-len(done) :], flush=True)
    found = pd.DataFrame(rows)
    found.to_csv(options.out, index=False)
    print(found.to_string(index=False))


if __name__ == "__main__":
    main()
