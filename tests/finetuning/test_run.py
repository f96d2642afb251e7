"""From files to a file, by command and by call: resumable, self-describing, refused where it does not fit."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import sharpscope
from sharpscope.cli.main import main
from sharpscope.clip.head import Classifier
from sharpscope.clip.model import ClipModel
from sharpscope.errors import ConfigError, DatasetError
from sharpscope.finetuning import fit as fit_module
from sharpscope.finetuning import run as run_module
from sharpscope.finetuning.run import Tuned, finetune
from sharpscope.weights.checkpoint import read_checkpoint, write_checkpoint
from sharpscope.weights.heads import head_metadata

QUICK: dict[str, Any] = {"model": "mini", "steps": 3, "batch_size": 16, "lr": 1e-3, "shots": 2, "progress": False}


def tuned(method: str = "wise-ft", **changes: Any) -> Tuned:
    return finetune("mini:zeroshot", "mini:photo", method, **{**QUICK, **changes})


def test_the_file_says_what_it_is_and_is_half_of_a_pair(tmp_path: Path) -> None:
    result = tuned("lipsum-ft", out=tmp_path, texts=4, judge_every=None)
    assert result.path == tmp_path / "lipsum-ft.safetensors" and [f.name for f in tmp_path.iterdir()] == [
        result.path.name
    ]
    facts = read_checkpoint(result.path).facts
    assert facts["producer"] == "sharpscope finetune"
    metadata = facts["metadata"]
    told = json.loads(metadata["sharpscope.finetuning"])
    assert told["method"] == "lipsum-ft" and told["hyperparameters"]["texts"] == 4 and told["val"] == "mini:photo@val"
    assert len(result.accuracies) == 2 and "kept" in result.summary()  # two epochs begun: three steps of two
    pair = sharpscope.load_pair("mini:zeroshot", result.path, model="mini")
    assert pair.classifier.mode == "stored" and not pair.classifier.scale_baked and pair.name == "lipsum-ft"
    text = tuned("flyp", out=tmp_path)
    assert sharpscope.load_pair("mini:zeroshot", text.path, model="mini").classifier.mode == "text"


def test_the_same_call_again_is_done_and_another_is_refused(tmp_path: Path) -> None:
    first = tuned(out=tmp_path)
    before = first.path.read_bytes()
    again = tuned(out=tmp_path)
    assert again.losses == () and first.path.read_bytes() == before
    assert all(torch.equal(again.theta[k], first.theta[k]) for k in first.theta)
    prompts = tuned("coop", out=tmp_path)  # a file that holds only what was tuned
    assert prompts.losses and tuned("coop", out=tmp_path).losses == ()
    with pytest.raises(ConfigError, match=r"another fine-tuning: hyperparameters.lr was 0.001 and is now 0.002\.\nRe"):
        tuned(out=tmp_path, lr=2e-3)


def test_a_hyperparameter_that_an_older_file_does_not_state_is_named(tmp_path: Path) -> None:
    """No file tells the version that wrote it, so that nothing is known of the default which that version had."""
    first = tuned(out=tmp_path)
    read = read_checkpoint(first.path)
    facts = json.loads(read.facts["metadata"]["sharpscope.finetuning"])
    default = facts["hyperparameters"].pop("ema_debias")
    facts["hyperparameters"]["gone"] = 3
    for told, said in (
        (
            json.dumps(facts),
            f"another fine-tuning: .*parameters.ema_debias is not stated there and is now {default}",
        ),
        (json.dumps(facts), "gone was 3 and is now None"),
        (json.dumps({**facts, "seed": 5}), "seed was 5 and is now 0"),
        ("{}", "exists already and does not say which fine-tuning wrote it.\nRemedy: choose another --out, or remove"),
        ("[1]", "does not say which fine-tuning"),
    ):
        write_checkpoint(first.path, read.tensors, read.facts["metadata"] | {"sharpscope.finetuning": told})
        with pytest.raises(ConfigError, match=said) as caught:
            tuned(out=tmp_path)
        assert ".lr" not in str(caught.value) and "train was" not in str(caught.value)


@contextmanager
def killed_at_step_2() -> Iterator[None]:
    real = fit_module.train

    def stopped(*args: Any, **options: Any) -> Any:
        after = options["after"]

        def interrupting(state: Any) -> None:
            after(state)
            if state.step == 2:
                raise KeyboardInterrupt

        return real(*args, **{**options, "after": interrupting})

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(fit_module, "train", stopped)
        yield


def test_interrupted_and_taken_up_writes_the_same_bytes(tmp_path: Path) -> None:
    whole = tuned(out=tmp_path / "whole").path.read_bytes()
    with killed_at_step_2():
        tuned(out=tmp_path / "part", checkpoint_every=1)
    assert [f.name for f in (tmp_path / "part").iterdir()] == ["wise-ft.state.safetensors"]
    with pytest.raises(ConfigError, match="belongs to another fine-tuning"):
        tuned(out=tmp_path / "part", seed=1)
    assert tuned(out=tmp_path / "part", checkpoint_every=1).path.read_bytes() == whole
    assert [f.name for f in (tmp_path / "part").iterdir()] == ["wise-ft.safetensors"]


def test_so_it_does_on_random_crops_with_unreadable_images_among_them(
    image_folder: Callable[..., Path], tiny_paths: dict[str, Path], tiny_theta: dict[str, Any], tmp_path: Path
) -> None:
    folder = image_folder({"train/cat": 6, "train/dog": 5})
    for name in ("cat/002", "dog/000"):
        (folder / "train" / f"{name}.png").write_bytes(b"no image")

    def run(out: str, **changes: Any) -> Tuned:
        options = {"batch_size": 5, "steps": 6, "shots": None, "warmup": 0.0, "accumulate": 2, "checkpoint_every": 1}
        where = {"model": str(tiny_paths["vit"]), "out": tmp_path / out}
        return finetune(tiny_theta, f"folder:{folder}", **{**QUICK, **options, **where, **changes})

    whole = run("whole")
    assert whole.summary().endswith("note: 2 of 11 images cannot be read and were left out (cat/002.png, dog/000.png)")
    with killed_at_step_2():
        run("part")
    assert run("part").path.read_bytes() == whole.path.read_bytes()
    plain = run("plain", augment=False)
    assert any(not torch.equal(plain.theta[k], whole.theta[k]) for k in whole.theta)
    assert run("whole", seed=0).losses == ()


def test_checkpoints_stay_and_are_those_of_a_training_that_is_cut_short(tmp_path: Path) -> None:
    kept = {"steps": 5, "keep_every": 2, "warmup": 0.0, "schedule": "linear-cosine"}
    final = tuned(out=tmp_path / "whole", **kept).path
    names = [f"wise-ft-step{n}.safetensors" for n in (2, 4)]
    assert sorted(f.name for f in final.parent.iterdir()) == [*names, "wise-ft.safetensors"]
    with killed_at_step_2():
        tuned(out=tmp_path / "part", checkpoint_every=1, **kept)
    tuned(out=tmp_path / "part", checkpoint_every=1, **kept)
    for name in (*names, "wise-ft.safetensors"):
        assert (tmp_path / "part" / name).read_bytes() == (final.parent / name).read_bytes()
    states: dict[int, Any] = {}
    real = fit_module.train

    def watched(*args: Any, **options: Any) -> Any:
        def after(state: Any) -> None:
            states[state.step] = {n: t.clone() for n, t in state.kept.items()}

        return real(*args, **{**options, "after": after})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fit_module, "train", watched)
        tuned(steps=5, warmup=0.0)
    for step, name in zip((2, 4), names, strict=True):
        there = read_checkpoint(final.parent / name)
        assert all(torch.equal(there.tensors[n], t) for n, t in states[step].items())
        told = json.loads(there.facts["metadata"]["sharpscope.finetuning"])
        assert told["step"] == step and told["hyperparameters"]["steps"] == 5
        assert sharpscope.load_pair("mini:zeroshot", final.parent / name, model="mini").classifier.mode == "stored"
    for where, every in ((tmp_path / "x", 5), (tmp_path / "x", 0), (None, 2)):
        with pytest.raises(ConfigError, match="keep_every: "):
            tuned(out=where, **{**kept, "keep_every": every})
    with pytest.raises(ConfigError, match="keep_every was 2 and is now 3"):
        tuned(out=tmp_path / "whole", **{**kept, "keep_every": 3})


def test_the_pair_starts_where_training_started_whatever_the_templates(tmp_path: Path) -> None:
    own = ("the {}", "one {}")
    for method in ("wise-ft", "flyp"):
        path = tuned(method, out=tmp_path, templates=own, steps=1, lr=1e-9).path
        pair, other = (
            sharpscope.load_pair("mini:zeroshot", path, model="mini", templates=t) for t in (None, ("a photo of a {}",))
        )
        assert pair.classifier.templates == own
        vectors, wrong = (p.classifier.class_vectors(p.theta_0) for p in (pair, other))
        torch.testing.assert_close(vectors, pair.classifier.class_vectors(pair.theta_1), rtol=1e-4, atol=1e-4)
        assert not torch.allclose(vectors, wrong, rtol=1e-2, atol=1e-2)


def test_a_warm_up_longer_than_the_run_is_said() -> None:
    assert "the warm-up has 500 steps, the training 3: the learning rate never passed" in tuned().summary()
    assert "warm-up" not in tuned(warmup=0.1).summary()


def test_a_set_smaller_than_the_default_batch_is_one_batch() -> None:
    few = {"model": "mini", "shots": 1, "steps": 2, "progress": False}
    by_default = finetune("mini:zeroshot", "mini:photo", "coop", **few)
    asked_for = finetune("mini:zeroshot", "mini:photo", "coop", batch_size=16, **few)
    assert by_default.losses == asked_for.losses and by_default.method.batch_size == 16
    assert "16 training examples are fewer than a batch of 32" in by_default.note and not asked_for.note
    with pytest.raises(ConfigError, match="batch size 17 does not fit 16 training examples"):
        finetune("mini:zeroshot", "mini:photo", "coop", batch_size=17, **few)


def test_the_public_name_is_a_plain_function() -> None:
    assert [*inspect.signature(sharpscope.finetune).parameters][:3] == ["zeroshot", "train", "method"]
    result = sharpscope.finetune("mini:zeroshot", "mini:photo", "linear-probe", **QUICK)
    assert result.path is None and set(result.theta) >= {"head.weight"} and len(result.losses) == 3


def test_values_are_checked_as_the_methods_fields() -> None:
    for changes, complaint in (
        ({"strenth": 1.0}, "no hyperparameter 'strenth'. Did you mean 'strength'"),
        ({"strength": "much"}, "strength: needs a number"),
        ({"texts": 1.5}, "texts: needs a whole number"),
        ({"optimizer": "sdg"}, "Did you mean 'sgd'"),
    ):
        with pytest.raises(ConfigError, match=complaint):
            tuned("lipsum-ft", **changes)
    result = tuned("lipsum-ft", strength="1e-1", clip_norm="none", texts="4", keep_best="false")
    method: Any = result.method
    assert (method.strength, method.clip_norm, method.texts, method.keep_best) == (0.1, None, 4, False)


def test_an_image_folder_by_command(
    image_folder: Callable[..., Path],
    tiny_paths: dict[str, Path],
    tiny_theta: dict[str, Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder, base = image_folder({"cat": 6, "dog": 6}), tmp_path / "base.safetensors"
    write_checkpoint(base, tiny_theta)
    arguments = [
        "finetune", "--zeroshot", str(base), "--train", f"folder:{folder}", "--method", "flyp", "--model",
        str(tiny_paths["vit"]), "--lr", "0.01", "--epochs", "2", "--batch-size", "4", "--set", "warmup=0",
        "--accumulate", "1", "--out", str(tmp_path / "out"), "--device", "cpu",
    ]  # fmt: skip
    assert main(arguments) == 0
    assert "6 steps" in capsys.readouterr().out
    assert main(arguments) == 0 and "already finished" in capsys.readouterr().out
    assert main([*arguments, "--seed", "1"]) == 2 and "seed was 0 and is now 1" in capsys.readouterr().err
    assert main([*arguments, "--accumulate", "2"]) == 2 and "would change the loss" in capsys.readouterr().err
    assert main([*arguments[:7], "--set", "warmup"]) == 2 and "is not NAME=VALUE" in capsys.readouterr().err
    assert main(["finetune", "--train", "mini:photo"]) == 2 and "--zeroshot: is missing" in capsys.readouterr().err
    assert main(["finetune", "--list"]) == 0
    listed = capsys.readouterr().out
    assert "lipsum-ft" in listed and "arXiv 2404.00860" in listed


def test_nothing_is_written_by_a_training_without_a_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for changes, word in (({"steps": 0}, "steps"), ({"steps": None, "epochs": 0}, "epochs"), ({"steps": -1}, "steps")):
        with pytest.raises(ConfigError, match=f"{word} must be at least 1, got .*nothing would be trained"):
            tuned(out=tmp_path, **changes)
    arguments = ["finetune", "--zeroshot", "mini:zeroshot", "--train", "mini:photo", "--model", "mini", "--steps", "0"]
    assert main([*arguments, "--out", str(tmp_path)]) == 2
    assert "nothing would be trained" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_validation_has_the_classes_that_are_trained_on(
    image_folder: Callable[..., Path], tiny_paths: dict[str, Path], tiny_theta: dict[str, Any]
) -> None:
    """Images of one class alone: numbered by its own folder, its labels would be another class's."""
    top = image_folder({"train/a": 4, "train/b": 4, "valid/b": 3, "test/a": 3})
    more = image_folder({"b": 2, "c": 2}, name="more")

    def run(val: str, names: tuple[str, ...] | None = None) -> Tuned:
        where = {"model": str(tiny_paths["vit"]), "classnames": names, "shots": None, "batch_size": 4}
        return finetune(tiny_theta, f"folder:{top}", **{**QUICK, **where, "val": val})

    own, apart = run(f"folder:{top}"), run(f"folder:{top}/valid")
    assert own.accuracies == apart.accuracies
    assert {accuracy for _, accuracy in own.accuracies} == {1.0}  # among its one class; b is no a
    with pytest.raises(DatasetError, match="Not among the names: c"):
        run(f"folder:{more}")


def test_weights_are_chosen_by_validation_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class SeenError(Exception):
        pass

    real = run_module.load_dataset

    def watched(spec: str, **options: Any) -> Any:
        raise SeenError(real(spec, **options).facts["split"])

    monkeypatch.setattr(run_module, "load_dataset", watched)
    for split in ("train", "test"):
        np.save(tmp_path / f"{split}_images.npy", np.zeros((16, 8, 8, 3), dtype=np.uint8))
        np.save(tmp_path / f"{split}_labels.npy", np.arange(16))
    with pytest.raises(DatasetError, match=r"val_images\.npy"):
        tuned(val=f"npz:{tmp_path}")
    for val, split in (("mini:photo", "val"), ("mini:photo@test", "test")):  # the latter asked for by name
        with pytest.raises(SeenError, match=split):
            tuned(val=val)


def test_numbers_are_no_class_names(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", images=np.zeros((16, 8, 8, 3), dtype=np.uint8), labels=np.arange(16) % 4)
    train = f"npz:{tmp_path / 'x.npz'}"
    with pytest.raises(DatasetError, match="has no class names"):
        finetune("mini:zeroshot", train, **QUICK)
    assert finetune("mini:zeroshot", train, classnames=["a", "b", "c", "d"], **{**QUICK, "batch_size": 4}).losses


def test_a_start_brings_its_head_where_that_is_of_these_classes(
    image_folder: Callable[..., Path], tiny_paths: dict[str, Path], tiny_theta: dict[str, Any], tmp_path: Path
) -> None:
    spec, model = f"folder:{image_folder({'a': 4, 'b': 4})}", str(tiny_paths["vit"])
    once = {**QUICK, "model": model, "shots": None, "batch_size": 8, "steps": 1, "augment": False}

    def first_loss(names: list[str], baked: bool, method: str, flipped: bool = False) -> Tuned:
        plain = Classifier(ClipModel.load(model), "zeroshot", ("a", "b")).attach(tiny_theta)["head.weight"]
        weight = plain * (tiny_theta["logit_scale"].exp() if baked else 1)
        facts = head_metadata(scale_baked=baked, classnames=names)
        file = tmp_path / f"{names}{baked}{flipped}.safetensors"
        write_checkpoint(file, {**tiny_theta, "head.weight": weight.flip(0) if flipped else weight}, facts)
        return finetune(file, spec, method, **once)

    plain = finetune(tiny_theta, spec, "wise-ft", **once)
    for names, flipped, told in ((["a", "b"], False, False), (["b", "a"], True, True), (["x", "y"], False, True)):
        for baked in (True, False):
            for method in ("wise-ft", "lipsum-ft"):  # one keeps the scale in the head, the other beside it
                result = first_loss(names, baked, method, flipped)
                assert ("has other classes" in result.note) == told
                assert result.losses[0] == pytest.approx(plain.losses[0], rel=1e-4)  # of a penalty nothing at the start
