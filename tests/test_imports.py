"""What the import contracts of setup.cfg cannot see: what imports cost; who writes, prints, exits, draws at random."""

from __future__ import annotations

import ast
import configparser
import importlib
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import sharpscope

ROOT = Path(sharpscope.__file__).parent
FILES = {str(path.relative_to(ROOT)): ast.parse(path.read_text("utf-8")) for path in sorted(ROOT.rglob("*.py"))}
MODULES = sorted(m.name for m in pkgutil.walk_packages([str(ROOT)], "sharpscope."))


def called(tree: ast.AST) -> list[str]:
    """Dotted names of everything that is called in ``tree``; of methods of unnamed things ``.method``."""
    return [_dotted(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)]


def _dotted(node: ast.AST) -> str:
    if isinstance(node, ast.Name):
        return node.id
    return f"{_dotted(node.value)}.{node.attr}" if isinstance(node, ast.Attribute) else ""


def users(*names: str) -> set[str]:
    """Files that call something by one of ``names`` (``.x``: any method x)."""

    def wanted(call: str) -> bool:
        return call in names or any(n.startswith(".") and call.endswith(n) for n in names)

    return {file for file, tree in FILES.items() if any(wanted(call) for call in called(tree))}


def loaded_after(code: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys\nprint(*sys.modules)"], capture_output=True, text=True, check=True
    )
    return {name.partition(".")[0] for name in done.stdout.split()}


@pytest.mark.parametrize("name", [n for n in sharpscope.__all__ if n != "__version__"])
def test_every_public_name_is_where_it_is_said_to_be(name):
    value = getattr(sharpscope, name)
    assert callable(value)
    assert value.__module__.startswith("sharpscope.")
    assert name in dir(sharpscope)


def test_unknown_names_are_attribute_errors():
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        _ = sharpscope.nonsense


@pytest.mark.parametrize("name", MODULES)
def test_all_is_complete_and_true(name):
    module = importlib.import_module(name)
    if Path(module.__file__).name == "__init__.py" and not hasattr(module, "__all__"):
        assert len(FILES[str(Path(module.__file__).relative_to(ROOT))].body) <= 1, (
            "more than a docstring: needs __all__"
        )
        return
    assert isinstance(module.__all__, list)
    assert len(set(module.__all__)) == len(module.__all__)
    for public in module.__all__:
        assert hasattr(module, public), f"{name}.__all__ names {public}, which is not there"


def test_what_is_imported_is_declared():
    config = configparser.ConfigParser()
    config.read(ROOT.parent / "setup.cfg")
    declared = {re.split("[<>=~! ]", line)[0].lower() for line in config["options"]["install_requires"].split()}
    names = {"PIL": "pillow", "yaml": "pyyaml", "open_clip": "open_clip_torch"}
    imported = set()
    for tree in FILES.values():
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                imported.add(node.module.partition(".")[0])
    foreign = {names.get(n, n) for n in imported - sys.stdlib_module_names - {"sharpscope"}}
    assert foreign <= declared
    assert "torch" in foreign


def test_import_sharpscope_is_free():
    assert not {"torch", "numpy", "yaml", "tyro"} & loaded_after("import sharpscope; sharpscope.StudyConfig")


@pytest.mark.parametrize("room", ["findings", "present"])
def test_tables_and_plots_need_no_torch(room):
    modules = [m for m in MODULES if m.startswith(f"sharpscope.{room}")]
    assert modules
    assert not {"torch", "open_clip", "torchvision"} & loaded_after("\n".join(f"import {m}" for m in modules))


def test_the_weights_need_no_open_clip():
    modules = [m for m in MODULES if m.startswith("sharpscope.weights")]
    assert not {"open_clip", "torchvision", "PIL"} & loaded_after("\n".join(f"import {m}" for m in modules))


def test_only_the_command_line_prints_and_exits():
    assert users("print", "sys.exit", "exit", "quit") == {"cli/main.py", "__main__.py"}


def test_few_files_write_and_each_of_them_whole_files():
    writers = users(
        ".write_text", ".write_bytes", "os.replace", "os.rename", "os.link", ".savefig", "save_file", ".to_parquet",
        "shutil.move", "shutil.copy", "shutil.copyfile", "torch.save", "np.save", "np.savez",
    )  # fmt: skip
    known = {
        "atomic.py": "the way everything is written",
        "study/unitfile.py": "np.savez into memory",
        "study/report.py": "np.savez into memory",
        "weights/checkpoint.py": "write_checkpoint",
        "finetuning/world.py": "trains the embedded world's files again",
        "tables/files.py": "to_parquet into memory",
        "clip/all_pairs.py": "outputs of models wait in a temporary folder",
    }
    assert writers <= set(known)
    assert {"atomic.py", "study/unitfile.py", "weights/checkpoint.py"} <= writers, "the search finds nothing any more"


def test_nothing_that_may_run_a_files_code():
    assert not users("pickle.load", "pickle.loads", "torch.jit.load", "eval", "yaml.load", "yaml.unsafe_load")
    assert users("exec") == {"config/plugins.py"}, "a user's code runs where --plugin names its file, nowhere else"
    for file, tree in FILES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and _dotted(node.func) == "torch.load":
                safe = {k.arg: getattr(k.value, "value", None) for k in node.keywords}.get("weights_only")
                assert safe is True, f"{file}:{node.lineno}: torch.load without weights_only=True"


def test_no_global_random_state():
    seeds = (
        "torch.manual_seed",
        "torch.seed",
        "random.seed",
        "np.random.seed",
        "numpy.random.seed",
        "torch.cuda.manual_seed",
    )
    assert not users(*seeds)
    draws = [(file, call) for file, tree in FILES.items() for call in called(tree) if call.startswith("np.random.")]
    own = {"np.random.default_rng", "np.random.Generator", "np.random.SeedSequence", "np.random.RandomState"}
    assert {call for _, call in draws} <= own, "every draw has a generator of its own"
    assert not users("random.random", "random.shuffle", "random.choice", "random.sample", "random.randint")
