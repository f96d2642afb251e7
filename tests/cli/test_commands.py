"""Every command on the embedded world: what it prints, which files it writes, what it imports."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import shutil
import subprocess
import sys
import typing
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pytest

from sharpscope.cli import main as cli
from sharpscope.cli.commands import COMMANDS
from sharpscope.clip.pair import resolve_checkpoint
from sharpscope.tables.formats import number, percent
from sharpscope.weights import read_checkpoint

ENDS = ("--zeroshot", "mini:zeroshot", "--finetuned", "mini:success", "--model", "mini")
PAIR_OF_MINI = ["--zeroshot", "mini:zeroshot", "--finetuned", "mini:small", "--model", "mini"]
TINY = (
    *ENDS, "--id", "mini:photo", "--ood", "mini:sketch", "--alphas", "0", "1", "--granularity", "block", "--measures",
    "hessian_trace", "--probe-size", "4", "--batch-size", "4", "--limit", "16", "--max-matvecs", "1", "--layer-alphas",
    "0", "1", "--criticality-noise", "1", "--repair-alphas", "--bootstrap", "5", "--threads", "1",
)  # fmt: skip
"""Flags of a study that takes a few seconds, most of them for its figures."""


@dataclass
class Said:
    code: int
    out: str
    err: str


def said(*argv: str) -> Said:
    """What ``sharpscope ARGV`` says."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = cli.main(argv)
    return Said(code, out.getvalue(), err.getvalue())


@pytest.fixture(scope="module")
def studied(tmp_path_factory):
    """(the folder in which ``sharpscope run`` was typed, what it said)."""
    folder, before = tmp_path_factory.mktemp("commands"), os.getcwd()
    os.chdir(folder)
    try:
        return folder, said("run", *TINY)
    finally:
        os.chdir(before)


@pytest.fixture
def folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def modules_after(*argv: str) -> set[str]:
    """Top-level names of what a fresh process has imported when ``sharpscope ARGV`` has succeeded."""
    code = (
        "import sys; from sharpscope.cli.main import main; code = main(sys.argv[1:]);"
        "print('\\n' + ' '.join(sys.modules)); sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code, *argv], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return {name.partition(".")[0] for name in done.stdout.splitlines()[-1].split()}


def tensors(path: str) -> dict:
    from sharpscope.clip.pair import resolve_checkpoint
    from sharpscope.weights.checkpoint import read_checkpoint

    return read_checkpoint(resolve_checkpoint(path)).tensors


# -- studies -----------------------------------------------------------------------------------------------------------


def test_run_writes_a_run_directory_and_says_where_the_report_is(studied):
    folder, told = studied
    assert told.code == 0, told.err
    assert all(line.startswith(("measure ", "repair ")) for line in told.err.splitlines()), "a line a finished unit"
    assert told.out.splitlines()[-1] == "report: runs/success/report.html"
    root = folder / "runs" / "success"
    assert {"manifest.json", "units", "log.jsonl", "tables", "figures", "report.html"} <= set(os.listdir(root))
    config = json.loads((root / "manifest.json").read_text())["config"]
    assert (config["limit"], config["probe_size"], config["alphas"]) == (16, 4, [0.0, 1.0])
    assert config["pairs"] == [{"name": "success", "zeroshot": "mini:zeroshot", "finetuned": "mini:success"}]
    table = pd.read_csv(root / "tables" / "sharpness.csv")
    assert set(table["alpha"]) == {0.0, 1.0}
    assert set(table["measure"]) == {"hessian_trace"}
    assert set(pd.read_csv(root / "tables" / "accuracy.csv")["n"].dropna()) == {16}


def test_report_makes_the_same_tables_again_without_torch(studied, tmp_path):
    root = tmp_path / "run"
    shutil.copytree(studied[0] / "runs" / "success", root)
    kept = {p.name: p.read_bytes() for p in (root / "tables").iterdir()}
    for name in ("tables", "figures"):
        shutil.rmtree(root / name)
    loaded = modules_after("report", str(root), "--export", "wise-ft")
    assert not loaded & {"torch", "torchvision", "open_clip", "safetensors"}
    assert {p.name: p.read_bytes() for p in (root / "tables").iterdir()} == kept
    assert {p.suffix for p in (root / "figures").iterdir()} == {".png", ".pdf"}
    assert (root / "results" / "results.jsonl").exists()


@pytest.mark.parametrize("command", ["correlate", "robustness"])
def test_commands_that_read_tables_import_what_tables_need(studied, command):
    loaded = modules_after(command, str(studied[0] / "runs" / "success"), "--csv")
    assert not loaded & {"torch", "torchvision", "open_clip", "safetensors", "matplotlib"}
    assert "pandas" in loaded


def test_advice_on_a_run_is_that_of_its_report_and_opens_no_checkpoint(studied, tmp_path):
    from sharpscope.tables.files import read_csv

    root = studied[0] / "runs" / "success"
    told = said("advise", str(root), "--out", str(tmp_path / "a.csv"))
    assert (told.code, told.err) == (0, "") and told.out.startswith(
        "measured: OOD test sets with labels were evaluated"
    )
    one, two = read_csv(tmp_path / "a.csv", "advice"), read_csv(root / "tables" / "advice.csv", "advice")
    assert one.equals(two) and one["advised"].any()
    nothing = said("advise", str(root), "--batch-size", "4")
    assert nothing.code == 2 and "batch_size: changes nothing, because nothing is evaluated again" in nothing.err
    known = said("advise", str(root), "--learning-rate", "0.1")
    assert known.code == 2 and "learning_rate: changes nothing, because" in known.err
    refused = said("advise", "--references", str(root), *PAIR_OF_MINI)
    assert "no alpha: 1 reference pair of 1 setting with OOD labels\n" in refused.out and "none: " in refused.out


def test_failed_units_give_exit_1_and_the_report_all_the_same(studied, monkeypatch):
    from sharpscope.study.report import Run
    from sharpscope.tables.files import read_csv

    root = studied[0] / "runs" / "success"
    tables = {name: read_csv(root / "tables" / f"{name}.csv", name) for name in ("verdicts", "advice")}
    monkeypatch.setattr("sharpscope.study.run.run", lambda *a, **k: Run(root, tables, tuple("abcd")))
    told = said("run", *TINY)
    assert told.code == 1
    assert told.out.splitlines()[-1] == f"report: {root}/report.html"
    assert (
        told.err
        == "sharpscope: error: 4 units failed: a, b, c ...\nThe columns status and note of the tables say why.\n"
    )


def test_plan_says_what_a_run_would_cost_and_writes_nothing(folder):
    told = said("plan", *TINY)
    assert told.code == 0, told.err
    assert "estimated time: " in told.out
    assert "2 alphas, probe 4 in 1 batches, 32 test images" in told.out
    assert not list(folder.iterdir())


def test_demo_is_the_study_of_both_pairs(monkeypatch):
    def asked(config, out, progress):
        raise KeyError(out, [p.name for p in config.pairs], config.seed)

    monkeypatch.setattr("sharpscope.study.run.run", asked)
    assert "('d', ['success', 'failure'], 4)" in said("demo", "--out", "d", "--seed", "4").err


# -- checkpoint files --------------------------------------------------------------------------------------------------


def test_inspect(folder):
    assert "looks like    a ViT (width 64, 4 blocks" in said("inspect", "mini:zeroshot").out
    told = said("inspect", "mini:zeroshot", "mini:success")
    assert "56 of 86 tensors move" in told.out
    assert "visual.conv1" in told.out
    told = said("inspect", "mini:zeroshot", "--granularity", "tensor")
    assert told.code == 2 and "--granularity: belongs to the comparison of two files" in told.err
    told = said("inspect", "mini:zeroshot", "--model", "RN50")
    assert (told.code, told.out) == (2, "")
    assert "does not fit" in told.err


def test_inspect_compares_tensors_modules_or_blocks(folder):
    """The change of a tensor by hand; every bias has a line of its own, which a module's line would hide."""
    zero, one = (read_checkpoint(resolve_checkpoint(f"mini:{end}")).tensors for end in ("zeroshot", "success"))
    name = "visual.transformer.resblocks.0.mlp.c_proj.bias"
    change = float((one[name] - zero[name]).double().norm())
    lines = {}
    for granularity in ("tensor", "module", "block"):
        told = said("inspect", "mini:zeroshot", "mini:success", "--granularity", granularity).out
        lines[granularity] = {
            line.split()[0]: line for line in told.splitlines() if "visual.transformer.resblocks.0" in line
        }
    assert lines["tensor"][name].split()[2:4] == ["64", number(change)]
    assert percent(change / float(zero[name].double().norm())) in lines["tensor"][name]
    assert len(lines["tensor"]) == 12 and name not in lines["module"] and len(lines["block"]) == 1


def test_interpolate_writes_the_point_of_the_path(folder):
    told = said("interpolate", *ENDS, "--alpha", "0.25", "--out", "m.safetensors")
    assert (told.code, told.out, told.err) == (0, "wrote m.safetensors\n", "")
    a, b, m = (tensors(p)["visual.proj"].float() for p in ("mini:zeroshot", "mini:success", "m.safetensors"))
    assert (m - (0.75 * a + 0.25 * b)).abs().max() < 1e-6
    told = said("inspect", "m.safetensors").out
    parents = [read_checkpoint(resolve_checkpoint(end)).sha256[:12] for end in ("mini:zeroshot", "mini:success")]
    written = f"sharpscope interpolate, alpha 0.25, from zeroshot {parents[0]} and finetuned {parents[1]} (sha256)"
    assert f"written by    {written}\n" in told
    assert said("interpolate", *ENDS, "--alpha", "1.5", "--extrapolate", "--out", "x.safetensors").code == 0
    assert sorted(p.name for p in folder.iterdir()) == ["m.safetensors", "x.safetensors"]


def test_sparsify_drops_what_it_is_told_to_drop_in_the_named_layers_only(folder):
    layers = ("--layers", "visual.conv1", "visual.proj")
    assert said("sparsify", *ENDS, *layers, "--density", "0", "--out", "none.safetensors").code == 0
    few = ("--density", "0.1", "--select", "magnitude", "--out", "s.safetensors")
    assert said("sparsify", *ENDS, *layers, *few).code == 0
    assert "written by    sharpscope sparsify, alpha 1, from zeroshot" in said("inspect", "s.safetensors").out
    a, b, none, some = (tensors(p) for p in ("mini:zeroshot", "mini:success", "none.safetensors", "s.safetensors"))
    assert (none["visual.proj"] == a["visual.proj"].float()).all()
    moved = some["visual.proj"] != a["visual.proj"].float()
    assert int(moved.sum()) == round(0.1 * moved.numel())
    change = (b["visual.proj"].float() - a["visual.proj"].float()).abs()
    assert change[moved].min() >= change[~moved].max()
    other = "visual.positional_embedding"
    assert (some[other] == b[other].float()).all()
    told = said("sparsify", *ENDS, "--layers", "visual.con", "--out", "t.safetensors")
    assert (told.code, "no layer 'visual.con'" in told.err, Path("t.safetensors").exists()) == (2, True, False)


def test_paths_fisher_and_merge_as_a_user_types_them(folder):
    told = said("fisher", *ENDS, "--probe", "mini:photo", "--probe-size", "1", "--out", "fi")
    assert told.code == 0, told.err
    assert told.out.startswith("wrote fi/fisher_0.safetensors: trace ")
    more = ("--fisher-0", "fi/fisher_0.safetensors", "--fisher-1", "fi/fisher_1.safetensors")
    told = said("interpolate", *ENDS, "--alpha", "0.5", "--path", "fisher", *more, "--out", "p.safetensors")
    assert (told.code, told.out) == (0, "wrote p.safetensors\n"), told.err
    score = ("--layers", "visual.proj", "--select", "score", "--scores", "fi/fisher_1.safetensors", "--rescale")
    assert said("sparsify", *ENDS, *score, "--density", "0.5", "--out", "s.safetensors").code == 0
    files = ("mini:success", "mini:failure", "--zeroshot", "mini:zeroshot", "--model", "mini", "--out", "m.safetensors")
    told = said("merge", *files, "--method", "model-stock")
    assert told.out.startswith("wrote m.safetensors: model-stock of 2 checkpoints: success, failure\n"), told.err
    assert "written by    sharpscope merge, method model-stock\n" in said("inspect", "m.safetensors").out
    points = ("--base", "mini:zeroshot", "--paths", "lines", "--alphas", "0.5", "--limit", "8", "--metrics", "top1")
    told = said("evaluate", "mini:success", "--datasets", "mini:photo", "--model", "mini", *points)
    assert told.code == 0 and "path:lines" in told.out, told.err


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (("interpolate", *ENDS), "--alpha: is missing"),
        (("interpolate", *ENDS, "--alpha", "0.5", "--granularity", "block"), "--layer-alphas is missing"),
        (("interpolate", *ENDS, "--alpha", "0.5", "--seed", "1"), "the path linear has nothing random"),
        (("interpolate", *ENDS, "--alpha", "0.5", "--path", "ties", "--fisher-0", "mini:success"), "ties does not use"),
        (("interpolate", *ENDS, "--alpha", "0.5", "--path", "lines", "--path-density", "0.5"), "has no effect without"),
        (("sparsify", *ENDS, "--layers", "visual.proj", "--select", "score"), "--select score: takes the scores"),
        (("sparsify", *ENDS, "--layers", "visual.proj", "--scores", "f"), "--select score: takes the scores"),
        (("merge", "mini:success", "mini:failure", "--model", "mini", "--density", "0.5"), "density: has no effect"),
    ],
)
def test_settings_of_paths_and_merges_that_do_nothing_are_refused(folder, argv, words):
    told = said(*argv, "--out", "x.safetensors")
    assert (told.code, told.out) == (2, "")
    assert words in told.err
    assert not list(folder.iterdir())


def test_evaluate_refuses_settings_of_paths_without_paths(folder):
    argv = ("evaluate", "mini:success", "--datasets", "mini:photo", "--model", "mini")
    for more, words in (
        (("--alphas", "0.5"), "alphas: is a setting of paths"),
        (("--paths", "lines"), "--base FILE"),
        (("--paths", "lines", "--base", "mini:zeroshot", "--path-density", "0.5"), "has no effect without"),
        (("--paths", "lines", "--base", "mini:zeroshot", "--alphas", "2"), "outside [0, 1]"),
    ):
        told = said(*argv, *more)
        assert told.code == 2 and words in told.err, told.err


def test_convert_in_another_codes_names_and_with_a_head_of_its_own(folder):
    import torch

    assert said("convert", "mini:success", "hf.safetensors", "--names", "huggingface").code == 0
    from safetensors import safe_open

    with safe_open("hf.safetensors", "pt") as file:
        assert "vision_model.embeddings.patch_embedding.weight" in file.keys()  # noqa: SIM118 (no mapping)
    torch.save({"weight": torch.ones(16, 64), "bias": torch.zeros(16)}, "head.pt")
    for flag, out in (("--head-file", "new.safetensors"), ("--head", "old.safetensors")):
        told = said("convert", "mini:zeroshot", out, flag, "head.pt")
        assert told.code == 0, told.err
        assert told.out.startswith(f"wrote {out}: ")
        assert tensors(out)["head.weight"].shape == (16, 64)
        assert told.err.startswith("sharpscope: hint: --head is called --head-file now") == (flag == "--head")


# -- models ------------------------------------------------------------------------------------------------------------


def test_evaluate_says_that_a_metric_has_no_meaning_for_the_sets(folder):
    argv = ("evaluate", "mini:zeroshot", "--datasets", "mini:photo", "--model", "mini", "--limit", "8", "--metrics")
    told = said(*argv, "top1", "worst_group")
    assert told.code == 0 and "top1" in told.out and "worst_group" not in told.out
    assert told.err == "sharpscope: note: --metrics: worst_group has no meaning for any of these sets.\n"
    assert said(*argv, "top1", "nll").err == ""


def test_evaluate_takes_the_old_word_for_data_sets(folder):
    argv = ("mini:zeroshot", "--model", "mini", "--limit", "16", "--metrics", "nll", "--csv")
    new, old = said("evaluate", *argv, "--datasets", "mini:photo"), said("evaluate", *argv, "--data", "mini:photo")
    assert new.out.splitlines()[0].startswith("checkpoint,dataset,role,metric,estimate")
    assert (old.code, old.out) == (0, new.out)
    assert new.err == ""
    assert old.err == "sharpscope: hint: --data is called --datasets now; the old flag is still taken.\n"


def test_finetune_resumes_in_old_words_and_new(folder):
    argv = (
        "finetune", "--zeroshot", "mini:zeroshot", "--train", "mini:photo", "--model", "mini", "--method",
        "linear-probe", "--steps", "2", "--batch-size", "8", "--set", "shots=1",
    )  # fmt: skip
    told = said(*argv)
    assert told.code == 0, told.err
    assert told.out.startswith("wrote runs/linear-probe/linear-probe.safetensors: ")
    assert "\ntemplates (the model's): '" in told.out
    assert "next: sharpscope run --zeroshot mini:zeroshot --finetuned runs/linear-probe" in told.out
    kept = Path("runs/linear-probe/linear-probe.safetensors").read_bytes()
    for words in (("--precision", "full"), ("--precision", "float32")):
        told = said(*argv, *words)
        assert "already finished" in told.out, told.err
    assert told.err == "sharpscope: hint: --precision float32 is called full now; the old word is still taken.\n"
    told = said(*argv, "--precision", "bf16")
    assert (told.code, "already holds another fine-tuning: precision was float32 and" in told.err) == (2, True)
    assert Path("runs/linear-probe/linear-probe.safetensors").read_bytes() == kept
    listed = said("finetune", "--list").out
    assert all(method in listed for method in ("wise-ft", "flyp", "r-adapter"))
    assert "warmup=" in listed


def test_a_flag_has_one_list_of_words_in_all_commands_that_have_it():
    """A flag that takes words of a closed list takes the same words everywhere. ``--method`` is the exception: the
    methods of merging and those of fine-tuning are told apart by the verb before them."""
    words: dict[str, set[tuple[str, ...]]] = {}
    for kind in COMMANDS.values():
        hints = typing.get_type_hints(kind, include_extras=True)
        for field in dataclasses.fields(kind):
            hint = hints[field.name]
            if typing.get_origin(hint) is not typing.Annotated:  # what stands there without a flag has a place only
                listed = [x for x in (hint, *typing.get_args(hint)) if typing.get_origin(x) is typing.Literal]
                words.setdefault(field.name, set()).add(typing.get_args(listed[0]) if listed else ())
    assert {name for name, lists in words.items() if len(lists) > 1} == {"method"}
