"""When the numbers say of themselves that they mean nothing: swapped ends, a path without its ends."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from sharpscope.findings.doubts import path_doubt, swap_doubt
from sharpscope.findings.failure import failure_table
from sharpscope.scores import Predictions
from sharpscope.tables.rows import flags_of

ROLES = {"i": "id", "j": "id", "x": "ood"}


def answers(*shares: float, n: int = 100) -> np.ndarray:
    """bool [A, n]: the first share of the images is right at every alpha."""
    return np.stack([np.arange(n) < share * n for share in shares])


def doubted(level: float = 0.95, alphas: tuple[float, ...] = (0.0, 0.5, 1.0), **sets: object) -> bool:
    return swap_doubt("p", alphas, sets, ROLES, level) is not None


@pytest.mark.parametrize(("alphas", "missing"), [((0.5,), "0 and 1"), ((0.0, 0.5), "1"), ((0.5, 1.0), "0")])
def test_a_path_without_an_end_is_doubted_and_none_of_its_flags_is_defined(alphas: tuple, missing: str) -> None:
    doubt = path_doubt(alphas)
    assert doubt is not None and doubt.pair == "(pairs)" and f"no point at alpha {missing} (" in doubt.text
    assert "undefined" in doubt.text and "Remedy: --alphas 0 " in doubt.text and doubt.text.endswith(" 1.")
    table = failure_table("p", alphas, {"x": answers(*alphas)}, ROLES, np.ones((len(alphas), 4)))
    assert table["estimate"].isna().all() and table["note"].str.startswith("undefined: ").all()
    present, absent, unknown = flags_of(table, "p")
    assert (present, absent, unknown) == ([], [], ["F1", "F2", "F3", "F4"])


def test_a_path_with_both_ends_is_not_doubted() -> None:
    assert path_doubt((0.0, 1.0)) is None and path_doubt((-0.5, 0.0, 0.3, 1.0, 1.5)) is None


def test_ends_are_doubted_where_id_accuracy_falls_and_nowhere_else() -> None:
    falls, rises = answers(0.87, 0.7, 0.42), answers(0.42, 0.7, 0.87)
    assert doubted(i=falls, x=rises) and not doubted(i=rises, x=falls)
    assert not doubted(x=falls), "OOD accuracy may fall"
    assert not doubted(i=answers(0.6, 0.2, 0.6)), "a dip between the ends is no swap"
    assert not doubted(i=falls, alphas=(0.0, 0.5, 0.9)), "without both ends nothing is known"
    assert not doubted(i=answers(0.9, 0.5, 0.6), j=answers(0.1, 0.5, 0.4)), "the mean over the ID sets stands still"
    labels = np.zeros(100, dtype=int)
    assert doubted(i=Predictions("macro_f1", labels, 1 - falls.astype(int)))
    doubt = swap_doubt("p", (0.0, 0.5, 1.0), {"i": falls}, ROLES, 0.95)
    assert doubt is not None and "falls from 87.0% at alpha 0 (zero-shot) to 42.0% at alpha 1" in doubt.text


def test_a_handful_of_images_raises_no_doubt() -> None:
    assert not doubted(i=answers(1.0, 0.5, 0.0, n=5)), "5 of 5: p = 1/32, above 1/40"
    assert doubted(i=answers(1.0, 0.5, 0.0, n=6)), "6 of 6: p = 1/64"
    assert not doubted(i=answers(1.0, 0.5, 0.0, n=6), level=0.99)


def test_equal_ends_are_doubted_no_more_often_than_stated() -> None:
    rng = np.random.default_rng(0)
    runs = [doubted(alphas=(0.0, 1.0), i=rng.random((2, 60)) < 0.6, j=rng.random((2, 40)) < 0.3) for _ in range(1500)]
    assert stats.binomtest(sum(runs), len(runs), 0.025, alternative="greater").pvalue > 1e-3
    assert any(runs)
