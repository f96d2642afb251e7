"""What a user gets wrong, through the whole program: a message that names it, exit 2 or 3, nothing written."""

from __future__ import annotations

import json
import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest

from sharpscope.cli import main as cli

GOOD = "--zeroshot mini:zeroshot --finetuned mini:success --model mini --probe folder:images --id mini:photo"


class Payload:
    """Pickled, it touches a file when it is loaded."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


@pytest.fixture
def files(tmp_path, monkeypatch, image_folder):
    """A folder to work in: images that would do; a NaN among the weights, half a file, a web page, an unsafe pickle."""
    import torch
    from safetensors.torch import load_file, save_file

    from sharpscope.miniworld import world as miniworld

    monkeypatch.chdir(tmp_path)
    image_folder(dict.fromkeys(miniworld.CLASSES, 1))
    good = Path(miniworld.checkpoint_path("success")).read_bytes()
    Path("cut.safetensors").write_bytes(good[: len(good) // 2])
    Path("page.pt").write_text("<!DOCTYPE html><html>404</html>")
    Path("unsafe.pt").write_bytes(pickle.dumps({"visual.conv1.weight": Payload(tmp_path / "hacked")}))
    Path("good.safetensors").write_bytes(good)
    theta = load_file("good.safetensors")
    name = "visual.conv1.weight"
    save_file({**theta, name: theta[name].clone().fill_(torch.nan)}, "nan.safetensors")
    save_file({**theta, name: theta[name][:, :, :4].contiguous()}, "reshaped.safetensors")
    return tmp_path


@pytest.mark.parametrize(
    ("flags", "code", "words"),
    [
        ("--zeroshot absent.pt", 2, ["absent.pt"]),
        ("--finetuned page.pt", 2, ["page.pt", "web page"]),
        ("--finetuned cut.safetensors", 2, ["cut.safetensors"]),
        ("--finetuned unsafe.pt", 3, ["unsafe.pt", "touch"]),
        ("--finetuned nan.safetensors", 2, ["visual.conv1.weight", "NaN"]),
        ("--finetuned reshaped.safetensors", 2, ["visual.conv1.weight"]),
        ("--finetuned mini:zeroshot", 2, ["nothing to interpolate"]),
        ("--finetuned mini:succes", 2, ["'success'"]),
        ("--model ViT-B-32", 2, ["mini", "ViT-B-32"]),
        ("--model ViT-B-23", 2, ["ViT-B-23", "ViT-B-32"]),
        ("--id mini:foto", 2, ["mini:foto", "'photo'"]),
        ("--ood tar:x", 2, ["tar:x", "folder:PATH", "wds:PATH"]),
        ("--ood imagenet-shifts --data-root gone", 2, ["imagenetv2-matched", "imagenet-a/", "objectnet-1.0/"]),
        ("--probe folder:absent", 2, ["absent"]),
        ("--classnames absent.txt", 2, ["absent.txt"]),
        ("--alphas 0 1.5", 2, ["1.5", "--extrapolate"]),
        ("--ood mini:neon --ood mini:sketch", 2, ["--ood: is given twice", "Remedy"]),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_bad_input(files, capsys, flags, code, words):
    flag = flags.split()[0]
    assert cli.main(["run", *re.sub(rf"{flag} \S+", "", GOOD).split(), *flags.split(), "--out", "x"]) == code
    told = capsys.readouterr().err
    assert told.startswith("sharpscope: error: ")
    assert len(told.splitlines()) <= 3
    assert all(word in told for word in words), told
    assert not Path("x").exists()
    assert not Path("hacked").exists()


def test_inspect_refuses_an_unsafe_file_too(files, capsys):
    assert cli.main(["inspect", "unsafe.pt"]) == 3
    assert not Path("hacked").exists()
    assert cli.main(["inspect", "good.safetensors"]) == 0
    assert "looks like" in capsys.readouterr().out


QUICK = "--zeroshot a.pt --finetuned b.pt"


def test_a_mistake_in_flags_or_study_file_is_told_before_torch_is_imported(tmp_path):
    typo = tmp_path / "typo.yaml"
    typo.write_text("pairs: []\nalfas: [0, 1]\n")
    told = {
        "run": "nothing to analyse",
        f"run {typo}": "typo.yaml, line 2: unknown key 'alfas'",
        f"run {QUICK}": "give at least one test set",
        f"plan {QUICK}": "give at least one test set",
        f"run {QUICK} --id mini:photo --rtol 5": "a fraction below 1",
        f"run {QUICK} --id mini:photo --name a/b": "has a slash",
        f"run {QUICK} --id mini:photo --ood mini:photo": "is among id too",
        f"run {QUICK} --id mini:photo --density-alphas 0.5": "density_layers",
        f"plan {QUICK} --id mini:photo --precision fp16": "Remedy: bf16",
        f"plan {QUICK} --id mini:photo --measures lambda_max": "needs hessian_trace among measures",
        "evaluate a.pt --datasets mini:photo --limit 0": "--limit",
        "finetune --train mini:photo": "--zeroshot",
    }
    code = (
        "import sys, json\nfrom sharpscope.cli.main import main\n"
        "print(json.dumps([main(argv.split()) for argv in json.loads(sys.argv[1])]))\n"
        "print(json.dumps([name for name in ('torch', 'numpy', 'pandas', 'torchvision') if name in sys.modules]))\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code, json.dumps(list(told))], capture_output=True, text=True, check=True
    )
    assert [json.loads(line) for line in ran.stdout.splitlines()] == [[2] * len(told), []]
    messages = [m for m in ran.stderr.split("sharpscope: error: ") if m]
    for words, message in zip(told.values(), messages, strict=True):
        assert words in message
