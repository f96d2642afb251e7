"""What a pickle mentions: everyday names are inert, names with power refuse the file, however they are written."""

from __future__ import annotations

import _compat_pickle
import collections
import dataclasses
import datetime
import functools
import itertools
import operator
import os
import pickle
import random
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from sharpscope.errors import UnsafeCheckpoint
from sharpscope.weights.checkpoint import read_checkpoint
from sharpscope.weights.files.dangerous import is_unsafe

STATE = {"visual.conv1.weight": torch.ones(4, 3, 2, 2), "visual.proj": torch.ones(4, 5), "logit_scale": torch.ones(())}

EVERYDAY: dict[str, Callable[[], Any]] = {
    "defaultdict(int)": lambda: collections.defaultdict(int, a=1),
    "a range": lambda: range(3),
    "types of a config": lambda: [typing.Any, int, str, float, type(None), typing.Callable],
    "generic types of a config": lambda: [list[int], typing.Sequence, typing.Mapping],
    "a field without a default": lambda: dataclasses.MISSING,
    "torch's random generator": torch.Generator,
    "numpy's random generators": lambda: [np.random.default_rng(0), np.random.RandomState(0)],
    "numpy's other generators": lambda: [np.random.Generator(g(1)) for g in (np.random.Philox, np.random.SFC64)],
    "Python's random generator": lambda: [random.Random(0), random.getstate()],
    "activation functions": lambda: [nn.functional.gelu, nn.functional.silu, torch.relu, torch.tanh, nn.GELU()],
    "partial functions": lambda: [functools.partial(nn.LayerNorm, eps=1e-6), functools.partial(int, base=2)],
    "a table": lambda: pd.DataFrame({"a": [1, 2], "b": ["x", "y"], "c": pd.Categorical(["u", "v"])}),
    "a table of dates": lambda: pd.DataFrame({"t": pd.to_datetime(["2020-01-01"])}),
    "a series and a time": lambda: [pd.Series([1.0]), pd.Timestamp("2020"), datetime.timedelta(1)],
    "numpy's odd arrays": lambda: [np.ma.array([1, 2]), np.rec.array([(1, 2)]), np.datetime64("2020"), np.exp],
    "a counter": itertools.count,
    "operators": lambda: [operator.add, operator.itemgetter(1), max, len],
    "an exception": lambda: ValueError("not finite"),
    "a scheduler": lambda: torch.optim.lr_scheduler.CosineAnnealingLR(
        torch.optim.SGD([nn.Parameter(torch.ones(1))]), 3
    ),
}


@pytest.mark.parametrize("name", EVERYDAY)
def test_everyday_neighbours_of_a_state_dict_are_inert(tmp_path: Path, name: str) -> None:
    for protocol in (2, 4):  # torch.save's own protocol, whose names are Python 2's, and the one in use
        torch.save({"state_dict": STATE, "x": EVERYDAY[name]()}, tmp_path / "a.pt", pickle_protocol=protocol)
        read = read_checkpoint(tmp_path / "a.pt")
        assert all(torch.equal(read.tensors[n], t) for n, t in STATE.items()) and read.facts["ignored"] == ["x"]


@pytest.mark.parametrize(
    "name",
    [
        "omegaconf.dictconfig.DictConfig", "omegaconf.base.ContainerMetadata", "hydra.core.config_store.ConfigNode",
        "typing.Union", "_operator.getitem", "enum.StrEnum", "zoneinfo.ZoneInfo._unpickle",
        "torch.distributed.tensor.DTensor", "torch.distributed.tensor.placement_types.Shard",
        "torch.distributed.device_mesh.DeviceMesh", "torch.distributed._mesh_layout._MeshLayout",
        "torch.nn.parallel.distributed.DistributedDataParallel", "torch.distributed.algorithms.join._JoinConfig",
        "torch.distributed.fsdp.api.ShardingStrategy", "torch.distributed.checkpoint.metadata.Metadata",
        "torch._C.Generator", "pandas.core.frame.DataFrame", "pandas._libs.internals._unpickle_block",
    ],
)  # fmt: skip
def test_names_of_configs_and_of_sharded_training_are_inert(name: str) -> None:
    module, _, attribute = name.rpartition(".")
    if module == "zoneinfo.ZoneInfo":
        module, attribute = "zoneinfo", "ZoneInfo._unpickle"
    assert not is_unsafe(module, attribute)


@pytest.mark.parametrize(
    "name",
    [
        "builtins.map", "builtins.filter", "builtins.open", "builtins.compile", "builtins.setattr", "builtins.vars",
        "builtins.globals", "builtins.breakpoint", "builtins.input", "functools.reduce", "_functools.reduce",
        "itertools.starmap", "operator.methodcaller", "operator.attrgetter", "_operator.call", "io.open",
        "_io.FileIO", "_io.open_code", "typing.get_type_hints", "typing.ForwardRef", "typing.ForwardRef._evaluate",
        "types.FunctionType", "types.CodeType", "types.MethodType", "pickle.loads", "_pickle.Unpickler",
        "marshal.loads", "code.interact", "importlib.import_module", "ctypes.CDLL", "socket.socket",
        "urllib.request.urlopen", "pty.spawn", "cProfile.run", "torch.serialization.load", "torch.jit.load",
        "torch.hub.load", "torch.compile", "torch.utils.cpp_extension.load",
        "torch.fx.graph_module.reduce_graph_module", "torch.distributed.distributed_c10d._tensor_to_object",
        "torch.distributed.checkpoint.format_utils.dcp_to_torch_save", "torch.distributed.fsdp.api.os.system",
        "torch.distributed.tensor._api.os.Popen.system", "torch._dynamo.config", "torch.package.PackageImporter",
        "numpy.load", "numpy.core._ufunc_reconstruct", "numpy.fromfile", "numpy.vectorize", "numpy.apply_along_axis",
        "numpy.f2py.compile", "pandas.read_csv", "pandas.eval", "pandas.core.computation.eval.eval",
        "pandas.core.computation.scope.Scope", "pandas.io.pickle.read_pickle", "pandas.HDFStore", "pandas.ExcelFile",
        "pandas.core.generic.pickle.loads", "torch.nn.modules.module.pickle.loads",
    ],
)  # fmt: skip
def test_names_with_power_are_refused(tmp_path: Path, name: str) -> None:
    """Those that call what they are given are among them: only with them would the result of a call be called."""
    module, _, attribute = name.rpartition(".")
    if attribute == "loads" and module.endswith(".pickle"):
        module, attribute = module.removesuffix(".pickle"), "pickle.loads"
    body = b"\x80\x02c" + module.encode() + b"\n" + attribute.encode() + b"\n."
    (tmp_path / "f").write_bytes(body)
    with pytest.raises(UnsafeCheckpoint, match="nothing was run") as caught:
        read_checkpoint(tmp_path / "f")
    assert name in str(caught.value) and len(str(caught.value).splitlines()) <= 3 and caught.value.exit_code == 3


def test_a_name_of_python_2_is_judged_as_what_it_stands_for() -> None:
    """A law over Python's own table of renamed things: the old name has the power of the new one."""
    for (old_module, old), (module, name) in _compat_pickle.NAME_MAPPING.items():
        assert is_unsafe(old_module, old) == is_unsafe(module, name), (old_module, old)
    for old, new in _compat_pickle.IMPORT_MAPPING.items():
        assert is_unsafe(old, "whatever") == is_unsafe(new, "whatever"), old
    assert is_unsafe("commands", "getoutput") and is_unsafe("urllib2", "urlopen")  # Python 3 has no such modules


def test_every_function_of_modules_that_reach_the_machine_is_refused() -> None:
    for module in (os, os.path, pickle, __import__("subprocess"), __import__("shutil"), __import__("importlib")):
        known = [n for n in dir(module) if not n.startswith("__")]
        assert len(known) > 5 and all(is_unsafe(module.__name__, n) for n in known)


def test_pickles_of_every_protocol_are_read(tmp_path: Path) -> None:
    """Protocols up to 2 have no bytes: a storage is Latin-1 text there, longer than any text that is kept in memory."""
    module = nn.Module()
    module.add_module("visual", nn.Linear(3000, 2500))  # 30 MB: text of that length is beyond the budget
    for protocol in (2, 3, 5):
        with open(tmp_path / "a.pkl", "wb") as file:
            pickle.dump(module, file, protocol=protocol)
        read = read_checkpoint(tmp_path / "a.pkl")
        assert torch.equal(read.tensors["visual.weight"], module.get_parameter("visual.weight"))
    data = (tmp_path / "a.pkl").read_bytes()
    assert len(data) > 30_000_000
