"""Named groups of OOD sets in flags, study files and notebooks."""

from __future__ import annotations

import pytest

from sharpscope.config.oodgroups import flat_ood, ood_groups, split_group
from sharpscope.config.study import StudyConfig
from sharpscope.config.studyfile import dump, parse
from sharpscope.errors import ConfigError

STUDY = """
ood:
  styles: [mini:sketch, mini:neon]
  natural: [mini:photo-dark]
"""


def test_a_spec_alone_is_in_the_group_ood_and_an_equals_sign_of_the_spec_is_its_own() -> None:
    assert split_group("mini:sketch") == ("ood", "mini:sketch")
    assert split_group("a-b_1=imagenet@x=y.txt") == ("a-b_1", "imagenet@x=y.txt")
    for spec in ("folder:/data/a=b", "imagenet@a=b.txt", "/x=y"):
        assert split_group(spec) == ("ood", spec)


@pytest.mark.parametrize("entry", ["=mini:sketch", "1a=mini:sketch", "a b=mini:sketch", "styles=", "(pairs)=mini:x"])
def test_a_bad_name_is_refused_with_the_remedy(entry: str) -> None:
    with pytest.raises(ConfigError, match=r"(?s)ood: .*NAME=SPEC.*Remedy"):
        StudyConfig(ood=(entry,))


def test_file_notebook_and_flags_say_the_same() -> None:
    flags = StudyConfig(ood=("styles=mini:sketch", "styles=mini:neon", "natural=mini:photo-dark"))
    groups = {"styles": ["mini:sketch", "mini:neon"], "natural": ["mini:photo-dark"]}
    assert parse(STUDY) == flags == StudyConfig.from_dict({"ood": groups})
    assert flags.ood_groups == {"mini:sketch": "styles", "mini:neon": "styles", "mini:photo-dark": "natural"}
    assert parse(dump(flags)) == flags and StudyConfig.from_dict(flags.to_dict()) == flags


def test_the_default_group_has_no_prefix() -> None:
    assert flat_ood({"ood": ["mini:sketch"], "far": ["mini:neon"]}) == ("mini:sketch", "far=mini:neon")
    assert StudyConfig(ood=("ood=mini:sketch",)).ood == ("mini:sketch",)


def test_a_collection_s_sets_are_in_its_group_and_an_explicit_one_keeps_its_own() -> None:
    config = StudyConfig(ood=("shifts=lipsum-imagenet", "own=imagenet-r"))
    assert config.ood_groups == {
        "imagenet-v2": "shifts", "imagenet-a": "shifts", "imagenet-sketch": "shifts", "imagenet-r": "own",
    }  # fmt: skip


def test_a_set_belongs_to_one_group() -> None:
    with pytest.raises(ConfigError, match="ood: 'mini:sketch' is given twice"):
        StudyConfig(ood=("a=mini:sketch", "b=mini:sketch"))
    with pytest.raises(ConfigError, match="is among id too"):
        StudyConfig(
            pairs=({"name": "p", "zeroshot": "mini:zeroshot", "finetuned": "mini:success"},),  # type: ignore[arg-type]
            id=("mini:photo",),
            ood=("a=mini:photo",),
        ).check_complete()


@pytest.mark.parametrize("value", [{"styles": "mini:sketch"}, {"styles": None}, {"styles": {"a": 1}}])
def test_a_group_is_a_list(value: object) -> None:
    with pytest.raises(ConfigError, match="the group 'styles' needs a list"):
        StudyConfig.from_dict({"ood": value})


@pytest.mark.parametrize("name", ["a:b", "", "1st", "a/b"])
def test_a_mapping_s_names_follow_the_same_rule(name: str) -> None:
    with pytest.raises(ConfigError, match="a group's name has letters"):
        StudyConfig.from_dict({"ood": {name: ["mini:sketch"]}})


def test_groups_keep_the_order_of_the_sets() -> None:
    assert list(ood_groups(["b=x:1", "x:2", "b=x:3"])) == ["x:1", "x:2", "x:3"]
