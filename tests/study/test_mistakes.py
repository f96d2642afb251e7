"""Mistakes that would make every number of a study meaningless: refused, or said first and answered by no verdict."""

from __future__ import annotations

import dataclasses
import runpy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from sharpscope.clip.datasets.dataset import Dataset, Memory
from sharpscope.clip.datasets.images import Decoded, Edit, Files
from sharpscope.clip.datasets.spec import load_dataset
from sharpscope.clip.export import interpolate
from sharpscope.config.study import PairConfig, StudyConfig
from sharpscope.errors import ConfigError, DatasetError, SharpscopeError
from sharpscope.miniworld import world as miniworld
from sharpscope.study import run as study
from sharpscope.study.context import check_inputs, load_study_pair
from sharpscope.study.overlap import check_apart
from sharpscope.study.plan import plan
from sharpscope.study.report import report
from sharpscope.vocabulary import CANNOT

SMALL = StudyConfig(
    pairs=(PairConfig("p", "mini:zeroshot", "mini:failure"),), model="mini", probe="mini:photo", id=("mini:photo",),
    ood=("mini:sketch",), alphas=(0.0, 1.0), measures=("hessian_trace",), granularity="block", probe_size=8, limit=96,
    max_matvecs=2, densities=(), layer_alphas=(0.0, 1.0), criticality_noise=(1.0,), bootstrap=50, threads=1,
    device="cpu",
)  # fmt: skip


def changed(**changes: Any) -> StudyConfig:
    return dataclasses.replace(SMALL, **changes)


# ------------------------------------------------------------------ said first, and no verdict
@pytest.mark.parametrize("mistake", ["swapped", "without ends"])
def test_what_is_meaningless_is_said_first_and_gets_no_verdict(mistake: str, tmp_path: Path, undrawn: None) -> None:
    if mistake == "swapped":
        ends = [str(tmp_path / f"{alpha}.safetensors") for alpha in (1, 0)]
        for path, alpha in zip(ends, (1.0, 0.0), strict=True):
            interpolate("mini:zeroshot", "mini:failure", alpha, path, model="mini")
        config, words = changed(pairs=(PairConfig("p", *ends),)), "p: the two ends look swapped. ID accuracy falls from"
    else:
        config, words = (
            changed(alphas=(0.5,)),
            "The path has no point at alpha 0 and 1 (alphas: 0.5). The failure",
        )
    done = study.run(config, tmp_path / "run")
    assert len(done.notices) == 1 and words in done.notices[0]
    assert done.summary().startswith(f"no verdict: {done.notices[0]}")
    assert (done.verdicts["verdict"] == CANNOT).all() and done.verdicts["estimate"].isna().all()
    assert done.verdicts["evidence"].str.startswith("No verdict is given: ").all()
    ours = done.advice[done.advice["situation"] != "baseline"]
    assert ours["alpha"].isna().all() and (ours["status"] == "undefined").all() and not ours["advised"].any()
    assert ours["note"].str.startswith("no advice is given").all() and len(ours) >= 1
    assert (
        "  p, ood (" in done.summary()
        and ": no alpha (no advice is given" in done.summary()
        and "No failure flag" not in done.summary()
    )
    page = done.report.read_text(encoding="utf-8")
    assert page.index("No verdict:") < page.index("<nav>") and words in page
    assert "no failure flag" not in page or mistake == "swapped"
    again = report(done.root)
    assert again.notices == done.notices and again.summary() == done.summary()


# ------------------------------------------------------------------ refused: a set that is used twice
def of(*values: float, n: int = 1) -> Dataset:
    """A data set of one-coloured pictures, ``n`` of each."""
    pixels = torch.tensor(values).repeat_interleave(n).byte().view(-1, 1, 1, 1).expand(-1, 3, 4, 4).contiguous()
    return Dataset("x", ["a"], torch.zeros(len(pixels)), Memory(pixels), mean=(0.5,) * 3, std=(0.5,) * 3)


def test_digests_are_those_of_the_pixels_whatever_labels_rows_and_names() -> None:
    whole = of(*range(9))
    assert len(whole.digests()) == 9 and len(of(1, n=5).digests()) == 1
    assert whole.subset([3, 5]).digests() == of(5, 3).digests() < whole.digests()
    assert not whole.digests() & of(20, 30).digests()
    large = of(*range(200))
    assert len(large.digests(most=50)) == 50 and large.digests(most=50) == of(*range(200)).digests(most=50)


def test_probe_id_and_ood_sets_have_to_show_different_pictures() -> None:
    roles = {"i": "id", "x": "ood", "y": "ood"}
    apart = {"i": of(*range(10, 20)), "x": of(*range(20, 30)), "y": of(*range(25, 40))}  # OOD sets may overlap
    probe = of(*range(5))
    check_apart("p", probe, apart, roles)
    check_apart("p", of(0, 1, 2, 10), apart, roles)  # one stray duplicate
    for name in "ix":
        with pytest.raises(DatasetError, match=f"probe, {roles[name]}: the probe p has pictures of .* set {name} "):
            check_apart("p", apart[name].subset([1, 3, 5]), apart, roles)
    with pytest.raises(DatasetError, match="id, ood: i and x show the same pictures"):
        check_apart("p", probe, apart | {"x": apart["i"]}, roles)
    with pytest.raises(DatasetError, match="ood: x and y show the same pictures, which the OOD mean would count twice"):
        check_apart("p", probe, apart | {"y": apart["x"].subset(range(9, -1, -1))}, roles)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Dataset]:
    """A data set of the files of one-coloured pictures, in PNG or another format; ``streamed``: nothing is kept."""
    folder = tmp_path_factory.mktemp("files")
    model = load_study_pair(SMALL, SMALL.pairs[0]).model

    def make(values: Sequence[int], kind: str = "png", streamed: bool = True, edits: Sequence[Edit] = ()) -> Dataset:
        for i in values:
            if not (file := folder / f"{i}.{kind}").exists():
                Image.new("RGB", (4, 4), (i % 256, i // 256, 0)).save(file)
        source = Decoded(Files(folder, [f"{i}.{kind}" for i in values]), model, edits)
        facts, labels = {"streamed": streamed}, torch.zeros(len(values))
        return Dataset("x", ["a"], labels, source, mean=(0.5,) * 3, std=(0.5,) * 3, facts=facts)

    return make


def test_a_large_set_of_files_is_compared_by_files_and_hardly_decoded(
    files: Callable[..., Dataset], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[int] = []
    plain = Files.open
    monkeypatch.setattr(Files, "open", lambda self, i: opened.append(i) or plain(self, i))
    probe, test, roles = range(400, 800), range(400), {"t": "ood"}
    check_apart("p", files(probe), {"t": files(test)}, roles)
    assert len(opened) == 2 * 128 and len(files(test).file_digests()) == 400
    opened.clear()
    looked_at = files(test)
    digests = looked_at.digests(128), looked_at.digests(128)
    assert digests[0] == digests[1] and len(opened) == 128, "what was looked at stays"
    passes = [[x for x, _ in d.batches(50)] for d in (looked_at, files(test))]
    assert len(opened) == 128 + (400 - 128) + 400 and all(map(torch.equal, *passes))
    opened.clear()
    check_apart("p", files(probe, streamed=False), {"t": files(test)}, roles)
    assert len(opened) == 400 + 128, "pixels that are kept cost nothing"
    few = [3 * i + 1 for i in range(5)]  # 5 of 400 pictures, which are not all among the 128
    with pytest.raises(DatasetError, match="5 of the 400 that were compared"):
        check_apart("p", files([*probe][5:] + few), {"t": files(test)}, roles)
    with pytest.raises(DatasetError, match="128 of the 128 that were compared"):  # a copy in another format
        check_apart("p", files(test, kind="bmp"), {"t": files(test)}, roles)


def test_pictures_that_are_changed_are_not_those_of_their_files(files: Callable[..., Dataset]) -> None:
    dark = files(range(100, 110), edits=[lambda image, name: image.point(lambda v: v // 2)])
    assert not dark.file_digests()
    check_apart("p", files(range(100, 110)), {"t": dark}, {"t": "ood"})
    missing = files(range(100, 110))
    missing._source.images.paths = [*missing._source.images.paths[:9], "none.png"]  # type: ignore[attr-defined]
    assert len(missing.file_digests()) == 9 == len(missing.digests())


@pytest.fixture
def pictures(tmp_path: Path) -> Callable[[str, str], str]:
    """``pictures(name, domain)`` -> spec of a folder with the world's test pictures of a domain."""

    def make(name: str, domain: str) -> str:
        images = load_dataset(f"mini:{domain}", limit=32)
        batch, labels = next(images.batches(32))
        for i, (image, label) in enumerate(zip(batch, labels.tolist(), strict=True)):
            folder = tmp_path / name / miniworld.CLASSES[label]
            folder.mkdir(parents=True, exist_ok=True)
            array = ((image.permute(1, 2, 0) * 0.5 + 0.5) * 255).round().byte().numpy()
            Image.fromarray(array).save(folder / f"{i}.png")
        return f"folder:{tmp_path / name}"

    return make


@pytest.mark.usefixtures("untimed")
def test_a_copy_of_a_set_under_another_name_is_found_by_run_and_plan(pictures: Callable[[str, str], str]) -> None:
    photo = pictures("a", "photo")
    for command in (plan, study.run):
        with pytest.raises(DatasetError, match="probe, ood: .* of the OOD test set folder:.*labels would enter"):
            command(changed(probe=photo, id=(), ood=(pictures("b", "photo"),)))
    with pytest.raises(DatasetError, match="id, ood: mini:photo@test and .* show the same pictures"):
        plan(changed(id=("mini:photo@test",), ood=(photo,), limit=None))
    assert "estimated time" in plan(changed(id=(), ood=(photo,)))  # the probe comes from the train split


# ------------------------------------------------------------------ refused before anything is loaded
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_or_an_arithmetic_that_is_not_there_names_the_remedy() -> None:
    for command in (plan, study.run):
        with pytest.raises(ConfigError, match="device: cuda .* no CUDA GPU on this machine.\nRemedy: --device cpu or"):
            command(changed(device="cuda"))
        with pytest.raises(ConfigError, match="precision: tf32 .* computes on cpu.*\nRemedy: --precision full, or"):
            command(changed(precision="tf32"))
        with pytest.raises(ConfigError, match="id, ood: give at least one test set"):
            command(changed(id=(), ood=()))
    check_inputs(changed(precision="bf16"))


def test_a_metric_without_a_meaning_for_any_set_is_refused() -> None:
    with pytest.raises(ConfigError, match="metrics: worst_group needs a test set with groups"):
        plan(changed(metrics=("worst_group",)))


CALL = "import sharpscope.study.workers as workers\ndef main():\n    workers.check_main_guard()\n"


@pytest.mark.parametrize("call", ["main()", "if True:\n    main()", "for _ in [1]:\n    main()"])
def test_several_jobs_from_a_script_without_a_main_guard_are_refused(call: str, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(f"{CALL}{call}\n")
    with pytest.raises(ConfigError, match=r"script.py, line \d: every worker process .*\nRemedy: .*__main__.*jobs=1"):
        runpy.run_path(str(script), run_name="__main__")


def test_a_guarded_script_a_module_and_a_console_need_no_more(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(f'{CALL}if __name__ == "__main__":\n    main()\n')
    runpy.run_path(str(script), run_name="__main__")
    script.write_text(f"{CALL}main()\n")
    runpy.run_path(str(script), run_name="imported")
    exec(compile(f"{CALL}main()", "<stdin>", "exec"), {"__name__": "__main__"})


def test_a_study_with_several_jobs_asks_for_the_guard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "script.py"
    script.write_text("from sharpscope.study.run import run\nrun(config)\n")
    with pytest.raises(ConfigError, match="script.py, line 2: every worker process imports this script"):
        runpy.run_path(str(script), {"config": changed(jobs=2)}, run_name="__main__")


# ------------------------------------------------------------------ class names
def test_a_head_from_text_without_class_names_gets_those_of_the_probe_set(
    tiny_thetas: dict, tiny_paths: dict, tmp_path: Path, image_folder: Callable[..., Path]
) -> None:
    _, theta = tiny_thetas["vit"]
    torch.save(theta, tmp_path / "a.pt")
    moved = {k: v + 0.01 if k.startswith("visual.") else v for k, v in theta.items()}
    torch.save(moved, tmp_path / "b.pt")
    folder = image_folder({"zebra": 3, "ant": 3})
    config = changed(
        pairs=(PairConfig("p", str(tmp_path / "a.pt"), str(tmp_path / "b.pt")),), model=str(tiny_paths["vit"]),
        probe=f"folder:{folder}",
    )  # fmt: skip
    assert load_study_pair(config, config.pairs[0]).classifier.classnames == ("ant", "zebra")
    names = tmp_path / "names.txt"
    names.write_text("zebra\nant\n")
    given = dataclasses.replace(config, classnames=str(names))
    assert load_study_pair(given, given.pairs[0]).classifier.classnames == ("zebra", "ant")
    stored = {**moved, "classification_head.weight": torch.randn(2, 12), "classification_head.bias": torch.zeros(2)}
    torch.save(stored, tmp_path / "b.pt")  # the order of a stored head's classes is known to its maker alone
    with pytest.raises(SharpscopeError, match="classnames: they are needed to read the head"):
        load_study_pair(config, config.pairs[0])
