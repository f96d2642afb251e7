"""The command line as a user types it; the work behind it is a stand-in that records what it was asked to do."""

from __future__ import annotations

import dataclasses
import errno
import os
import signal
import subprocess
import sys

import pytest

import sharpscope
from sharpscope.cli import main as cli
from sharpscope.cli.commands import COMMANDS
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
tags: {by: file, kept: "yes"}
"""


@dataclasses.dataclass
class Finished:
    root: str
    failed_units: tuple[str, ...] = ()

    def summary(self) -> str:
        return "the answer"


class Table:
    def to_string(self, index: bool) -> str:
        return "a table"

    def to_csv(self, index: bool) -> str:
        return "a,table\n"


@pytest.fixture
def asked(monkeypatch, tmp_path):
    """Calls of sharpscope.study.run, in order: (name, args, kwargs)."""
    calls = []

    def record(name, answer):
        def call(*args, **kwargs):
            calls.append((name, args, kwargs))
            return answer(*args, **kwargs)

        return call

    answers = {
        "sharpscope.study.run.run": record("run", lambda config, out, progress: Finished(out)),
        "sharpscope.study.run.report": record("report", lambda root, results: Finished(root)),
        "sharpscope.study.demo.demo_config": lambda seed: StudyConfig(seed=seed, model="mini"),
        "sharpscope.study.plan.plan": record("plan", lambda config: "12 units"),
        "sharpscope.clip.inspect.inspect": record("inspect", lambda a, b, model: f"{a} {b} {model}"),
        "sharpscope.clip.export.interpolate": record("interpolate", lambda *a, **k: None),
        "sharpscope.clip.export.sparsify": record("sparsify", lambda *a, **k: None),
        "sharpscope.clip.evaluate.evaluate": record("evaluate", lambda *a, **k: Table()),
        "sharpscope.study.across.correlate": record("correlate", lambda *a, **k: Table()),
        "sharpscope.study.across.robustness": record("robustness", lambda *a, **k: Table()),
    }
    for name, answer in answers.items():
        monkeypatch.setattr(name, answer)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "study.yaml").write_text(STUDY)
    return calls


def asked_config(asked) -> StudyConfig:
    ((name, args, _),) = asked
    assert name in ("run", "plan")
    assert type(args[0]) is StudyConfig
    return args[0]


# -- what reaches the study --------------------------------------------------------------------------------------------


def test_flags_make_a_study(asked, capsys):
    argv = (
        "run --zeroshot a/z.pt --finetuned b/tuned.pt --model RN50 --alphas 0 0.5 1 --granularity block --measures "
        "hessian_trace lambda_max --dtype float64 --device cpu --seed 3 --rtol 0.1 --batch-size 16 --head text "
        "--classnames c.txt --templates t.txt --probe folder:train --id folder:val --ood folder:x folder:y "
        "--data-root d"
    )
    assert cli.main(argv.split()) == 0
    config = asked_config(asked)
    assert config == StudyConfig(
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
    assert asked[0][1][1] == "runs/tuned"
    assert capsys.readouterr().out == "the answer\nreport: runs/tuned/report.html\n"


def test_a_study_file_and_flags_that_override_it(asked):
    assert cli.main(["run", "study.yaml"]) == 0
    config = asked_config(asked)
    assert [p.name for p in config.pairs] == ["first", "second"]
    assert (config.seed, config.extrapolate, config.tags) == (7, True, {"by": "file", "kept": "yes"})
    assert asked.pop()[1][1] == "runs/study"
    argv = "run --seed 8 study.yaml --no-extrapolate --tags by flag --out o --eval-limit 5 --repair-alphas 0.5"
    assert cli.main(argv.split()) == 0
    config = asked_config(asked)
    assert (config.seed, config.extrapolate, config.eval_limit, config.repair_alphas) == (8, False, 5, (0.5,))
    assert config.tags == {"by": "flag", "kept": "yes"}
    assert config.alphas == (0.0, 0.5, 1.0)
    assert asked[0][1][1] == "o"


def test_extrapolate_is_a_bare_flag(asked):
    assert cli.main(["run", "--zeroshot", "a", "--finetuned", "b", "--extrapolate", "--alphas", "-0.5", "1.5"]) == 0
    assert asked_config(asked).alphas == (-0.5, 1.5)


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
def test_pairs_from_flags(asked, flags, pairs):
    assert cli.main(["plan", *flags.split()]) == 0
    assert asked_config(asked).pairs == tuple(PairConfig(*p) for p in pairs)


def test_every_field_of_the_config_is_a_flag(asked, capsys):
    assert cli.main(["run", "--help"]) == 0
    page = capsys.readouterr().out
    missing = [f.name for f in dataclasses.fields(StudyConfig) if f"--{f.name.replace('_', '-')}" not in page]
    assert missing == ["pairs"], "pairs come as --zeroshot and --finetuned"
    assert not asked


def test_the_other_commands(asked, capsys):
    assert cli.main(["demo", "--out", "d", "--seed", "4"]) == 0
    assert asked.pop()[1][0].seed == 4
    assert cli.main(["inspect", "a.pt", "b.pt", "--model", "RN50"]) == 0
    assert asked.pop() == ("inspect", ("a.pt", "b.pt", "RN50"), {})
    assert (
        cli.main(
            [
                "interpolate",
                "--zeroshot",
                "a",
                "--finetuned",
                "b",
                "--alpha",
                "0.25",
                "--out",
                "m.safetensors",
                "--model",
                "mini",
            ]
        )
        == 0
    )
    keywords = {"classnames": None, "extrapolate": False, "head": "auto", "head_file": None}
    assert asked.pop() == ("interpolate", ("a", "b", 0.25, "m.safetensors", "mini"), keywords)
    assert (
        cli.main(
            [
                "sparsify",
                "--zeroshot",
                "a",
                "--finetuned",
                "b",
                "--layers",
                "x",
                "y",
                "--density",
                "0.1",
                "--out",
                "s",
                "--select",
                "magnitude",
            ]
        )
        == 0
    )
    name, _, flags = asked.pop()
    assert (name, flags["layers"], flags["density"], flags["select"], flags["alpha"]) == (
        "sparsify", ("x", "y"), 0.1, "magnitude", 1.0,
    )  # fmt: skip
    assert cli.main(["evaluate", "c.pt", "--data", "mini:photo", "mini:sketch", "--limit", "9", "--csv"]) == 0
    assert asked.pop()[1] == (("c.pt",), "ViT-B-32", ("mini:photo", "mini:sketch"))
    assert cli.main(["evaluate", "a.pt", "b.pt", "--datasets", "imagenet-shifts", "--metrics", "ece", "--csv"]) == 0
    _, positional, flags = asked.pop()
    assert (positional[0], flags["metrics"], flags["head"]) == (("a.pt", "b.pt"), ("ece",), "auto")
    argv = ["correlate", "--accuracy", "results.jsonl", "r1", "r2", "--match", "a=b", "a@0=c", "--id", "ImageNet"]
    elsewhere = {"accuracy": "results.jsonl", "match": ("a=b", "a@0=c"), "ids": ("ImageNet",), "seed": 0}
    assert cli.main(argv) == 0
    assert asked.pop() == ("correlate", (("r1", "r2"),), elsewhere)
    assert cli.main(["robustness", "r1", "--baseline", "models.csv"]) == 0
    assert asked.pop()[1] == (("r1",), "models.csv")
    assert cli.main(["report", "r1", "--results", "wise-ft"]) == 0
    assert asked.pop() == ("report", ("r1",), {"results": "wise-ft"})
    assert capsys.readouterr().out.splitlines()[-5:] == [
        "a,table", "a table", "a table", "the answer", "report: r1/report.html",
    ]  # fmt: skip


# -- what goes wrong ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ("", "which command?"),
        ("inspekt x", "unknown command 'inspekt'. Did you mean 'inspect'?"),
        ("--seed 3", "unknown flag before the command: '--seed'"),
        ("run", "nothing to analyse"),
        ("run --alpha 0", "Unrecognized options: --alpha, 0. Did you mean '--alphas'?"),
        ("run --alphas x", "--alphas"),
        ("run --seed 1.5", "--seed"),
        ("run --seed", "'--seed'"),
        ("run --granularity blok", "'blok'"),
        ("run --zeroshot a", "--finetuned: give the fine-tuned checkpoint"),
        ("run --finetuned a", "--zeroshot: give the zero-shot checkpoint"),
        ("run --name a", "--finetuned, which is missing"),
        ("run --zeroshot a --finetuned x/b.pt y/b.pt", "give --name"),
        ("run --zeroshot a --finetuned b --name c d", "2 names for 1"),
        ("run --zeroshot a --finetuned b --alphas 0 1.5", "alphas: 1.5 is outside [0, 1]"),
        ("run --zeroshot a --finetuned b --alphas", "alphas: give at least one"),
        ("run --zeroshot a --finetuned b --measures lambda_mx", "Did you mean 'lambda_max'?"),
        ("run --zeroshot a --finetuned b --tags x", "--tags"),
        ("run absent.yaml", "absent.yaml: there is no such study file"),
        ("run bad.yaml", "bad.yaml, line 2: unknown key 'alpha'"),
        ("inspect", "missing: FILE"),
        ("interpolate --zeroshot a --finetuned b", "missing: --alpha FLOAT, --out STR"),
        ("interpolate --zeroshot a --finetuned b --alpha 1.5 --out o", "--alpha: 1.5 is outside [0, 1]"),
        ("interpolate --zeroshot a --finetuned b --alpha nan --out o --extrapolate", "--alpha: nan is outside"),
        ("interpolate --zeroshot study.yaml --finetuned b --alpha 0 --out ./study.yaml", "is one of the inputs"),
        ("sparsify --zeroshot a --finetuned b --layers x --density 2 --out o", "--density: 2.0 is outside [0, 1]"),
        ("sparsify --zeroshot a --finetuned b --layers --out o", "--layers: name at least one"),
        ("evaluate c --data mini:photo --limit 0", "--limit: needs a whole number of at least 1"),
        ("evaluate c --data", "--datasets: give at least one"),
        ("evaluate --data mini:photo", "evaluate: give at least one checkpoint"),
        ("correlate", "at least one run"),
        ("correlate r1 --match a=b", "--match, --id: are about the file of --accuracy"),
        ("robustness", "robustness: give at least one run"),
        ("report r1 --results wiseft", "'wiseft'"),
    ],
)
def test_bad_input_gives_one_clear_message_and_exit_2(asked, capsys, tmp_path, argv, words):
    (tmp_path / "bad.yaml").write_text("seed: 1\nalpha: 0\n")
    assert cli.main(argv.split()) == 2
    told = capsys.readouterr().err
    assert told.startswith("sharpscope: error: ")
    assert words in told
    assert len(told.splitlines()) <= 3
    assert "Traceback" not in told
    assert not asked


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
def test_errors_become_exit_codes_without_a_traceback(asked, monkeypatch, capsys, error, code, words):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(sys.modules["sharpscope.study.run"], "run", fail)
    assert cli.main(["demo"]) == code
    told = capsys.readouterr().err
    assert words in told
    assert len(told.splitlines()) <= 3
    assert "Traceback" not in told
    monkeypatch.setenv("SHARPSCOPE_DEBUG", "1")
    assert cli.main(["demo"]) == code
    assert "Traceback" in capsys.readouterr().err


def test_failed_units_give_exit_1_and_the_report_all_the_same(asked, monkeypatch, capsys):
    monkeypatch.setattr(sys.modules["sharpscope.study.run"], "run", lambda *a, **k: Finished("r", tuple("abcd")))
    assert cli.main(["demo"]) == 1
    told = capsys.readouterr()
    assert "report: r/report.html" in told.out
    assert "4 units failed: a, b, c ..." in told.err


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


def test_version_as_a_module():
    done = subprocess.run([sys.executable, "-m", "sharpscope", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"sharpscope {sharpscope.__version__}\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda n: n.name)
def test_interrupted_with_state_kept(tmp_path, number):
    waits = (
        "import time\ndef demo_config(seed): pass\ndef run(*a, **k):\n print('working', flush=True)\n time.sleep(60)"
    )
    with process("demo", study=waits, stdout=subprocess.PIPE, cwd=tmp_path) as child:
        assert child.stdout.readline() == "working\n"
        child.send_signal(number)
        told = child.communicate()[1]
    assert child.returncode == 130
    assert told == "sharpscope: interrupted: state kept; run the same command again to resume.\n"


def test_a_reader_that_goes_away_is_no_error(tmp_path):
    talks = "def inspect(*a): return 'x\\n' * 1_000_000"
    with process("inspect", "f", study=talks, stdout=subprocess.PIPE, cwd=tmp_path) as child:
        child.stdout.readline()
        child.stdout.close()
        assert (child.stderr.read(), child.wait()) == ("", 0)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
def test_a_full_disk_behind_stdout_is_told(tmp_path):
    with (
        open("/dev/full", "w") as full,
        process("inspect", "f", study="def inspect(*a): return 'x'", stdout=full) as child,
    ):
        told = child.communicate()[1]
    assert child.returncode == 2
    assert told == "sharpscope: error: No space left on device.\n"


def test_names_that_the_terminal_cannot_show(tmp_path):
    talks = "def inspect(a, *rest): return a"
    env = {**os.environ, "PYTHONIOENCODING": "ascii"}
    with process("inspect", "größe.pt", study=talks, stdout=subprocess.PIPE, env=env) as child:
        told = child.communicate()[0]
    assert (told, child.returncode) == ("gr\\xf6\\xdfe.pt\n", 0)


def test_warnings_of_other_libraries_stay_out_of_the_way(tmp_path):
    warns = "import warnings\ndef inspect(*a):\n warnings.warn('use something else', UserWarning)\n return 'x'"
    with process("inspect", "f", study=warns, stdout=subprocess.PIPE) as child:
        assert child.communicate() == ("x\n", "")


def test_every_command_has_a_help_page(capsys):
    for name in COMMANDS:
        assert cli.main([name, "--help"]) == 0
        told = capsys.readouterr()
        assert told.out.startswith(f"usage: sharpscope {name}")
        assert told.err == ""
    assert cli.main(["--help"]) == 0
    page = capsys.readouterr().out
    assert all(f"• {name} " in page for name in COMMANDS)
