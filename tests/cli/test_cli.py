"""The command line as a user types it: what is understood, what is refused, how a command ends."""

from __future__ import annotations

import ast
import collections
import dataclasses
import errno
import importlib
import inspect
import itertools
import os
import re
import signal
import subprocess
import sys
import typing
from pathlib import Path

import pytest

import sharpscope
from sharpscope.cli import main as cli
from sharpscope.cli.commands import COMMANDS
from sharpscope.cli.finetune import HYPERPARAMETERS
from sharpscope.cli.helppage import STUDY_EXAMPLES, STUDY_GROUPS, without_none
from sharpscope.cli.options import NOT_GIVEN, given
from sharpscope.cli.outcome import fitted
from sharpscope.config.study import PairConfig, StudyConfig
from sharpscope.errors import NumericalError, PairMismatch, UnsafeCheckpoint

STUDY = """\
model: mini
pairs:
  - {name: first, zeroshot: mini:zeroshot, finetuned: mini:success}
  - {name: second, zeroshot: mini:zeroshot, finetuned: mini:failure}
alphas: [0, 0.5, 1]
extrapolate: true
seed: 7
eval_limit: 9
tags: {by: file, kept: "yes"}
"""


@pytest.fixture
def folder(monkeypatch, tmp_path):
    """A folder to work in, with study.yaml."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "study.yaml").write_text(STUDY)
    return tmp_path


def understood(argv: str) -> StudyConfig:
    config = cli.parse(argv.split()).config()
    assert type(config) is StudyConfig
    return config


# -- what is understood ------------------------------------------------------------------------------------------------


def test_flags_make_a_study():
    argv = (
        "run --zeroshot a/z.pt --finetuned b/tuned.pt --model RN50 --alphas 0 0.5 1 --granularity block --measures "
        "hessian_trace lambda_max --dtype float64 --device cpu --seed 3 --rtol 0.1 --batch-size 16 --head text "
        "--classnames c.txt --templates t.txt --probe folder:train --id folder:val --ood folder:x folder:y "
        "--data-root d"
    )
    assert understood(argv) == StudyConfig(
        pairs=(PairConfig("tuned", "a/z.pt", "b/tuned.pt"),),
        model="RN50",
        alphas=(0.0, 0.5, 1.0),
        granularity="block",
        measures=("hessian_trace", "lambda_max"),
        dtype="float64",
        device="cpu",
        seed=3,
        rtol=0.1,
        batch_size=16,
        head="text",
        classnames="c.txt",
        templates="t.txt",
        probe="folder:train",
        id=("folder:val",),
        ood=("folder:x", "folder:y"),
        data_root="d",
    )


def test_a_study_file_and_flags_that_override_it(folder):
    config = understood("run study.yaml")
    assert [p.name for p in config.pairs] == ["first", "second"]
    assert (config.seed, config.extrapolate, config.limit) == (7, True, 9)
    assert config.tags == {"by": "file", "kept": "yes"}
    argv = "run --seed 8 study.yaml --no-extrapolate --tags by flag --limit 5 --repair-alphas 0.5"
    config = understood(argv)
    assert (config.seed, config.extrapolate, config.limit, config.repair_alphas) == (8, False, 5, (0.5,))
    assert config.tags == {"by": "flag", "kept": "yes"}
    assert config.alphas == (0.0, 0.5, 1.0)


@pytest.mark.parametrize(
    ("flags", "name"),
    [
        ("--zeroshot z --finetuned x/tuned.pt other.pt", "runs/tuned"),
        ("--zeroshot z --finetuned x/tuned.pt --name mine", "runs/mine"),
        ("study.yaml", "runs/study"),
        ("study.yaml --out o", "o"),
    ],
)
def test_the_run_directory_is_named_after_what_it_is_about(folder, flags, name):
    assert cli.parse(["run", *flags.split()]).folder() == name


def test_extrapolate_is_a_bare_flag():
    assert understood("run --zeroshot a --finetuned b --extrapolate --alphas -0.5 1.5").alphas == (-0.5, 1.5)


@pytest.mark.parametrize(
    ("flags", "pairs"),
    [
        ("--zeroshot z --finetuned x/a.pt y/b.bin", [("a", "z", "x/a.pt"), ("b", "z", "y/b.bin")]),
        ("--zeroshot z --finetuned mini:success", [("success", "z", "mini:success")]),
        ("--zeroshot z --finetuned x/m.pt y/m.pt --name p q", [("p", "z", "x/m.pt"), ("q", "z", "y/m.pt")]),
        ("study.yaml --finetuned c.pt", [("c", "mini:zeroshot", "c.pt")]),
        ("study.yaml --zeroshot c.pt", [("first", "c.pt", "mini:success"), ("second", "c.pt", "mini:failure")]),
    ],
)
def test_pairs_from_flags(folder, flags, pairs):
    assert understood(f"plan {flags}").pairs == tuple(PairConfig(*p) for p in pairs)


WORK = {
    "demo": ("sharpscope.study.demo.demo_config", ("out",), {}),
    "inspect": ("sharpscope.clip.inspect.inspect", ("granularity",), {"out": "csv"}),
    "convert": ("sharpscope.clip.export.convert", (), {}),
    "interpolate": ("sharpscope.clip.export.interpolate", (), {}),
    "sparsify": ("sharpscope.clip.export.sparsify", (), {}),
    "evaluate": (
        "sharpscope.clip.evaluate.evaluate",
        ("csv", "ensemble", "second_model"),
        {"datasets": "specs"},
    ),
    "merge": ("sharpscope.study.merging.merge", (), {}),
    "fisher": ("sharpscope.study.fishers.fisher", (), {}),
    "finetune": ("sharpscope.finetuning.run.finetune", ("list", "track", *HYPERPARAMETERS), {}),
    "correlate": ("sharpscope.study.across.correlate", ("csv", "figures", "out"), {"id": "ids"}),
    "robustness": ("sharpscope.study.across.robustness", ("csv",), {"id": "ids"}),
    "advise": ("sharpscope.study.advise.advise", ("csv",), {}),
    "table": (
        "sharpscope.study.papertables.paper_table",
        ("format", "digits", "seeds", "what", "measures", "alpha"),
        {"id": "ids", "rows": "style"},
    ),
    "figures": ("sharpscope.study.figures.making.figures", (), {}),
    "report": ("sharpscope.study.report.report", ("out",), {"runs": "root", "export": "results"}),
    "doctor": ("sharpscope.study.doctor.doctor", (), {}),
}
"""Command -> (the function that does its work, flags that are no business of it, flag -> the function's word)."""


@pytest.mark.parametrize("name", WORK)
def test_flags_and_functions_have_the_same_defaults(name):
    where, left_out, called = WORK[name]
    module, _, function = where.rpartition(".")
    parameters = inspect.signature(getattr(importlib.import_module(module), function)).parameters
    compared = 0
    for flag in dataclasses.fields(COMMANDS[name]):
        if flag.name in (*left_out, *NOT_GIVEN):
            continue
        default = parameters[called.get(flag.name, flag.name)].default
        if flag.default is not dataclasses.MISSING and default is not inspect.Parameter.empty:
            assert flag.default == default, flag.name
            compared += 1
    assert compared >= 1


def test_a_command_of_which_no_work_is_compared_takes_a_whole_study():
    made_of_a_config = {"protocol", "sweep"}  # ProtocolConfig and SweepConfig, which have tests of their own
    assert set(COMMANDS) - set(WORK) == {"run", "plan", "list", "status"} | made_of_a_config
    assert all(issubclass(COMMANDS[name], StudyConfig) for name in ("run", "plan"))


def test_a_field_that_the_work_does_not_know_is_an_error():
    @dataclasses.dataclass
    class Command:
        alpha: float = 0.5
        csv: bool = True

    def work(at: float) -> float:
        return at

    assert work(**given(Command(), "csv", alpha="at")) == 0.5
    with pytest.raises(TypeError, match="csv"):
        work(**given(Command(), alpha="at"))


def test_an_option_that_commands_share_is_written_once():
    """Two fields of one name, type, default and text are one option: it belongs into ``cli/options.py``."""
    texts = []
    for file in sorted(Path(cli.__file__).parent.glob("*.py")):
        for owner in (n for n in ast.walk(ast.parse(file.read_text("utf-8"))) if isinstance(n, ast.ClassDef)):
            for field, said in itertools.pairwise(owner.body):
                if isinstance(field, ast.AnnAssign) and isinstance(said, ast.Expr):
                    texts.append((ast.unparse(field), " ".join(ast.unparse(said.value).split())))
    assert len(texts) > 100
    assert not [text for text, count in collections.Counter(texts).items() if count > 1]


# -- words of before ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "hint", "error"),
    [
        ("run --zeroshot a --finetuned b --eval-limit 0", "--eval-limit is called --limit now", "limit: needs a"),
        (
            "plan --zeroshot a --finetuned b --eval_limit=0",
            "--eval_limit is called --limit now",
            "limit: needs a",
        ),
        ("inspect a.pt --csv c.csv", "--csv is called --out now", "--out: takes the comparison"),
        ("convert a.pt o.safetensors --head h.pt", "--head is called --head-file now", "a.pt: no such file"),
        ("evaluate c --data", "--data is called --datasets now", "--datasets: give at least one"),
        ("finetune --precision bfloat16", "--precision bfloat16 is called bf16 now", "--zeroshot: is missing"),
        ("finetune --precision=float16", "--precision float16 is called fp16 now", "--zeroshot: is missing"),
        ("finetune --precision float32", "--precision float32 is called full now", "--zeroshot: is missing"),
    ],
)
def test_old_spellings_are_taken_with_a_hint(folder, capsys, argv, hint, error):
    assert cli.main(argv.split()) == 2
    first, second, *_ = capsys.readouterr().err.splitlines()
    assert first.startswith(f"sharpscope: hint: {hint}; the old ")
    assert second.startswith(f"sharpscope: error: {error}")


def test_words_of_today_come_without_a_hint(folder, capsys):
    cli.main(["evaluate", "c", "--datasets", "mini:photo", "--head", "stored", "--limit", "3", "--model", "mini"])
    cli.main(["finetune", "--precision", "bf16"])
    assert "hint" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ("run --zeroshot a --finetuned b --precision fp16", ["second derivatives", "Remedy: bf16"]),
        (
            "finetune --zeroshot mini:zeroshot --train mini:photo --model mini --precision tf32",
            ["tf32", "Remedy: bf"],
        ),
    ],
)
def test_a_precision_that_a_command_cannot_use_is_refused_with_the_reason(folder, capsys, argv, words):
    assert cli.main(argv.split()) == 2
    told = capsys.readouterr().err
    assert all(word in told for word in words), told
    assert not (folder / "runs").exists()


def test_run_and_finetune_know_the_same_words_for_precision():
    words = {name: typing.get_type_hints(COMMANDS[name])["precision"] for name in ("run", "plan", "finetune")}
    assert len(set(words.values())) == 1
    assert typing.get_args(words["run"]) == ("full", "tf32", "bf16", "fp16")


# -- what goes wrong ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ("", "which command?"),
        ("inspekt x", "unknown command 'inspekt'. Did you mean 'inspect'?"),
        ("--seed 3", "unknown flag before the command: '--seed'"),
        ("run", "nothing to analyse"),
        ("run --alpha 0", "Unrecognized options: --alpha, 0. Did you mean '--alphas'?"),
        ("run --alphas x", "--alphas: 'x' cannot be read as [FLOAT [FLOAT ...]]."),
        ("run --repair-alphas 0 it's", """--repair-alphas: "it's" cannot be read as [FLOAT [FLOAT ...]]."""),
        ("run --memory lots", "--memory: 'lots' cannot be read as FLOAT."),
        ("run --seed 1.5", "--seed: '1.5' cannot be read as INT."),
        ("run --seed", "--seed: needs a value."),
        ("run --granularity blok", "'blok'"),
        ("run --zeroshot a", "--finetuned: give the fine-tuned checkpoint"),
        ("run --finetuned a", "--zeroshot: give the zero-shot checkpoint"),
        ("run --name a", "and --finetuned is missing"),
        ("run --zeroshot a --finetuned x/b.pt y/b.pt", "give --name"),
        ("run --zeroshot a --finetuned b --name c d", "2 names for 1"),
        ("run --zeroshot a --finetuned b --alphas 0 1.5", "alphas: 1.5 is outside [0, 1]"),
        ("run --zeroshot a --finetuned b --alphas", "alphas: give at least one"),
        ("run --zeroshot a --finetuned b --measures lambda_mx", "Did you mean 'lambda_max'?"),
        ("run --zeroshot a --finetuned b --tags x", "--tags: cannot be read as [STR STR [STR STR ...]]."),
        ("run absent.yaml", "absent.yaml: there is no such study file"),
        ("run bad.yaml", "bad.yaml, line 2: unknown key 'alpha'"),
        ("inspect", "missing: FILE"),
        ("interpolate --zeroshot a --finetuned b", "missing: --out STR"),
        ("interpolate --zeroshot a --finetuned b --alpha 1.5 --out o.safetensors", "--alpha: 1.5 is outside [0, 1]"),
        (
            "interpolate --zeroshot a --finetuned b --alpha nan --out o.safetensors --extrapolate",
            "--alpha: nan is outside",
        ),
        ("interpolate --zeroshot study.yaml --finetuned b --alpha 0 --out ./study.yaml", "is one of the inputs"),
        ("convert study.yaml ./study.yaml", "is one of the inputs"),
        ("convert a o.safetensors --head-file o.safetensors", "a: no such file"),
        ("convert a o.pt", "OUT: o.pt would hold tensors as safetensors"),
        (
            "sparsify --zeroshot a --finetuned b --layers x --density 2 --out o.safetensors",
            "--density: 2.0 is outside [0, 1]",
        ),
        ("sparsify --zeroshot a --finetuned b --layers --out o.safetensors", "--layers: name at least one"),
        (
            "sparsify --zeroshot a --finetuned b --layers x --alpha -1 --out o.safetensors",
            "--alpha: -1.0 is outside [0, 1]",
        ),
        ("evaluate c --datasets mini:photo --limit 0", "--limit: needs a whole number of at least 1"),
        ("evaluate c --datasets", "--datasets: give at least one"),
        ("evaluate --datasets mini:photo", "evaluate: give at least one checkpoint"),
        ("finetune --train mini:photo", "--zeroshot: is missing"),
        ("finetune --zeroshot a --train b --set lr", "--set: 'lr' is not NAME=VALUE"),
        ("correlate", "at least one run"),
        ("correlate r1 --match a=b", "--match, --id: both refer to the file of --accuracy"),
        ("robustness", "robustness: give at least one run"),
        ("advise", "advise: give a run directory, or a pair with --zeroshot and --finetuned"),
        ("advise r1 --zeroshot mini:zeroshot", "zeroshot: is taken from the manifest of r1"),
        ("advise --zeroshot mini:zeroshot --finetuned mini:small --model mini --keep-id 2", "keep_id: needs a share"),
        ("advise --zeroshot mini:zeroshot --finetuned mini:smal", "mini:smal: no such checkpoint. Did you mean"),
        ("report r1 --export wiseft", "'wiseft'"),
        ("figures --out o", "figures: give at least one run"),
        ("figures nowhere --out o", "nowhere: no such file or run directory"),
    ],
)
def test_bad_input_gives_one_clear_message_and_exit_2(folder, capsys, argv, words):
    (folder / "bad.yaml").write_text("seed: 1\nalpha: 0\n")
    assert cli.main(argv.split()) == 2
    told = capsys.readouterr().err
    assert words in told
    assert len(told.splitlines()) <= 3
    assert "Traceback" not in told
    assert sorted(p.name for p in folder.iterdir()) == ["bad.yaml", "study.yaml"], "nothing was written"


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (PairMismatch("a.pt: other shapes"), 2, "sharpscope: error: a.pt: other shapes\n"),
        (UnsafeCheckpoint("a.pt: would run os.system"), 3, "os.system"),
        (NumericalError("the loss is NaN"), 1, "NaN"),
        (PairMismatch("1\n2\n3\n4\n5"), 2, "1\n2\n3\n"),
        (OSError(errno.ENOSPC, "No space left on device", "x/y"), 2, "x/y: No space left on device."),
        (MemoryError(), 1, "out of memory"),
        (type("OutOfMemoryError", (RuntimeError,), {})("CUDA"), 1, "accelerator is out of memory"),
        (ZeroDivisionError("1/0 \x1b[31m"), 1, "this should not have happened: ZeroDivisionError: 1/0 \\x1b[31m"),
        (KeyboardInterrupt(), 130, "sharpscope: interrupted: state kept; run the same command again to resume.\n"),
    ],
    ids=lambda v: type(v).__name__ if isinstance(v, BaseException) else "",
)
def test_errors_become_exit_codes_without_a_traceback(folder, monkeypatch, capsys, error, code, words):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr("sharpscope.study.run.run", fail)
    assert cli.main(["demo"]) == code
    told = capsys.readouterr().err
    assert words in told
    assert len(told.splitlines()) <= 3
    assert "Traceback" not in told
    monkeypatch.setenv("SHARPSCOPE_DEBUG", "1")
    assert cli.main(["demo"]) == code
    assert "Traceback" in capsys.readouterr().err


# -- as a process ------------------------------------------------------------------------------------------------------


def process(*argv: str, study: str, **options) -> subprocess.Popen[str]:
    """``sharpscope ARGV`` in a process of its own, with ``study`` for the body of the module that does its work."""
    name = "sharpscope.clip.inspect" if argv[0] == "inspect" else "sharpscope.study.run"
    code = (
        "import signal, sys, time, types\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # ignored where the tests run in the background
        "from sharpscope.cli.main import main\n"
        f"fake = types.ModuleType({name!r})\n"
        f"exec({study!r}, fake.__dict__)\n"
        f"sys.modules[{name!r}] = fake\n"
        "sys.exit(main())"
    )
    return subprocess.Popen([sys.executable, "-c", code, *argv], stderr=subprocess.PIPE, text=True, **options)


@pytest.mark.parametrize("argv", [["--help"], ["--version"], ["run", "--help"], ["run", "--seed", "x"], ["nonsense"]])
def test_talking_about_flags_imports_nothing_heavy(argv):
    code = (
        "import sys; from sharpscope.cli.main import main; main(sys.argv[1:]);"
        "print(*sorted({'torch', 'open_clip', 'pandas', 'matplotlib', 'numpy', 'scipy'} & set(sys.modules)), 'end')"
    )
    done = subprocess.run([sys.executable, "-c", code, *argv], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "end"
    assert "\x1b" not in done.stdout + done.stderr, "colours although this is no terminal"


@pytest.mark.parametrize("argv", [["--tyro-print-completion", "bash"], ["run", "--tyro-print-completion", "bash"]])
def test_completions_for_a_shell_are_printed(argv, capsys):
    assert cli.main(argv) == 0
    assert "--measures" in capsys.readouterr().out


@pytest.mark.parametrize("flag", ["--tyro-print-completion", "--tyro-write-completion"])
@pytest.mark.parametrize(("shell", "said"), [(["tcsh", "FILE"], "there are none for tcsh."), ([], "for which shell?")])
def test_completions_of_another_shell_are_refused_in_a_line(flag, shell, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for command in ([], ["run"]):
        assert cli.main([*command, flag, *shell]) == 2
        told = f"sharpscope: error: {flag}: {said} Completions exist for bash, zsh, fish.\n"
        assert capsys.readouterr().err == told and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "offered"),
    [(["eval"], ["evaluate"]), (["run", "--meas"], ["--measures"]), (["run", "--head", "s"], ["stored"])],
)
def test_bash_completes_what_was_printed_for_it(words, offered, capsys, tmp_path):
    assert cli.main(["--tyro-print-completion", "bash"]) == 0
    (tmp_path / "completions").write_text(capsys.readouterr().out)
    script = (
        'source completions; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMP_LINE="$*"; COMP_POINT=${#COMP_LINE}; '
        """_tyro_sharpscope; printf '%s\\n' "${COMPREPLY[@]}" """
    )
    done = subprocess.run(
        ["bash", "-c", script, "bash", "sharpscope", *words], capture_output=True, text=True, cwd=tmp_path, check=True
    )
    assert done.stdout.split() == offered


def test_version_as_a_module():
    done = subprocess.run([sys.executable, "-m", "sharpscope", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"sharpscope {sharpscope.__version__}\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda n: n.name)
def test_interrupted_with_state_kept(tmp_path, number):
    waits = "import time\ndef run(*a, **k):\n print('working', flush=True)\n time.sleep(60)"
    with process("demo", study=waits, stdout=subprocess.PIPE, cwd=tmp_path) as child:
        assert child.stdout.readline() == "working\n"
        child.send_signal(number)
        told = child.communicate()[1]
    assert child.returncode == 130
    assert told == "sharpscope: interrupted: state kept; run the same command again to resume.\n"


def test_a_reader_that_goes_away_is_no_error(tmp_path):
    talks = "def inspect(**k): return 'x\\n' * 1_000_000"
    with process("inspect", "f", study=talks, stdout=subprocess.PIPE, cwd=tmp_path) as child:
        child.stdout.readline()
        child.stdout.close()
        assert (child.stderr.read(), child.wait()) == ("", 0)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
def test_a_full_disk_behind_stdout_is_told(tmp_path):
    with (
        open("/dev/full", "w") as full,
        process("inspect", "f", study="def inspect(**k): return 'x'", stdout=full) as child,
    ):
        told = child.communicate()[1]
    assert child.returncode == 2
    assert told == "sharpscope: error: No space left on device.\n"


def test_names_that_the_terminal_cannot_show(tmp_path):
    talks = "def inspect(a, **rest): return a"
    env = {**os.environ, "PYTHONIOENCODING": "ascii"}
    with process("inspect", "größe.pt", study=talks, stdout=subprocess.PIPE, env=env) as child:
        told = child.communicate()[0]
    assert (told, child.returncode) == ("gr\\xf6\\xdfe.pt\n", 0)


def test_warnings_of_other_libraries_stay_out_of_the_way(tmp_path):
    warns = "import warnings\ndef inspect(**k):\n warnings.warn('use something else', UserWarning)\n return 'x'"
    with process("inspect", "f", study=warns, stdout=subprocess.PIPE) as child:
        assert child.communicate() == ("x\n", "")


# -- help --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_a_help_page_with_every_flag(name, capsys):
    assert cli.main([name, "--help"]) == 0
    told = capsys.readouterr()
    assert told.out.startswith(f"usage: sharpscope {name}")
    assert told.err == ""
    assert "(default: None)" not in told.out
    assert "(default: )" not in told.out
    missing = [f.name for f in dataclasses.fields(COMMANDS[name]) if f"--{f.name.replace('_', '-')}" not in told.out]
    positional = {"run": ["study"], "plan": ["study"], "inspect": ["a", "b"], "convert": ["source", "out"]}
    positional |= {"list": ["what"], "table": ["sources"], "protocol": ["protocol"], "sweep": ["file"]}
    positional |= {
        "merge": ["checkpoints"],
        "evaluate": ["checkpoints"],
        "report": ["runs"],
        "status": ["run"],
        "figures": ["runs"],
        "advise": ["run"],
        "correlate": ["runs"],
        "robustness": ["runs"],
    }
    by_hand = ["pairs"] if name in ("run", "plan") else []  # pairs come as --zeroshot and --finetuned
    assert sorted(missing) == sorted([*positional.get(name, []), *by_hand])


def test_every_flag_of_a_study_stands_in_one_group_of_its_help_page(capsys):
    named = [name for fields in STUDY_GROUPS.values() for name in fields]
    assert sorted(named) == sorted({f.name for f in dataclasses.fields(COMMANDS["run"])} - {"study", "pairs"})
    for command in ("run", "plan"):
        cli.main([command, "--help"])
        lines = capsys.readouterr().out.splitlines()
        titles = [line.strip() for line in lines if re.fullmatch(r" \w[\w ]*", line.rstrip())]
        assert titles == ["positional arguments", *STUDY_GROUPS, "other"]
        flags = [line.split()[0].rstrip(",") for line in lines if line.startswith("  -")]
        assert flags[-1] == "-h" and flags.count("--rtol") == 1  # nothing but the help itself is "other"
    assert sum(line.startswith("  sharpscope run ") for line in lines) == 2


@pytest.mark.parametrize("name", COMMANDS)
def test_no_help_page_offers_none_as_a_value(name, capsys):
    cli.main([name, "--help"])
    page = capsys.readouterr().out
    assert "{None" not in page and "None}" not in page


def test_a_column_of_texts_stays_one():
    lines = [
        ("  --a {None}|INT          Text.", "  --a INT                 Text."),
        ("  --b {None}|{[INT [INT ...]]}", "  --b [INT [INT ...]]         "),
        ("  --c {None,x,y}  Text.", "  --c {x,y}       Text."),
        ("  --d {x,y}       {None} Text.", "  --d {x,y}       {None} Text."),
    ]
    assert [without_none(before) for before, _ in lines] == [after for _, after in lines]


def test_the_examples_of_the_help_page_are_understood():
    for command in STUDY_EXAMPLES.replace("\\\n", " ").splitlines()[1:]:
        config = understood(" ".join(command.split()[1:]))
        assert config.pairs and config.ood


def test_help_does_not_break_a_sentence_where_the_source_breaks_it(capsys):
    cli.main(["run", "--help"])
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    at = next(i for i, line in enumerate(lines) if "--rtol" in line)
    words = " ".join(line.strip() for line in lines[at : at + 5])
    assert "For the smaller end of the spectrum, once it is followed along alpha" in words
    assert all(len(line) > 60 for line in lines[at + 1 : at + 3]), "lines are as long as the page is wide"


def test_the_page_of_all_commands(capsys):
    assert cli.main(["--help"]) == 0
    page = capsys.readouterr().out
    assert all(f"• {name} " in page for name in COMMANDS)
    words = " ".join(page.split())
    for first, *more in (inspect.getdoc(kind).split("\n\n") for kind in COMMANDS.values()):
        assert " ".join(first.split()) in words and not any(" ".join(rest.split()) in words for rest in more)


# -- the end of a run --------------------------------------------------------------------------------------------------


def test_a_summary_is_as_wide_as_the_terminal_and_a_file_has_a_sentence_a_line(monkeypatch):
    sentence = "along success its best point, alpha 0.4, has +5.6 points over zero-shot; " * 4 + "no failure flag."
    text = f"Advice:\n  {sentence}\n  short"
    assert fitted(text) == text
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "60")
    head, *told, last = fitted(text).splitlines()
    assert (head, last) == ("Advice:", "  short")
    assert all(len(line) <= 60 for line in told) and told[0].startswith("  along ")
    assert all(line.startswith("      ") for line in told[1:]) and " ".join(" ".join(told).split()) == sentence
