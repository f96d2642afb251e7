"""``--plugin`` and ``list``: a user's own measures, criteria, data sets and methods, as typed."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sharpscope.cli.main import main
from sharpscope.config import plugins
from sharpscope.config.specs import LAYOUTS
from sharpscope.finetuning.registry import METHODS
from sharpscope.vocabulary import CRITERIA, MEASURES

KINDS = (MEASURES, CRITERIA, LAYOUTS, METHODS)

PLUGIN = """
import dataclasses
import numpy as np
import sharpscope
from sharpscope.clip.datasets.found import Found
from sharpscope.clip.datasets.images import Arrays
from sharpscope.finetuning.methods.wise_ft import WiseFT
from sharpscope.miniworld import world

@sharpscope.register_measure("gradient_square", "squared norm of the gradient", adds_up="sum")
def gradient_square(layer):
    return float(layer.gradient @ layer.gradient)

@sharpscope.register_criterion("half_way", "Loss half-way along the layer's own path.")
def half_way(losses, alphas):
    return losses[..., len(alphas) // 2]

@sharpscope.register_dataset("grey", "COUNT")
def find_grey(request):
    pixels = np.full((int(request.rest), 32, 32, 3), 128, dtype=np.uint8)
    classes = tuple(request.classnames or world.CLASSES)
    return Found(Arrays(pixels, request.spec), np.arange(len(pixels)) % len(classes), classes, "nowhere")

@sharpscope.register_method
@dataclasses.dataclass(frozen=True)
class Mine(WiseFT):
    name = "mine"
    description = "WiSE-FT under another name."
"""


Said = tuple[int, str, str]


@pytest.fixture
def typed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[Callable[..., Said]]:
    """``sharpscope ARGV`` in a folder with mine.py -> (exit code, stdout, stderr); what it registers is forgotten."""
    (tmp_path / "mine.py").write_text(PLUGIN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(plugins, "_LOADED", {})
    known = {id(words): set(words) for words in KINDS}

    def say(*argv: str) -> Said:
        code = main(argv)
        told = capsys.readouterr()
        return code, told.out, told.err

    yield say
    for words in KINDS:
        for name in set(words) - known[id(words)]:
            words.remove(name)


@pytest.mark.parametrize(
    ("what", "own"),
    [("measures", "gradient_square"), ("criteria", "half_way"), ("datasets", "grey:COUNT"), ("methods", "mine")],
)
def test_list_shows_the_words_and_those_of_a_plugin(typed: Callable[..., Said], what: str, own: str) -> None:
    code, out, err = typed("list", what, "--plugin", "mine.py")
    assert code == 0, err
    names = [line.split()[0] for line in out.splitlines() if line.strip() and line[0] != " "]
    known = {"measures": "hessian_trace", "criteria": "share:M", "datasets": "folder:PATH", "methods": "lipsum-ft"}
    assert own in names and known[what] in names
    if what == "datasets":
        assert "photo-dark" in out and "all of: imagenet-v2 imagenet-r" in out and "gaussian_noise" in out


def test_a_data_set_of_one_s_own(typed: Callable[..., Said]) -> None:
    argv = "evaluate mini:zeroshot --model mini --datasets grey:32 --metrics top1 --csv --plugin mine.py"
    code, out, err = typed(*argv.split())
    assert code == 0, err
    # every grey image gets the same answer, and every class has two of the 32
    assert out.splitlines()[1].startswith("zeroshot,grey:32,test,top1,0.0625,")


def test_a_method_of_one_s_own(typed: Callable[..., Said], tmp_path: Path) -> None:
    argv = "finetune --zeroshot mini:zeroshot --model mini --train mini:photo --method mine --steps 2 --batch-size 8"
    code, _, err = typed(*argv.split())
    assert code == 2 and "unknown method 'mine'" in err
    code, _, err = typed(*argv.split(), "--out", "out", "--plugin", "mine.py")
    assert code == 0, err
    assert (tmp_path / "out" / "mine.safetensors").exists()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("raise RuntimeError('no')\n", "RuntimeError: no"),
        (PLUGIN.replace('"gradient_square"', '"lambda_max"'), "the measure 'lambda_max' exists already"),
        ("", "it registers nothing"),
    ],
)
def test_a_plugin_that_cannot_be_taken_is_exit_2_and_named(
    typed: Callable[..., Said], tmp_path: Path, text: str, words: str
) -> None:
    (tmp_path / "broken.py").write_text(text)
    code, _, err = typed("run", "--plugin", "broken.py")
    assert code == 2 and "--plugin broken.py" in err and words in err and len(err.splitlines()) <= 3


def test_no_study_file_can_name_a_plugin(typed: Callable[..., Said], tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text("plugin: [mine.py]\n")
    code, _, err = typed("run", "study.yaml")
    assert code == 2 and "unknown key 'plugin'" in err and "gradient_square" not in MEASURES


def test_help_and_list_name_entry_points_and_load_none(tmp_path: Path) -> None:
    (tmp_path / "own_words.py").write_text("raise SystemExit('imported')\n")
    info = tmp_path / "own-1.5.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: own\nVersion: 1.5\n")
    (info / "entry_points.txt").write_text("[sharpscope.measures]\nelsewhere = own_words\n")
    asked = "run --zeroshot mini:zeroshot --finetuned mini:success --measures elsewhere"
    code = (
        "from sharpscope.cli.main import main\n"
        "assert [main(argv.split()) for argv in ('run --help', 'list measures')] == [0, 0]\n"
        f"assert main({asked!r}.split()) == 2\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("elsewhere") == 2
    assert "measure 'elsewhere' of the package own: SystemExit: imported" in done.stderr
