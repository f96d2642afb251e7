"""The architectures that are known before open_clip is imported."""

from __future__ import annotations

import open_clip
import pytest

from sharpscope.cli.main import main
from sharpscope.clip.model import ClipModel
from sharpscope.config.models import architectures, check_model, described
from sharpscope.errors import ConfigError


def test_they_are_those_that_open_clip_itself_lists() -> None:
    assert set(architectures()) == set(open_clip.list_models())
    assert all(architectures()[name] == open_clip.get_model_config(name) for name in architectures())


@pytest.mark.parametrize("wrong", ["ViT-B-23", "vit_b_32", "ViT-B/23"])
def test_a_wrong_name_is_told_with_the_words_of_the_loader(wrong: str) -> None:
    with pytest.raises(ConfigError) as early:
        check_model(wrong)
    with pytest.raises(ConfigError) as late:
        ClipModel.load(wrong)
    assert str(early.value) == str(late.value) and "sharpscope list models" in str(early.value)


@pytest.mark.parametrize(
    ("written", "meant"), [("vitb32", "ViT-B-32"), ("vit_l_14_336", "ViT-L-14-336"), ("rn-50", "RN50")]
)
def test_a_name_in_other_letters_is_recognised(written: str, meant: str) -> None:
    with pytest.raises(ConfigError, match=f"Did you mean '{meant}'?"):
        check_model(written)


@pytest.mark.parametrize("right", ["mini", "ViT-B-32", "ViT-B/32", "ViT-B-32-quickgelu", "absent.json"])
def test_what_may_be_a_model_passes(right: str) -> None:
    check_model(right)


def test_every_architecture_is_described_and_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "models"]) == 0
    lines = dict(line.split(None, 1) for line in capsys.readouterr().out.splitlines())
    assert set(lines) == {"mini", *architectures()}
    assert lines["ViT-B-32-quickgelu"] == (
        "224 px, ViT of width 768 with 12 blocks, patches of 32, text: width 512, 12 blocks, embedding 512, QuickGELU"
    )
    assert lines["RN50"].startswith("224 px, ResNet of width 64 with 3-4-6-3 blocks, text: ")
    assert not [name for name, text in lines.items() if "None" in text]
    assert described(architectures()["ViT-B-32"]) == lines["ViT-B-32"]
