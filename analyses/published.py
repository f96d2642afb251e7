"""What published WiSE-FT paths of real CLIP models say of interpolation, judged by sharpscope's own findings.

    python analyses/published.py [--out analyses/results]

The accuracies (sharpscope/findings/published/) become an accuracy table of the schema; the findings judge it. Failure
flags come from the numbers of right answers, since nobody published which images were right; F3 needs losses, which
nobody published either. Regrets are means over SETTINGS (paths with the same learning rate, epochs, weight decay, batch
size and trained part are one setting), as in analyses/advice.py, with a bootstrap over settings that stay with their
zero-shot models. Writes published.csv, a row a path, and published_summary.csv, a row a question. Ten seconds.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sharpscope.exchange import Measured, accuracy_table
from sharpscope.findings import (
    AlongPath,
    Counts,
    Reference,
    along_path,
    failure_table,
    leave_one_setting_out,
    percentile_interval,
    published_paths,
    reference_pairs,
)
from sharpscope.findings.advising.published import SHIFTS
from sharpscope.findings.design import FEWEST_BASES, FEWEST_CLUSTERS, Design
from sharpscope.findings.families import holm
from sharpscope.findings.marginal import Block, marginal_block
from sharpscope.findings.partial import partial_correlation
from sharpscope.findings.relation import MARGIN, relation_verdict
from sharpscope.scores import wilson
from sharpscope.seeds import derive
from sharpscope.tables.rows import flags_of
from sharpscope.tables.schema import COLUMNS
from sharpscope.vocabulary import ACCURACY_FLAGS, CANNOT, DEFAULT_GROUP, DOES_NOT_HOLD, HOLDS, LEARNING_RATE, OOD_MEAN

ID = "imagenet"
IMAGES = {ID: 50_000, "imagenet-v2": 10_000, "imagenet-r": 30_000, "imagenet-sketch": 50_889}
"""The number of test images of each set, by its authors; every published accuracy is a whole number of them."""
ROLES = {ID: "id"} | dict.fromkeys(SHIFTS, "ood")
LEVEL, DRAWS = 0.95, 2000
END_TO_END, HEAD_ONLY, EVERY = "end-to-end", "head only", "all"
RATE_RULES = ("learning_rate", "learning_rate (unchecked)", "learning_rate (path left out)")
"""The alpha that a ridge regression of the gains on log learning rate predicts to be best: from all other settings,
where it refuses a learning rate outside of theirs; the same without refusing; and from all other paths, siblings of the
same setting among them, without refusing."""
COMPARED = ("alpha 0", "alpha 1", "id_best", "best_fixed", *RATE_RULES)
"""The rules that are compared with alpha .5; the other fixed alphas were looked at beside them."""

LOSES_LESS = (
    "'it loses less than alpha 0.5' holds if the interval of the difference lies below 0, does not hold if it lies at "
    f"or above 0; cannot be told under {FEWEST_CLUSTERS} settings; Bonferroni over {len(COMPARED)} rules; percentile "
    "intervals of so few settings are rather too narrow"
)


@dataclass(frozen=True)
class Published:
    """The paths as tables, and as what the findings take."""

    accuracy: pd.DataFrame
    """Table ``accuracy`` of the schema."""
    facts: pd.DataFrame
    """[pairs] model, zero_shot (A, B ... by the accuracies at alpha 0), learning_rate, tuned, setting."""
    design: Design
    counts: Mapping[str, Mapping[str, Counts]]
    alphas: tuple[float, ...]

    @cached_property
    def references(self) -> list[Reference]:
        return reference_pairs(self.accuracy, pd.DataFrame(columns=COLUMNS["path"]), design=self.design)

    def of(self, population: str) -> list[str]:
        """The pairs of one population."""
        tuned = self.facts["tuned"]
        return [str(pair) for pair in self.facts.index[(tuned == population) | (population == EVERY)]]


def read(table: pd.DataFrame) -> Published:
    """The published table (``findings.published_paths``) in sharpscope's own words."""
    models = [
        Measured((row["pair"],), row["alpha"], {(s, "top1"): row[s] for s in IMAGES}, row["pair"], counts=IMAGES)
        for _, row in table.iterrows()
    ]
    accuracy = accuracy_table(models, [ID])
    alphas = tuple(sorted(float(a) for a in table["alpha"].unique()))
    counts: dict[str, dict[str, Counts]] = {}
    for (pair, dataset), own in accuracy.sort_values("alpha", kind="stable").groupby(["pair", "dataset"], sort=False):
        n = IMAGES[str(dataset)]
        counts.setdefault(str(pair), {})[str(dataset)] = Counts((own["estimate"] * n).round().to_numpy(dtype=int), n)
    starts = [tuple(of[s].right[0] for s in IMAGES) for of in counts.values()]
    known = {start: chr(ord("A") + i) for i, start in enumerate(dict.fromkeys(starts))}
    first = table[table["alpha"] == 0].set_index("pair").loc[list(counts)]
    tuned = np.where(first["freeze_encoder"], HEAD_ONLY, END_TO_END)
    settings = [
        f"lr {r['lr']:g}, {r['epochs']:g} epochs, wd {r['wd']:g}, batch {r['batch_size']:g}, {part}"
        for (_, r), part in zip(first.iterrows(), tuned, strict=True)
    ]
    facts = pd.DataFrame(
        {
            "model": first["model"], "zero_shot": [known[s] for s in starts], "learning_rate": first["lr"],
            "tuned": tuned, "setting": settings,
        }
    )  # fmt: skip
    rates = {LEARNING_RATE: facts["learning_rate"].to_numpy(dtype=float)}
    design = Design(tuple(counts), tuple(facts["zero_shot"]), tuple(settings), rates)
    return Published(accuracy, facts, design, counts, alphas)


# ------------------------------------------------------------------------------------------------------------- one path
def of_path(pair: str, data: Published) -> tuple[AlongPath, dict[str, Any]]:
    """The curves of one path, and its row of published.csv; gains are over zero-shot, on the mean of the shifts."""
    counts = data.counts[pair]
    path = along_path(pair, data.alphas, counts, ROLES, level=LEVEL, bootstrap=DRAWS)
    ood = {s: c for s, c in counts.items() if s in SHIFTS}
    no_losses = np.full((len(data.alphas), 1), np.nan)
    flags = failure_table(pair, data.alphas, ood, ROLES, no_losses, level=LEVEL, bootstrap=DRAWS)
    flags = flags[flags["flag"].isin(ACCURACY_FLAGS)]
    curve = path.groups[DEFAULT_GROUP]
    gains = curve.gains(data.alphas)
    assert path.id is not None and gains is not None
    row: dict[str, Any] = {"pair": pair, **data.facts.loc[pair], "id_zeroshot": path.id.values[0]}
    row |= {"ood_zeroshot": curve.values[0], "flags": present(flags, OOD_MEAN, pair)}
    row |= {f"flags_{s}": present(flags, s, pair) for s in SHIFTS}
    for _, flag in flags[flags["dataset"] == OOD_MEAN].iterrows():
        row |= {flag["flag"]: flag["estimate"], f"{flag['flag']}_low": flag["ci_low"]}
        row |= {f"{flag['flag']}_high": flag["ci_high"]}
    best = int(np.argmax(curve.values))
    row |= {"best_alpha": data.alphas[best], "best_alpha_id": path.id_best()}
    for name, at in (("half", data.alphas.index(0.5)), ("end", len(data.alphas) - 1)):
        low, high = percentile_interval(gains.replicates[:, at], LEVEL)
        row |= {f"gain_{name}": gains.values[at], f"gain_{name}_low": low, f"gain_{name}_high": high}
    row["regret_half"] = curve.values[best] - curve.values[data.alphas.index(0.5)]
    return path, row | {f"gain_at_{a:g}": g for a, g in zip(data.alphas, gains.values, strict=True)}


def present(flags: pd.DataFrame, dataset: str, pair: str) -> str:
    """The flags that are present on one set, as text."""
    return " ".join(flags_of(flags[flags["dataset"] == dataset], pair)[0]) or "none"


# ------------------------------------------------------------------------------------------------------------- regrets
def regrets(data: Published, paths: Mapping[str, AlongPath], population: str) -> dict[str, dict[str, float]]:
    """Rule -> setting -> mean regret over its paths; a rule that refuses a setting has none there."""
    chosen = data.of(population)
    setting = data.facts["setting"]

    def by_setting(lost: Mapping[str, float]) -> dict[str, float]:
        return {
            str(s): float(v) for s, v in pd.Series(lost).groupby(setting.loc[list(lost)], sort=False).mean().items()
        }

    def fixed(alphas: Mapping[str, float]) -> dict[str, float]:
        curves = {p: dict(zip(data.alphas, paths[p].groups[DEFAULT_GROUP].values, strict=True)) for p in chosen}
        return by_setting({p: max(curves[p].values()) - curves[p][alphas[p]] for p in chosen})

    out = {f"alpha {a:g}": fixed(dict.fromkeys(chosen, a)) for a in data.alphas}
    out["id_best"] = fixed({p: paths[p].id_best() for p in chosen})
    own = [r for r in data.references if r.pair in chosen]
    refusing, answering = (leave_out(own, data.alphas, check=check) for check in (True, False))
    out["best_fixed"] = dict(refusing["best_fixed"])
    alone = leave_out([dataclasses.replace(r, setting=r.pair) for r in own], data.alphas, check=False)
    by_rate = (refusing["learning_rate"], answering["learning_rate"], by_setting(alone["learning_rate"]))
    return out | {rule: dict(lost) for rule, lost in zip(RATE_RULES, by_rate, strict=True)}


def leave_out(references: list[Reference], alphas: Sequence[float], check: bool) -> Mapping[str, Mapping[str, float]]:
    names = ["log_learning_rate"]
    return leave_one_setting_out(references, alphas, DEFAULT_GROUP, names, check=check).by_setting


def regret_rows(data: Published, paths: Mapping[str, AlongPath], population: str) -> Iterator[dict[str, Any]]:
    """The mean regret of every rule, and by how much it exceeds that of alpha .5 on the settings that it answers."""
    found = regrets(data, paths, population)
    half = found["alpha 0.5"]
    for rule, lost in found.items():
        pairs = [p for p in data.of(population) if data.facts.loc[p, "setting"] in lost]
        design = data.design.reindexed(pairs)
        settings = list(dict.fromkeys(design.setting))
        weights = design.resamples(DRAWS, np.random.default_rng(derive(0, "regret", population)))
        values = np.array([lost[s] for s in settings])
        more = values - np.array([half[s] for s in settings])
        low, high = mean_interval(weights, values, LEVEL)
        row = head(data, pairs, "regret", population, rule)
        row |= {"effect": values.mean(), "ci_low": low, "ci_high": high, "worst": values.max()}
        row["over_paths"] = float(np.mean([lost[s] for s in design.setting]))
        if rule in COMPARED:
            low, high = mean_interval(weights, more, 1 - (1 - LEVEL) / len(COMPARED))
            few = len(settings) < FEWEST_CLUSTERS
            verdict = CANNOT if few else HOLDS if high < 0 else DOES_NOT_HOLD if low >= 0 else CANNOT
            row |= {"minus_half": more.mean(), "minus_low": low, "minus_high": high, "verdict": verdict}
            row["rule"] = LOSES_LESS
        else:
            baseline = rule == "alpha 0.5"
            told = "what the others are compared with" if baseline else "looked at beside the others"
            row |= {"verdict": "", "rule": f"{told}; no claim is judged"}
        yield row


def mean_interval(weights: np.ndarray, values: np.ndarray, level: float) -> tuple[float, float]:
    low, high = percentile_interval(weights @ values / weights.sum(axis=1), level)
    return float(low), float(high)


# ------------------------------------------------------------------------------------------------------- learning rate
def rate_rows(data: Published, table: pd.DataFrame, population: str) -> Iterator[dict[str, Any]]:
    """Spearman correlations of log learning rate with the gain at alpha .5 and with the best alpha."""
    pairs = data.of(population)
    own = table.set_index("pair").loc[pairs]
    ids = {a: np.array([data.counts[p][ID].scores()[data.alphas.index(a)] for p in pairs]) for a in (0.5, 1.0)}
    outcomes = {"gain_half": ids[0.5], "best_alpha": ids[1.0]}
    x = np.log(own["learning_rate"].to_numpy(dtype=float))[None]
    by_setting = data.design.reindexed(pairs)
    units = {"settings": by_setting, "paths": dataclasses.replace(by_setting, setting=tuple(pairs))}
    for unit, design in units.items():
        rng = np.random.default_rng(derive(0, "rate", population, unit))
        keys = design.keys(DRAWS, rng)
        for outcome, id_accuracy in outcomes.items():
            y = own[outcome].to_numpy(dtype=float)
            blocks: dict[str, Block] = {
                "": marginal_block(x, y, "spearman", outcome, design, keys, rng, LEVEL),
                "id_accuracy": partial_correlation(
                    x, y, design, {"id_accuracy": id_accuracy}, keys=keys, rng=rng, level=LEVEL, outcome=outcome
                ),
            }
            for given, block in blocks.items():
                told = f" given {given}" if given else ""
                row = head(data, pairs, f"learning rate, {unit} as units", population, f"{outcome}{told}")
                row |= {"effect": block.estimate[0], "ci_low": block.low[0], "ci_high": block.high[0]}
                row |= {"p_value": block.p[0], "n_effective": int(block.n_effective[0])}
                ways = f"the units can be permuted in {design.arrangements:g} ways"
                yield row | {"note": "; ".join(filter(None, (block.why[0] or block.note[0], ways)))}


def with_verdicts(rows: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The rows of ``rate_rows`` with Holm's correction over all that are asked of settings, and their verdicts."""
    primary = [r for r in rows if "settings" in r["question"]]
    for row, q in zip(primary, holm(np.array([r["p_value"] for r in primary])), strict=True):
        judged = {"status": "ok" if np.isfinite(row["effect"]) else "undefined", "q_value": q}
        row["q_value"], row["verdict"] = q, relation_verdict(pd.Series(row | judged), LEVEL)
        row["rule"] = (
            f"findings.relation: holds if q <= {1 - LEVEL:.2g} and the interval excludes 0, does not hold if it lies "
            f"within +-{MARGIN:g}; cannot be told under {FEWEST_CLUSTERS} settings or where undefined; q is Holm's"
        )
    for row in rows:
        yield {"verdict": "", "rule": "would every path move independently; no claim is judged"} | row


# ------------------------------------------------------------------------------------------------------------- summary
def head(data: Published, pairs: Sequence[str], question: str, population: str, what: str) -> dict[str, Any]:
    """The first columns of a row: the paths behind it, and how many independent ones they amount to.

    ``models_effective``: Kish's (sum w)^2 / sum w^2 over the models' numbers of paths.
    """
    models = data.facts.loc[list(pairs), "model"].value_counts().to_numpy()
    return {
        "question": question, "population": population, "what": what, "n": len(pairs),
        "n_effective": data.design.reindexed(pairs).n_effective, "models": len(models),
        "models_effective": models.sum() ** 2 / (models**2).sum(),
    }  # fmt: skip


def flag_rows(data: Published, table: pd.DataFrame, population: str) -> Iterator[dict[str, Any]]:
    """The share of paths on which each flag is present on the mean of the shifts."""
    pairs = data.of(population)
    found = table.set_index("pair").loc[pairs, "flags"]
    for flag in ACCURACY_FLAGS:
        k = int(found.str.contains(flag).sum())
        low, high = wilson(k, len(pairs), LEVEL)
        row = head(data, pairs, "failure", population, flag) | {"effect": k / len(pairs), "ci_low": low}
        row |= {"ci_high": high, "verdict": ""}
        yield row | {"rule": "share of paths; Wilson's interval, as if paths were independent; no claim is judged"}
    yield head(data, pairs, "failure", population, "F3") | {
        "verdict": CANNOT, "rule": "F3 needs losses along the path", "note": "no losses were published"
    }  # fmt: skip


def model_row(data: Published, population: str) -> dict[str, Any]:
    """Whether anything here speaks of models beyond these."""
    row = head(data, data.of(population), "other models", population, "effective number of models")
    few = row["models_effective"] < FEWEST_BASES
    rule = f"what is found here holds beyond these models: cannot be told under {FEWEST_BASES} effective models"
    return row | {"effect": row["models_effective"], "verdict": CANNOT if few else "", "rule": rule}


SUMMARY = (
    "question", "population", "what", "effect", "ci_low", "ci_high", "p_value", "q_value", "worst", "over_paths",
    "minus_half", "minus_low", "minus_high", "n", "n_effective", "models", "models_effective", "verdict", "rule",
    "note",
)  # fmt: skip


def tables() -> tuple[pd.DataFrame, pd.DataFrame]:
    """(published.csv, published_summary.csv)."""
    data = read(published_paths())
    judged = {pair: of_path(pair, data) for pair in data.counts}
    paths = {pair: path for pair, (path, _) in judged.items()}
    table = pd.DataFrame([row for _, row in judged.values()])
    each = (END_TO_END, HEAD_ONLY)
    rows = [row for p in (EVERY, *each) for row in flag_rows(data, table, p)]
    rows += [model_row(data, p) for p in (EVERY, *each)]
    rows += [row for p in (EVERY, *each) for row in regret_rows(data, paths, p)]
    rows += with_verdicts([row for p in each for row in rate_rows(data, table, p)])
    return table, pd.DataFrame(rows, columns=list(SUMMARY))


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("analyses/results"), help="folder for the two tables")
    out = parser.parse_args(argv).out
    out.mkdir(parents=True, exist_ok=True)
    for name, table in zip(("published", "published_summary"), tables(), strict=True):
        numbers = {c: 6 for c in table.columns if c != "learning_rate"}
        table.round(numbers).to_csv(out / f"{name}.csv", index=False, lineterminator="\n")


if __name__ == "__main__":
    main()
