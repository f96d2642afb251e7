"""What a study of the embedded world loses when layers with next to no trace may stop early (``atol_share``).

    OMP_NUM_THREADS=1 python benchmarks/atol_share.py --runs DIR [--studies demo short ...] [--shares 0 0.01]

``demo`` is the demo's own study of success and failure; every other name is a pair of the embedded world that the demo
does not have, with the demo's settings; NAME@precise is a pair at the default tolerance (5 %, 100 products), at three
alphas and without repairs. Each study is run once with every share, into DIR (a finished run is not done again), and
compared with that of the first share: the same stragglers by every criterion, the same verdicts? Writes
benchmarks/results/atol_share.csv, one line a study and share, and prints it as a table.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pandas as pd

import sharpscope
from sharpscope.study.demo import demo_config
from sharpscope.study.log import Log
from sharpscope.vocabulary import ALL

TRACES: Final = ("hessian_trace", "weighted_trace")
"""The measures whose products the share decides."""
OUT: Final = Path(__file__).parent / "results" / "atol_share.csv"
DEMO: Final = replace(demo_config(), jobs=1)


def study(name: str, share: float) -> sharpscope.StudyConfig:
    """The study called ``name`` (see above) with this share."""
    pair, _, precise = name.partition("@")
    config = replace(DEMO, atol_share=share)
    if name != "demo":
        config = replace(config, pairs=(sharpscope.PairConfig(pair, "mini:zeroshot", f"mini:{pair}"),))
    if precise:
        config = replace(config, rtol=0.05, max_matvecs=100, alphas=(0.0, 0.5, 1.0), measures=TRACES, densities=(),
                         perturbation_alphas=None, repair_alphas=())  # fmt: skip
    return config


def seconds(run: sharpscope.Run) -> float:
    """What the units of curvature took, over all processes."""
    return sum(
        e["seconds"]
        for e in Log(run.root / "log.jsonl").events()
        if e["event"] == "unit" and e["key"].startswith("curvature/")
    )


def named(run: sharpscope.Run) -> dict[tuple[str, ...], frozenset[str]]:
    """(pair, criterion, basis) -> the stragglers that it names."""
    rows = run.stragglers
    return {key: frozenset(own["layer"][own["chosen"]]) for key, own in rows.groupby(["pair", "criterion", "base"])}


def verdicts(run: sharpscope.Run) -> dict[tuple[str, ...], str]:
    """(pair, claim, group, source) -> verdict."""
    return run.verdicts.set_index(["pair", "claim", "group", "source"])["verdict"].to_dict()


def changed(before: dict[Any, Any], after: dict[Any, Any]) -> list[Any]:
    """The keys whose values differ, or which only one side has."""
    return [key for key in before.keys() | after.keys() if before.get(key) != after.get(key)]


def traces(run: sharpscope.Run) -> pd.DataFrame:
    """Every layer's traces, by pair, measure, alpha and layer."""
    rows = run.sharpness[run.sharpness["measure"].isin(TRACES)]
    return rows.set_index(["pair", "measure", "alpha", "layer"])


def row(name: str, share: float, run: sharpscope.Run, first: sharpscope.Run) -> dict[str, Any]:
    """One line of the table: ``run``, compared with that of the first share."""
    own, base = traces(run), traces(first)
    layers = own[own.index.get_level_values("layer") != ALL]
    whole = own["estimate"].xs(ALL, level="layer").abs().rename("whole")
    wide = (layers["stderr"] / layers.join(whole)["whole"]).max()
    moved = ((own["estimate"] - base["estimate"]).abs() / own["stderr"]).where(own["stderr"] > 0, 0.0)
    criteria, claims = named(run), verdicts(run)
    other, others = changed(named(first), criteria), changed(verdicts(first), claims)
    for key in (*other, *others):
        print(f"{name}, share {share:g}: {key} differs: {named(first).get(key)} {criteria.get(key)} "
              f"{verdicts(first).get(key)} {claims.get(key)}")  # fmt: skip
    return {
        "study": name, "atol_share": share, "products": int(layers["num_matvecs"].sum()),
        "curvature_seconds": round(seconds(run)), "rows": len(layers),
        "not_converged": int((layers["status"] == "not_converged").sum()),
        "criteria": len(criteria), "criteria_that_name_others": len(other),
        "verdicts": len(claims), "verdicts_that_differ": len(others),
        "largest_change_in_errors": round(float(moved.max()), 2), "largest_error_of_whole": round(float(wide), 5),
    }  # fmt: skip


def table(names: Sequence[str], shares: Sequence[float], runs: Path) -> pd.DataFrame:
    rows = []
    for name in names:
        first = None
        for share in shares:
            run = sharpscope.run(study(name, share), runs / f"{name.replace('@', '-')}-{share:g}")
            first = first or run
            rows.append(row(name, share, run, first))
            print(rows[-1], flush=True)
    return pd.DataFrame(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--studies", nargs="+", default=["demo"])
    parser.add_argument("--shares", type=float, nargs="+", default=[0.0, 0.01])
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    found = table(options.studies, options.shares, options.runs)
    found.to_csv(options.out, index=False)
    print(found.to_string(index=False))


if __name__ == "__main__":
    main()
