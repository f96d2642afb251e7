"""Files that commands write: their ending says what they hold, and none is replaced unasked."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from sharpscope.cli.commands import COMMANDS
from sharpscope.cli.main import main
from sharpscope.cli.options import Replacing

ENDS = "--zeroshot mini:zeroshot --finetuned mini:success --model mini"
WRITES = {
    "inspect": ("mini:zeroshot mini:success --out {}", ".csv"),
    "convert": ("mini:zeroshot {}", ".safetensors"),
    "interpolate": (f"{ENDS} --alpha 0.5 --out {{}}", ".safetensors"),
    "sparsify": (f"{ENDS} --alpha 0.5 --layers visual.proj --out {{}}", ".safetensors"),
    "merge": ("mini:success mini:failure --model mini --method uniform --out {}", ".safetensors"),
    "evaluate": ("mini:zeroshot mini:success --model mini --datasets mini:photo --agreement-out {}", ".csv"),
    "correlate": ("runs/x --out {}", ".csv"),
    "advise": ("runs/x --out {}", ".csv"),
}
"""Command -> (its arguments, {} for the file to write; the ending that the file has to have)."""


@pytest.mark.parametrize("name", WRITES)
def test_a_file_that_is_there_is_kept_and_its_ending_says_what_it_holds(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv, ending = WRITES[name]
    there, strange = tmp_path / f"a{ending}", tmp_path / "a.txt"
    there.write_text("mine")
    assert main([name, *argv.format(there).split()]) == 2
    said = capsys.readouterr().err
    assert "is there already" in said and "--overwrite" in said and there.read_text() == "mine"
    assert main([name, *argv.format(strange).split()]) == 2
    assert f"Remedy: a name that ends in {ending}." in capsys.readouterr().err and not strange.exists()


def test_the_two_files_of_fisher_are_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "fisher_1.safetensors").write_text("mine")
    assert main(["fisher", *ENDS.split(), "--probe", "mini:photo", "--out", str(tmp_path)]) == 2
    assert "fisher_1.safetensors is there already" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["fisher_1.safetensors"]


def test_overwrite_replaces_and_belongs_to_an_output(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "a.csv"
    out.write_text("mine")
    files = ["inspect", "mini:zeroshot", "mini:success", "--granularity", "block"]
    assert main([*files, "--out", str(out), "--overwrite"]) == 0 and out.read_text().startswith("layer,")
    assert main([*files, "--overwrite"]) == 2
    assert "--overwrite: belongs to --out, which is missing." in capsys.readouterr().err


def test_every_command_that_writes_one_file_is_tried() -> None:
    writing = {name for name, command in COMMANDS.items() if dataclasses.is_dataclass(command)}
    assert {n for n in writing if issubclass(COMMANDS[n], Replacing)} == {*WRITES, "fisher"}
