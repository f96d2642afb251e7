"""A study that asked for no repair says so, and does not tell of one."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from sharpscope.present.layerwise import repair
from sharpscope.present.view import Source
from sharpscope.study.finished import finished_results
from sharpscope.study.results import Results
from sharpscope.vocabulary import CLAIMS


def test_no_repair_is_told_of_where_none_was_asked_for(smallest_run: tuple[Path, str]) -> None:
    _, done = finished_results(smallest_run[0])
    without = Results(dataclasses.replace(done.config, densities=()), done.layers, done.facts)
    without.take({key: unit for key, unit in done.units.items() if not key.startswith("repair/")}, {})
    tables = without.tables()
    assert not len(tables["repair"]) and not without.repair_tasks()
    (row,) = tables["verdicts"][tables["verdicts"]["claim"] == CLAIMS["repair"]].to_dict("records")
    assert row["evidence"] == "No repair was asked for." and row["verdict"] == "cannot be told"
    section = repair(Source(tables, {}, {"config": without.config.to_dict()}, {}))
    assert section.blocks == ("No repair was asked for.",)
