"""Code of a user's own: a Python file that adds measures, straggler criteria, data sets or fine-tuning methods.

``--plugin FILE.py`` is the one place where sharpscope runs a user's code, because they named the file. No study file,
run directory or checkpoint can name one.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import sys
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sharpscope.config.fields import checked_fields
from sharpscope.errors import ConfigError, RunDirectoryError, shown
from sharpscope.vocabulary import CRITERIA, MEASURES, Criterion, Measure, Origin, Words, from_outside

__all__ = ["load_plugin", "loaded_plugins", "recall_words"]

_LOADED: dict[str, str] = {}
"""sha256 of every file that was run -> its path."""


def load_plugin(path: str | os.PathLike[str]) -> None:
    """Run the Python file ``path`` once in this process; what it registers becomes known.

    The file calls ``sharpscope.register_measure``, ``register_criterion``, ``register_dataset`` or ``register_method``.
    A file with the same bytes is not run twice.

    Raises:
        ConfigError: there is no such file, it raises something, it registers nothing, or it repeats a known name.
            Whatever it had registered before is taken back.
    """
    file = Path(path)
    try:
        source = file.read_bytes()
    except OSError as error:
        raise ConfigError(f"--plugin: {shown(os.fspath(path), 200)} cannot be read: {error.strerror}.") from None
    digest = hashlib.sha256(source).hexdigest()
    if digest in _LOADED:
        return
    module = types.ModuleType(f"sharpscope_plugin_{digest[:12]}")
    module.__file__ = str(file.resolve())
    sys.modules[module.__name__] = module  # so that classes defined in it can be pickled and dataclasses resolved
    where = f"--plugin {shown(os.fspath(path), 200)}"
    try:
        with from_outside(Origin(file.name, digest), where) as added:
            exec(compile(source, module.__file__, "exec"), module.__dict__)
            if not added:
                raise ConfigError(
                    "it registers nothing. Remedy: call sharpscope.register_measure, _criterion, _dataset or _method."
                )
    except ConfigError:
        del sys.modules[module.__name__]
        raise
    _LOADED[digest] = module.__file__


def loaded_plugins() -> tuple[str, ...]:
    """The paths of the files that this process has run, in order: what a worker process has to run too."""
    return tuple(_LOADED.values())


def recall_words(manifest: Mapping[str, Any]) -> None:
    """Make known the plugins' measures and criteria that a run's manifest describes, by their facts alone.

    None of their code is run: it is not needed to read the run's tables.

    Raises RunDirectoryError where the manifest does not describe them in the form that ``sharpscope run`` writes.
    """
    known: list[tuple[Words[Any], type]] = [(MEASURES, Measure), (CRITERIA, Criterion)]
    try:
        for words, kind in known:
            # A manifest that was written before a word had one more fact leaves that fact at its default.
            usual = {f.name: f.default for f in dataclasses.fields(kind) if f.default is not dataclasses.MISSING}
            for told in manifest.get("words", {}).get(words.kind, {}).values():
                words.recall(kind(**checked_fields(kind, usual | told["word"])), Origin(**told["origin"]))
    except (AttributeError, KeyError, TypeError, ConfigError):
        raise RunDirectoryError("manifest.json: its key 'words' does not describe the plugins' measures.") from None
