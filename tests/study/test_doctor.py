"""``doctor`` finds nothing wrong here, and finds a product that is wrong."""

from __future__ import annotations

from typing import Any

import pytest
from torch import Tensor

from sharpscope.cli.main import main
from sharpscope.curvature.hvp import HessianEngine
from sharpscope.study import doctor as module
from sharpscope.study.doctor import doctor


def test_nothing_is_wrong_here_and_the_products_agree(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--device", "cpu"]) == 0
    lines = dict(line.split(": ", 1) for line in capsys.readouterr().out.splitlines())
    assert not any(name.startswith("WRONG") for name in lines)
    assert {"sharpscope", "torch", "open_clip_torch", "processor", "memory", "disk", "device"} <= lines.keys()
    for name, most in (("product with the Hessian", 1e-5), ("written second derivatives", 1e-10)):
        assert 0 < float(lines[name].split()[0]) < most


def test_products_that_are_off_by_a_thousandth_are_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both comparisons fail where the written derivatives are wrong, the first alone where torch's are wrong too."""

    class Off(HessianEngine):
        everywhere = False

        def products(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
            factor = 1.001 if self.analytic or self.everywhere else 1.0
            return {name: factor * hv for name, hv in super().products(*args, **kwargs).items()}

    monkeypatch.setattr(module, "HessianEngine", Off)
    assert main(["doctor", "--device", "cpu"]) == 1
    told = capsys.readouterr()
    assert told.err == "sharpscope: error: wrong: product with the Hessian, written second derivatives.\n"
    assert "WRONG  product with the Hessian: 1.0e-03" in told.out
    Off.everywhere = True
    assert [x.what for x in doctor("cpu") if x.wrong] == ["product with the Hessian"]


def test_a_package_that_is_missing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    listed = ["torch>=2", "a-package-that-nobody-has", 'nor-this; extra == "hf"', 'nor-that; extra == "test"']
    monkeypatch.setattr(module.metadata, "requires", lambda name: listed)
    monkeypatch.setattr(module, "_product", lambda place: [])
    (wrong,) = (x for x in doctor("cpu") if x.wrong)
    assert str(wrong) == "WRONG  a-package-that-nobody-has: is not installed, and sharpscope needs it"
