"""Judge the rules that advise an alpha on the embedded world's shipped pairs, by the OOD accuracy that they lose.

    python analyses/advice.py [--out analyses/results] [--limit N]

Every pair is judged in both groups of the world's OOD sets. Rules that take references get those of all other settings
(seeds of one setting are left out together). Rules for target images see the group's images without labels, and are
chosen on four corruptions of ID data; ``labels_N`` is the best alpha on N labelled images, the mean over draws. Writes
advice_regret.csv (a row a pair, group and rule) and advice.csv: the mean regret over settings with its bootstrap
interval over settings, and the difference from the best baseline. Seven minutes on one quiet core.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro

import sharpscope
from sharpscope.findings import (
    PathAnswers,
    Reference,
    along_path,
    held_out,
    image_curves,
    leave_one_setting_out,
)
from sharpscope.miniworld import world as miniworld
from sharpscope.study.advise import HELD_OUT
from sharpscope.study.designs import shipped_design

ALPHAS = tuple(round(0.1 * i, 1) for i in range(11))
ID = "mini:photo"
GROUPS = {
    "styles": [f"mini:{s}" for s in miniworld.STYLES if s != "photo"],
    "natural": [f"mini:{s}" for s in miniworld.SHIFTS],
}
LABELS, DRAWS = (20, 50, 200), 40
KINDS = ("predicted", "confidence", "labels")
NUMBERS = ("regret", "ci_low", "ci_high", "worst", "minus_baseline", "minus_low", "minus_high")


@dataclass(frozen=True)
class Judged:
    """One pair: its answers by data set, and its features."""

    answers: Mapping[str, PathAnswers]
    reference: Reference
    settings: str


def answered(name: str, limit: int | None) -> Judged:
    """The answers of one pair's path on all sets, and the pair as a reference."""
    pair = sharpscope.load_pair("mini:zeroshot", f"mini:{name}", model="mini")
    path, found = pair.path(), {}
    for spec in (ID, *(s for sets in GROUPS.values() for s in sets), *(f"{ID}+{c}" for c in HELD_OUT)):
        dataset = sharpscope.load_dataset(
            spec, model=pair.model, classnames=pair.classifier.classnames, limit=800 if "+" in spec else limit
        )
        predicted, confidence, labels = [], [], []
        for alpha in ALPHAS:
            theta = pair.classifier.frozen(path.at(alpha))
            with torch.inference_mode():
                batches = [(pair.classifier.logits(theta, x).softmax(1), y) for x, y in dataset.batches(128)]
            found_top = torch.cat([p for p, _ in batches]).max(1)
            predicted.append(found_top.indices.numpy())
            confidence.append(found_top.values.numpy())
            labels = torch.cat([y for _, y in batches]).numpy()
        found[spec] = PathAnswers(np.stack(predicted), np.stack(confidence), labels)
    return as_judged(name, found, float(path.distance(1.0)[0]))


def as_judged(name: str, found: Mapping[str, PathAnswers], distance: float) -> Judged:
    bare = Reference.of(name, ALPHAS, distance, shipped_design())
    ood = {g: np.mean([found[s].correct.mean(axis=1) for s in sets], axis=0) for g, sets in GROUPS.items()}
    reference = Reference(name, ALPHAS, ood, found[ID].correct.mean(axis=1), bare.features, bare.setting)
    return Judged(found, reference, bare.setting)


def cached(folder: Path, name: str, limit: int | None) -> Judged:
    """``answered``, kept in a file so that a second run only judges."""
    file = folder / f"advice_{name}_{limit or 'all'}.npz"
    if not file.exists():
        judged = answered(name, limit)
        arrays = {
            f"{s}|{k}": getattr(a, k) for s, a in judged.answers.items() for k in ("predicted", "confidence", "labels")
        }
        np.savez(file, distance=np.exp(judged.reference.features["log_distance"]), **arrays)
        return judged
    with np.load(file) as kept:
        specs = dict.fromkeys(key.partition("|")[0] for key in kept.files if "|" in key)
        found = {s: PathAnswers(*(kept[f"{s}|{k}"] for k in KINDS)) for s in specs}
        return as_judged(name, found, float(kept["distance"]))


# ------------------------------------------------------------------------------------------------------------- regrets
def regrets(pairs: list[Judged]) -> Iterator[tuple[str, str, str, str, float]]:
    """(pair, setting, group, rule, regret) of every rule."""
    references = [p.reference for p in pairs]
    for group, sets in GROUPS.items():
        for check, ending in ((True, ""), (False, " (unchecked)")):
            names = ["log_learning_rate", "log_distance"]
            lost = leave_one_setting_out(references, ALPHAS, group, names, check=check).by_setting
            for rule, by_setting in lost.items():
                if ending and rule not in ("predicted", "learning_rate"):
                    continue
                yield from (("", setting, group, rule + ending, value) for setting, value in by_setting.items())
        for pair in pairs:
            curve = pair.reference.ood[group]
            for rule, alpha in from_images(pair, sets):
                yield pair.reference.pair, pair.settings, group, rule, float(curve.max() - curve[alpha])
            for n in LABELS:
                yield pair.reference.pair, pair.settings, group, f"labels_{n}", from_labels(pair, sets, n, curve)


def from_images(pair: Judged, sets: list[str]) -> Iterator[tuple[str, int]]:
    """(rule, place of its alpha) for all rules that see the group's images without labels."""
    own = pair.answers[ID]
    path = along_path(pair.reference.pair, ALPHAS, {ID: own.correct}, {ID: "id"}, bootstrap=2)
    judged = held_out(path, own, {s: a for s, a in pair.answers.items() if "+" in s})
    curves = image_curves(own, PathAnswers.joined([pair.answers[s] for s in sets]).without_labels(), bootstrap=0)
    usable = [r for r in curves if r in judged and np.isfinite(curves[r].values).all()]
    winner = min(usable, key=lambda r: (round(judged[r].regret, 9), judged[r].error))
    yield "target_images (winner)", int(np.argmax(curves[winner].values))
    for rule in usable:
        yield rule, int(np.argmax(curves[rule].values))


def from_labels(pair: Judged, sets: list[str], n: int, curve: np.ndarray) -> float:
    """The mean regret of the best alpha on ``n`` labelled images of the group, over draws of the images."""
    hits = PathAnswers.joined([pair.answers[s] for s in sets]).correct
    rng, lost = np.random.default_rng(n), []
    for _ in range(DRAWS):
        means = hits[:, rng.choice(hits.shape[1], n, replace=False)].mean(axis=1)
        best = np.flatnonzero(means == means.max())
        lost.append(curve.max() - curve[best[(len(best) - 1) // 2]])
    return float(np.mean(lost))


def summary(rows: list[tuple[str, str, str, str, float]], draws: int = 2000) -> Iterator[dict[str, object]]:
    """Mean regret over settings with a bootstrap interval over settings, and the paired difference from the best
    baseline of the group on the settings that the rule answers."""
    for group in GROUPS:
        table: dict[str, dict[str, float]] = {}
        for _, setting, g, rule, value in rows:
            if g == group:
                table.setdefault(rule, {}).setdefault(setting, []).append(value)  # type: ignore[union-attr,arg-type]
        means = {rule: {s: float(np.mean(v)) for s, v in by.items()} for rule, by in table.items()}
        fixed = ("zeroshot", "half", "finetuned", "id_best", "best_fixed")
        best = min(fixed, key=lambda r: np.mean(list(means[r].values())))
        rng = np.random.default_rng(0)
        for rule, by in sorted(means.items(), key=lambda item: np.mean(list(item[1].values()))):
            values = np.array(list(by.values()))
            gaps = np.array([by[s] - means[best][s] for s in by])
            at = rng.integers(0, len(values), (draws, len(values)))
            low, high = np.quantile(values[at].mean(axis=1), (0.025, 0.975))
            gap_low, gap_high = np.quantile(gaps[at].mean(axis=1), (0.025, 0.975))
            yield {
                "group": group, "rule": rule, "settings": len(values), "regret": values.mean(), "ci_low": low,
                "ci_high": high, "worst": values.max(), "best_baseline": best, "minus_baseline": gaps.mean(),
                "minus_low": gap_low, "minus_high": gap_high,
            }  # fmt: skip


def main(out: Path = Path("analyses/results"), cache: Path | None = None, limit: int | None = None) -> None:
    """Judge all rules and write two tables.

    Args:
        out: Folder for the tables.
        cache: Folder for the answers, so that a second run is quick; default: none are kept.
        limit: Largest number of images per set; default: all.
    """
    names = shipped_design().pairs
    pairs = [cached(cache, n, limit) if cache else answered(n, limit) for n in names]
    rows = list(regrets(pairs))
    out.mkdir(parents=True, exist_ok=True)
    with open(out / "advice_regret.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("pair", "setting", "group", "rule", "regret"))
        writer.writerows((*row[:4], f"{row[4]:.6f}") for row in rows)
    found = list(summary(rows))
    with open(out / "advice.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(found[0])
        writer.writerows([f"{v:.6f}" if isinstance(v, float) else v for v in row.values()] for row in found)
    for row in found:
        numbers = [100 * float(row[k]) for k in NUMBERS]  # type: ignore[arg-type]
        text = "{:5.1f} [{:.1f}, {:.1f}] worst {:.1f}; minus best baseline {:+.1f} [{:+.1f}, {:+.1f}]".format(*numbers)
        sys.stdout.write(f"{row['group']:8s} {row['rule']:28s} n={row['settings']} {text}\n")


if __name__ == "__main__":
    torch.set_num_threads(1)
    tyro.cli(main)
