from __future__ import annotations

import os

import pytest

from sharpscope.config import studyfile
from sharpscope.config.study import StudyConfig
from sharpscope.errors import ConfigError

STUDY = """\
# two models with the same ID accuracy
pairs:
  - {name: success, zeroshot: mini:zeroshot, finetuned: mini:success}
  - name: failure
    zeroshot: mini:zeroshot
    finetuned: mini:failure
model: mini
alphas: [0, .5, 1]
rtol: 1e-2
seed: 3
id: [mini:photo]
ood:
  - mini:sketch
limit: null
extrapolate: false
title: no
tags:
  date: 2026-11-22
  time: 12:30
  version: "1.10"
"""


def test_a_study_file(tmp_path):
    (tmp_path / "study.yaml").write_bytes(b"\xef\xbb\xbf" + STUDY.encode())
    config = studyfile.load(tmp_path / "study.yaml")
    assert [p.name for p in config.pairs] == ["success", "failure"]
    assert config.alphas == (0.0, 0.5, 1.0)
    assert (config.rtol, config.seed, config.limit, config.extrapolate, config.title) == (
        0.01,
        3,
        None,
        False,
        "no",
    )
    assert config.tags == {"date": "2026-11-22", "time": "12:30", "version": "1.10"}
    assert studyfile.parse(studyfile.dump(config)) == config


@pytest.mark.parametrize(
    "text", ["no", "1e-3", "1_000", "null", "~", "0x1F", "12:30:00", "'q'", "a: b", "- x", "  ", "é\n"]
)
def test_texts_survive_a_dump_whatever_they_look_like(text):
    config = StudyConfig(tags={"t": text if text.strip() else "x"}, title=f"{text}.")
    assert studyfile.parse(studyfile.dump(config)) == config


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("model: mini\nalpha: [0, 1]\n", "s.yaml, line 2: unknown key 'alpha'. Did you mean 'alphas'?"),
        ("model: mini\nseed: 1\nseed: 2\n", "s.yaml, line 3: the key 'seed' is given twice"),
        ("seed: 1.5\n", "s.yaml, line 1: seed: needs a whole number, got 1.5"),
        ("model: mini\nalphas: abc\n", "s.yaml, line 2: alphas: needs a list, got 'abc'"),
        ("alphas:\n  - 0\n  - x\n", "s.yaml, line 3: alphas[1]: needs a number, got 'x'"),
        ("extrapolate: yes\n", "line 1: extrapolate: needs true or false, got 'yes'"),
        ("pairs:\n- name: a\n  zeroshot: z\n  finetund: f\n", "line 4: pairs[0]: unknown key 'finetund'"),
        ("pairs:\n- name: a\n- x\n", "line 2: pairs[0]: has no zeroshot"),
        ("a: &x [1]\nb: *x\n", "line 2: aliases (*name) are refused"),
        ("<<: {seed: 1}\n", "unknown key '<<'"),
        (
            "model: !!python/object/apply:os.system ['touch hacked']\n",
            "line 1: cannot be read as !!python/object/apply",
        ),
        ("model: !!binary aGk=\n", "line 1: cannot be read as !!binary"),
        ("seed: !!int x\n", "line 1: cannot be read as !!int"),
        ("seed: " + "9" * 5000, "line 1: cannot be read as !!int"),
        ("? [a]\n: 1\n", "line 1: a key has to be a plain word"),
        ("1: 2\n", "line 1: a key has to be a plain word"),
        ("seed: [1\n", "line 2"),
        ("\tseed: 1\n", "line 1"),
        ("seed: 1\n---\nseed: 2\n", "needs one YAML document"),
        ("", "needs one YAML document"),
        ("just a text\n", "needs one YAML document"),
        ("- seed\n", "needs one YAML document"),
        ("seed: \x07\n", "is not YAML"),
        ("tags: " + "[" * 5000, "nested too deeply"),
        ("tags: " + "{a: " * 5000, "nested too deeply"),
    ],
    ids=lambda v: v[:25],
)
def test_bad_study_files_are_refused_with_file_and_line(tmp_path, monkeypatch, text, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "s.yaml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        studyfile.load("s.yaml")
    message = str(caught.value)
    assert words in message
    assert message.startswith("s.yaml")
    assert len(message.splitlines()) <= 3
    assert not (tmp_path / "hacked").exists()


def test_files_that_are_no_study_files(tmp_path):
    with pytest.raises(ConfigError, match="there is no such study file"):
        studyfile.load(tmp_path / "absent.yaml")
    with pytest.raises(ConfigError, match="is not a regular file"):
        studyfile.load(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ConfigError, match="is not a regular file"):
        studyfile.load(tmp_path / "pipe")
    (tmp_path / "model.pt").write_bytes(b"PK\x03\x04\xff\xfe\x00")
    with pytest.raises(ConfigError, match="is not a text file in UTF-8"):
        studyfile.load(tmp_path / "model.pt")
    (tmp_path / "big").write_bytes(b"# " * (1 << 20))
    with pytest.raises(ConfigError, match="larger than 1 MiB"):
        studyfile.load(tmp_path / "big")
