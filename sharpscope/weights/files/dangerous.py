"""Which names in a pickle have power over the machine: they refuse a file, all others in it are inert.

Nothing is run here in any case; the verdict is on what another program, which unpickles the file, would do. A name has
power if what it means can run code, start a program, open a file or a connection, import by name, unpickle, or call a
function that it is given. Whole packages without power are foreign classes and need no list. Of packages that do have
it (the standard library, torch, numpy, pandas) only names known to be without power are let through: data types,
configs, random generators, tables, activation functions, and what describes how training was spread over devices.
"""

from __future__ import annotations

import builtins
import re
import sys
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from typing import Final

__all__ = ["is_unsafe"]

_HARMLESS: Final[dict[str, frozenset[str]]] = {
    module: frozenset(names.split())
    for module, names in {
        "_codecs": "encode",
        "_io": "BytesIO StringIO",
        "argparse": "Namespace",
        "array": "array _array_reconstructor",
        "builtins": "set frozenset list dict tuple bytearray bytes complex slice range object int float bool str type "
        "getattr Ellipsis NotImplementedType NoneType NotImplemented abs all any bin chr divmod enumerate hash hex "
        "len max memoryview min oct ord pow repr reversed round sorted sum zip",
        "collections": "OrderedDict Counter defaultdict deque ChainMap UserDict UserList UserString",
        "copyreg": "_reconstructor __newobj__ __newobj_ex__",
        "dataclasses": "_MISSING_TYPE _FIELD_BASE Field _HAS_DEFAULT_FACTORY_CLASS",
        "datetime": "datetime date time timedelta timezone",
        "decimal": "Decimal",
        "enum": "Enum IntEnum StrEnum Flag IntFlag auto",
        "fractions": "Fraction",
        "functools": "partial",
        "inspect": "_empty _ParameterKind Parameter Signature",
        "io": "BytesIO StringIO",
        "itertools": "count cycle repeat",
        "logging": "getLogger Logger Formatter",
        "math": "sqrt exp log log2 log10 log1p expm1 floor ceil trunc sin cos tan tanh erf pi e inf nan",
        "numbers": "Number Complex Real Rational Integral",
        "pathlib": "Path PosixPath WindowsPath PurePath PurePosixPath PureWindowsPath",
        "pathlib._local": "Path PosixPath WindowsPath PurePath PurePosixPath PureWindowsPath",
        "random": "Random",
        "re": "_compile compile",
        "string": "Formatter Template",
        "time": "struct_time",
        "types": "SimpleNamespace GenericAlias UnionType NoneType EllipsisType NotImplementedType MappingProxyType",
        "typing": "OrderedDict NamedTuple Any Union Optional List Dict Tuple Set FrozenSet Type Callable Literal Final "
        "ClassVar Sequence Mapping MutableMapping MutableSequence Iterable Iterator Generator Collection Container "
        "Hashable Sized DefaultDict Deque Counter Generic TypeVar Protocol NoReturn Never Self Annotated Text AnyStr "
        "SupportsFloat SupportsInt SupportsAbs",
        "urllib.parse": "ParseResult SplitResult",
        "uuid": "UUID SafeUUID",
        "zoneinfo": "ZoneInfo ZoneInfo._unpickle",
    }.items()
}
_OPERATORS: Final = frozenset((
    "abs", "add", "and_", "contains", "eq", "floordiv", "ge", "getitem", "gt", "index", "invert", "is_", "is_not", "le",
    "lshift", "lt", "matmul", "mod", "mul", "ne", "neg", "not_", "or_", "pos", "pow", "rshift", "sub", "truediv",
    "truth", "xor", "itemgetter",
))  # fmt: skip
"""``operator.`` and ``_operator.``; attrgetter, methodcaller and call are functions that call."""
_EXCEPTIONS: Final = frozenset(
    n for n, v in vars(builtins).items() if isinstance(v, type) and issubclass(v, BaseException)
)
_FUNCTIONS: Final = (
    r"gelu|relu6?|relu_|elu|elu_|selu|celu|silu|silu_|mish|tanh|sigmoid|logsigmoid|log_sigmoid|softplus|softsign|"
    r"softmax|log_softmax|softmin|hardswish|hardsigmoid|hardtanh|leaky_relu|leaky_relu_|rrelu|prelu|threshold|erf|sin|"
    r"cos|exp|log|sqrt|square|abs|sum|mean|max|min|norm|clamp|identity"
)
_HARMLESS_PATTERN: Final = re.compile(
    rf"""torch\.(
        (nn|optim|amp|cuda\.amp|distributions|utils\.data|ao\.nn|jit\._pickle)\..*
        | (storage\.)?\w*Storage | storage\._load_from_bytes | cuda\.\w+Storage | [a-z]+\d\w*
        | bool | half | double | long | Tensor | Size | device | Generator | strided | sparse_\w+ | preserve_format
        | contiguous_format | channels_last | channels_last_3d | finfo | iinfo | dtype | layout | memory_format
        | per_(tensor|channel)_\w+ | {_FUNCTIONS}
        | _utils\._rebuild_\w+ | _tensor\._rebuild_from_type_v2 | serialization\._get_layout
        | torch_version\.TorchVersion | autograd\.grad_mode\.\w+
        | functional\.(norm|einsum|cdist)
        | _C\.(Generator|TensorBase|Size|_VariableFunctions(Class)?) | _C\._nn\.\w+ | _C\._autograd\.DeviceType
        | _C\._distributed_c10d\.(ReduceOp(\.\w+)?|ProcessGroup|Backend(Type)?|Store)
        | distributed\.(tensor|_tensor|device_mesh|_mesh_layout|fsdp|_shard|_composable|algorithms)(\.\w+)*\._?[A-Z]\w*
        | distributed\.checkpoint\.(metadata|filesystem|state_dict|default_planner|planner)\._?[A-Z]\w*
        | distributed\.distributed_c10d\.(ProcessGroup|Backend|GroupMember|ReduceOp(\.\w+)?)
        | fx\.immutable_collections\.\w+
    )$
    | numpy\.(
        (_?core\.)?multiarray\.(scalar|_reconstruct) | _core\.numeric\._frombuffer | core\.numeric\._frombuffer
        | dtype | ndarray | bool_? | (float|int|uint|complex)\d* | str_ | bytes_ | dtypes\.\w+
        | half | single | double | longdouble | intc | intp | void | record | recarray | matrix | generic | number
        | integer | floating | datetime64 | timedelta64 | (rec|_?core\.records|_core\.records)\.(recarray|record)
        | ma\.(core\.)?(_mareconstruct|MaskedArray|MaskedConstant)
        | random\.(_pickle|mtrand|_mt19937|_pcg64|_philox|_sfc64|_generator|bit_generator)\.\w+
        | exp | log | log2 | log10 | log1p | sqrt | square | sin | cos | tan | tanh | abs(olute)? | fabs | add
        | subtract | multiply | divide | true_divide | power | maximum | minimum | mean | std | var | median | sum
        | prod | max | min | amax | amin | argmax | argmin | clip | round | floor | ceil | sign
    )$
    | pandas\.(
        core\.(?!computation\b).*
        | _libs\.(internals|arrays|sparse|interval|missing|tslibs(\.\w+)?)\.\w+
        | DataFrame | Series | (Range|Multi|Categorical|Datetime|Timedelta|Period|Interval)?Index | Categorical | NA
        | NaT | Timestamp | Timedelta | Period | Interval | (arrays\.)?\w+Dtype | arrays\.\w+Array
    )$""",
    re.VERBOSE,
)
_JUDGED: Final = frozenset({"torch", "numpy", "pandas"})
"""Packages whose harmless names are listed above; of what is in no list, nothing is let through."""
_RUNNERS: Final = frozenset((
    "cloudpickle", "dill", "joblib", "pip", "setuptools", "pkg_resources", "cffi", "paramiko", "fabric",
    "requests", "httpx", "aiohttp", "urllib3", "pexpect", "sh", "plumbum", "webbrowser", "IPython", "nt",
    "__builtin__", "__main__.os", "tensorflow", "keras", "jaxlib", "ray", "pyximport", "numba", "cupy"
))  # fmt: skip
"""Packages that exist to run, fetch or unpickle something: their names in a checkpoint mean code."""
_SUSPICIOUS: Final = frozenset((
    "os", "sys", "subprocess", "system", "popen", "eval", "exec", "execfile", "compile", "__import__",
    "importlib", "builtins", "__builtins__", "__globals__", "__subclasses__", "__reduce__", "__getattribute__",
    "__class__", "__code__", "posix", "socket", "ctypes", "spawn", "fork", "execv"
))  # fmt: skip


def is_unsafe(module: str, name: str) -> bool:
    """Whether ``module.name`` in a pickle has power, or is of a package that has and not known to be without.

    Names of Python 2, which pickles up to protocol 2 have (``__builtin__.long``, ``copy_reg``), are those of Python 3
    that they stand for.

    >>> is_unsafe("os", "system"), is_unsafe("src.models.modeling", "ImageClassifier")
    (True, False)
    >>> is_unsafe("__builtin__", "xrange"), is_unsafe("__builtin__", "reduce")
    (False, True)
    """
    module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
    if module == "__builtin__":
        module = "builtins"
    top = module.partition(".")[0]
    full = f"{module}.{name}"
    if not sys.stdlib_module_names.isdisjoint(name.split(".")[:-1]):  # reached through a module that imports it
        return True
    if name in _HARMLESS.get(module, ()) or (module == "builtins" and name in _EXCEPTIONS):
        return False
    if module in ("operator", "_operator") and name in _OPERATORS:
        return False
    if top in sys.stdlib_module_names or top in _RUNNERS:
        return top != "__main__"
    if top in _JUDGED and not _HARMLESS_PATTERN.match(full):
        return True
    return not _SUSPICIOUS.isdisjoint(full.split(".")) or not full.isprintable()
