"""Memory that is freed stays with the process, so that the next operations need not ask for it again."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource, sys, torch
from sharpscope.machine.devices import keep_freed
torch.set_num_threads(1)
if sys.argv[1] == "kept":
    keep_freed(torch.device("cpu"))

def work():
    tensors = [torch.ones(300_000) for _ in range(16)]  # 19 MB

work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    work()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_what_an_operation_freed_costs_the_next_one_no_page_faults() -> None:
    faults = {}
    for how in ("returned", "kept"):
        done = subprocess.run([sys.executable, "-c", FAULTS, how], capture_output=True, text=True, check=True)
        faults[how] = int(done.stdout)
    pages = 5 * 19_200_000 / 4096
    assert faults["kept"] < 0.1 * pages, faults
    assert faults["returned"] > 0.3 * pages, "without it there is nothing to keep"
