"""Every table, figure, ablation and protocol of the papers behind sharpscope, each with the command that makes it.

    python analyses/papers.py --out runs/papers      (`make papers`) runs every step, then writes papers.md
    python analyses/papers.py --table                writes papers.md alone, from papers.yaml

papers.yaml holds the rows and the steps. A row names the step that makes it and the file in which it ends. A step is
one or more command lines; it runs once, in the folder of --out, where STEP.txt keeps what it printed, and the files
of its rows have to be there afterwards. A step whose files are all there is not run again, so that an interrupted run
is resumed. Everything runs on the embedded world or on made files in the layout of the real data set
(papers_data.py): a row that works says that its command works, and nothing about CLIP.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import tyro
import yaml

HERE: Final = Path(__file__).resolve().parent
STATES: Final = {
    "works": "the command ran on the embedded world or on made files of the set's layout",
    "partly": "a command makes a part of it; the remark says what is missing",
    "missing": "no command makes it",
    "not public": "the weights or the data are private",
    "out of scope": "another task than classification or retrieval with CLIP",
    "optional": "a display that a general tool makes better",
}
"""State of a row -> what it means."""


@dataclass(frozen=True)
class Row:
    """One table, figure, ablation or protocol of a paper."""

    paper: str
    number: int
    item: str
    state: str
    step: str = ""
    output: str = ""
    remark: str = ""


@dataclass(frozen=True)
class Papers:
    """``rows`` in the order of the papers; ``steps``: name -> command lines, in the order in which they have to run."""

    rows: tuple[Row, ...]
    steps: Mapping[str, tuple[str, ...]]

    def outputs(self, step: str) -> list[str]:
        """The files of the rows that ``step`` makes, each once."""
        return list(dict.fromkeys(row.output for row in self.rows if row.step == step))


def read(path: Path = HERE / "papers.yaml") -> Papers:
    """The rows and steps of papers.yaml; a row that contradicts the steps or the states is a ValueError."""
    text: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    words = text["words"]
    steps = {
        name: tuple(line.format(**words) for line in ([lines] if isinstance(lines, str) else lines))
        for name, lines in text["steps"].items()
    }
    rows = tuple(
        Row(paper, number, **fields)
        for paper, items in text["papers"].items()
        for number, fields in enumerate(items, 1)
    )
    for row in rows:
        where = f"{row.paper} {row.number}"
        if row.state not in STATES:
            raise ValueError(f"{where}: state '{row.state}' is none of {', '.join(STATES)}.")
        if bool(row.step) != bool(row.output) or (row.state == "works" and not row.step):
            raise ValueError(f"{where}: a row that works names a step and its output.")
        if row.step and row.step not in steps:
            raise ValueError(f"{where}: step '{row.step}' is unknown.")
        if row.state != "works" and not row.remark:
            raise ValueError(f"{where}: a row that does not work says why.")
    return Papers(rows, steps)


def arguments(line: str) -> list[str]:
    """A step's command line as arguments: ``sharpscope ...``, or ``python SCRIPT ...`` of this repository."""
    program, *rest = shlex.split(line)
    if program == "sharpscope":
        return [sys.executable, "-m", "sharpscope", *rest]
    if program == "python":
        return [sys.executable, str(HERE.parent / rest[0]), *rest[1:]]
    raise ValueError(f"a step starts with sharpscope or python, not with '{program}'.")


def run(papers: Papers, out: Path, log: Path) -> Iterator[str]:
    """Run the steps in order and yield what went wrong; the log has a line for each step."""
    out.mkdir(parents=True, exist_ok=True)
    lines = []
    for step, commands in papers.steps.items():
        outputs = [out / name for name in papers.outputs(step)] or [out / f"{step}.txt"]
        began, told, failure = time.perf_counter(), "there already", out / f"{step}.failed"
        if failure.exists() or not all(map(_written, outputs)):
            failed = next(filter(None, (_command(line, out, out / f"{step}.txt") for line in commands)), None)
            told = failed or "done"
            failure.write_text(told, encoding="utf-8") if failed else failure.unlink(missing_ok=True)
        missing = [str(file.relative_to(out)) for file in outputs if not _written(file)]
        if failure.exists() or missing:
            yield f"{step}: {told}; not written: {', '.join(missing) or 'nothing'}"
        lines.append(f"{step}: {told.splitlines()[0]}, {time.perf_counter() - began:.0f} s, {len(outputs)} files")
        print(lines[-1], flush=True)
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _written(file: Path) -> bool:
    return file.is_file() and file.stat().st_size > 0


def _command(line: str, out: Path, printed: Path) -> str:
    """Run one command line in ``out``; what it printed is kept, and what went wrong is returned."""
    where = {**os.environ, "PYTHONPATH": str(HERE.parent), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(arguments(line), cwd=out, env=where, capture_output=True, text=True, check=False)
    if done.returncode:
        return f"exit {done.returncode} of `{line}`\n{done.stderr[-600:]}"
    with printed.open("a", encoding="utf-8") as file:
        file.write(f"$ {line}\n{done.stdout}{done.stderr}")
    return ""


def markdown(papers: Papers) -> str:
    """papers.md: how many rows are in which state, then every paper's rows."""
    states = Counter(row.state for row in papers.rows)
    names = list(dict.fromkeys(row.paper for row in papers.rows))
    text = [
        "# What the papers contain, and the command that makes it",
        "",
        "Written by `python analyses/papers.py --table` from papers.yaml. `make papers` runs all of them.",
        "Everything runs on the embedded world or on made files in the layout of the real set: a row that works is no",
        "evidence about CLIP.",
        "",
        *_table(["state", "rows", "meaning"], [[s, str(states[s]), STATES[s]] for s in STATES if states[s]]),
        "",
        *_table(
            ["paper", *(s for s in STATES if states[s]), "rows"],
            [_counted(papers, name, [s for s in STATES if states[s]]) for name in names],
        ),
    ]
    for name in names:
        cells = [[str(r.number), r.item, r.state, _made(r), r.remark] for r in papers.rows if r.paper == name]
        text += ["", f"## {name}", "", *_table(["#", "item", "state", "step and file", "remark"], cells)]
    text += ["", "## Steps", ""]
    text += [f"- **{step}**: " + "; ".join(f"`{line}`" for line in lines) for step, lines in papers.steps.items()]
    return "\n".join(text) + "\n"


def _made(row: Row) -> str:
    return f"{row.step}: `{row.output}`" if row.step else ""


def _counted(papers: Papers, name: str, states: Sequence[str]) -> list[str]:
    own = [row.state for row in papers.rows if row.paper == name]
    return [name, *(str(own.count(s)) for s in states), str(len(own))]


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in (header, *rows)]
    return [lines[0], "|---" * len(header) + "|", *lines[1:]]


@dataclass(frozen=True, kw_only=True)
class Command:
    """Run every step of papers.yaml, or write papers.md alone."""

    out: Path = Path("runs/papers")
    """Folder in which the steps run; the same command again goes on there."""
    table: bool = False
    """Write papers.md alone and run nothing."""

    def __call__(self) -> int:
        papers = read()
        (HERE / "papers.md").write_text(markdown(papers), encoding="utf-8")
        if self.table:
            return 0
        faults = list(run(papers, self.out, HERE.parent / "benchmarks" / "results" / "papers.log"))
        print("\n".join(faults) or f"{sum(r.state == 'works' for r in papers.rows)} of {len(papers.rows)} rows work")
        return bool(faults)


if __name__ == "__main__":
    sys.exit(tyro.cli(Command, description=__doc__)())
