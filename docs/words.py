"""Write the tables of words into README.md and docs/: every name that sharpscope knows, from the place that defines it.

    python docs/words.py

A table stands between ``<!-- words: NAME -->`` and ``<!-- end of words -->``; only what is between them is written.
``tests/docs`` fails where a page is not as this would write it.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from sharpscope.cli.commands import COMMANDS
from sharpscope.config.study import DEFAULT_MEASURES, StudyConfig
from sharpscope.findings import design, failure, question, relation, resampling, sharpness_criteria, verdicts
from sharpscope.findings.criteria import criticality
from sharpscope.finetuning.registry import METHODS
from sharpscope.study.figures.kinds import FIGURES
from sharpscope.tables import experiments, schema
from sharpscope.tables.rows import unique_in_order
from sharpscope.vocabulary import (
    ADVICE,
    AGREEMENT,
    BASELINE,
    BASES,
    CLAIMS,
    CRITERIA,
    FLAGS,
    MEASURES,
    METRICS,
    OUTPUT_BASELINES,
    PATHS,
    SITUATIONS,
    Measure,
    budget_of,
)

ROOT: Final = Path(__file__).parents[1]
PAGES: Final = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
LINK: Final = r"[arXiv \1](https://arxiv.org/abs/\1)"
_ARXIV: Final = re.compile(r"(?:arXiv )?\b(\d{4}\.\d{5})\b")


MARGINS: Final[dict[Any, tuple[str, ...]]] = {
    failure: ("DROP", "RISE"),
    resampling: ("FEWEST_IMAGES",),
    relation: ("MARGIN", "CONTRAST_MARGIN"),
    design: ("FEWEST_PAIRS", "FEWEST_CLUSTERS"),
    verdicts: ("GAIN_MARGIN",),
    question: ("ID_TOLERANCE", "RATIO_MARGIN"),
    sharpness_criteria: ("SUSTAINED",),
    criticality: ("LOSS_SLACK",),
}
"""Module -> its constants that decide verdicts, flags and stragglers."""


def table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown; what would be markup inside a cell is escaped, an arXiv id becomes a link."""

    def line(cells: Sequence[str]) -> str:
        linked = (_ARXIV.sub(r"[arXiv \1](https://arxiv.org/abs/\1)", cell) for cell in cells)
        return (
            "| " + " | ".join(" ".join(cell.split()).replace("|", r"\|").replace("<", "&lt;") for cell in linked) + " |"
        )

    return "\n".join([line(titles), "|" + "---|" * len(titles), *map(line, rows)])


def code(text: str) -> str:
    return f"`{text}`"


def marked(text: str) -> str:
    """A docstring's ``double`` quotes as Markdown's."""
    return text.replace("``", "`")


# -- what is measured --------------------------------------------------------------------------------------------------
_TOGETHER: Final = {
    "sum": "sum", "norm": "root of the sum of squares", "max": "largest", "min": "smallest",
    "magnitude": "largest magnitude", "none": "not combined",
}  # fmt: skip
_COSTS: Final = {
    "trace": "products", "eigenvalues": "products", "product": "1 product", "outer": "passes", "gradient": "1 gradient",
    "noise": "losses", "worst_case": "gradients",
}  # fmt: skip
"""What the words of ``AddsUp`` and ``Cost`` mean, in a cell of a table."""


def _radius(measure: Measure) -> str:
    if measure.radius is None:
        return ""
    return f"`--{measure.radius.replace('_', '-')}`, {getattr(StudyConfig, measure.radius)}"


def measures() -> str:
    rows = [
        (code(m.name) + ("*" if m.name in DEFAULT_MEASURES else ""), m.text, _TOGETHER[m.adds_up], _COSTS[m.cost],
         _radius(m))
        for m in MEASURES.values()
    ]  # fmt: skip
    return table(("measure", "what it is, for a layer l", "together", "cost", "radius"), rows)


def budgets() -> str:
    flags = unique_in_order(flag for name in MEASURES if (flag := budget_of(name)))
    rows = [(code(flag), ", ".join(code(name) for name in MEASURES if budget_of(name) == flag)) for flag in flags]
    return table(("setting", "measures that converge with more of it"), rows)


def criteria() -> str:
    rows = [(code(c.spelling), c.text, code(c.rule), c.source) for c in CRITERIA.values()]
    return table(("criterion", "score of a layer", "rule", "source"), rows)


def bases() -> str:
    return table(("base", "position of the other layers"), [(code(n), s.text) for n, s in BASES.items()])


def paths() -> str:
    rows = [
        (code(name), f"{p.title}: {p.text}", "theta_1" if p.ends_at_theta_1 else "an edit of theta_1",
         "yes" if p.extrapolates else "no", "all" if p.density is None else f"{p.density:.0%}")
        for name, p in PATHS.items()
    ]  # fmt: skip
    return table(("path", "its points", "point at alpha = 1", "goes beyond [0, 1]", "entries kept"), rows)


def metrics() -> str:
    return _two("metric", "what it is", METRICS)


def agreement() -> str:
    rows = {name: a.text for name, a in AGREEMENT.items()}
    return _two("measure", "what it is", rows)


def output_baselines() -> str:
    return _two("name", "what it mixes", OUTPUT_BASELINES)


# -- what is concluded -------------------------------------------------------------------------------------------------
def flags() -> str:
    return table(("flag", "raised when", "its estimate"), [(n, f.text, f.estimate) for n, f in FLAGS.items()])


def claims() -> str:
    return _two("claim", "in words", CLAIMS)


def margins() -> str:
    """The numbers that decide verdicts and flags and that no option sets, with what their docstrings say."""
    rows = []
    for module, names in MARGINS.items():
        of = module.__name__.rpartition(".")[2]
        rows += [(code(f"{of}.{n}"), f"{getattr(module, n):g}", marked(_docstring(module, n))) for n in names]
    return table(("number", "value", "what it decides"), rows)


def advice() -> str:
    known = {**{name: x.known for name, x in SITUATIONS.items()}, BASELINE: "for comparison"}
    rows = [(code(s), known[s], code(rule), text) for s in known for rule, text in ADVICE[s].items()]
    return table(("situation", "what is known", "rule", "what it takes"), rows)


# -- what is done ------------------------------------------------------------------------------------------------------
def commands() -> str:
    rows = []
    for name, kind in COMMANDS.items():
        text = inspect.getdoc(kind)
        assert text is not None
        rows.append((code(name), marked(text.split("\n\n")[0])))
    return table(("command", "what it does"), rows)


def methods() -> str:
    rows = [(code(m.name), m().description.replace("``", "`"), m.source) for m in METHODS.values()]
    return table(("method", "what it trains", "source"), rows)


# -- what is written ---------------------------------------------------------------------------------------------------
def run_tables() -> str:
    return _columns(schema.COLUMNS, schema.KEYS)


def experiment_tables() -> str:
    return _columns(experiments.EXPERIMENT_COLUMNS, experiments.EXPERIMENT_KEYS)


def run_columns() -> str:
    return table(("table, column", "meaning"), _guide(schema, "COLUMNS"))


def experiment_columns() -> str:
    return table(("table, column", "meaning"), _guide(experiments, "EXPERIMENT_COLUMNS"))


def figures() -> str:
    rows = [(code(name), marked((inspect.getdoc(kind.plot) or "").split("\n\n")[0])) for name, kind in FIGURES.items()]
    return table(("figure", "what it shows"), rows)


def _columns(columns: dict[str, tuple[str, ...]], keys: dict[str, tuple[str, ...]]) -> str:
    rows = [(code(t), ", ".join(f"**{c}**" if c in keys[t] else c for c in columns[t])) for t in columns]
    return table(("table", "columns; those in bold identify a row"), rows)


def _docstring(module: Any, constant: str) -> str:
    """The text behind the assignment of a module's ``constant``."""
    body = ast.parse(inspect.getsource(module)).body
    at = next(i for i, s in enumerate(body) if constant in map(ast.unparse, _targets(s)))
    said = body[at + 1]
    assert isinstance(said, ast.Expr) and isinstance(said.value, ast.Constant)
    return str(said.value.value)


def _targets(statement: ast.stmt) -> list[ast.expr]:
    if isinstance(statement, ast.AnnAssign):
        return [statement.target]
    return statement.targets if isinstance(statement, ast.Assign) else []


def _guide(module: Any, constant: str) -> list[tuple[str, str]]:
    """The reading guide in the docstring of a constant, whose rows are 'name  text' or 'name, name: text'."""
    rows: list[tuple[str, str]] = []
    for line in _docstring(module, constant).partition("Reading guide\n")[2].splitlines():
        if found := re.match(r"  (\w+(?:\.\w+)?(?:, \w+)*)(?::? +)(\S.*)", line):
            rows.append((found[1], found[2]))
        elif line.strip():
            rows[-1] = (rows[-1][0], f"{rows[-1][1]} {line.strip()}")
    return [(", ".join(map(code, name.split(", "))), marked(text)) for name, text in rows]


def _two(first: str, second: str, rows: Any) -> str:
    return table((first, second), [(code(name), text) for name, text in rows.items()])


WRITERS: Final[dict[str, Callable[[], str]]] = {
    f.__name__: f
    for f in (
        *(measures, budgets, criteria, bases, paths, metrics, agreement, output_baselines, flags, claims, margins),
        *(advice, commands),
        *(methods, run_tables, run_columns, experiment_tables, experiment_columns, figures),
    )
}
"""Every table of words by its name."""
_PLACE: Final = re.compile(r"(<!-- words: (\w+) -->\n).*?(<!-- end of words -->)", re.DOTALL)


def places(text: str) -> list[str]:
    """The names of the tables that ``text`` has places for."""
    return [found[2] for found in _PLACE.finditer(text)]


def written(text: str) -> str:
    """``text`` with every table of words as it is today; KeyError for a table that does not exist."""
    return _PLACE.sub(lambda m: f"{m[1]}{WRITERS[m[2]]()}\n{m[3]}", text)


def main() -> None:
    for page in PAGES:
        page.write_text(written(page.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
