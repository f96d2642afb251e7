"""The report: one file that needs nothing else, says what the tables say, and never breaks on what they hold."""

from __future__ import annotations

import base64
import hashlib
import html
import re
from collections.abc import Callable
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pandas as pd
import pytest

from sharpscope.present.advice import advice_text
from sharpscope.present.advicesection import advice
from sharpscope.present.criteria import agreement_of
from sharpscope.present.report import CITATIONS, GLOSSARY, build_report
from sharpscope.present.view import Cell, Grid, Source, data_notes, estimate_cell, status_cell
from sharpscope.tables.criteria import Overlap, overlap
from sharpscope.tables.files import normalised
from sharpscope.tables.rows import groups_in, has_value
from sharpscope.tables.schema import COLUMNS
from sharpscope.vocabulary import MEASURES, STATUSES

Tables = dict[str, pd.DataFrame]
PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(64))
FIGURES = {"wiseft_curve": PNG + b"1", "heatmap_lambda_max": PNG + b"2", "repair": PNG + b"3", "my_own": PNG + b"4"}
ANCHORS = ["answer", "advice", "accuracy", "failure", "sharpness", "stragglers", "repair", "correlations", "problems"]
ANCHORS += ["pairs", "making"]
EVIL = "<script>alert(1)</script>\"'><img src=http://evil.example/x onerror=alert(1)>"
VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """Tags, attributes and text of a page; complains about tags that do not close."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.open: list[str] = []
        self.words: dict[str, list[str]] = {}
        self.section = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {k: v or "" for k, v in attrs}))
        if tag == "section":
            self.section = dict(attrs)["id"] or ""
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.words.setdefault(self.section, []).append(" ".join(data.split()))

    def text(self, section: str) -> str:
        return " | ".join(self.words.get(section, []))


@pytest.fixture
def page(tables: Tables, manifest: dict[str, Any]) -> Page:
    return Page(build_report(tables, FIGURES, manifest))


def assert_self_contained(text: str) -> None:
    page = Page(text)
    scripts = re.findall(r"<script[^>]*>(.*?)</script>", text, re.S)
    assert [attrs for tag, attrs in page.tags if tag == "script"] == [{}] and len(scripts) == 1
    allowed = base64.b64encode(hashlib.sha256(scripts[0].encode()).digest()).decode()
    assert f"script-src 'sha256-{allowed}'" in text, "the page's own script, and no other, may run"
    for tag, attrs in page.tags:
        assert tag not in {"link", "iframe", "object", "embed", "base", "form", "video", "audio", "svg"}
        for name, value in attrs.items():
            assert not name.startswith("on"), (tag, name)
            if name in {"src", "href", "srcset", "data", "action", "poster", "style"}:
                beside = r"(tables|figures)/[\w-]+\.(csv|parquet|png|pdf)"
                inside = rf"(#[\w-]+|{beside}|data:image/png;base64,[A-Za-z0-9+/=]+)$"
                assert re.match(inside, value), (tag, name, value[:80])
    style = re.search(r"<style>(.*?)</style>", text, re.S)
    assert style is not None
    assert not re.search(r"@import|url\(|https?:|expression", style[1])


def test_same_input_same_bytes_whatever_the_order_of_rows(tables: Tables, manifest: dict[str, Any]) -> None:
    first = build_report(tables, FIGURES, manifest)
    assert build_report(tables, FIGURES, manifest) == first
    shuffled = {k: df.sample(frac=1, random_state=1) for k, df in tables.items()}
    assert (
        build_report({k: normalised(df, k) for k, df in shuffled.items() if k in COLUMNS}, FIGURES, manifest) == first
    )


def test_it_is_one_file_that_needs_no_network(tables: Tables, manifest: dict[str, Any]) -> None:
    text = build_report(tables, FIGURES, manifest)
    assert_self_contained(text)
    assert not re.search(r"https?://", text)
    assert "default-src 'none'" in text
    assert text.startswith("<!DOCTYPE html>") and '<meta charset="utf-8">' in text and 'name="viewport"' in text


def test_sections_stand_in_the_order_of_the_questions(page: Page) -> None:
    ids = [attrs["id"] for tag, attrs in page.tags if tag == "section"]
    assert ids == [*ANCHORS[:4], "agreement", *ANCHORS[4:], "further", "glossary"]
    links = [attrs["href"] for tag, attrs in page.tags if tag == "a" and attrs["href"][0] == "#"]
    assert links == ["#answer", *(f"#{i}" for i in ids)]


def test_every_figure_is_in_it_once_with_words_for_those_who_cannot_see(page: Page) -> None:
    images = [attrs for tag, attrs in page.tags if tag == "img"]
    found = [base64.b64decode(a["src"].partition(",")[2]) for a in images]
    assert sorted(found) == sorted(FIGURES.values())
    assert all(len(a["alt"]) > 5 for a in images)


def test_question_and_answer_come_first(page: Page) -> None:
    top = page.text("")
    assert "can sharpness on ID data tell which may be interpolated?" in top
    assert "Does not hold | on the OOD sets of ood." in top
    assert top.index("Seen in a designed world only.") < top.index("Does not hold") < top.index("take α")
    answer = page.text("answer")
    assert "over 6 other pairs Spearman is −0.2" in answer
    assert answer.index("of two fine-tuned models") < answer.index("Whole-model sharpness")
    assert "✗ does not hold" in answer and "? cannot be told" in answer and "0.85 [0.41, 0.97]" in answer
    assert "(Evidence from the table that ships with the embedded world.)" in answer


def test_the_advice_of_every_pair_is_its_strongest_with_regret_beside_the_best_baselines(page: Page) -> None:
    advice = page.text("advice")
    row = "references | predicted ✓ | ood | 0.4 | conv1, head (keep 50 %) | +12.0 [+7.0, +16.0] | 70.0 % | 53.7 % | 2.4"
    assert f"success | {row} | 2.1 | 3.0 | ok" in advice and "best_fixed ✓" not in advice


def test_the_advice_section_does_not_say_again_what_the_first_screen_says(
    tables: Tables, manifest: dict[str, Any]
) -> None:
    noted = tables["advice"]
    noted["note"] = ["rests on nine pairs" if rule == "predicted" else n for rule, n in noted[["rule", "note"]].values]
    page = Page(build_report({"advice": noted}, {}, manifest))
    top, advice = page.text(""), page.text("advice")
    assert "stands in the table at the top of this page" in advice
    assert "success, ood (predicted): | rests on nine pairs" in advice
    for told in ("largest gain predicted from learning rate", "of 19 end-to-end paths"):  # what for, and why not
        assert told in top and told not in advice


def test_advice_that_rests_on_the_same_is_one_line_with_the_sets_by_their_short_names(
    tables: Tables, manifest: dict[str, Any]
) -> None:
    joined = tables["accuracy"].query("role == 'ood_mean'")["dataset"].iloc[0]
    own = tables["advice"][tables["advice"]["advised"]][:1]
    noted = pd.concat([own.assign(pair=pair, note=f"mean over {joined}") for pair in ("success", "failure")])
    advice = Page(build_report({**tables, "advice": noted}, {}, manifest)).text("advice")
    sets = joined.replace("mini:", "").replace("+", ", ")
    assert f"success and failure, ood ({own['rule'].iloc[0]}): | mean over {sets} |" in advice


def test_groups_have_one_order_that_of_the_figures(tables: Tables, manifest: dict[str, Any]) -> None:
    two = {
        n: pd.concat([tables[n].query("group != ''").assign(group=g) for g in ("y", "b")])
        for n in ("failure", "advice")
    }
    accuracy = tables["accuracy"]
    more = accuracy[accuracy["group"] != ""].assign(group="b", dataset="z" + accuracy["dataset"])
    two["accuracy"] = pd.concat([accuracy.replace({"group": {"ood": "y"}}), more])
    page = Page(build_report(two, {}, manifest))
    assert groups_in(normalised(two["accuracy"], "accuracy")) == ["y", "b"]
    for section, first, second in (
        ("", "| success | y |", "| success | b |"),
        ("failure", "success on the OOD sets of y", "success on the OOD sets of b"),
        ("failure", "| success | F4 | y |", "| success | F1 | b |"),
        ("advice", "| success | references | predicted ✓ | y |", "| success | references | predicted ✓ | b |"),
    ):
        assert page.text(section).index(first) < page.text(section).index(second), section


def test_a_long_table_of_rules_is_folded_and_what_its_numbers_mean_stands_open(
    tables: Tables, manifest: dict[str, Any]
) -> None:
    few = tables["advice"]
    many = pd.concat([few.query("group != ''").assign(group=g) for g in "abcd"])
    for table, long in ((few, False), (many, True)):
        section = advice(Source({"advice": table}, {}, manifest, {}))
        grids = [b for b in section.blocks if isinstance(b, Grid)]
        assert (len(grids), len(section.folded)) == ((0, 1) if long else (1, 0))
        assert any("Regret is the OOD accuracy lost" in b for b in section.blocks if isinstance(b, str))
        assert len((*grids, *section.folded)[0].rows) == len(table)


def test_no_layer_is_chosen_for_the_reason_that_all_layers_have(tables: Tables, manifest: dict[str, Any]) -> None:
    own = tables["stragglers"].query("criterion == 'rewind' and pair == 'success' and base == 'finetuned'")
    notes = [f"changes {i} times as much; no layer chosen: none is above" for i in range(len(own))]
    given = {"stragglers": own.assign(chosen=False, note=notes)}
    given_manifest = {**manifest, "config": {**manifest["config"], "straggler_criterion": "rewind"}}
    text = Page(build_report(given, {}, given_manifest)).text("stragglers")
    assert "no layer is a straggler. | no layer chosen: none is above |" in text and "times as much" not in text


def test_no_fact_of_a_data_set_is_empty_and_no_version_stands_twice(manifest: dict[str, Any]) -> None:
    same = {"kind": "folder", "matching": "name", "two_orders": "", "said": [], "streamed": False, "skipped_names": []}
    data = {"success": {name: same | {"spec": f"folder:{name}", "n": n} for name, n in (("a", 10), ("b", 20))}}
    twice = {**manifest["versions"], "draws": 4, "config": {}}
    page = Page(build_report({}, {}, {**manifest, "identity": twice, "data": data}))
    making = page.text("making")
    assert "Data sets (all: kind folder, labels matched by name) (2 rows) |" in making
    assert "data set | spec | images | pairs | a | folder:a | 10 | success | b | folder:b | 20 | success" in making
    for name, version in manifest["versions"].items():
        assert making.count(f"{name} | {version}") == 1
    assert "version of the random streams | 4" in making


def test_images_that_were_left_out_are_told_where_problems_are(manifest: dict[str, Any]) -> None:
    broken = {"skipped": 5, "skipped_names": ["a/1.png", "a/2.png", "b/1.png", "b/2.png"], "without_images": ["cat"]}
    sets = {"probe": {"skipped": 0, "without_images": []}, "folder:v": broken}
    told = {**manifest, "data": {"success": sets, "failure": sets}}
    wanted = (
        "folder:v: 5 images could not be read and were left out (a/1.png, a/2.png, b/1.png and 2 more).",
        "folder:v: 1 class without a readable image ('cat').",
    )
    assert data_notes(told) == wanted and data_notes(manifest) == ()
    problems = Page(build_report({}, {}, told)).text("problems")
    assert all(problems.count(sentence) == 1 for sentence in wanted)


def test_data_sets_are_a_row_each_with_what_tells_them_apart(manifest: dict[str, Any]) -> None:
    sets = {name: {"kind": "mini", "skipped": 0, "n": n} for name, n in (("a", 10), ("b", 20))}
    data = {"success": sets, "failure": {**sets, "b": {**sets["b"], "n": 21}}}
    making = Page(build_report({}, {}, {**manifest, "data": data})).text("making")
    assert "Data sets (all: kind mini) (3 rows) |" in making and "skipped" not in making
    assert "a | 10 | success, failure | b | 20 | success | b | 21 | failure" in making


def test_the_first_screen_says_which_alpha_to_take_with_both_accuracies_and_how_sure(
    page: Page, tables: Tables
) -> None:
    top = page.text("")
    count = tables["sharpness"]["measure"].nunique()
    assert f"Measured: {count} measures of sharpness, of 22 layers and of the whole model, on 48 probe images at" in top
    assert (
        "success | ood | 0.4 | 53.7 % | +12.0 [+7.0, +16.0] | 70.0 % | largest gain predicted from learning rate, "
        "distance and sharpness | expected to lose 2.1 points to the best alpha; the best rule without data (half) "
        "would lose 3.0" in top
    )
    assert "failure | any | no advice | — | — | — | what published paths of real CLIP models did" in top
    three = tables["advice"].query("advised")[:1].assign(situation="measured", group="far", ci_low=-0.1)
    rows = pd.concat(
        [three.assign(rule=rule) for rule in ("ood_best", "mean_best")] + [three.assign(rule="keep_id", alpha=1.0)]
    )
    top = Page(build_report({**tables, "advice": rows}, {}, {})).text("")
    assert top.count("| far |") == 2 and "best OOD accuracy; best mean of ID and OOD accuracy |" in top
    assert "| 1 (fine-tuned) |" in top and top.count("the gain may be none") == 2


def test_every_cell_knows_its_row_and_column_and_every_section_its_files(page: Page) -> None:
    heads = [attrs for tag, attrs in page.tags if tag == "th"]
    assert {a["scope"] for a in heads} == {"col", "row"}
    labelled = [attrs for tag, attrs in page.tags if tag == "td" and attrs]
    assert all("data-label" in a for a in labelled), "a phone shows the column's name beside the cell"
    links = {attrs["href"] for tag, attrs in page.tags if tag == "a"}
    shown = ("verdicts", "advice", "accuracy", "failure", "sharpness", "stragglers", "repair", "correlations")
    assert {f"tables/{name}.{kind}" for name in shown for kind in ("csv", "parquet")} < links
    ours = [name for name in FIGURES if name != "my_own"]
    assert {f"figures/{name}.{kind}" for name in ours for kind in ("png", "pdf")} < links


@pytest.mark.parametrize(
    ("alpha", "want"),
    [
        (1.0, "take the fine-tuned model (alpha 1)"),
        (0.0, "do not interpolate, keep the zero-shot model (alpha 0)"),
        (np.nan, "sharpness: no alpha."),
        (0.25, "sharpness: alpha 0.25;"),
    ],
)
def test_advice_as_text_says_what_to_do(tables: Tables, alpha: float, want: str) -> None:
    advice = tables["advice"].assign(alpha=alpha, predicted_gain=np.nan, ci_low=np.nan, ci_high=np.nan)
    text = advice_text(advice)
    assert want in text and "gain over zero-shot" not in text


def test_advice_as_text_has_a_block_a_situation_the_strongest_first(tables: Tables) -> None:
    front = pd.DataFrame({"pair": ["success"] * 2, "group": "ood", "alpha": [0, 1.0], "id_accuracy": [0.5, 0.9],
                          "id_low": 0.4, "id_high": 0.95, "ood_accuracy": 0.5, "ood_low": 0.45, "ood_high": 0.55,
                          "gain": [0.0, 0.1], "ci_low": -0.1, "ci_high": 0.2})  # fmt: skip
    text = advice_text(tables["advice"], {"references": front})
    blocks = [line for line in text.split("\n") if " | " in line]
    assert blocks == [
        "success | references: other pairs have OOD labels",
        "success | baseline: rules that know nothing of the OOD data",
        "failure | references: other pairs have OOD labels",
        "failure | none: nothing is known but the two checkpoints",
        "failure | baseline: rules that know nothing of the OOD data",
    ]
    assert "90.0 % [40.0, 95.0]" in text and "+10.0 [−10.0, +20.0]" in text
    assert text.count("\n  -> ") == 1 and "ood, regret in points: half (alpha 0.5) 1.1, oracle (alpha 0.8) 0.0" in text
    assert "\n       no alpha: this pair lies outside" in text


def test_numbers_are_those_of_the_tables_with_their_uncertainty(page: Page, tables: Tables) -> None:
    assert "56.1 % [55.5, 56.7]" in page.text("accuracy")
    assert "87.7 % [86.5, 88.9]" in page.text("accuracy")
    failure = page.text("failure")
    assert "−6.2 [−7.4, −4.9] points" in failure and "0.730 [0.610, 0.850] nats" in failure
    assert "success: no failure flag is present beyond the noise." in failure
    assert "failure: fails by F1" in failure
    pairs = page.text("pairs")
    assert "ab" * 32 in pairs and "mini:failure" in pairs and "7.10" in pairs and "1.41 ± 0.040 (α = 0)" in pairs
    repair = page.text("repair")
    assert "not possible for 16 of 576 repaired models" in repair
    assert "straggler:delta:random:0.5" in repair
    correlations = page.text("correlations")
    assert (
        "source: shipped" in correlations
        and "descriptive only" in correlations
        and "over 8 pairs at α = 0.3" in correlations
    )
    assert (
        "success: by sharpness:hessian_trace (mad:2), the criterion that decides in this run, "
        "the stragglers are: conv1 (100 %)." in page.text("stragglers")
    )


def test_every_whole_model_estimate_has_an_error_or_a_status(page: Page, tables: Tables) -> None:
    sharpness = page.text("sharpness")
    assert sharpness.count(" ± ") >= 9 * 2 * 3
    whole = tables["sharpness"].query("layer == '(all)' and alpha in (0.0, 0.5, 1.0)")
    layered = tables["sharpness"].query("layer != '(all)' and alpha == 0.5 and measure == 'hessian_trace'")
    wanted = (whole["status"] == "not_converged").sum() + (layered["status"] == "not_converged").sum()
    assert sharpness.count(" °") - 1 == wanted > 1  # one more stands in the caption


def test_what_failed_or_did_not_converge_is_counted_and_listed(page: Page, tables: Tables) -> None:
    problems = page.text("problems")
    table = tables["sharpness"]
    count = ((table["measure"] == "lambda_max") & (table["status"] == "not_converged")).sum()
    assert f"sharpness | lambda_max | not converged | {count} of 506 | --max-matvecs" in problems
    assert "sharpness | lambda_max | failed | 2 of 506" in problems
    assert "block 2 attn, lambda_max, α = 0.4 | failed | loss is not finite on batch 3" in problems
    total = table["status"].isin(("not_converged", "failed")).sum() + (tables["repair"]["status"] == "undefined").sum()
    assert f"{total - 30} more in the table files" in problems


def test_both_definitions_of_a_straggler_are_compared_pair_by_pair(page: Page, tables: Tables) -> None:
    said = page.text("stragglers")
    assert "Two definitions of a straggler: instability, the only published one" in said
    for pair in ("success", "failure"):
        found = overlap(tables["stragglers"], pair)
        assert found is not None and agreement_of(found) in said
    assert "instability chooses no layer" in said  # all scores of the pair success are 0


def test_the_sentence_on_their_agreement_gives_every_number_with_its_yardstick() -> None:
    found = Overlap(("a", "b"), (("x", "y"), ("y",)), 0.5, 3, 2, 0.9, -0.25, 10)
    assert agreement_of(found) == (
        "a chooses x, y; b chooses y; 1 of 2 chosen layers in common (Jaccard 0.50); 2 of the 3 highest in common, "
        "where chance gives 0.9 (10 layers); Spearman -0.25 over the layers."
    )
    none = Overlap(("a", "b"), ((), ()), float("nan"), 0, 0, 0.0, float("nan"), 10)
    assert agreement_of(none) == "a chooses no layer; b chooses no layer."


def test_nothing_failed_is_said_too(tables: Tables, manifest: dict[str, Any]) -> None:
    calm = {k: tables[k] for k in ("path", "accuracy")}
    assert "Every estimate of this run is finite" in Page(build_report(calm, {}, manifest)).text("problems")


def test_how_it_was_made(page: Page) -> None:
    making = page.text("making")
    assert "layers" not in making and "probe | mini:photo | 8192 | success, failure" in making
    for words in (
        "α is the weight of the fine-tuned model",
        "sharpness | 22 | 61.4 | 2.79",
        "versions · torch | 2.9.0",
        "seed | 0",
        "probe_size | 64",
    ):
        assert words in making
    glossary = page.text("glossary")
    for identifier in ("2410.16476", "2109.01903", "2404.00860", "2409.16718", "2412.20895"):
        assert sum(identifier in c for c in CITATIONS) == 1 and identifier in glossary
    assert set(MEASURES) < set(GLOSSARY)


ASKED_FOR = ("density", "agreement", "eigenpairs", "vrf", "residuals")
"""Tables that not every run has; without them the report is silent about them."""


@pytest.mark.parametrize("missing", [*(c for c in COLUMNS if c not in ASKED_FOR), "all"])
def test_missing_or_empty_tables_are_said_not_fatal(missing: str, tables: Tables, manifest: dict[str, Any]) -> None:
    where = {"path": "pairs", "verdicts": "answer"}.get(missing, missing)
    gone = list(COLUMNS) if missing == "all" else [missing]
    for kept in (
        {k: v for k, v in tables.items() if k not in gone},
        {k: (v.iloc[:0] if missing == "all" else pd.DataFrame()) if k in gone else v for k, v in tables.items()},
    ):
        page = Page(build_report(kept, {}, manifest))
        named = [a["id"] for t, a in page.tags if t == "section"]
        assert [name for name in named if name not in ASKED_FOR] == [*ANCHORS, "glossary"]
        assert ("agreement" in named) == (missing != "all")
        if missing not in ("path", "all"):
            assert "This run has no" in page.text(where)
            assert sum("This run has no" in page.text(a) for a in ANCHORS) == 1
    empty = Page(build_report({}, {}, {}))
    assert all("no" in empty.text(a).lower() or a == "making" for a in ANCHORS)
    assert "The manifest of this run is empty." in empty.text("making")


def test_hostile_names_come_out_as_text(
    tables: Tables, manifest: dict[str, Any], rename: Callable[..., Tables]
) -> None:
    names = {
        "success": EVIL,
        "visual.conv1": EVIL + "\x00\x1b[31m\u202e",
        "mini:sketch": EVIL,
        "sharpness:hessian_trace": EVIL,
    }
    dirty = rename({k: v for k, v in tables.items() if k != "points"}, names | {"Interval holds 0.": EVIL})
    config = manifest["config"]
    config |= {"title": EVIL, "question": EVIL, "straggler_criterion": EVIL, "tags": {EVIL: EVIL}, "measures": [EVIL]}
    config["pairs"] = [{"name": EVIL, "zeroshot": EVIL, "finetuned": EVIL}]
    manifest |= {
        "pairs": {EVIL: {EVIL: EVIL, "sha256": EVIL}},
        "versions": {EVIL: EVIL},
        "timing": {EVIL: {"units": 1, "seconds": 1}},
    }
    text = build_report(dirty, {EVIL: PNG}, manifest)
    assert_self_contained(text)
    assert text.count("<script") == 1 and "<img src=http" not in text
    assert all(c.isprintable() or c in "\n\u00a0" for c in text)
    assert html.escape(EVIL, quote=False)[:40] in text.replace("&#34;", '"').replace("&#39;", "'")
    for anchor in (*ANCHORS, "further"):
        assert "<script>" in Page(text).text(anchor), anchor
    assert "\\x00\\x1b[31m\\u202e" in text


def test_ten_thousand_layers_are_summarised(many: pd.DataFrame, manifest: dict[str, Any]) -> None:
    text = build_report({"sharpness": many.assign(status="not_converged")}, {}, manifest)
    page = Page(text)
    assert "9970 more in tables/sharpness.csv" in page.text("sharpness")
    assert "20000 of 20000" in page.text("problems") and "19970 more in the table files" in page.text("problems")
    assert len(text) < 200_000
    largest = many[many["alpha"] == 0.5].nlargest(30, "estimate")["layer"]
    rows = [a["title"] for t, a in page.tags if t == "th" and a.get("title", "").startswith("visual.")]
    assert set(rows) == set(largest)


def test_timing_may_be_given_apart_and_manifest_may_be_nested(tables: Tables, manifest: dict[str, Any]) -> None:
    nested = {"format": "sharpscope-run/1", "identity": {"config": manifest["config"]}}
    page = Page(build_report(tables, {}, nested, timing={"path": 3.5}))
    assert "path | — | 3.50 | —" in page.text("making")
    assert "sharpscope demo" in page.text("")


def test_a_frozen_layer_is_marked_by_its_status_and_its_number_stands(
    tables: dict[str, pd.DataFrame], manifest: dict[str, Any]
) -> None:
    told = "▪ marks a layer that does not move, because both ends have the same weights"
    sharp = tables["sharpness"].assign(note="the layer does not move")
    assert told not in build_report({"sharpness": sharp}, {}, manifest)
    row = {"status": "frozen", "estimate": 12.345, "stderr": 0.41, "residual": np.nan, "note": ""}
    assert estimate_cell(row) == Cell("12.3 ± 0.4 ‡ ▪")
    assert estimate_cell(row | {"stderr_images": 2.0, "n": 48}) == Cell("12.3 ± 2.0 ▪")
    assert estimate_cell(row | {"estimate": np.nan, "note": "why"}) == Cell("frozen", "note", "why")
    still = sharp.assign(status=sharp["status"].mask(sharp["layer"] == "head", "frozen"), note="")
    assert told in build_report({"sharpness": still}, {}, manifest)


def test_the_costs_of_the_path_stand_under_the_measures(tables: Tables, manifest: dict[str, Any]) -> None:
    whole = tables["correlations"].query("layer == '(all)' and measure == 'hessian_trace'").assign(measure="barrier")
    both = pd.concat([tables["correlations"], whole], ignore_index=True)
    page = Page(build_report({**tables, "correlations": both}, {}, manifest))
    said = page.text("correlations")
    assert "Spearman correlation of sharpness, and of the path's cost in loss (barrier), with" in said
    assert said.index("| hessian_trace |") < said.index("| barrier |")


def test_every_status_is_said_in_the_glossary_and_a_problem_looks_like_one() -> None:
    told = GLOSSARY["not converged, failed, undefined, frozen"]
    for name, status in STATUSES.items():
        assert (f"{name.replace('_', ' ').capitalize()}: {status.text}." in told) == (name != "ok")
        assert bool(status_cell(name).kind) == (name != "ok")
        row = {"status": name, "estimate": 1.5, "stderr": 0.1, "residual": np.nan, "note": ""}
        table = pd.DataFrame([row])
        assert bool(has_value(table).iloc[0]) == status.has_value == (name not in ("failed", "undefined"))
        assert estimate_cell(row | {"estimate": np.nan}) == status_cell(name)
