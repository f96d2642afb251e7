"""``run --slurm``: the same command as several jobs of a scheduler, which share the units of one run directory."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from sharpscope.atomic import write_atomic, writing
from sharpscope.cli.outcome import Outcome
from sharpscope.config import studyfile
from sharpscope.config.study import StudyConfig
from sharpscope.errors import ConfigError, SharpscopeError, did_you_mean, shown

__all__ = ["Job", "Settings", "submit"]


def _count(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise ValueError("a whole number of at least 1")
    return int(text)


def _amount(text: str) -> float:
    try:
        amount = float(text)
    except ValueError:
        amount = 0.0
    if not 0 < amount < float("inf"):
        raise ValueError("a number above 0")
    return amount


_KEYS: Final[dict[str, tuple[str, Callable[[str], Any]]]] = {
    "gpus": ("", _count),
    "jobs": ("", _count),
    "cluster": ("", str),
    "time": ("timeout_min", _count),
    "cpus": ("cpus_per_task", _count),
    "memory": ("mem_gb", _amount),
    "partition": ("slurm_partition", str),
    "account": ("slurm_account", str),
    "qos": ("slurm_qos", str),
    "constraint": ("slurm_constraint", str),
}
"""Key of ``--slurm`` -> (submitit's parameter; empty where the key says something else, how its value is read)."""


@dataclass(frozen=True)
class Settings:
    """What ``--slurm`` asks for: ``jobs`` jobs with ``parameters``, on submitit's ``cluster``."""

    jobs: int
    parameters: dict[str, Any]
    cluster: str = "slurm"

    @classmethod
    def read(cls, words: Sequence[str]) -> Settings:
        """The settings in ``KEY=VALUE`` words; raises ConfigError."""
        values: dict[str, Any] = {}
        for word in words:
            key, _, text = word.partition("=")
            if key not in _KEYS:
                known = f"Known: {', '.join(_KEYS)}."
                raise ConfigError(
                    f"slurm: '{shown(word, 60)}' is no KEY=VALUE that is known.{did_you_mean(key, _KEYS)}\n{known}"
                )
            if key in values or not text:
                raise ConfigError(f"slurm: '{key}' {'is given twice' if key in values else 'has no value'}.")
            try:
                values[key] = _KEYS[key][1](text)
            except ValueError as error:
                raise ConfigError(f"slurm: {key} needs {error}, got '{shown(text, 40)}'.") from None
        if ("gpus" in values) == ("jobs" in values):
            raise ConfigError(
                "slurm: give gpus=N for N jobs with a GPU each, or jobs=N for N jobs without one, and not both."
            )
        if "time" not in values:  # submitit's own default is five minutes
            raise ConfigError(
                "slurm: time=MINUTES is missing, the longest that a job may take before it is queued again."
            )
        parameters = {_KEYS[key][0]: value for key, value in values.items() if _KEYS[key][0]}
        if "gpus" in values:
            parameters["gpus_per_node"] = 1
        return cls(values.get("gpus", 0) + values.get("jobs", 0), parameters, values.get("cluster", "slurm"))


@dataclass(frozen=True)
class Job:
    """A command as a job. One that the scheduler stops for its time or for another job is queued again and resumes."""

    arguments: tuple[str, ...]

    def __call__(self) -> None:
        from sharpscope.cli.main import main

        if code := main(self.arguments):
            raise SharpscopeError(f"sharpscope ended with exit code {code}; the job's log says why.")

    def checkpoint(self) -> Any:
        """What submitit queues again."""
        return _submitit().helpers.DelayedSubmission(self)


def submit(config: StudyConfig, out: str, settings: Settings, plugins: Sequence[str] = ()) -> Outcome:
    """Submit the run of ``config`` in ``out``; its study file and the jobs' logs lie in ``out``/slurm.

    Raises ConfigError where submitit is missing or knows no such cluster, RunDirectoryError where nothing can be
    written.
    """
    submitit = _submitit()
    folder = Path(out).absolute() / "slurm"
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / "study.yaml", studyfile.dump(config).encode())
    files = [str(Path(path).absolute()) for path in plugins]
    job = Job(
        ("run", str(folder / "study.yaml"), "--out", str(folder.parent), *(["--plugin", *files] if files else []))
    )
    try:
        executor = submitit.AutoExecutor(folder=str(folder / "%j"), cluster=settings.cluster)
        executor.update_parameters(name="sharpscope", **settings.parameters)
        with executor.batch():  # one array
            jobs = [executor.submit(job) for _ in range(settings.jobs)]
    except (ValueError, RuntimeError, OSError, submitit.core.utils.FailedJobError) as error:
        raise ConfigError(f"slurm: nothing was submitted: {shown(error, 300)}") from error
    names = ", ".join(str(job.job_id) for job in jobs)
    return Outcome(
        f"submitted {len(jobs)} jobs: {names}\nlogs: {folder}\nsharpscope status {folder.parent} says how far they are."
    )


def _submitit() -> Any:
    try:
        return importlib.import_module("submitit")
    except ImportError:
        raise ConfigError(
            "slurm: needs submitit, which is not installed.\nRemedy: pip install 'sharpscope[slurm]'"
        ) from None
