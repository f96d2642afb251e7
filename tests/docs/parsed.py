"""A command line of the pages that is not run: what can be known of it without the files that it opens."""

from __future__ import annotations

import configparser
import re
from collections.abc import Callable

from sharpscope.cli import main as cli
from sharpscope.cli.protocol import Protocol
from sharpscope.cli.slurm import Settings
from sharpscope.cli.studies import Run, StudyCommand
from sharpscope.cli.sweep import Sweep
from sharpscope.config.idle import check_no_idle
from sharpscope.config.sweep import load_sweep
from sharpscope.finetuning.registry import configured
from sharpscope.study.shard import Shard
from tests.docs.blocks import ROOT

OTHER_PACKAGES = {"atheris", "imagecorruptions"}
"""Packages that the pages tell to install and that are no extra of sharpscope."""
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")


def parsed(program: str, words: list[str]) -> None:
    """Raise for a line that cannot be right; KeyError for a program that is not known."""
    _PROGRAMS[program](words)


def targets() -> set[str]:
    """Everything that make can make."""
    return set(re.findall(r"^([\w-]+):(?!=)", MAKEFILE, re.MULTILINE))


def _sharpscope(words: list[str]) -> None:
    """The real parser, then every check that the command makes before it opens a file."""
    command = cli.parse(words)
    if isinstance(command, StudyCommand):
        command.complete()
    if isinstance(command, Run):
        command.folder()
        Shard.read(command.shard)
        if command.slurm:
            Settings.read(command.slurm)
    if isinstance(command, Protocol):
        config = command.config()
        for method in config.methods:
            configured(method, config.hyperparameters)
    if isinstance(command, Sweep):
        sweep = load_sweep(command.file)
        planned = sweep.planned()
        planned.check_complete()
        check_no_idle(planned)
        for trial in sweep.trials():
            configured(trial.way["method"], trial.settings)


def _torchrun(words: list[str]) -> None:
    at = words.index("-m")
    assert words[:at][::2] == ["--nproc-per-node"] and words[at + 1] == "sharpscope"
    _sharpscope(words[at + 2 :])


def _python(words: list[str]) -> None:
    """The script is there, and has a word for each flag."""
    source = (ROOT / words[0]).read_text(encoding="utf-8")
    for flag in (word[2:].replace("-", "_") for word in words if word.startswith("--")):
        assert re.search(rf"\b{flag}\b", source), flag


def _make(words: list[str]) -> None:
    assert targets() >= {words[0]}
    assert all(re.search(rf"^{word.partition('=')[0]} = ", MAKEFILE, re.MULTILINE) for word in words[1:])


def _pip(words: list[str]) -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    assert words[0] == "install"
    for word in words[1:]:
        if found := re.fullmatch(r"(?:\.|sharpscope)(?:\[(\w+)\])?", word):
            assert found[1] is None or found[1] in setup["options.extras_require"]
        else:
            assert word in OTHER_PACKAGES or word in ("-e", "--no-deps"), word


_PROGRAMS: dict[str, Callable[[list[str]], None]] = {
    "sharpscope": _sharpscope,
    "torchrun": _torchrun,
    "python": _python,
    "make": _make,
    "pip": _pip,
}
"""Program -> what checks a line of it that is not run."""
