"""``run --slurm``: what is submitted, what a job does, what is refused."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest
import submitit

from sharpscope.cli import main as cli
from sharpscope.cli.slurm import Job, Settings, submit
from sharpscope.config import studyfile
from sharpscope.errors import ConfigError, SharpscopeError

PAIR = ["--zeroshot", "mini:zeroshot", "--finetuned", "mini:success", "--model", "mini", "--id", "mini:photo"]


@pytest.fixture
def submitted(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What goes to submitit, in its order; nothing is started."""
    told: list[Any] = []

    class Executor(submitit.AutoExecutor):
        def __init__(self, folder: str, cluster: str) -> None:
            told.append((folder, cluster))
            super().__init__(folder, "debug" if cluster == "slurm" else cluster)

        def update_parameters(self, **parameters: Any) -> None:
            told.append(parameters)

        def submit(self, job: Any) -> Any:
            told.append(job)
            return super().submit(job)

    monkeypatch.setattr(submitit, "AutoExecutor", Executor)
    return told


def test_four_gpus_are_four_jobs_on_one_run_directory(submitted, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    flags = ["--seed", "7", "--out", "runs/x"]
    assert cli.main(["run", *PAIR, *flags, "--slurm", "partition=gpu", "gpus=4", "time=120", "memory=1.5"]) == 0
    place, parameters, *jobs = submitted
    folder = tmp_path / "runs" / "x" / "slurm"
    assert place == (str(folder / "%j"), "slurm")
    assert parameters == {
        "name": "sharpscope", "slurm_partition": "gpu", "timeout_min": 120, "mem_gb": 1.5, "gpus_per_node": 1,
    }  # fmt: skip
    assert len(jobs) == 4 and len(set(jobs)) == 1
    told = capsys.readouterr().out
    assert told.startswith("submitted 4 jobs: ") and told.splitlines()[0].count(",") == 3
    command = cli.parse(jobs[0].arguments)
    wanted = cli.parse(["run", *PAIR, *flags])
    assert command.config() == wanted.config() and command.folder() == str(tmp_path / "runs" / "x")
    assert sorted(p.name for p in (tmp_path / "runs" / "x").iterdir()) == ["slurm"]
    submit(wanted.config(), "y", Settings.read(["jobs=1", "time=5"]), ["own.py"])
    assert "gpus_per_node" not in submitted[-2] and submitted[-1].arguments[-2:] == (
        "--plugin",
        str(tmp_path / "own.py"),
    )


def test_jobs_of_the_local_executor_run_the_command_and_fail_as_it_does(tmp_path):
    executor = submitit.AutoExecutor(folder=str(tmp_path / "%j"), cluster="local")
    executor.update_parameters(timeout_min=2)
    good, bad = executor.submit(Job(("list", "measures"))), executor.submit(Job(("list", "nothing")))
    good.result()
    assert "hessian_trace" in good.stdout()
    with pytest.raises(submitit.core.utils.FailedJobError, match="exit code 2"):
        bad.result()
    assert "sharpscope: error: " in bad.stderr()


def test_the_jobs_of_a_study_finish_it(smallest_study, tmp_path, monkeypatch):
    """submitit's executor that runs jobs in this process, when their results are asked for."""
    ran, main = [], cli.main
    monkeypatch.setattr(cli, "main", lambda arguments: ran.append(arguments) or 0)
    folder = tmp_path / "run"
    assert main(["run", str(smallest_study), "--out", str(folder), "--slurm", "jobs=2", "time=9", "cluster=debug"]) == 0
    study = studyfile.load(folder / "slurm" / "study.yaml")
    assert study == studyfile.load(smallest_study)
    job = Job(("run", str(folder / "slurm" / "study.yaml"), "--out", str(folder)))
    assert job() is None and ran == [job.arguments]
    again = job.checkpoint()
    assert again.function == job, "queued again, it is the same command, which resumes"


@pytest.fixture
def smallest_study(tmp_path: Path) -> Path:
    path = tmp_path / "study.yaml"
    path.write_text(
        "model: mini\nid: [mini:photo]\npairs: [{name: a, zeroshot: mini:zeroshot, finetuned: mini:small}]\n"
    )
    return path


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("gpu=4", "Did you mean 'gpus'?"),
        ("gpus", "'gpus' has no value"),
        ("gpus=0", "gpus needs a whole number of at least 1, got '0'"),
        ("gpus=4 gpus=5", "'gpus' is given twice"),
        ("gpus=4 time=1.5", "time needs a whole number of at least 1, got '1.5'"),
        ("gpus=4 memory=-1", "memory needs a number above 0"),
        ("gpus=4 memory=nan", "memory needs a number above 0"),
        ("gpus=4 memory=much", "memory needs a number above 0"),
        ("gpus=4 jobs=4", "and not both"),
        ("gpus=4", "time=MINUTES is missing"),
        ("partition=gpu", "give gpus=N for N jobs with a GPU each"),
    ],
)
def test_settings_that_mean_nothing_are_refused(words, said, tmp_path, monkeypatch, capsys):
    with pytest.raises(ConfigError, match=r"slurm: ") as caught:
        Settings.read(words.split())
    assert said in str(caught.value) and len(str(caught.value).splitlines()) <= 3
    monkeypatch.chdir(tmp_path)
    assert cli.main(["run", *PAIR, "--slurm", *words.split()]) == 2
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_submitted_is_one_error(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    argv = ["run", *PAIR, "--slurm", "gpus=1", "time=9"]
    assert cli.main([*argv, "--shard", "1/2"]) == 2
    assert "leave --shard out" in capsys.readouterr().err
    assert cli.main([*argv, "cluster=nowhere"]) == 2
    assert (
        "slurm: nothing was submitted: AutoExecutor doesn't know any executor named nowhere" in capsys.readouterr().err
    )
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(ImportError):
        importlib.import_module("submitit")
    assert cli.main(argv) == 2
    assert capsys.readouterr().err.endswith("Remedy: pip install 'sharpscope[slurm]'\n")


def test_a_job_that_ends_badly_says_so(monkeypatch):
    monkeypatch.setattr(cli, "main", lambda _: 1)
    with pytest.raises(SharpscopeError, match="exit code 1"):
        Job(("run",))()


def test_jobs_write_no_curves(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["run", *PAIR, "--slurm", "jobs=2", "time=1", "--track", "tensorboard"]) == 2
    assert "the jobs of --slurm write no curves" in capsys.readouterr().err
