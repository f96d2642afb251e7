"""Result files of other systems, of exactly their structure with their traps, and their way to the pairs of a run."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sharpscope.errors import ConfigError, ResultsError
from sharpscope.exchange import join_accuracy, read_results, written
from sharpscope.exchange.join import RunPair, with_means
from sharpscope.exchange.measured import Measured, own_name, spec_of
from sharpscope.exchange.reading import read_measured
from sharpscope.scores import wilson
from sharpscope.tables.files import normalised
from sharpscope.tables.schema import COLUMNS

WISE_FT = {
    "data_location": "/data", "eval_datasets": ["ImageNet", "ImageNetV2", "ImageNetA"], "train_dataset": "ImageNet",
    "template": "openai_imagenet_template", "classnames": "openai", "alpha": [0.0, 0.5, 1.0], "exp_name": None,
    "results_db": "results.jsonl", "model": "ViT-B/32", "batch_size": 512, "lr": 3e-05, "wd": 0.1, "ls": 0.0,
    "warmup_length": 500, "epochs": 10, "load": "models/wiseft/zeroshot.pt", "save": "models/wiseft/finetuned",
    "freeze_encoder": False, "cache_dir": "cache", "device": "cuda",
}  # fmt: skip


def wise_ft_lines() -> list[dict[str, Any]]:
    """Two epochs of training and three points of the path, as one run of wise_ft.py appends them."""
    lines = []
    for epoch in range(2):
        accuracies = {"ImageNet:top1": 0.70 + epoch / 100, "ImageNetV2:top1": 0.6, "ImageNetA:top1": 0.2}
        lines.append({**WISE_FT, "current_epoch": epoch, **accuracies})
    for alpha, (i, v, a) in {0.0: (0.63, 0.55, 0.3), 0.5: (0.75, 0.64, 0.32), 1.0: (0.74, 0.61, 0.25)}.items():
        path = {"alpha": alpha, "current_epoch": 1, "ImageNet:top1": i, "ImageNetV2:top1": v, "ImageNetA:top1": a}
        # of an earlier evaluation in the same process: the key persists, the set is not among those evaluated
        lines.append({**WISE_FT, **path, "ImageNetR:top1": 0.111, "ImageNetV2:loss": 2.5})
    return lines


def jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


def value(table: pd.DataFrame, **where: object) -> float:
    for column, wanted in where.items():
        table = table[table[column] == wanted]
    (row,) = table["estimate"]
    return float(row)


# ---------------------------------------------------------------------- WiSE-FT
def test_wise_ft(tmp_path: Path) -> None:
    table = read_results(jsonl(tmp_path / "results.jsonl", wise_ft_lines()))
    assert tuple(table.columns) == COLUMNS["accuracy"]
    assert set(table["alpha"]) == {0.0, 0.5, 1.0}
    assert set(table["dataset"]) == {"imagenet", "imagenet-v2", "imagenet-a"}  # no stale ImageNetR, no loss
    assert value(table, alpha=0.5, dataset="imagenet-a") == 0.32
    assert value(table, alpha=1.0, dataset="imagenet") == 0.74  # not the training rows' 0.71
    assert set(table[table["dataset"] == "imagenet"]["role"]) == {"id"}
    assert set(table[table["dataset"] == "imagenet-v2"]["role"]) == {"ood"}
    assert set(table["metric"]) == {"top1"}
    assert table["ci_low"].isna().all()
    assert len(normalised(table, "accuracy")) == 9


def test_wise_ft_alone_from_training(tmp_path: Path) -> None:
    table = read_results(jsonl(tmp_path / "results.jsonl", wise_ft_lines()[:2]))
    assert set(table["alpha"]) == {1.0}
    assert value(table, dataset="imagenet") == 0.71  # the last epoch


def test_wise_ft_appended_to(tmp_path: Path) -> None:
    lines = wise_ft_lines()
    again = {**lines[-1], "ImageNetA:top1": 0.26}
    two = {**again, "load": ["models/zeroshot.pt", "models/other/checkpoint_10.pt"]}
    table = read_results(jsonl(tmp_path / "r.jsonl", [*lines, again, two]))
    assert table["pair"].nunique() == 2
    assert value(table, pair="models/wiseft/finetuned/checkpoint_10.pt", alpha=1.0, dataset="imagenet-a") == 0.26
    assert value(table, pair="models/other/checkpoint_10.pt", alpha=1.0, dataset="imagenet-a") == 0.26


def test_wise_ft_wilds(tmp_path: Path) -> None:
    row = {
        **WISE_FT, "alpha": 0.5, "train_dataset": "FMOWIDVal", "eval_datasets": ["FMOWID", "FMOWOOD"],
        "FMOWOOD:acc_avg": 0.5, "FMOWOOD:acc_worst_region": 0.31, "FMOWOOD:acc_worst_year": 0.4, "FMOWOOD:top1": 0.5,
        "FMOWID:top1": 0.6,
    }  # fmt: skip
    table = read_results(jsonl(tmp_path / "r.jsonl", [row]), ids=["FMOWID"])
    assert value(table, dataset="FMOWOOD", metric="worst_group") == 0.31
    assert set(table["metric"]) == {"top1", "worst_group"}
    means = with_means(table)
    assert value(means, role="ood_mean") == 0.31  # what the field goes by
    assert value(means, role="id", primary=True) == 0.6


# ---------------------------------------------------------------------- the others
def test_model_soups(tmp_path: Path) -> None:
    sets = ["ImageNet2p", "ImageNet", "ImageNetV2", "ImageNetSketch", "ImageNetR", "ObjectNet", "ImageNetA"]
    rows = [{"model_name": f"model_{k}", **{s: 0.1 * k + i / 100 for i, s in enumerate(sets)}} for k in range(3)]
    table = read_results(jsonl(tmp_path / "individual_model_results.jsonl", rows))
    assert set(table["pair"]) == {"model_1", "model_2"}
    assert value(table, pair="model_2", alpha=1.0, dataset="objectnet") == pytest.approx(0.25)
    assert value(table, pair="model_2", alpha=0.0, dataset="objectnet") == pytest.approx(0.05)  # model_0
    assert set(table[table["dataset"] == "ImageNet2p"]["role"]) == {"val"}  # held out of the training set
    assert "linear probe" in table[table["alpha"] == 0]["note"].iloc[0]
    with pytest.raises(ResultsError, match=r"line 4, key 'model_name': 'model_1' appears twice \(first in .*line 2\)"):
        read_results(jsonl(tmp_path / "twice.jsonl", [*rows, rows[1]]))


CLIP_BENCHMARK = {
    "dataset": "imagenet_sketch", "model": "ViT-B-32", "pretrained": "runs/wise_ft_alpha=0.500.pt",
    "task": "zeroshot_classification", "metrics": {"acc1": 0.41, "acc5": 0.7, "mean_per_class_recall": 0.4},
    "language": "en",
}  # fmt: skip


def test_clip_benchmark(tmp_path: Path) -> None:
    other = {**CLIP_BENCHMARK, "dataset": "wds/imagenet1k", "metrics": {"acc1": 0.6, "mean_average_precision": 0.5}}
    retrieval = {**CLIP_BENCHMARK, "task": "zeroshot_retrieval", "metrics": {"image_retrieval_recall@5": 0.3}}
    for i, entry in enumerate([CLIP_BENCHMARK, other, retrieval]):
        (tmp_path / f"result_{i}.json").write_text(json.dumps(entry))
    table = read_results(tmp_path)
    assert set(table["pair"]) == {"runs/wise_ft"}
    assert set(table["alpha"]) == {0.5}
    assert value(table, dataset="imagenet-sketch", metric="mean_per_class") == 0.4
    assert value(table, dataset="imagenet-sketch", metric="top5") == 0.7
    assert value(table, role="id") == 0.6
    assert value(read_results(tmp_path / "result_0.json"), metric="top1") == 0.41
    tags = [{**CLIP_BENCHMARK, "pretrained": "openai", "model": m} for m in ("ViT-B-32", "ViT-L-14")]
    (tmp_path / "tags").mkdir()
    (tmp_path / "tags" / "all.json").write_text(json.dumps(tags))
    assert set(read_results(tmp_path / "tags")["pair"]) == {"ViT-B-32/openai", "ViT-L-14/openai"}
    with pytest.raises(ResultsError, match=r"a \(2 models: ViT-B-32/openai, ViT-L-14/openai\)"):
        join_accuracy(read_measured(tmp_path / "tags"), [RunPair("a", "openai")])
    (tmp_path / "result_9.json").write_text(json.dumps(CLIP_BENCHMARK))
    with pytest.raises(ResultsError, match=r"'imagenet-sketch' of .* appears twice \(first in .*result_0.json\)"):
        read_results(tmp_path)


def test_flyp_and_starft(tmp_path: Path) -> None:
    folder = tmp_path / "_BS512_WD0.1_LR1e-05_run1"
    folder.mkdir()
    head = ["", "epoch", "ImageNet Accuracy", "ImageNetV2 Accuracy", "IWildCamOOD Accuracy", "IWildCamOODF1-macro_all"]
    rows = [["0", "0", ".70", ".60", ".5", ".3"], ["1", "1", ".72", ".61", ".52", ".32"]]
    lines = [[*head, "Avg OOD Acc", "Avg ID FLYP Loss"], *([*r, "0.55", "0.0301"] for r in rows)]
    (folder / "stats.tsv").write_text("\n".join("\t".join(line) for line in lines) + "\n")
    table = read_results(folder / "stats.tsv")
    assert list(dict.fromkeys(table["pair"])) == ["checkpoint_0", "checkpoint_1"]
    assert value(table, pair="checkpoint_1", metric="macro_f1", dataset="IWildCamOOD") == 0.32
    assert set(table["dataset"]) == {"imagenet", "imagenet-v2", "IWildCamOOD"}  # not their average
    starft = join_accuracy(read_measured(folder / "stats.tsv"), [RunPair("star", "logs/checkpoints/epoch_2.pt")])
    assert value(starft, role="ood_mean") == pytest.approx((0.61 + 0.32) / 2)
    (folder / "stats.tsv").write_text("\tepoch\tImageNet Accuracy\n0\t0\tnan\n")
    with pytest.raises(ResultsError, match="line 2, key 'ImageNet Accuracy': needs a number, got nan"):
        read_results(folder / "stats.tsv")


DASSL = """***************
** Arguments **
***************
output_dir: output/imagenet/CoOp/vit_b32_16shots/nctx16/seed1
Loading trainer: CoOp
Loading dataset: ImageNetSketch
epoch [1/50][5/6]\ttime 0.628 (0.896)\tdata 0.000 (0.163)\teta 0:04:24\tloss 3.6641\tacc 18.7500 (8.1250)
Evaluate on the *val* set
=> result
* total: 100
* correct: 99
* accuracy: 99.0%
* error: 1.0%
* macro_f1: 99.0%
Finish training
Deploy the last-epoch model
Evaluate on the *test* set
=> result
* total: 50,889
* correct: 20,915
* accuracy: 41.1%
* error: 58.9%
* macro_f1: 40.0%
Elapsed: 0:15:09
"""


def test_dassl(tmp_path: Path) -> None:
    (tmp_path / "log.txt").write_text(DASSL)
    table = read_results(tmp_path / "log.txt")
    top1 = table[table["metric"] == "top1"].iloc[0]
    assert top1["estimate"] == 20915 / 50889  # not the rounded percentage, not the validation set's
    assert top1["n"] == 50889
    assert (top1["ci_low"], top1["ci_high"]) == wilson(20915, 50889)
    assert (top1["dataset"], top1["role"]) == ("imagenet-sketch", "ood")
    assert value(table, metric="macro_f1") == pytest.approx(0.4)
    assert top1["pair"] == "output/imagenet/CoOp/vit_b32_16shots/nctx16/seed1"
    (tmp_path / "log.txt").write_text("".join(DASSL.partition("Finish training")[:2]))
    with pytest.raises(ResultsError, match="on the test set"):
        read_results(tmp_path / "log.txt")


def test_dassl_of_an_older_version(tmp_path: Path) -> None:
    text = "Loading dataset: OxfordFlowers\nDo evaluation on test set\n=> result\n* total: 2,463\n* correct: 2,332\n"
    (tmp_path / "log.txt").write_text(text + "* accuracy: 94.7%\n* error: 5.3%\n")
    table = read_results(tmp_path / "log.txt", ids=["OxfordFlowers"])
    assert value(table, role="id") == 2332 / 2463


def test_monosoup(tmp_path: Path) -> None:
    payload = {
        "config": {"finetuned_checkpoint": "/soups/model_31.pt", "pretrained_checkpoint": "/soups/model_0.pt",
                   "version": "freevariance", "r_threshold": 0.8},
        "metrics": {"avg_ood": 0.5, "imagenet": 0.76},
        "results": {"ImageNet": 0.76, "ImageNetA": 0.3, "ObjectNet": 0.7},
        "timestamp_utc": "2026-02-05T00:00:00+00:00",
    }  # fmt: skip
    (tmp_path / "out.json").write_text(json.dumps(payload, indent=2, sort_keys=True))
    table = read_results(tmp_path / "out.json")
    assert set(table["variant"]) == {"monosoup:freevariance"}
    assert set(table["pair"]) == {"/soups/model_31.pt"}
    assert len(table) == 3


# ---------------------------------------------------------------------- what cannot be read
@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is empty"),
        ("hello\n", "the format of these results is unknown"),
        ("{}\n", "the format of these results is unknown"),
        ("[]", "holds no results"),
        ("[1]", "entry 1: is not a JSON object"),
        ('{"model_name": "model_1", "ImageNet": 0.7}\n{"model_name": "mod', "line 2: is not JSON"),
        ('{"model_name": "a", "ImageNet": 0.7}\n\n{"ImageNet": 0.6}\n', "line 3: has no key 'model_name'"),
        ('{"model_name": "a", "ImageNet": 76.2}', r"key 'ImageNet': 76.2 is not a fraction between 0 and 1 \(is it"),
        ('{"model_name": "a", "ImageNet": NaN}', "key 'ImageNet': needs a number, got nan"),
        ('{"model_name": "a", "ImageNet": true}', "key 'ImageNet': needs a number, got True"),
        ('{"model_name": 3, "ImageNet": 0.5}', "key 'model_name': needs a name"),
        ('{"model_name": "a"}', "holds no accuracy"),
        ('{"eval_datasets": "ImageNet", "alpha": 0.5}', "key 'eval_datasets': needs a list"),
        ('{"eval_datasets": ["ImageNet"], "alpha": "half"}', "key 'alpha': needs a number"),
        ('{"dataset": "x", "pretrained": null, "metrics": {}}', "key 'pretrained': needs a str"),
        ('{"config": {}, "results": {"ImageNet": 0.5}}', "no 'finetuned_checkpoint'"),
        (
            '{"config": {"finetuned_checkpoint": "a"}, "results": null}',
            "key 'results': needs one accuracy per data set",
        ),
        ("\x1b[31m\n", r"is unknown \(it starts with '\\x1b\[31m"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "r.jsonl").write_text(text)
    with pytest.raises(ResultsError, match=said) as error:
        read_results(tmp_path / "r.jsonl")
    assert str(error.value).count("\n") < 3


def test_bytes_that_are_no_text_and_files_that_are_not_there(tmp_path: Path) -> None:
    (tmp_path / "r.jsonl").write_bytes(b'{"a": 1}\n\xff\xfe')
    with pytest.raises(ResultsError, match="line 2: not UTF-8"):
        read_results(tmp_path / "r.jsonl")
    with pytest.raises(ResultsError, match="No such file"):
        read_results(tmp_path / "none.jsonl")
    (tmp_path / "folder").mkdir()
    with pytest.raises(ResultsError, match=r"has no \*.json"):
        read_results(tmp_path / "folder")


VALID: tuple[dict[str, Any], ...] = (
    {**WISE_FT, "alpha": 0.5, "ImageNet:top1": 0.7, "ImageNetA:top1": 0.3, "load": ["a.pt", "b.pt"]},
    {**WISE_FT, "ImageNet:top1": 0.7},
    {"model_name": "model_1", "ImageNet": 0.7, "ImageNetR": 0.3},
    CLIP_BENCHMARK,
    {"config": {"finetuned_checkpoint": "x.pt", "version": "variance"}, "results": {"ImageNet": 0.7}},
)
TSV = "\tepoch\tImageNet Accuracy\tIWildCamOODF1-macro_all\n0\t0\t.7\t.3\n1\t1\t.7\t\n"
JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers(-2, 2) | st.text(max_size=4),
    lambda x: st.lists(x, max_size=2) | st.dictionaries(st.text(max_size=4), x, max_size=2),
)


@settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_whatever_was_changed_in_a_file_it_is_read_or_refused(tmp_path: Path, data: st.DataObject) -> None:
    if data.draw(st.booleans()):
        text = data.draw(st.sampled_from((TSV, DASSL, json.dumps(VALID[0]))))
        at, size = data.draw(st.integers(0, len(text))), data.draw(st.integers(0, 40))
        text = text[:at] + data.draw(st.text(max_size=5)) + text[at + size :]
    else:
        row = dict(data.draw(st.sampled_from(VALID)))
        for key in data.draw(st.lists(st.sampled_from(sorted(row)), max_size=2)):
            if data.draw(st.booleans()):
                row[key] = data.draw(JSON)
            else:
                row.pop(key, None)
        text = json.dumps(data.draw(st.sampled_from((row, [row, row], [row, VALID[2]]))))
    (tmp_path / "r").write_bytes(text.encode("utf-8", "surrogatepass"))
    try:
        table = read_results(tmp_path / "r")
    except ResultsError as error:
        assert str(tmp_path) in str(error)
    else:
        assert table["estimate"].between(0, 1).all()
        assert tuple(table.columns) == COLUMNS["accuracy"]


def test_a_byte_order_mark_is_no_fault(tmp_path: Path) -> None:
    (tmp_path / "r.jsonl").write_bytes(b"\xef\xbb\xbf" + b'{"model_name": "a", "ImageNet": 0.5}\r\n')
    assert value(read_results(tmp_path / "r.jsonl")) == 0.5


# ---------------------------------------------------------------------- to the pairs of a run
def model(*names: str, alpha: float = 1.0, **values: float) -> Measured:
    return Measured(names, alpha, {(spec_of(k), "top1"): v for k, v in values.items()}, names[0])


def test_names_of_pairs_are_matched_surest_first() -> None:
    models = [
        model("runs/a/checkpoint_10.pt", ImageNet=0.7, ImageNetR=0.6),
        model("runs/b/checkpoint_10.pt", ImageNet=0.7, ImageNetR=0.5),
        model("c", ImageNet=0.7, ImageNetR=0.4),
    ]
    table = join_accuracy(models, [RunPair("first", "runs/a/checkpoint_10.pt"), RunPair("c", "x.pt")])
    assert value(table, pair="first", role="ood") == 0.6
    assert value(table, pair="c", role="ood") == 0.4
    assert set(table["pair"]) == {"first", "c"}
    longer = join_accuracy(models[:2], [RunPair("first", "/home/me/runs/b/checkpoint_10.pt")])
    assert value(longer, role="ood") == 0.5
    with pytest.raises(ResultsError) as error:
        join_accuracy(models, [RunPair("c", ""), RunPair("d", "d.pt"), RunPair("e", "checkpoint_10.pt")])
    said = str(error.value)
    assert said.startswith("2 of 3 pairs cannot be matched by name: d; e (2 models: runs/a/checkpoint_10.pt, runs/b")
    assert "Remedy: --match PAIR=MODEL" in said


def test_a_file_of_the_same_name_in_another_folder_is_another_model() -> None:
    with pytest.raises(ResultsError, match="1 of 1 pairs cannot be matched by name: d"):
        join_accuracy([model("runs/a/checkpoint_10.pt", ImageNetR=0.6)], [RunPair("d", "b/checkpoint_10.pt")])
    # a file that tells no folder (FLYP's epochs) fits both: neither is taken
    flyp = [model("checkpoint_9", ImageNetR=0.6)]
    both = [RunPair("a", "a/checkpoint_9.pt"), RunPair("b", "b/checkpoint_9.pt")]
    with pytest.raises(ResultsError, match=r"a and b \(one model: checkpoint_9\)"):
        join_accuracy(flyp, both)
    assert value(join_accuracy(flyp, both[:1]), pair="a", role="ood") == 0.6


def test_told_matches() -> None:
    models = [model("zs", ImageNet=0.6, ImageNetA=0.3), model("ft-1", ImageNet=0.8, ImageNetA=0.2)]
    pairs = [RunPair("a=b", "x.pt")]
    table = join_accuracy(models, pairs, match=["a=b=ft-1"])
    assert list(table["alpha"].unique()) == [1.0]
    table = join_accuracy(models, pairs, match=["a=b@0=zs", "a=b@1=ft-1"])
    assert value(table, alpha=0.0, role="ood_mean") == 0.3
    assert value(table, alpha=1.0, role="ood_mean") == 0.2
    with pytest.raises(ResultsError, match="no model 'ft-2' was measured. Did you mean 'ft-1'"):
        join_accuracy(models, pairs, match=["a=b=ft-2"])
    with pytest.raises(ResultsError, match="needs PAIR=MODEL or PAIR@ALPHA=MODEL, where PAIR is one of a=b"):
        join_accuracy(models, pairs, match=["c=zs"])


def test_averages_name_their_sets_and_are_over_the_same_ones() -> None:
    models = [
        model("a", alpha=0.0, ImageNet=0.6, ImageNetA=0.3, ImageNetR=0.5),
        model("a", alpha=1.0, ImageNet=0.8, ImageNetA=0.2, ImageNetR=0.4, ObjectNet=0.9),
    ]
    table = join_accuracy(models, [RunPair("a", "")])
    mean = table[table["role"] == "ood_mean"]
    assert set(mean["dataset"]) == {"imagenet-a+imagenet-r"}
    assert sorted(mean["estimate"]) == pytest.approx([0.3, 0.4])
    assert (mean["note"] == "without objectnet, because some points lack it").all()
    with pytest.raises(ResultsError, match="none of the sets .* counts as out of distribution"):
        join_accuracy([model("a", ImageNet=0.5)], [RunPair("a", "")])
    with pytest.raises(ResultsError, match="no OOD set of the group 'ood' was measured at every point"):
        join_accuracy([model("a", ObjectNet=0.5), model("a", alpha=0.0, ImageNetA=0.5)], [RunPair("a", "")])


def test_intervals_of_averages() -> None:
    models = [Measured(("a",), 1.0, {("imagenet-a", "top1"): 0.5, ("imagenet-r", "top1"): 0.5}, "", counts={
        "imagenet-a": 100, "imagenet-r": 100})]  # fmt: skip
    mean = join_accuracy(models, [RunPair("a", "")]).iloc[-1]
    assert mean["ci_high"] - mean["estimate"] == pytest.approx((wilson(50, 100)[1] - 0.5) / math.sqrt(2))


# ---------------------------------------------------------------------- and back
def own_table(accuracy_of: Callable[..., pd.DataFrame]) -> pd.DataFrame:
    return accuracy_of("run1", (0.0, 0.5, 1.0), (0.3, 0.4, 0.35), (0.6, 0.7, 0.72)).replace(
        {"photo": "imagenet", "x": "imagenet-r", "x+y": "imagenet-r"}
    )


@pytest.mark.parametrize("form", ["wise-ft", "clip-benchmark"])
def test_what_is_written_reads_back(form: str, tmp_path: Path, accuracy_of: Callable[..., pd.DataFrame]) -> None:
    table = own_table(accuracy_of)
    files = written(table, form, model="ViT-B-32", zeroshot={"run1": "zs.pt"}, finetuned={"run1": "out/run1.pt"})
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    source = tmp_path / "results.jsonl" if form == "wise-ft" else tmp_path
    back = join_accuracy(read_measured(source), [RunPair("run1", "out/run1.pt")])
    for role in ("id", "ood", "ood_mean"):
        for alpha in (0.0, 0.5, 1.0):
            assert value(back, role=role, alpha=alpha) == value(table, role=role, alpha=alpha)


def test_wise_ft_lines_hold_what_their_scatter_plot_reads(accuracy_of: Callable[..., pd.DataFrame]) -> None:
    files = written(own_table(accuracy_of), "wise-ft", model="m", zeroshot={"run1": "z"}, finetuned={"run1": "f"})
    lines = [json.loads(line) for line in files["results.jsonl"].splitlines()]
    assert [line["alpha"] for line in lines] == [0.0, 0.5, 1.0]
    assert all(isinstance(line["alpha"], float) for line in lines)  # it drops rows of any other type
    assert lines[1]["ImageNet:top1"] == 0.7
    assert own_name("folder:/data/my-set") == "my-set"
    with pytest.raises(ConfigError, match="unknown form 'wiseft'. Did you mean 'wise-ft'"):
        written(own_table(accuracy_of), "wiseft", model="m", zeroshot={}, finetuned={})


def test_a_runs_own_table_without_its_means_gets_the_same_ones_back() -> None:
    from sharpscope.clip.accuracy import mean_rows  # what a run writes
    from sharpscope.tables.rows import table as made

    rows = []
    for alpha, shift in ((0.0, 0.0), (0.5, 0.07), (1.0, 0.031)):
        for dataset, metric, value, low, high, n in (
            ("imagenet-a", "top1", 0.3, 0.27, 0.35, 700),
            ("iwildcam@test", "macro_f1", 0.21, 0.19, 0.22, 4000),
            ("imagenet-r", "top1", 0.41, 0.4, 0.43, 900),
        ):
            row = {"pair": "a", "alpha": alpha, "variant": "dense", "dataset": dataset, "role": "ood", "note": ""}
            row["group"] = "ood"
            row |= {"metric": metric, "estimate": value + shift, "ci_low": low + shift, "ci_high": high + shift, "n": n}
            rows.append(row | {"primary": True})
    own = [mean for alpha in (0.0, 0.5, 1.0) for mean in mean_rows([r for r in rows if r["alpha"] == alpha])]
    back = with_means(made("accuracy", rows))
    back = back[back["role"] == "ood_mean"].reset_index(drop=True)
    want = made("accuracy", own)
    want = want[want["primary"].astype(bool)].reset_index(drop=True)
    pd.testing.assert_frame_equal(back, want, check_exact=True, check_dtype=False)
    assert set(back["metric"]) == {"primary"} and set(back["n"]) == {5600}
