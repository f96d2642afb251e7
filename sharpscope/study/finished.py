"""A run directory read again later, as a study with the units that are finished. No torch, no figures."""

from __future__ import annotations

import os

from sharpscope.config.plugins import recall_words
from sharpscope.config.spellings import EARLIER_DEFAULTS
from sharpscope.config.study import StudyConfig
from sharpscope.errors import RunDirectoryError, shown
from sharpscope.findings.doubts import Doubt
from sharpscope.findings.frames import alpha_index
from sharpscope.layers import Layer
from sharpscope.study.results import Results
from sharpscope.study.store import RunDirectory
from sharpscope.vocabulary import __version__

__all__ = ["doubts_of", "finished_results", "opened"]


def opened(root: str | os.PathLike[str]) -> tuple[RunDirectory, Results]:
    """The run directory and its study, of which no unit has been read yet.

    Raises:
        RunDirectoryError: the folder is not a run directory, or another version of sharpscope made it.
        ConfigError: the config in the manifest cannot be read.
    """
    directory = RunDirectory.existing(root)
    if protocol := directory.manifest.get("protocol"):
        raise RunDirectoryError(
            f"{shown(root)}: is the directory of a protocol, which has no report.\n"
            f"Remedy: the same 'sharpscope protocol {shown(protocol, 40)}' command again writes its tables."
        )
    recall_words(directory.manifest)
    stored = EARLIER_DEFAULTS | directory.manifest["config"]
    config = StudyConfig.from_dict(stored, source=f"{root}/manifest.json")
    if directory.identity["sharpscope"] != __version__:
        raise RunDirectoryError(
            f"{shown(root)}: was made by sharpscope {directory.identity['sharpscope']}, but this is {__version__}.\n"
            "Remedy: run the study again in a new folder."
        )
    layers = {
        name: tuple(Layer(**{**x, "params": tuple(x["params"])}) for x in stored)
        for name, stored in directory.manifest["layers"].items()
    }
    return directory, Results(config, layers, directory.manifest.get("pairs"))


def finished_results(root: str | os.PathLike[str]) -> tuple[RunDirectory, Results]:
    """The run directory and its study with the units that are finished. Raises what ``opened`` raises."""
    directory, done = opened(root)
    for tasks in (done.first_tasks, done.repair_tasks):
        found = {t.key: directory.load(t.key) for t in tasks()}
        done.take(
            {k: u for k, u in found.items() if u is not None}, {k: "not done" for k, u in found.items() if u is None}
        )
    return directory, done


def doubts_of(root: str | os.PathLike[str]) -> list[Doubt]:
    """``Results.doubts`` of a run, from the units at the two ends of each path; nothing is written.

    Raises what ``opened`` raises, and RunDirectoryError for a unit that is damaged.
    """
    directory, results = opened(root)
    alphas = results.config.alphas
    ends = [alphas[i] for end in (0.0, 1.0) if (i := alpha_index(alphas, end)) is not None]
    for key in (f"path/{name}/{alpha!r}" for name in results.layers for alpha in ends):
        try:
            unit = directory.peek(key)
        except ValueError as error:
            raise RunDirectoryError(f"{shown(root)}: its unit {shown(key, 60)} is damaged ({error}).") from error
        if unit is not None:
            results.take({key: unit}, {})
    return results.doubts()
