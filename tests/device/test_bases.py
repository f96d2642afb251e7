"""Krylov bases that do not fit on the device are kept on the host, and no bit depends on it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from sharpscope.curvature import eigen
from sharpscope.curvature.eigen import lanczos
from sharpscope.curvature.operator import DenseOperator
from sharpscope.curvature.pairs import top_eigenpairs
from sharpscope.curvature.tracking import tracked

SIZE = 80


def matrix() -> Tensor:
    a = torch.randn(SIZE, SIZE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return a + a.mT


def solved(device: str) -> list[Tensor]:
    """What Lanczos finds, what is followed from there at a neighbouring matrix, and five eigenvectors."""
    first, second = (DenseOperator(m.to(device)) for m in (matrix(), matrix() + 0.01 * torch.eye(SIZE).double()))
    cold = lanczos(first, seed=0, rtol=1e-6)
    assert cold.space is not None and cold.largest.num_matvecs > 2 * eigen.BLOCK
    warm = tracked(second, cold.space, seed=1, rtol=1e-6)
    pairs = top_eigenpairs(first, 5, seed=2, rtol=1e-6, max_matvecs=SIZE)
    vectors = [x.vector for found in (cold, warm) for x in (found.largest, found.smallest)]
    values = [x.value for found in (cold, warm) for x in (found.largest, found.smallest)]
    found = [v.cpu() for v in vectors if v is not None]
    return [*found, torch.tensor(values), pairs.vectors.cpu()]


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_a_basis_on_the_host_gives_the_same_bits(emulated: Any, share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    truth = solved("cpu")
    monkeypatch.setattr(eigen, "BASIS_SHARE", share)
    kinds, plain = set(), eigen.Rows.append

    with emulated.Emulated(strict=True) as device:

        def append(self: eigen.Rows, row: Tensor) -> None:
            plain(self, row)
            kinds.update(device.kind(block) for block in self._blocks)

        monkeypatch.setattr(eigen.Rows, "append", append)
        found = solved("cuda")
    assert kinds == {emulated.HOST if share == 0 else emulated.DEVICE}
    assert all(map(torch.equal, found, truth))


def test_blocks_go_to_the_host_from_where_the_device_is_full(emulated: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, vectors = eigen.Rows(), matrix()[: 2 * eigen.BLOCK + 3]
    room = iter([True, False, True])
    monkeypatch.setattr(eigen, "fits", lambda size, device, share: next(room))
    with emulated.Emulated(strict=True) as device:
        for row in vectors.to("cuda"):
            rows.append(row)
        assert [device.kind(b) for b in rows._blocks] == [emulated.DEVICE, emulated.HOST, emulated.DEVICE]
        products = rows.dot(torch.eye(SIZE, dtype=torch.float64).to("cuda"))
        sums = rows.combined(torch.eye(len(rows), dtype=torch.float64))
        assert device.kind(products) == device.kind(sums) == emulated.DEVICE
    assert torch.equal(products, vectors) and torch.equal(sums, vectors)
