"""The main function of a script in figures/: its options are those of its figure, its defaults too."""

from __future__ import annotations

import argparse
import types
import typing
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sharpscope.errors import SharpscopeError
from sharpscope.present.canvas import paper_style
from sharpscope.present.kinds import FigureKind, Option
from sharpscope.study.figures.kinds import FIGURES
from sharpscope.study.figures.making import write
from sharpscope.study.figures.reading import tables_of

__all__ = ["drawing", "figure_script"]


def figure_script(name: str, text: str | None) -> Callable[..., None]:
    """The main function of the script that draws the figure ``name``; ``text`` is its help page."""
    kind = FIGURES[name]

    def main(argv: Sequence[str] | None = None) -> None:
        args = vars(_parser(kind, text).parse_args(argv))
        options = {option: args[option] for option in kind.options()}
        with drawing():
            tables = tables_of(args["sources"], args["group"])
            write(kind.draw(tables, **options), args["out"], kind.file_name(options))

    return main


@contextmanager
def drawing() -> Iterator[None]:
    """Draw in the style of papers; an error of the input ends the program with its message."""
    try:
        with paper_style():
            yield
    except SharpscopeError as error:
        raise SystemExit(str(error)) from error


def _parser(kind: FigureKind, text: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", nargs="+", metavar="RUN", help="run directories, or the file that the text names")
    parser.add_argument("--out", type=Path, default=Path("figures"), help="folder for the files of the figure")
    parser.add_argument("--group", help="group of OOD sets to draw; needed where several would be averaged")
    for option in (o for o in kind.options().values() if o.name != "group"):  # the flag above is that option
        flag = "--" + option.name.rstrip("_").replace("_", "-")
        parser.add_argument(flag, dest=option.name, default=option.default, **_values(option))
    return parser


def _values(option: Option) -> dict[str, Any]:
    """What argparse has to know of the values of an option."""
    told = option.help.replace("%", "%%")
    given = option.default is not None and option.default != () and "default:" not in told
    told = f"{told} (default: %(default)s)" if given else told
    kind = option.kind
    if isinstance(kind, types.UnionType):
        (kind,) = (k for k in typing.get_args(kind) if k is not types.NoneType)
    if kind is bool:
        return {"action": "store_true", "help": told}
    if typing.get_origin(kind) is typing.Literal:
        return {"choices": typing.get_args(kind), "help": told}
    if typing.get_args(kind):
        return {"nargs": "+", "type": typing.get_args(kind)[0], "metavar": "NAME", "help": told}
    return {"type": kind, "help": told}
