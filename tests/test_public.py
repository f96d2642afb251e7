"""The laws of the public names: where they are, what they are called, what their help says, what type checkers see.

Nothing here imports a private name; what a user does, a process of its own does (promises that hold only after other
tests are no promises).
"""

from __future__ import annotations

import ast
import dataclasses
import doctest
import importlib
import importlib.util
import inspect
import os
import pkgutil
import re
import shutil
import subprocess
import sys
import types
import typing
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

import sharpscope
from sharpscope import errors

ROOT = Path(sharpscope.__file__).parent
MODULES = sorted(m.name for m in pkgutil.walk_packages([str(ROOT)], "sharpscope."))
ROOMS_OF_NAMES = ("curvature", "exchange", "findings", "plot", "weights")
DOORS = ("sharpscope", *(f"sharpscope.{room}" for room in ROOMS_OF_NAMES))
LAZY = ("sharpscope", "sharpscope.curvature")
ERRORS = {n: e for n, e in vars(errors).items() if isinstance(e, type) and issubclass(e, errors.SharpscopeError)}


def public() -> dict[str, Any]:
    """Every public name, each object once, under the first door that has it."""
    found: dict[int, tuple[str, Any]] = {}
    for door in DOORS:
        module = importlib.import_module(door)
        for name in module.__all__:
            value = getattr(module, name)
            found.setdefault(id(value), (f"{door}.{name}", value))
    return dict(found.values())


def ours(value: object) -> bool:
    """Whether ``value`` is a function or class that is written in this package."""
    return isinstance(value, (type, types.FunctionType)) and value.__module__.startswith("sharpscope")


PUBLIC = {name: value for name, value in public().items() if ours(value)}


def members(cls: type) -> Iterator[tuple[str, types.FunctionType]]:
    """(name, function) of the public methods and properties that ``cls`` and its bases in this package define."""
    for base in reversed(cls.__mro__):
        if not base.__module__.startswith("sharpscope"):
            continue
        for name, value in vars(base).items():
            inner = value.fget if isinstance(value, property) else getattr(value, "__func__", value)
            inner = getattr(inner, "func", inner)  # functools.cached_property
            if not name.startswith("_") and isinstance(inner, types.FunctionType) and getattr(cls, name, None):
                yield name, inspect.unwrap(inner)


def documented() -> dict[str, tuple[Callable[..., Any], str]]:
    """Name -> (function or class, its own docstring) of every public function, class and method."""
    out: dict[str, tuple[Callable[..., Any], str]] = {}
    for name, value in PUBLIC.items():
        out[name] = value, vars(value).get("__doc__") or "" if isinstance(value, type) else value.__doc__ or ""
        if isinstance(value, type) and not issubclass(value, Exception):
            out |= {f"{name}.{method}": (f, f.__doc__ or "") for method, f in members(value)}
    return out


DOCUMENTED = documented()


# ---------------------------------------------------------------------- what a fresh process finds
FRESH = """
import importlib, json, os, sys
import numpy, pandas, scipy.stats, torch, torchvision, open_clip, matplotlib.pyplot  # others' code, once for all
assert not [m for m in sys.modules if m.startswith("sharpscope")]
failed = []
for name in sys.argv[1:]:
    read, write = os.pipe()
    if child := os.fork():
        os.close(write)
        with os.fdopen(read) as answer:
            said = answer.read()
        os.waitpid(child, 0)
        if said != "fine":
            failed.append(f"{name}: {said or 'the process died'}")
    else:
        try:
            said = "fine"
            for module in map(importlib.import_module, name.split()):
                if lacks := [n for n in getattr(module, "__all__", []) if not hasattr(module, n)]:
                    said = f"{module.__name__}.__all__ names {lacks}, which are not there"
                    break
        except BaseException as error:
            said = repr(error)
        os.write(write, said.encode())
        os._exit(0)
print("\\n".join(failed))
"""


ROOMS = ["sharpscope", *(m.name for m in pkgutil.walk_packages([str(ROOT)], "sharpscope.") if m.ispkg)]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_every_room_keeps_its_promises_in_a_process_of_its_own():
    """The package alone first, then its modules: what another room imports cannot hide what this one does not."""
    alone = [
        " ".join([room, *(m for m in MODULES if m.rpartition(".")[0] == room and m not in ROOMS)]) for room in ROOMS
    ]
    run = subprocess.run([sys.executable, "-c", FRESH, *alone], capture_output=True, text=True, check=True)
    assert not run.stdout.strip(), run.stdout


def test_submodules_are_imported_where_they_are_used():
    """``from sharpscope.x import y`` brings the submodule y; ``import sharpscope.x`` would use what others imported."""
    for path in ROOT.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                assert not [a.name for a in node.names if a.name.startswith("sharpscope")], f"{path}:{node.lineno}"


def test_the_lazy_doors_have_one_list():
    """The imports that type checkers read, the table that Python reads, and __all__ name the same things."""
    for door in LAZY:
        module = importlib.import_module(door)
        tree = ast.parse(Path(str(module.__file__)).read_text("utf-8"))
        block = next(n for n in tree.body if isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING")
        imported = {alias.name: n.module for n in block.body if isinstance(n, ast.ImportFrom) for alias in n.names}
        table = next(ast.unparse(n.value) for n in tree.body if isinstance(n, ast.Assign) and "_HOME" in ast.unparse(n))
        homes: dict[str, str] = eval(table)
        rooms = {name for name, home in imported.items() if home == "sharpscope"}
        assert rooms == (set(ROOMS_OF_NAMES) if door == "sharpscope" else set()) and rooms <= set(dir(module))
        assert homes == {name: home for name, home in imported.items() if name not in rooms}
        assert set(module.__all__) - {"__version__"} == set(homes)
        assert module.__all__ == sorted(module.__all__)
        assert set(module.__all__) <= set(dir(module))


def test_a_door_opens_without_what_is_behind_it():
    code = "import sys, sharpscope, sharpscope.curvature\nprint(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "numpy", "pandas", "yaml"} & set(loaded)
    code = (
        "import sys, sharpscope.curvature as c\nc.HessianEngine, c.lanczos, c.xtrace, c.ggn_trace\nprint(*sys.modules)"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"open_clip", "torchvision", "pandas"} & set(loaded)


def test_no_door_hides_a_function_behind_a_module():
    """A lazy name that is also a submodule's would become the module as soon as somebody imports that."""
    for door in DOORS:
        package = importlib.import_module(door)
        inside = {m.name for m in pkgutil.iter_modules(getattr(package, "__path__", ()))}
        for name in package.__all__:
            assert not isinstance(getattr(package, name), types.ModuleType)
            assert door not in LAZY or name not in inside


# ---------------------------------------------------------------------- what is public
def test_every_error_is_public():
    assert set(ERRORS) <= set(sharpscope.__all__)
    assert len(ERRORS) > 10


def _classes(hint: Any) -> Iterator[type]:
    if isinstance(hint, type) and not typing.get_args(hint):
        yield hint
    for inner in typing.get_args(hint):
        yield from _classes(inner)


INNER = {
    "sharpscope.Dataset.frames": "for writers of data sets of video frames, who import sharpscope.clip.datasets.frames",
    "sharpscope.HessianEngine.graph": "what curvature.forms works with",
    "sharpscope.curvature.FunctionalEngine.graph": "what curvature.forms works with",
    "sharpscope.ClipModel.prefix": "what Probe.suffix works with",
    "sharpscope.Probe.suffix": "a protocol, that of sharpscope.curvature.Objective",
    "sharpscope.Method.augmentation": "for writers of methods, who import sharpscope.clip.datasets.augment",
    "sharpscope.Method.prepare": "for writers of methods, who import sharpscope.finetuning.method",
    "sharpscope.Method.recipe": "for writers of methods, who import sharpscope.finetuning.method",
    "sharpscope.doctor": "lines to be read, which nobody makes",
    "sharpscope.register_dataset": "for writers of data sets, who import sharpscope.clip.datasets.found",
}


def test_what_public_functions_return_has_a_public_name():
    known = {id(v) for v in PUBLIC.values()}
    hidden = {}
    for name, (value, _) in DOCUMENTED.items():
        scope = vars(sys.modules[value.__module__])
        hints = typing.get_type_hints(value, scope) if not isinstance(value, type) else {}
        for cls in _classes(hints.get("return")):
            if cls.__module__.startswith("sharpscope") and id(cls) not in known:
                hidden[name] = cls.__qualname__
    assert set(hidden) == set(INNER), hidden


# ---------------------------------------------------------------------- signatures
OPEN = {
    "sharpscope.finetune": "hyperparameters of the method, all of them on its help page",
    "sharpscope.Method.recipe": "fields of the method itself",
}


def test_no_public_signature_hides_its_options():
    hidden = {}
    for name, (value, _) in DOCUMENTED.items():
        if isinstance(value, type) and (issubclass(value, Exception) or getattr(value, "_is_protocol", False)):
            continue
        kinds = {p.kind for p in inspect.signature(value).parameters.values()}
        if {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD} & kinds:
            hidden[name] = str(inspect.signature(value))
    assert set(hidden) == set(OPEN), hidden


def test_measure_options_are_the_fields_of_measure_settings():
    """The one definition is MeasureSettings; what type checkers and signatures show is held equal to it."""
    from sharpscope.notebook import MeasureOptions

    hints = typing.get_type_hints(sharpscope.MeasureSettings)
    fields = {f.name: f.default for f in dataclasses.fields(sharpscope.MeasureSettings)}
    assert typing.get_type_hints(MeasureOptions) == {name: hints[name] for name in fields}
    for function in (sharpscope.layer_sharpness, sharpscope.layer_curvature):
        shown = inspect.signature(function).parameters
        assert {n: shown[n].default for n in fields} == fields
        for name in fields:
            assert re.search(rf"^ +(\w+, )*{name}(, \w+)*: ", function.__doc__, re.MULTILINE), name


@pytest.mark.parametrize("function", [sharpscope.layer_sharpness, sharpscope.layer_curvature])
def test_an_unknown_option_is_refused_with_the_nearest(function):
    with pytest.raises(sharpscope.ConfigError, match="unknown option 'max_matvec'. Did you mean 'max_matvecs'?"):
        function(None, None, batches=[], max_matvec=3) if "batches" in inspect.signature(
            function
        ).parameters else function(None, None, max_matvec=3)


@pytest.mark.parametrize("value", ["0.1", None, [1]])
def test_an_option_of_another_type_is_refused(value):
    with pytest.raises(sharpscope.ConfigError, match=r"rtol: needs a number, got"):
        sharpscope.layer_sharpness(None, None, rtol=value)


def test_the_help_of_finetune_shows_every_method_and_hyperparameter():
    from sharpscope.finetuning.registry import METHODS

    said = inspect.getdoc(sharpscope.finetune)
    assert ">>> " in said
    for name, kind in METHODS.items():
        assert name in said
        for field in dataclasses.fields(kind):
            assert f"{field.name}=" in said, f"{name}: {field.name}"
    named = {p.name: p for p in inspect.signature(sharpscope.finetune).parameters.values()}
    assert all(p.annotation is not inspect.Parameter.empty for p in named.values())
    assert list(named)[:3] == ["zeroshot", "train", "method"]


# ---------------------------------------------------------------------- what a docstring says: Raises
Key = tuple[str, str]
"""(module, qualified name) of a function or class."""


class Raising:
    """Which of our errors a function of the package can raise, read off the source.

    ``direct``: by a raise statement of its own or of a private helper in its module. ``through``: also through the
    functions and classes of the package that it calls by name. What it catches does not count.
    """

    def __init__(self) -> None:
        self._nodes: dict[Key, list[ast.AST]] = {}
        self._names: dict[str, dict[str, Key]] = {}
        for name in ("sharpscope", *MODULES):
            self._read(name)
        effects = {key: list(self._effects(key, nodes, ())) for key, nodes in self._nodes.items()}
        self.direct = _closed(effects, lambda to, own: to[0] == own[0] and to[1].rpartition(".")[2].startswith("_"))
        self.through = _closed(effects, lambda to, own: True)

    def _read(self, module: str) -> None:
        tree = ast.parse(Path(str(importlib.util.find_spec(module).origin)).read_text("utf-8"))  # type: ignore[union-attr]
        names = self._names[module] = {}
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("sharpscope"):
                names |= {a.asname or a.name: (str(node.module), a.name) for a in node.names}
        for node in tree.body:
            if isinstance(node, ast.ClassDef):
                methods = [m for m in node.body if isinstance(m, ast.FunctionDef)]
                self._nodes |= {(module, f"{node.name}.{m.name}"): [m] for m in methods}
                self._nodes[module, node.name] = [m for m in methods if m.name in ("__init__", "__post_init__")]
            elif isinstance(node, ast.FunctionDef):
                self._nodes[module, node.name] = [node]
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                names[node.name] = module, node.name

    def _resolved(self, caller: Key, called: ast.AST) -> Key | None:
        module, own = caller
        text = _dotted(called)
        if text.startswith("self.") and "." in own:
            return self._known((module, f"{own.partition('.')[0]}.{text[5:]}"))
        head, _, rest = text.partition(".")
        if head not in self._names[module]:
            return None
        home, name = self._names[module][head]
        if not rest:
            return self._known((home, name))
        return self._known((f"{home}.{name}", rest)) or self._known((home, f"{name}.{rest}"))

    def _known(self, key: Key) -> Key | None:
        """``key``, or where a package's __init__ passes it on, the module that it comes from."""
        passed = self._names.get(key[0], {}).get(key[1])
        return key if key in self._nodes else passed if passed in self._nodes else None

    def _effects(self, key: Key, nodes: Iterable[ast.AST], caught: Caught) -> Iterator[tuple[str | Key, Caught]]:
        """(error raised or function called, what would catch it on the way) of everything in ``nodes``."""
        for node in nodes:
            inside = node.body if isinstance(node, (ast.Try, ast.With)) else []
            yield from self._effects(key, inside, (*caught, *_catches(node)))
            yield from self._effects(key, (n for n in ast.iter_child_nodes(node) if n not in inside), caught)
            if isinstance(node, ast.Raise) and node.exc is not None:
                what = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
                maker = self._nodes.get(self._resolved(key, what) or key, [None])[:1]  # a function that makes the error
                made = [ast.unparse(m.returns) for m in maker if isinstance(m, ast.FunctionDef) and m.returns]
                yield from ((n, caught) for n in (_dotted(what), *made) if n in ERRORS)
            elif isinstance(node, ast.Call) and (to := self._resolved(key, node.func)) is not None:
                yield to, caught


Caught = tuple[type, ...]


def _dotted(node: ast.AST) -> str:
    if isinstance(node, ast.Attribute):
        return f"{_dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def _catches(node: ast.AST) -> Caught:
    """The errors of ours that a try or a suppress() ends; those that it raises again are not among them."""
    texts = []
    if isinstance(node, ast.Try):
        for handler in node.handlers:
            if not any(isinstance(n, ast.Raise) and n.exc is None for n in ast.walk(handler)):
                texts.append(ast.unparse(handler.type) if handler.type else "SharpscopeError")
    elif isinstance(node, ast.With):
        texts = [t for t in (ast.unparse(item.context_expr) for item in node.items) if "suppress(" in t]
    return tuple(ERRORS[n] for text in texts for n in re.findall(r"\w+", text) if n in ERRORS)


def _closed(
    effects: dict[Key, list[tuple[str | Key, Caught]]], follow: Callable[[Key, Key], bool]
) -> dict[Key, set[str]]:
    found: dict[Key, set[str]] = {key: set() for key in effects}
    before = -1
    while before != (before := sum(map(len, found.values()))):
        for key, own in effects.items():
            for what, caught in own:
                new = {what} if isinstance(what, str) else found[what] if follow(what, key) else set()
                found[key] |= {n for n in new if not issubclass(ERRORS[n], caught)}
    return found


@pytest.fixture(scope="module")
def raising() -> Raising:
    return Raising()


def _key(value: Any) -> tuple[str, str]:
    return value.__module__, value.__qualname__


def test_the_reader_of_raises_sees_what_is_there(raising):
    pair = ("sharpscope.clip.pair", "load_pair")
    assert {"PairMismatch", "ConfigError"} <= raising.direct[pair]
    assert {"UnsafeCheckpoint", "NonFiniteWeights"} <= raising.through[pair] - raising.direct[pair]
    assert raising.through["sharpscope.clip.inspect", "fitting_models"] == set()  # what it can raise, it catches
    assert raising.direct["sharpscope.clip.probe", "Probe"] == {"ConfigError", "DatasetError"}
    assert "ResultsError" in raising.through["sharpscope.exchange.reading", "read_measured"]  # raise _unknown(...)


def test_every_public_docstring_says_what_it_raises(raising):
    wrong = []
    for name, (value, text) in DOCUMENTED.items():
        key = _key(value)
        asks = isinstance(value, type) or set(inspect.signature(value).parameters) - {"self"}
        if not (asks and raising.through.get(key)):
            continue
        if not re.search(r"\bRaises?\b", text):
            wrong.append(f"{name}: no Raises ({', '.join(sorted(raising.through[key]))})")
        named = tuple(e for n, e in ERRORS.items() if re.search(rf"\b{n}\b", text))
        left = [n for n in raising.direct[key] if not (named and issubclass(ERRORS[n], named))]
        if left:
            wrong.append(f"{name}: does not name {', '.join(sorted(left))}")
    assert not wrong, "\n".join(wrong)


def test_every_public_docstring_has_a_summary_line():
    wrong = []
    for name, (_, text) in DOCUMENTED.items():
        first = inspect.cleandoc(text).partition("\n\n")[0]
        if not re.search(r"[.:]$", first) or "\n" in first or len(first.split()) < 2:
            wrong.append(f"{name}: {first!r}")
    assert not wrong, "\n".join(wrong)


# ---------------------------------------------------------------------- what a docstring says: Source
SOURCE = re.compile(
    r"\bSources?: .*?[A-Z][\w-]+.{0,80}?\b(?:19|20)\d\d\b.{0,80}?(?:\d{4}\.\d{4,5}|doi\.org/|, [A-Z])", re.DOTALL
)
"""``Source:`` author year, then an arXiv id, a DOI, or a book or journal by name."""

NO_SOURCE = {
    "an interface, or what hands tensors on: no number is made here": """
        HessianOperator ModuleLoss curvature.AnswersProbes curvature.BlockSpec curvature.ClassificationObjective
        curvature.Cuttable
        curvature.DenseOperator curvature.Divisible curvature.FunctionOperator curvature.LayerHessian
        curvature.Objective curvature.SymmetricOperator curvature.solve curvature.solve_together
    """,
    "a record: what makes it, or takes it, has the source": """
        Checkpoint EigenEstimate EigenPairs ExtremeEigenvalues FisherFiles Layer LayerAt LayerValue LoadedPair
        MeasureSettings Merged PairConfig Run SharpnessEstimate SpectralDensity StudyConfig TraceEstimate Tuned
        FinishedProtocol FinishedSweep SweepConfig SweepTrial curvature.MeasureResult
        curvature.FisherDiagonal curvature.MemoryPlan exchange.Measured exchange.RunPair findings.LayerLosses
        Advice findings.AlongPath findings.HeldOut findings.ImageCurve findings.Known findings.PathAnswers
        findings.PublishedFacts findings.Reference findings.Regrets findings.Tuning
        findings.NoiseLosses findings.Prediction findings.Repairs findings.Selection findings.Variant weights.Pair
    """,
    "reads, checks, writes or runs; what it calls has the source": """
        advise findings.along_path findings.reference_pairs
        ClipModel Method convert correlate doctor evaluate finetune inspect layer_curvature layer_sharpness
        load_sweep run_sweep
        load_dataset load_pair load_plugin plan register_criterion register_dataset register_measure
        register_method read_checkpoint read_results report run write_checkpoint curvature.measure_layers
        exchange.accuracy_table exchange.join_accuracy exchange.read_measured exchange.written
        findings.baseline_points findings.chosen_layers findings.reference_table weights.check_pair
        weights.describe
    """,
    "draws what a table holds: what made the table has the source": """
        plot.Drawn plot.accuracy_along_alpha plot.agreement_along_alpha plot.all_figures plot.correlation
        plot.correlation_scatter plot.heatmap plot.loss_slice plot.repair plot.sharpness_along_alpha
        plot.sharpness_and_gain
        plot.spectral_density plot.straggler_ranking plot.wiseft_curves
    """,
    "ours: the docstring says what it is and why": """
        curvature.check_symmetric curvature.in_precision curvature.is_cross_entropy curvature.plan_memory
        findings.agreement_difference findings.held_out findings.image_curves findings.leave_one_setting_out
        curvature.precision_error curvature.second_order findings.advice_table findings.analyse_repairs
        findings.match_plain findings.path_correlations
    """,
}
"""Why a public function or class names no literature: short on purpose; whatever is not here has its source."""


def test_what_comes_from_the_literature_names_it():
    excused = {f"sharpscope.{name}": why for why, names in NO_SOURCE.items() for name in names.split()}
    subject = {name for name, value in PUBLIC.items() if not (isinstance(value, type) and issubclass(value, Exception))}
    without = {name for name in subject if not SOURCE.search(" ".join(DOCUMENTED[name][1].split()))}
    assert not without - set(excused), "no source"
    assert not set(excused) - without, "has a source after all, or is no public name: take it off the table"


def test_every_finetuning_method_names_its_paper():
    from sharpscope.finetuning.registry import METHODS

    for name, kind in METHODS.items():
        assert re.search(r"[A-Z][\w-]+.* (19|20)\d\d", kind.source), name


@pytest.mark.parametrize(
    "room",
    [
        "sharpscope.curvature",
        "sharpscope.notebook",
        "sharpscope.finetuning.run",
        "sharpscope.clip.export",
        "sharpscope.clip.pair",
        "sharpscope.clip.evaluate",
        "sharpscope.clip.inspect",
    ],
)
def test_the_examples_run(room):
    module = importlib.import_module(room)
    done = doctest.testmod(module)
    assert done.attempted
    assert not done.failed


# ---------------------------------------------------------------------- what type checkers see
PROGRAM = """
import pandas as pd

import sharpscope
from sharpscope.curvature import HessianEngine, lanczos, per_example_trace


def study(folder: str) -> pd.DataFrame:
    config = sharpscope.StudyConfig(
        pairs=(sharpscope.PairConfig("success", "mini:zeroshot", "mini:success"),),
        model="mini",
        id=("mini:photo",),
        ood=("mini:sketch",),
        alphas=(0.0, 0.5, 1.0),
    )
    run: sharpscope.Run = sharpscope.run(config, out=folder)
    return run.sharpness


def one_pair() -> pd.DataFrame:
    pair: sharpscope.LoadedPair = sharpscope.load_pair("mini:zeroshot", "mini:success", model="mini")
    path: sharpscope.InterpolationPath = pair.path()
    distance: float = path.distance(0.5)[0]
    data: sharpscope.Dataset = sharpscope.load_dataset("mini:photo", model=pair.model, split="train")
    probe = sharpscope.Probe(pair.classifier, data, size=64)
    layers: tuple[sharpscope.Layer, ...] = pair.layers("block")
    print(distance, [layer.num_params for layer in layers])
    engine = HessianEngine(probe, path.at(0.5), {layer.name: layer.params for layer in layers})
    trace: sharpscope.TraceEstimate = per_example_trace(engine.operator("visual.proj"), seed=0)
    top: float = lanczos(engine.operator("visual.proj"), seed=0).largest.value
    print(trace.estimate, trace.stderr, top)
    return sharpscope.layer_sharpness(pair, probe, alphas=(0, 1), measures=["hessian_trace"], rtol=0.1, seed=1)


def tuned() -> sharpscope.Tuned:
    return sharpscope.finetune("mini:zeroshot", "mini:photo", "flyp", model="mini", lr=1e-3, batch_size=64)


def read(file: str) -> sharpscope.Checkpoint | None:
    try:
        return sharpscope.read_checkpoint(file, expected_sha256="0" * 64)
    except sharpscope.UnsafeCheckpoint as error:
        print(error, error.exit_code + 1)
    return None
"""

WRONG = """
import sharpscope

pair = sharpscope.load_pair("a", "b")
probe: sharpscope.Probe
sharpscope.layer_sharpness(pair, probe, rtoll=0.1)
sharpscope.layer_sharpness(pair, probe, rtol="0.1")
pair.paths()
sharpscope.load_pairs("a", "b")
sharpscope.run(pair)
"""


def test_a_users_program_type_checks_against_the_installed_package(tmp_path):
    """From outside, as a user has it: installed into a folder of its own, mypy --strict, torch not looked into."""
    source, site, work = tmp_path / "source", tmp_path / "site", tmp_path / "work"
    for part in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        source.mkdir(exist_ok=True)
        shutil.copy(ROOT.parent / part, source / part)
    shutil.copytree(ROOT, source / "sharpscope", ignore=shutil.ignore_patterns("__pycache__", "*.safetensors"))
    pip = [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-index", "--no-deps"]
    subprocess.run([*pip, "--no-build-isolation", "--target", str(site), str(source)], check=True, capture_output=True)
    work.mkdir()
    foreign = "[mypy-torch.*,torchvision.*,scipy.*,matplotlib.*,numpy.*,open_clip.*,PIL.*]\nfollow_imports = skip\n"
    (work / "mypy.ini").write_text(f"[mypy]\nstrict = True\n{foreign}")
    (work / "program.py").write_text(PROGRAM)
    (work / "wrong.py").write_text(WRONG)
    mypy = [sys.executable, "-m", "mypy", "--cache-dir", str(tmp_path / "cache"), "--no-error-summary"]
    env = {**os.environ, "PYTHONPATH": str(site)}
    told = subprocess.run([*mypy, "program.py", "wrong.py"], cwd=work, env=env, capture_output=True, text=True)
    lines = told.stdout.splitlines()
    assert not [line for line in lines if line.startswith("program.py")], told.stdout
    assert len([line for line in lines if "error:" in line]) == 5, told.stdout + told.stderr
