from __future__ import annotations

import dataclasses
import subprocess
import sys

import numpy as np
import pytest

from sharpscope.config import studyfile
from sharpscope.config.study import PairConfig, StudyConfig
from sharpscope.errors import ConfigError
from sharpscope.vocabulary import MEASURES, expand_measures, parse_rule

PAIR = {"name": "a", "zeroshot": "z.pt", "finetuned": "f.pt"}


def refused(**values: object) -> str:
    with pytest.raises(ConfigError) as caught:
        StudyConfig(**values)
    message = str(caught.value)
    assert len(message) < 400
    assert "\n" not in message
    return message


def test_a_notebooks_values_become_the_declared_types():
    config = StudyConfig(
        alphas=np.linspace(0, 1, 3),
        seed=np.int64(3),
        memory=1,
        pairs=[PAIR],
        ood=["mini:sketch"],
        extrapolate=np.bool_(True),
    )
    assert config.alphas == (0.0, 0.5, 1.0)
    assert [type(a) for a in config.alphas] == [float] * 3
    assert (config.seed, type(config.seed), config.memory, type(config.memory)) == (3, int, 1.0, float)
    assert config.pairs == (PairConfig(**PAIR),)
    assert config.ood == ("mini:sketch",)
    assert config.extrapolate is True
    assert StudyConfig(alphas=[-0.0, 1]).to_dict() == StudyConfig(alphas=[0, 1]).to_dict()
    assert str(StudyConfig(alphas=[-0.0]).alphas) == "(0.0,)"


@pytest.mark.parametrize("config", [StudyConfig(), StudyConfig(pairs=[PAIR], tags={"by": "me"}, memory=1.5, limit=7)])
def test_plain_data_and_yaml_give_back_the_same_config(config):
    assert StudyConfig.from_dict(config.to_dict()) == config
    assert studyfile.parse(studyfile.dump(config)) == config
    assert list(config.to_dict()) == [f.name for f in dataclasses.fields(StudyConfig)]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"alphas": "abc"}, "alphas: needs a list, got 'abc'"),
        ({"alphas": 0.5}, "alphas: needs a list, got 0.5"),
        ({"alphas": [0, "x"]}, r"alphas[1]: needs a number, got 'x'"),
        ({"alphas": []}, "alphas: give at least one"),
        ({"alphas": [0, 0.5, 0.5]}, "alphas: duplicated values"),
        ({"alphas": [1, 0]}, "alphas: [1.0, 0.0] is not in increasing order"),
        ({"alphas": [0, 1.5]}, "alphas: 1.5 is outside [0, 1]; extrapolation has to be asked for (--extrapolate)"),
        ({"alphas": [0, float("nan")], "extrapolate": True}, "alphas: nan is not a finite number"),
        ({"perturbation_alphas": [0.55]}, "perturbation_alphas: each must be one of alphas"),
        ({"curvature_alphas": [0.55]}, "curvature_alphas: each must be one of alphas"),
        ({"curvature_alphas": [0.5], "perturbation_alphas": [0.0]}, "perturbation_alphas: each must be one of curvat"),
        ({"curvature_alphas": []}, "curvature_alphas: give at least one point"),
        ({"layer_alphas": [0.0, 0.5]}, "layer_alphas: has to go from 0 to 1"),
        ({"criticality_noise": []}, "criticality_noise: needs at least one noise level"),
        ({"seed": 1.5}, "seed: needs a whole number, got 1.5"),
        ({"seed": True}, "seed: needs a whole number, got True"),
        ({"seed": None}, "seed: needs a whole number, got nothing"),
        ({"rtol": "0.1"}, "rtol: needs a number, got '0.1'"),
        ({"rtol": 0}, "rtol: needs a positive number"),
        ({"density_alphas": [0.5]}, "density_alphas: says where density_layers are looked at, and no layer is named"),
        ({"pairs": [{**PAIR, "name": "(pairs)"}]}, "pairs[0].name: '(pairs)' is a word of the tables' own"),
        ({"rtol": float("inf")}, "rtol: needs a positive number"),
        ({"memory": -1}, "memory: needs a positive number"),
        ({"threads": -1}, "threads: needs a whole number of at least 0"),
        ({"batch_size": 0}, "batch_size: needs a whole number of at least 1"),
        ({"limit": 0}, "limit: needs a whole number of at least 1"),
        ({"level": 1}, "level: needs a number between 0 and 1"),
        ({"densities": [0.5, 1.2]}, "densities: 1.2 is outside [0, 1]"),
        ({"densities": [0.5, 0.5]}, "densities: '0.5' is given twice"),
        ({"id": "mini:photo"}, "id: needs a list, got 'mini:photo'"),
        ({"ood": ["mini:sketch", "mini:sketch"]}, "ood: 'mini:sketch' is given twice"),
        ({"model": ""}, "model: is empty"),
        ({"model": 3}, "model: needs a text, got 3"),
        ({"granularity": "blok"}, "granularity: 'blok' is none of tensor, module, block. Did you mean 'block'?"),
        ({"targets": ["delta", "wheight"]}, "targets[1]: 'wheight' is none of delta, weight. Did you mean 'weight'?"),
        ({"extrapolate": "yes"}, "extrapolate: needs true or false, got 'yes'"),
        ({"measures": ["lambda_mx"]}, "measures: unknown measure 'lambda_mx'. Did you mean 'lambda_max'?"),
        ({"straggler_rule": "mad"}, "straggler_rule: 'mad' is none of"),
        ({"straggler_rule": "top:1.5"}, "straggler_rule: 'top:1.5' needs a whole number"),
        ({"straggler_rule": "null:5"}, "straggler_rule: 'null:5' needs a probability"),
        (
            {"straggler_rule": "null:0.05", "straggler_criterion": "share:hessian_trace"},
            "needs a criterion with a null, and share:hessian_trace has none",
        ),
        ({"straggler_criterion": "rewnd"}, "Did you mean 'rewind'?"),
        ({"straggler_criterion": "sharpness:lambda"}, "straggler_criterion: unknown measure 'lambda'"),
        ({"tags": {"a": 1}}, "tags.a: needs a text, got 1"),
        ({"tags": ["a"]}, "tags: needs a mapping from names to texts"),
        ({"pairs": PAIR}, "pairs: needs a list"),
        ({"pairs": ["a"]}, "pairs[0]: needs name, zeroshot, finetuned; got 'a'"),
        ({"pairs": [{"name": "a"}]}, "pairs[0]: has no zeroshot and no finetuned"),
        ({"pairs": [{**PAIR, "finetund": "x"}]}, "pairs[0]: unknown key 'finetund'. Did you mean 'finetuned'?"),
        ({"pairs": [PAIR, PAIR]}, "pairs: every pair needs its own name, got a, a"),
        ({"pairs": [{**PAIR, "name": 7}]}, "pairs[0].name: needs a text, got 7"),
        ({"pairs": [PairConfig("a", "b", None)]}, "pairs[0].finetuned: needs a text, got nothing"),
    ],
    ids=lambda v: str(v)[:30] if isinstance(v, dict) else "",
)
def test_what_has_no_meaning_is_refused_in_one_line(values, words):
    assert words in refused(**values)


def test_what_studies_cannot_compute_in_is_refused_with_the_reason():
    with pytest.raises(ConfigError, match="only finetune takes fp16; second derivatives .*\\nRemedy: bf16"):
        StudyConfig(precision="fp16")
    assert StudyConfig(precision="bf16").precision == "bf16"


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"rtol": 5}, "rtol: 5 .* a fraction below 1.\nRemedy: rtol 0.05 for 5 %"),
        ({"rtol": 1.0}, "rtol: 1 .* a fraction below 1"),
        (
            {"pairs": [{**PAIR, "name": "vit/b32"}]},
            r"pairs\[0\].name: 'vit/b32' .*\nRemedy: .* e.g. vit-b32.",
        ),
        ({"pairs": [{**PAIR, "name": "a\nb"}]}, r"'a\\nb' has a slash or a control character"),
    ],
)
def test_what_makes_numbers_or_units_meaningless_is_refused_with_the_remedy(values, words):
    with pytest.raises(ConfigError, match=words):
        StudyConfig(**values)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"pairs": ()}, "pairs: nothing to analyse"),
        ({"id": (), "ood": ()}, "id, ood: give at least one test set"),
        ({"ood": ("mini:photo",)}, "ood: 'mini:photo' is among id too"),
        ({"id": ("imagenet",), "ood": ("folder:far",)}, "probe: mini:photo has pictures of the embedded world, and"),
        (
            {"measures": ("lambda_max",)},
            "straggler_criterion: 'change:hessian_trace' needs hessian_trace among",
        ),
    ],
)
def test_a_study_that_lacks_something_is_told_so_and_a_whole_one_is_not(changes, words):
    whole = StudyConfig(pairs=[PAIR], id=["mini:photo"], ood=["mini:sketch"])
    whole.check_complete()
    with pytest.raises(ConfigError, match=words):
        dataclasses.replace(whole, **changes).check_complete()


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"measures": ("sharpness_max@",)}, "positive number"),
        ({"measures": ("sharpness_max@-1",)}, "positive number"),
        ({"measures": ("sharpness_max@nan",)}, "positive number"), ({"measures": ("hessian_trace@1",)}, "no radius"),
        ({"measures": ("sharpnes_max@1",)}, "sharpness_max"), ({"eigenvectors": -1}, "at least 0"),
        ({"eigenvector_layers": ("head",)}, "eigenvectors is 0"), ({"eigenvector_alphas": (0.0,)}, "eigenvectors is 0"),
        ({"eigenvectors": 1, "eigenvector_layers": ()}, "needs a layer"),
        ({"eigenvectors": 1, "eigenvector_alphas": (0.55,)}, "one of alphas"),
        ({"products": "func", "trace_method": "controlled"}, "controlled"), ({"eigen_method": "lanczus"}, "lanczos"),
        ({"rho_geodesic": 0.0}, "positive"),
    ],
)  # fmt: skip
def test_what_the_newer_settings_refuse(values: dict[str, object], words: str) -> None:
    assert words in refused(**values)


def test_a_radius_in_a_name_has_one_spelling_and_one_place() -> None:
    names = ("sharpness_max@0.0020", "lambda_max", "sharpness_max@1e-3", "sharpness_max", "sharpness_max@.002")
    assert expand_measures(names) == ("lambda_max", "sharpness_max", "sharpness_max@0.001", "sharpness_max@0.002")
    assert MEASURES["sharpness_max@0.001"].rho == 0.001 and "rho = 0.001" in MEASURES["sharpness_max@0.001"].text
    assert "hessian_trace@1" not in MEASURES and "sharpness_max@x" not in MEASURES
    assert MEASURES.in_order(["?", "sharpness_max@1", "sharpness_max", "hessian_trace"]) == [
        "hessian_trace", "sharpness_max", "sharpness_max@1", "?",
    ]  # fmt: skip


def test_hostile_text_is_escaped():
    assert "\x1b" not in refused(device="\x1b[31mcpu\n")
    assert "\x1b" not in refused(measures=["\x1b[31m" * 100])


def test_from_dict_names_its_source_and_the_nearest_key():
    with pytest.raises(ConfigError, match="^run.json: unknown key 'alpha'. Did you mean 'alphas'"):
        StudyConfig.from_dict({"alpha": [0]}, source="run.json")
    with pytest.raises(ConfigError, match="^config: seed: needs a whole number"):
        StudyConfig.from_dict({"seed": "x"})


def test_measures_in_canonical_order_and_rules():
    assert expand_measures(("lambda_max", "hessian_trace", "lambda_max")) == ("hessian_trace", "lambda_max")
    assert parse_rule("mad:2") == ("mad", 2.0)
    assert parse_rule("top:3") == ("top", 3.0)


def test_the_config_needs_no_torch():
    code = "import sys, sharpscope.config.study, sharpscope.config.studyfile; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "numpy", "pandas", "open_clip"} & set(modules)


def test_a_collection_stands_for_its_sets():
    config = StudyConfig(id=("imagenet",), ood=("lipsum-imagenet", "mini:photo"))
    assert config.ood == ("imagenet-v2", "imagenet-r", "imagenet-a", "imagenet-sketch", "mini:photo")
    assert StudyConfig.from_dict(config.to_dict()) == config
    with pytest.raises(ConfigError, match="metrics: unknown metric 'top_1'. Did you mean 'top1'"):
        StudyConfig(metrics=("top_1",))
