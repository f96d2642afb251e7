"""Data set specs without data: one table of kinds, read before torch is imported."""

from __future__ import annotations

import re

import pytest

from sharpscope.clip.datasets import corruptions
from sharpscope.clip.datasets.spec import _finder
from sharpscope.config.specs import CORRUPTIONS, LAYOUTS, check_root, read_spec
from sharpscope.errors import ConfigError
from sharpscope.miniworld import world


def test_every_word_of_the_grammar_has_its_code() -> None:
    assert set(CORRUPTIONS) == {*corruptions._ON_ARRAYS, *corruptions._ON_IMAGES}
    assert LAYOUTS["mini"].known == world.DOMAINS
    for layout in LAYOUTS.values():
        assert layout.find is None or _finder(layout).__name__ == str(layout.find).partition(".")[2]


def test_the_parts_of_a_spec() -> None:
    spec = read_spec("mini:photo@val+fog@3")
    assert (spec.kind, spec.rest, spec.split, spec.corruption) == ("mini", "photo", "val", ("fog", 3))
    assert read_spec("folder:a@b").rest == "a@b"
    assert (read_spec("folder:a@b@valid").rest, read_spec("folder:a@b@valid").split) == ("a@b", "valid")
    assert read_spec("folder:a@train/").rest == "a@train/"


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("imagenet@trian", "unknown split 'trian'. Did you mean 'train'?"),
        ("mini:skech", "the embedded world has no domain 'skech'. Did you mean 'sketch'?"),
        ("domainnet:skech", "DomainNet has no domain 'skech'"),
        ("foldr:x", "of no known kind"),
        ("mini:photo+fgo@1", "no corruption 'fgo@1'"),
        ("mini:photo+fog@6", "no corruption 'fog@6'"),
    ],
)
def test_a_misspelt_spec_is_refused(spec: str, words: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(words)):
        read_spec(spec)


def test_a_data_root_is_refused_where_no_set_is_looked_up_under_it() -> None:
    for specs in (["mini:photo"], ["mini:photo", "folder:/a/b"]):
        check_root(specs, None)
        with pytest.raises(ConfigError, match="data_root: changes nothing here"):
            check_root(specs, "D")
    for spec in ("imagenet", "folder:a", "torchvision:MNIST"):
        check_root(["mini:photo", spec], "D")
