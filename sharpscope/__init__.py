"""sharpscope: layer-wise sharpness along the path between a zero-shot CLIP and its fine-tuned version.

In a notebook:

    pair = sharpscope.load_pair("mini:zeroshot", "mini:success", model="mini")
    probe = sharpscope.Probe(pair.classifier, sharpscope.load_dataset("mini:photo", model=pair.model, split="train"))
    table = sharpscope.layer_sharpness(pair, probe, alphas=(0, 0.5, 1), measures=("hessian_trace", "lambda_max"))

``run(StudyConfig(...))`` does a whole study; ``finetune``, ``evaluate``, ``interpolate``, ``sparsify``, ``merge``,
``fisher``, ``inspect``, ``convert``, ``plan``, ``correlate``, ``robustness``, ``advise`` and ``paper_table`` are its
steps, each alone. ``layer_curvature`` measures any module with any loss. Every error raised on purpose is a
``SharpscopeError``. The estimators themselves are in ``sharpscope.curvature``, the statistics in
``sharpscope.findings``, other systems' result files in ``sharpscope.exchange``.

A public name is imported when it is first used: ``import sharpscope`` costs nothing, torch comes with the first name
that needs it. ``sharpscope.plot`` has the figures, each a function from tables to something that shows itself.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from sharpscope.vocabulary import __version__

if TYPE_CHECKING:
    from sharpscope import curvature as curvature
    from sharpscope import exchange as exchange
    from sharpscope import findings as findings
    from sharpscope import plot as plot
    from sharpscope import weights as weights
    from sharpscope.clip.datasets.dataset import Dataset
    from sharpscope.clip.datasets.spec import load_dataset, register_dataset
    from sharpscope.clip.ensembling import evaluate_ensemble
    from sharpscope.clip.evaluate import evaluate
    from sharpscope.clip.export import convert, interpolate, sparsify
    from sharpscope.clip.head import Classifier
    from sharpscope.clip.inspect import inspect
    from sharpscope.clip.model import ClipModel
    from sharpscope.clip.pair import LoadedPair, load_pair
    from sharpscope.clip.probe import Probe
    from sharpscope.config.plugins import load_plugin
    from sharpscope.config.protocol import ProtocolConfig
    from sharpscope.config.study import PairConfig, StudyConfig
    from sharpscope.config.sweep import SweepConfig, SweepTrial, load_sweep
    from sharpscope.curvature.density import SpectralDensity
    from sharpscope.curvature.eigen import EigenEstimate, ExtremeEigenvalues
    from sharpscope.curvature.hessianoperator import HessianOperator
    from sharpscope.curvature.hvp import HessianEngine
    from sharpscope.curvature.measures.own import LayerAt, LayerValue, register_measure
    from sharpscope.curvature.measures.rows import MeasureSettings
    from sharpscope.curvature.pairs import EigenPairs
    from sharpscope.curvature.perturbation import SharpnessEstimate
    from sharpscope.curvature.slices import random_direction
    from sharpscope.curvature.trace import TraceEstimate
    from sharpscope.errors import (
        CheckpointError,
        ConfigError,
        CorruptCheckpoint,
        DatasetError,
        IdenticalPair,
        NoClassNames,
        NoData,
        NonDeterministicProbe,
        NonFiniteWeights,
        NumericalError,
        PairMismatch,
        ResultsError,
        RunDirectoryError,
        SharpscopeError,
        UnsafeCheckpoint,
    )
    from sharpscope.exchange.reading import read_results
    from sharpscope.findings.criteria import register_criterion
    from sharpscope.findings.papertables import PaperTable
    from sharpscope.finetuning.method import Method
    from sharpscope.finetuning.registry import register_method
    from sharpscope.finetuning.run import Tuned, finetune
    from sharpscope.layers import Layer
    from sharpscope.notebook import ModuleLoss, layer_curvature, layer_sharpness, loss_slice
    from sharpscope.study.across import correlate, robustness
    from sharpscope.study.advise import Advice, advise
    from sharpscope.study.doctor import doctor
    from sharpscope.study.fishers import FisherFiles, fisher
    from sharpscope.study.merging import Merged, merge
    from sharpscope.study.papertables import paper_table
    from sharpscope.study.plan import plan
    from sharpscope.study.protocols.run import FinishedProtocol, run_protocol
    from sharpscope.study.report import Run, report
    from sharpscope.study.run import run
    from sharpscope.study.sweep import FinishedSweep, run_sweep
    from sharpscope.weights.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
    from sharpscope.weights.path import InterpolationPath

__all__ = [
    "Advice",
    "Checkpoint",
    "CheckpointError",
    "Classifier",
    "ClipModel",
    "ConfigError",
    "CorruptCheckpoint",
    "Dataset",
    "DatasetError",
    "EigenEstimate",
    "EigenPairs",
    "ExtremeEigenvalues",
    "FinishedProtocol",
    "FinishedSweep",
    "FisherFiles",
    "HessianEngine",
    "HessianOperator",
    "IdenticalPair",
    "InterpolationPath",
    "Layer",
    "LayerAt",
    "LayerValue",
    "LoadedPair",
    "MeasureSettings",
    "Merged",
    "Method",
    "ModuleLoss",
    "NoClassNames",
    "NoData",
    "NonDeterministicProbe",
    "NonFiniteWeights",
    "NumericalError",
    "PairConfig",
    "PairMismatch",
    "PaperTable",
    "Probe",
    "ProtocolConfig",
    "ResultsError",
    "Run",
    "RunDirectoryError",
    "SharpnessEstimate",
    "SharpscopeError",
    "SpectralDensity",
    "StudyConfig",
    "SweepConfig",
    "SweepTrial",
    "TraceEstimate",
    "Tuned",
    "UnsafeCheckpoint",
    "__version__",
    "advise",
    "convert",
    "correlate",
    "doctor",
    "evaluate",
    "evaluate_ensemble",
    "finetune",
    "fisher",
    "inspect",
    "interpolate",
    "layer_curvature",
    "layer_sharpness",
    "load_dataset",
    "load_pair",
    "load_plugin",
    "load_sweep",
    "loss_slice",
    "merge",
    "paper_table",
    "plan",
    "random_direction",
    "read_checkpoint",
    "read_results",
    "register_criterion",
    "register_dataset",
    "register_measure",
    "register_method",
    "report",
    "robustness",
    "run",
    "run_protocol",
    "run_sweep",
    "sparsify",
    "write_checkpoint",
]

_ROOMS = ("curvature", "exchange", "findings", "plot", "weights")
"""The modules that ``import sharpscope`` opens when they are first used."""

# Type checkers read the imports above, Python this table; tests/test_public.py holds them, and __all__, equal.
_HOME = {
    name: f"sharpscope.{module}"
    for module, names in {
        "clip.datasets.dataset": "Dataset",
        "clip.datasets.spec": "load_dataset register_dataset",
        "clip.ensembling": "evaluate_ensemble",
        "clip.evaluate": "evaluate",
        "clip.export": "convert interpolate sparsify",
        "clip.head": "Classifier",
        "clip.inspect": "inspect",
        "clip.model": "ClipModel",
        "clip.pair": "LoadedPair load_pair",
        "clip.probe": "Probe",
        "config.plugins": "load_plugin",
        "config.protocol": "ProtocolConfig",
        "config.study": "PairConfig StudyConfig",
        "config.sweep": "SweepConfig SweepTrial load_sweep",
        "curvature.density": "SpectralDensity",
        "curvature.eigen": "EigenEstimate ExtremeEigenvalues",
        "curvature.hessianoperator": "HessianOperator",
        "curvature.hvp": "HessianEngine",
        "curvature.measures.own": "LayerAt LayerValue register_measure",
        "curvature.measures.rows": "MeasureSettings",
        "curvature.pairs": "EigenPairs",
        "curvature.perturbation": "SharpnessEstimate",
        "curvature.slices": "random_direction",
        "curvature.trace": "TraceEstimate",
        "errors": (
            "CheckpointError ConfigError CorruptCheckpoint DatasetError IdenticalPair NoClassNames NoData "
            "NonDeterministicProbe NonFiniteWeights NumericalError PairMismatch ResultsError RunDirectoryError "
            "SharpscopeError UnsafeCheckpoint"
        ),
        "exchange.reading": "read_results",
        "findings.criteria": "register_criterion",
        "findings.papertables": "PaperTable",
        "finetuning.method": "Method",
        "finetuning.registry": "register_method",
        "finetuning.run": "Tuned finetune",
        "layers": "Layer",
        "notebook": "ModuleLoss layer_curvature layer_sharpness loss_slice",
        "study.across": "correlate robustness",
        "study.doctor": "doctor",
        "study.advise": "Advice advise",
        "study.papertables": "paper_table",
        "study.fishers": "FisherFiles fisher",
        "study.merging": "Merged merge",
        "study.plan": "plan",
        "study.protocols.run": "FinishedProtocol run_protocol",
        "study.report": "Run report",
        "study.run": "run",
        "study.sweep": "FinishedSweep run_sweep",
        "weights.checkpoint": "Checkpoint read_checkpoint write_checkpoint",
        "weights.path": "InterpolationPath",
    }.items()
    for name in names.split()
}


if not TYPE_CHECKING:  # else a type checker would take every misspelt name for Any

    def __getattr__(name: str) -> Any:
        if name in _ROOMS:
            return importlib.import_module(f"sharpscope.{name}")
        if name not in _HOME:
            raise AttributeError(f"module 'sharpscope' has no attribute {name!r}")
        value = getattr(importlib.import_module(_HOME[name]), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_ROOMS})
