"""Flags that change nothing are refused or said; what is wrong with inputs is told before torch is imported."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from sharpscope.cli import main as cli
from sharpscope.clip.evaluate import evaluate
from sharpscope.clip.export import convert
from sharpscope.clip.model import ClipModel
from sharpscope.clip.pair import load_pair
from sharpscope.config.study import StudyConfig
from sharpscope.errors import CheckpointError, ConfigError, SharpscopeError
from sharpscope.present.view import data_notes
from sharpscope.study.report import Run
from sharpscope.study.workers import Crew
from sharpscope.weights.checkpoint import read_checkpoint

MINI = "--zeroshot mini:zeroshot --finetuned mini:success --model mini"
NO_TORCH = """
import json, sys
class Refused:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "torchvision", "open_clip"):
            raise AssertionError(name + " is imported")
sys.meta_path.insert(0, Refused())
from sharpscope.cli.main import main
print(json.dumps([main(argv.split()) for argv in json.loads(sys.argv[1])]))
"""


def test_what_is_wrong_with_the_inputs_is_told_before_torch_is_imported(tmp_path: Path) -> None:
    told = {
        f"run {MINI} --id imagenet@trian": "unknown split 'trian'. Did you mean 'train'?",
        f"plan {MINI} --id mini:skech": "no domain 'skech'. Did you mean 'sketch'?",
        f"run {MINI} --id mini:photo --probe foldr:x": "of no known kind",
        "run --zeroshot absent.pt --finetuned mini:success --id mini:photo": "absent.pt: no such file",
        "run --zeroshot mini:zeroshot --finetuned mini:sucess --id mini:photo": "Did you mean 'success'?",
        f"plan {MINI} --id mini:photo --upgraded absent.pt": "absent.pt: no such file",
        f"run {MINI} --id mini:photo --classnames absent.txt": "class names: cannot read absent.txt",
        f"run {MINI} --id mini:photo --rho-avg 1 --measures hessian_trace": "rho_avg: changes nothing",
        f"run {MINI} --id mini:photo --data-root x": "data_root: changes nothing",
        "evaluate mini:success --datasets mini:photo --model ViT-B-23": "Did you mean 'ViT-B-32'?",
        "evaluate absent.pt --datasets mini:photo": "absent.pt: no such file",
        "evaluate mini:success --datasets mini:skech": "no domain 'skech'",
        "evaluate mini:success --base absent.pt --datasets mini:photo": "absent.pt: no such file",
        "finetune --zeroshot mini:zeroshot --train mini:skech": "no domain 'skech'",
        "finetune --zeroshot absent.pt --train mini:photo": "absent.pt: no such file",
        "finetune --zeroshot mini:zeroshot --train mini:photo --steps 1 --epochs 1": "give one of them",
        "interpolate --zeroshot mini:zeroshot --finetuned absent.pt --alpha 1 --out o.safetensors": "absent.pt: no",
        f"interpolate {MINI} --alpha 0.5 --extrapolate --out o.safetensors": "--extrapolate: changes nothing",
        f"sparsify {MINI} --layers x --select magnitude --seed 1 --out o.safetensors": "--seed: changes nothing",
        f"sparsify {MINI} --layers x --alpha 0 --out o.safetensors": "--alpha: at 0",
    }
    ran = subprocess.run(
        [sys.executable, "-c", NO_TORCH, json.dumps(list(told))], capture_output=True, text=True, check=True,
        cwd=tmp_path, env={"PYTHONPATH": str(Path(cli.__file__).parents[2]), "PATH": ""},
    )  # fmt: skip
    assert json.loads(ran.stdout) == [2] * len(told), ran.stderr
    for words, message in zip(told.values(), ran.stderr.split("sharpscope: error: ")[1:], strict=True):
        assert words in message


def test_plan_says_that_it_writes_nothing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sharpscope.study.plan.plan", lambda config: "planned")
    for more, note in ((), ""), (("--out", "x"), "--out: plan writes nothing; run would write to x."):
        assert cli.main(["plan", *MINI.split(), "--id", "mini:photo", *more]) == 0
        assert note in capsys.readouterr().err


# ---------------------------------------------------------------------- heads and checkpoints
def _saved(path: Path, tensors: dict[str, Any]) -> str:
    torch.save(tensors, path)
    return str(path)


def test_templates_are_refused_where_no_head_is_made_from_text(
    tiny_model: ClipModel, tiny_theta: dict[str, Any]
) -> None:
    given: dict[str, Any] = {"model": tiny_model, "classnames": ["star", "key"], "templates": ["a {}"]}
    ends = [{**tiny_theta, "head.weight": torch.full((2, 12), value)} for value in (1.0, 2.0)]
    with pytest.raises(ConfigError, match="templates: the checkpoints hold heads of their own"):
        load_pair(*ends, **given)
    load_pair(tiny_theta, ends[1], **given)  # the zero-shot end's head is made from them
    with pytest.raises(ConfigError, match="templates: the checkpoints hold heads"):
        evaluate("mini:success", "mini", ["mini:photo"], head="stored", templates=["a {}"])


def test_evaluate_refuses_what_no_checkpoint_needs() -> None:
    few: dict[str, Any] = {"metrics": ["top1"], "limit": 16, "device": "cpu"}
    for setting, file, words in (
        ("base", "mini:zeroshot", "base: mini:success holds all of its weights"),
        ("head_file", "absent.pt", "head_file: mini:success holds a head of its own"),
        ("class_position", "front", "class_position: mini:success holds no learnt prompts"),
    ):
        with pytest.raises(ConfigError, match=words):
            evaluate("mini:success", "mini", ["mini:photo"], **few, **{setting: file})
    table = evaluate("mini:success", "mini", ["mini:photo"], **few, templates=["a {}"])
    assert table.attrs["unused"].startswith("templates: no head was made from text")
    assert "unused" not in evaluate("mini:zeroshot", "mini", ["mini:photo"], **few, templates=["a {}"]).attrs


def test_convert_refuses_what_the_file_does_not_need(tmp_path: Path, tiny_theta: dict[str, Any]) -> None:
    source, out, names = _saved(tmp_path / "a.pt", tiny_theta), tmp_path / "o.safetensors", tmp_path / "names.txt"
    names.write_text("a\nb\n")
    settings = {"base": source, "classnames": names, "adapter_scale": 1.0, "adapter_merged": True}
    for setting, value in settings.items():
        with pytest.raises(ConfigError, match=f"{setting}: "):
            convert(source, out, **{setting: value})  # type: ignore[arg-type]
    assert not out.exists()


def test_towers_beside_learnt_prompts_are_never_left_out(
    tmp_path: Path, tiny_model: ClipModel, tiny_theta: dict[str, Any]
) -> None:
    base = _saved(tmp_path / "base.pt", tiny_theta)
    moved = {n: t + 0.01 if n.startswith("visual.") else t for n, t in tiny_theta.items()}
    context = {"prompt_learner.ctx": torch.randn(4, 16, generator=torch.Generator().manual_seed(0))}
    load = {"model": tiny_model, "classnames": ["star", "key"]}
    for lead in ("", "clip_model."):
        path = _saved(tmp_path / "mixed.pt", {**{lead + n: t for n, t in moved.items()}, **context})
        for head in ("auto", "zeroshot"):
            with pytest.raises(CheckpointError, match="has no place in open_clip's CLIP"):
                load_pair(base, path, head=head, **load)
    coop = {n.replace("visual.", "image_encoder.", 1): t for n, t in moved.items() if n.startswith("visual.")}
    path = _saved(tmp_path / "coop.pt", {**coop, **context})
    pair = load_pair(base, path, **load)
    assert "head.weight" in pair.moving and "visual.conv1.weight" in pair.moving
    assert any("--class-position settles it" in x for x in pair.facts["assumed"])
    front = load_pair(base, path, class_position="front", **load)
    assert front.facts["assumed"] == []
    assert not torch.equal(front.theta_1["head.weight"], pair.theta_1["head.weight"])
    told = load_pair(base, path, head="zeroshot", **load).facts["assumed"]
    assert told == [
        "coop.pt holds learnt prompts, which --head zeroshot does not use (--head stored makes the head from them)."
    ]
    with pytest.raises(ConfigError, match="class_position: 'frnt' is none of end, middle, front"):
        load_pair(base, path, class_position="frnt", **load)
    with pytest.raises(ConfigError, match="class_position: .*gives no head of learnt prompts"):
        load_pair(base, path, head="zeroshot", class_position="front", **load)


def test_a_pickle_of_protocol_0_with_long_storages_is_called_that(tmp_path: Path) -> None:
    for protocol in (0, 1):
        with open(tmp_path / "a.pkl", "wb") as file:
            pickle.dump({"visual.conv1.weight": torch.zeros(200, 100)}, file, protocol=protocol)
        if protocol:
            assert read_checkpoint(tmp_path / "a.pkl", partial=True).tensors
            continue
        with pytest.raises(CheckpointError, match=r"is a pickle of protocol 0, which writes tensors as text.*\nRemedy"):
            read_checkpoint(tmp_path / "a.pkl", partial=True)


# ---------------------------------------------------------------------- what is said
class _Lost:
    """A pool whose worker has ended."""

    def submit(self, *_: object) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_exception(BrokenProcessPool())
        return future


def test_a_lost_worker_is_told_for_what_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    crew = Crew(StudyConfig())
    monkeypatch.setattr(crew, "_pool", _Lost())
    with pytest.raises(SharpscopeError, match=r"ended without an error message; .*Likely.*\nRemedy: .*--jobs 1"):
        crew.spread(lambda share: share, [(0,), (1,)])


def test_class_names_that_were_matched_in_order_are_said(tmp_path: Path) -> None:
    in_order = "class names were matched to the class folders in sorted order"
    manifest = {
        "data": {"a": {"probe": {"said": [in_order]}, "folder:v": {"said": []}}, "b": {"probe": {"said": [in_order]}}}
    }
    assert data_notes(manifest) == (f"probe: {in_order}.",)
    tables = {"verdicts": pd.DataFrame(columns=["claim"]), "advice": pd.DataFrame(columns=["pair"])}
    assert Run(tmp_path, tables, data_notes=data_notes(manifest)).summary() == f"data: probe: {in_order}."
