"""The command line: parses arguments into a command (``sharpscope.cli.commands``), prints its outcome, exits.

The only module that prints or exits. Exit codes: 0 done, 1 some units failed, 2 bad input, 3 unsafe file refused,
130 interrupted (state kept).
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import inspect
import io
import itertools
import os
import re
import signal
import sys
import textwrap
import time
import traceback
import types
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any, Union

import tyro

from sharpscope.cli.commands import COMMANDS
from sharpscope.cli.helppage import STUDY_EXAMPLES, STUDY_GROUPS, grouped, without_none
from sharpscope.cli.outcome import Outcome
from sharpscope.cli.studies import StudyCommand
from sharpscope.config import studyfile
from sharpscope.config.plugins import load_plugin
from sharpscope.config.spellings import current_arguments
from sharpscope.config.study import StudyConfig
from sharpscope.errors import ConfigError, SharpscopeError, did_you_mean, shown
from sharpscope.machine.ranks import ranks
from sharpscope.vocabulary import __version__

__all__ = ["main", "parse"]

_ABOUT = "Layer-wise sharpness along the path between a zero-shot CLIP and its fine-tuned version."
_SHELLS = ("bash", "zsh", "fish")
"""The shells whose completions tyro writes by itself; for tcsh it needs a package that nothing else here needs."""
_COMPLETIONS = ("--tyro-print-completion", "--tyro-write-completion")
_INTERRUPTED = 130
_LATE_SECONDS = 10.0
"""Seconds that a rank other than rank 0 waits before it says what went wrong. A smaller value repeats more often what
rank 0 says."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; never raises."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a name that the terminal cannot show is escaped, no error
    try:
        with _terminable(), warnings.catch_warnings():
            if not sys.warnoptions and not _debugging():
                warnings.simplefilter("ignore")  # other libraries' warnings; ours are table rows with a status
            arguments, hints = _in_current_words(arguments)
            for hint in hints:
                _complain(hint, 0, "sharpscope: hint: ")
            _check_ranks(arguments)
            outcome = parse(arguments)()
            _say(outcome.text)
    except KeyboardInterrupt:
        return _complain(_interruption(arguments), _INTERRUPTED, "sharpscope: ")
    except Exception as error:
        text, code = _described(error)
        return _complain(text, code) if ranks().leads else _complain_late(text, code)
    return _complain(outcome.complaint, outcome.code, "sharpscope: error: " if outcome.code else "sharpscope: note: ")


def _check_ranks(arguments: Sequence[str]) -> None:
    """Raise ConfigError for a command that several ranks cannot share."""
    able = [name for name, kind in COMMANDS.items() if getattr(kind, "shared_by_ranks", False)]
    if ranks().several and arguments and arguments[0] in set(COMMANDS).difference(able):
        raise ConfigError(
            f"{arguments[0]}: every rank of torchrun would do all of it; ranks can share: {', '.join(able)}.\n"
            "Remedy: start it without torchrun."
        )


def _described(error: Exception) -> tuple[str, int]:
    """The message and the exit code of what went wrong."""
    if isinstance(error, SharpscopeError):
        return str(error), error.exit_code
    if isinstance(error, MemoryError):
        return "out of memory. Try a smaller --batch-size or --memory.", 1
    if type(error).__name__ == "OutOfMemoryError":  # torch's, which is not imported here
        return "the accelerator is out of memory. Try a smaller --batch-size or --memory.", 1
    if isinstance(error, OSError):
        where = f"{shown(error.filename)}: " if error.filename else ""
        return f"{where}{error.strerror or shown(error)}.", 2
    return (
        f"this should not have happened: {type(error).__name__}: {shown(error, 300)}\n"
        "Please report it with what SHARPSCOPE_DEBUG=1 prints.",
        1,
    )


def _interruption(arguments: list[str]) -> str:
    keeps_state = bool(arguments) and getattr(COMMANDS.get(arguments[0]), "keeps_state", False)
    return "interrupted: state kept; run the same command again to resume." if keeps_state else "interrupted."


# -- arguments ---------------------------------------------------------------------------------------------------------


def _in_current_words(arguments: list[str]) -> tuple[list[str], list[str]]:
    """(``arguments`` with current flags in place of old ones, one hint per replaced flag)."""
    current, hints = current_arguments(arguments[0], arguments[1:]) if arguments else ([], [])
    return [*arguments[:1], *current], hints


def parse(arguments: Sequence[str]) -> Callable[[], Outcome]:
    """The command that ``arguments`` ask for; calling it does the work. Raises ConfigError.

    Flags override the values of a study file. ``parse(arguments).config()`` is the study of a ``run`` or ``plan``.
    """
    first = arguments[0] if arguments else "--help"
    if first in ("--version", "-V"):
        return lambda: Outcome(f"sharpscope {__version__}")
    if first in ("-h", "--help", "help") or first.startswith("--tyro-"):
        return _help(list(arguments))
    if first not in COMMANDS:
        what = "flag before the command:" if first.startswith("-") else "command"
        near = did_you_mean(first, COMMANDS) or f" Known: {', '.join(COMMANDS)}."
        raise ConfigError(f"unknown {what} '{shown(first, 60)}'.{near}")
    kind, rest = COMMANDS[first], list(arguments[1:])
    _check_once(kind, rest)
    command = _tyro(kind, f"sharpscope {first}", rest)
    for path in getattr(command, "plugin", ()):
        load_plugin(path)
    if isinstance(command, StudyCommand) and command.study is not None:
        loaded = studyfile.load(command.study)
        values = {f.name: getattr(loaded, f.name) for f in dataclasses.fields(StudyConfig)}
        # Parse again with the file's values as defaults, so that given flags win; pairs and tags are merged by hand.
        command = _tyro(kind, f"sharpscope {first}", rest, default=kind(**{**values, "pairs": (), "tags": {}}))
        command = dataclasses.replace(command, pairs=loaded.pairs, tags={**loaded.tags, **command.tags})
    return command


def _check_once(kind: Any, arguments: Sequence[str]) -> None:
    """Raise ConfigError for a flag of several values that is given twice: only its last values would count."""
    several = {f"--{f.name.replace('_', '-')}" for f in dataclasses.fields(kind) if "tuple[" in str(f.type)}
    flags = [a.partition("=")[0].replace("_", "-") for a in arguments if a.startswith("--")]
    if twice := [flag for i, flag in enumerate(flags) if flag in several and flag in flags[:i]]:
        raise ConfigError(
            f"{twice[0]}: is given twice, and only the values behind the last one would count.\n"
            "Remedy: give it once, with all its values behind it."
        )


def _help(arguments: list[str]) -> Callable[[], Outcome]:
    """The page that lists the commands (an error when nothing was asked for), or tyro's shell completions."""
    told = {name: (inspect.getdoc(kind) or "").split("\n\n")[0] for name, kind in COMMANDS.items()}
    kinds = tuple(
        Annotated[kind, tyro.conf.subcommand(name, description=told[name])] for name, kind in COMMANDS.items()
    )
    special = arguments if arguments and arguments[0].startswith("--tyro-") else ["--help"]
    page = _tyro(Union[kinds], "sharpscope", special, description=_ABOUT)  # noqa: UP007 (a tuple made at run time)
    return page if arguments else lambda: dataclasses.replace(page(), code=2, complaint="which command?")


def _tyro(kind: Any, program: str, arguments: list[str], **options: Any) -> Any:
    """The command that tyro makes of ``arguments``: help becomes a command that prints it, an error ConfigError."""
    out, err = io.StringIO(), io.StringIO()
    _check_shell(arguments)
    if "--help" in arguments or "-h" in arguments:
        _tell_fields(kind)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            return tyro.cli(kind, prog=program, args=arguments, **options)
    except SystemExit as stop:
        if stop.code:
            raise ConfigError(f"{_complaint(err.getvalue(), kind)}\nSee {program} --help.") from None
    page = re.sub(r"\s*\(default:\s*(None|'')?\s*\)", "", out.getvalue())  # the texts explain empty defaults
    if not arguments[0].startswith("--tyro-"):
        page = without_none(page)
        if isinstance(kind, type) and issubclass(kind, StudyCommand):
            page = grouped(page, STUDY_GROUPS, STUDY_EXAMPLES)
    return lambda: Outcome(page.rstrip())


def _check_shell(arguments: Sequence[str]) -> None:
    """Raise ConfigError for completions of a shell for which tyro has none."""
    if arguments and arguments[0] in _COMPLETIONS and (len(arguments) < 2 or arguments[1] not in _SHELLS):
        asked = f"there are none for {shown(arguments[1], 40)}." if len(arguments) > 1 else "for which shell?"
        raise ConfigError(f"{arguments[0]}: {asked} Completions exist for {', '.join(_SHELLS)}.")


def _tell_fields(kind: Any) -> None:
    """Put every field's docstring on one line where tyro looks first; tyro would keep the source's line breaks."""
    bases: tuple[type, ...] = getattr(kind, "__mro__", ())
    for base in bases:
        if dataclasses.is_dataclass(base):
            (definition,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
            assert isinstance(definition, ast.ClassDef)
            fields = {f.name: f for f in dataclasses.fields(base)}
            for before, after in itertools.pairwise(definition.body):
                match before, after:
                    case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                        if name in fields:
                            fields[name].metadata = types.MappingProxyType({"help": " ".join(text.split())})


def _complaint(page: str, kind: Any) -> str:
    """The message inside tyro's error page, which consists of title, rule, message, rule and long advice."""
    lines = [re.sub(r"\x1b\[[0-9;]*m", "", line).strip("│╭╮╰╯").rstrip() for line in page.splitlines()]
    parts: list[list[str]] = [[]]
    for line in filter(None, lines):
        if set(line.strip()) <= set("─-"):
            parts.append([])
        elif "── " not in line and " ──" not in line:  # a title in its box's frame
            parts[-1].append(line)
    parts = [part for part in parts if part]
    if len(parts) > 1 and len(parts[0]) == 1 and not parts[0][0].rstrip().endswith((".", "]", "'")):
        parts = parts[1:]  # a title on a line of its own
    if not parts:
        return "these arguments cannot be read."
    said = [line.strip() for line in parts[0]]
    if said[0].startswith("Missing from"):
        depth = min(len(line) - len(line.lstrip()) for line in parts[0][1:])
        said = ["missing:", ", ".join(line.strip() for line in parts[0][1:] if line[depth] != " ")]
    text = " ".join(" ".join(said).split()).rstrip(".") + "."
    if text.startswith("Error parsing "):
        return shown(_unread(text, parts[1][1].strip() if len(parts) > 1 and len(parts[1]) > 1 else ""), 300)
    text = re.sub(r"^Missing value for argument '(\S+)'\. Expected 1 values\.", r"\1: needs a value.", text)
    unknown = re.search(r"--[\w-]+", text) if text.startswith("Unrecognized") else None
    flags = (
        [f"--{f.name.replace('_', '-')}" for f in dataclasses.fields(kind)] if dataclasses.is_dataclass(kind) else []
    )
    return shown(text, 300) + (did_you_mean(unknown[0], flags) if unknown else "")


def _unread(text: str, usage: str) -> str:
    """The message for a value that has another type. ``text`` ends in Python's error, ``usage`` is ``--flag TYPE``."""
    flag = text.removeprefix("Error parsing ").partition(":")[0]
    value = re.search(r"[\s\[](['\"])((?:(?!\1).)*)\1[^'\"]*$", text)  # the value is the last quoted part
    expected = re.sub(r"^\{(\[.*\])\}$", r"\1", usage.removeprefix(f"{flag} ").removeprefix("{None}|"))
    return f"{flag}: {repr(value[2]) + ' ' if value else ''}cannot be read as {expected or 'that'}."


# -- the terminal and the process --------------------------------------------------------------------------------------


def _say(text: str) -> None:
    """Print on stdout, if this is rank 0. A reader that has closed the pipe (``| head``) is no error."""
    if not ranks().leads:
        return
    try:
        print(text, flush=True)
    except OSError as error:
        with contextlib.suppress(OSError, ValueError):  # so that the interpreter's own last flush succeeds
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):
            raise


def _complain_late(text: str, code: int) -> int:
    """Print what went wrong in a rank other than rank 0; returns ``code``.

    What is wrong everywhere is said by rank 0, and torchrun then ends the other ranks while they wait here.
    """
    try:
        time.sleep(_LATE_SECONDS)
    except KeyboardInterrupt:
        return code
    return _complain(text, code, f"sharpscope: rank {ranks().rank}: error: ", every_rank=True)


def _complain(text: str, code: int, label: str = "sharpscope: error: ", *, every_rank: bool = False) -> int:
    """Print ``text``, at most three lines of it, on stderr; returns ``code``. Only rank 0 prints, unless all are to."""
    with contextlib.suppress(OSError):
        if not (every_rank or ranks().leads):
            return code
        if _debugging() and sys.exc_info()[0] is not None:
            traceback.print_exc()
        if text:
            print(label + "\n".join(text.splitlines()[:3]), file=sys.stderr, flush=True)
    return code


def _debugging() -> bool:
    return os.environ.get("SHARPSCOPE_DEBUG", "") not in ("", "0")


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM ends the command as Ctrl-C does: state kept, exit code 130."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGTERM, interrupt)
    except ValueError:  # not in the main thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


if __name__ == "__main__":
    sys.exit(main())
