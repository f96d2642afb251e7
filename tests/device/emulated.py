"""An accelerator that is not there: placement errors and host synchronisations of sharpscope, found on a CPU.

    python emulated.py            # planted mistakes, all of them found

    with Emulated() as device:
        ...                       # the code under test, told to use "cuda"
    print(device.report())

Numbers and autograd stay those of plain CPU tensors (double backward, custom functions and functional_call included);
what is emulated is where a tensor lives. Every storage is known as one of three: on the device (made by ``.to``,
``.cuda`` or a factory with ``device="cuda"``, or computed from such), on the host (everything else that Python made),
or free (made inside torch, which knows where it belongs).

- Reported as errors, as CUDA would raise: an operation on tensors of both kinds (a 0-dimensional host tensor may enter
  an elementwise one, a
  host tensor may index), ``numpy()`` of a device tensor, a host generator for random numbers on the device.
- Counted as synchronisations: ``item``, ``bool``, ``float``, ``tolist``, ``equal``, boolean indexing, copies to the
  host; and as copies:
  blocking copies to the device.

Each with the innermost line of sharpscope. ``strict=True`` raises at the first error. Not emulated: kernels that CUDA
lacks, memory, other bits, streams; tensors inside functorch transforms are not looked at.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from unittest import mock

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

DEVICE, HOST, FREE = "device", "host", "free"
GIB = 2**30

# Operations that take no host tensor beside device tensors, not even one of no dimension.
STRICT = {
    "cat",
    "stack",
    "mm",
    "bmm",
    "addmm",
    "baddbmm",
    "baddbmm_",
    "addbmm",
    "mv",
    "dot",
    "linear",
    "gather",
    "scatter",
    "scatter_add",
    "scatter_",
    "scatter_add_",
    "scatter_reduce",
    "index_select",
    "index_copy",
    "index_add",
    "embedding",
    "searchsorted",
    "convolution",
    "nll_loss_forward",
    "native_layer_norm",
    "native_batch_norm",
    "linalg_vecdot",
    "_foreach_add_",
    "_cdist_forward",
}
MAKERS = {
    "zeros",
    "ones",
    "empty",
    "full",
    "rand",
    "randn",
    "randint",
    "randperm",
    "arange",
    "linspace",
    "logspace",
    "eye",
    "tensor",
    "as_tensor",
    "asarray",
    "scalar_tensor",
    "tril_indices",
    "triu_indices",
    "zeros_like",
    "ones_like",
    "empty_like",
    "full_like",
    "rand_like",
    "randn_like",
    "randint_like",
    "new_zeros",
    "new_ones",
    "new_empty",
    "new_full",
    "new_tensor",
    "empty_strided",
    "complex",
    "frombuffer",
    "hann_window",
    "normal",
}
LIKE = {n for n in MAKERS if n.endswith("_like") or n.startswith("new_")}
SYNCHRONISE = {
    "_local_scalar_dense",
    "item",
    "equal",
    "nonzero",
    "masked_select",
    "is_nonzero",
    "_unique2",
    "unique_dim",
    "unique_consecutive",
}
RANDOM = {
    "normal_",
    "uniform_",
    "random_",
    "bernoulli_",
    "exponential_",
    "geometric_",
    "log_normal_",
    "cauchy_",
    "multinomial",
    "bernoulli",
}


def tensors_in(value):
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from tensors_in(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from tensors_in(item)


def on_device(value):
    """Whether this names the emulated device; None where it names none."""
    if isinstance(value, int) and not isinstance(value, bool):
        return True
    if isinstance(value, str):
        value = torch.device(value)
    return value.type == "cuda" if isinstance(value, torch.device) else None


class Emulated:
    """See the module. ``label``: what is being done, for the report; ``free``: bytes that the device says are free."""

    def __init__(self, *, strict=False, free=4 * GIB, package="sharpscope"):
        self.strict, self.free, self.package, self.label = strict, free, package, ""
        self.errors, self.synchronisations, self.copies = Counter(), Counter(), Counter()
        self.device = torch.device("cuda", 0)
        self._kinds, self._lock, self._stack = {}, threading.RLock(), None

    # ------------------------------------------------------------------ where a tensor lives
    def kind(self, t):
        try:
            key = t.untyped_storage()._cdata
        except (RuntimeError, NotImplementedError):
            return FREE
        with self._lock:
            found = self._kinds.get(key)
            if found is None:
                return HOST
            if found[0].expired():
                del self._kinds[key]
                return HOST
            return found[1]

    def put(self, value, kind):
        """Note where every tensor of ``value`` lives."""
        for t in tensors_in(value):
            try:
                storage = t.untyped_storage()
            except (RuntimeError, NotImplementedError):
                continue
            with self._lock:
                self._kinds[storage._cdata] = (StorageWeakRef(storage), kind)
                if len(self._kinds) % 20000 == 0:
                    self._kinds = {k: v for k, v in self._kinds.items() if not v[0].expired()}
        return value

    # ------------------------------------------------------------------ what is noted
    def where(self):
        """(file:line in function) of the innermost frame of the package."""
        frame = sys._getframe(2)
        while frame is not None:
            name = frame.f_code.co_filename
            if f"/{self.package}/" in name:
                short = self.package + name.rpartition(f"/{self.package}")[2]
                return f"{short}:{frame.f_lineno} {frame.f_code.co_name}"
            frame = frame.f_back
        return "(outside)"

    def error(self, what):
        place = self.where()
        with self._lock:
            self.errors[self.label, place, what] += 1
        if self.strict:
            raise RuntimeError(f"{what} at {place}")

    def synchronised(self, what):
        with self._lock:
            self.synchronisations[self.label, self.where(), what] += 1

    def copied(self, what):
        with self._lock:
            self.copies[self.label, self.where(), what] += 1

    def report(self, least=1):
        """All of it as text, the most frequent first."""
        lines = []
        for title, found in (
            ("errors", self.errors),
            ("synchronisations", self.synchronisations),
            ("blocking copies to the device", self.copies),
        ):
            together = Counter()
            labels = {}
            for (label, place, what), n in found.items():
                together[place, what] += n
                labels.setdefault((place, what), Counter())[label] += n
            lines.append(f"{title}: {sum(found.values())} at {len(together)} places")
            for (place, what), n in together.most_common():
                if n >= least:
                    during = ", ".join(f"{k} {v}" for k, v in labels[place, what].most_common(4))
                    lines.append(f"  {n:>7}  {place}: {what}  [{during}]")
        return "\n".join(lines)

    # ------------------------------------------------------------------ entering
    @contextlib.contextmanager
    def inside(self):
        """The modes alone: for another thread."""
        with _Functions(self), _Operations(self):
            yield

    def __enter__(self):
        stack = self._stack = contextlib.ExitStack()
        real_autocast, real_enabled, real_submit = torch.autocast, torch.is_autocast_enabled, ThreadPoolExecutor.submit

        def autocast(device_type, *args, **kwargs):
            return real_autocast("cpu" if device_type == "cuda" else device_type, *args, **kwargs)

        def enabled(*args):
            return real_enabled(*("cpu" if a == "cuda" else a for a in args))

        def submit(pool, work, /, *args, **kwargs):
            def run(*args, **kwargs):
                with self.inside():
                    return work(*args, **kwargs)

            return real_submit(pool, run, *args, **kwargs)

        grouped = torch.nn.utils.clip_grad._group_tensors_by_device_and_dtype

        def by_device(lists, *args, **kwargs):
            """Torch groups tensors by the device that they really have."""
            found = grouped(lists, *args, **kwargs)
            return {(self.device if self.kind(v[0][0][0]) == DEVICE else d, t): v for (d, t), v in found.items()}

        made = torch.optim.AdamW.__init__

        def unfused(optimizer, *args, fused=None, **kwargs):
            """The fused kernel has other bits, and runs where the tensors really are."""
            made(optimizer, *args, **kwargs)

        nothing = lambda *args, **kwargs: None  # noqa: E731
        patches = [
            (torch.nn.utils.clip_grad, "_group_tensors_by_device_and_dtype", by_device),
            (torch.optim.AdamW, "__init__", unfused),
            (torch, "autocast", autocast),
            (torch, "is_autocast_enabled", enabled),
            (ThreadPoolExecutor, "submit", submit),
            (torch.cuda, "is_available", lambda: True),
            (torch.cuda, "mem_get_info", lambda device=None: (self.free, 2 * self.free)),
            (torch.cuda, "get_device_name", lambda device=None: "emulated"),
            # random numbers of the device are drawn on the host here, by generators of its own
            (torch.cuda, "get_rng_state", lambda device=None: torch.zeros(1, dtype=torch.uint8)),
            (torch.cuda, "set_rng_state", lambda state, device=None: None),
            (torch.cuda, "empty_cache", nothing),
            (torch.cuda, "synchronize", lambda device=None: self.synchronised("synchronize")),
            (torch.cuda, "current_device", lambda: 0),
            *(
                (torch.optim.Optimizer, name, nothing)
                for name in dir(torch.optim.Optimizer)
                if name.endswith("graph_capture_health_check")
            ),
            (torch.cuda, "device_count", lambda: 1),
            (torch.cuda, "memory_allocated", lambda device=None: 0),
            (torch.cuda, "memory_reserved", lambda device=None: 0),
            (torch.cuda, "max_memory_allocated", lambda device=None: 0),
            (torch.cuda, "reset_peak_memory_stats", nothing),
            (torch.cuda, "manual_seed", nothing),
            (torch.cuda, "manual_seed_all", nothing),
        ]
        for owner, name, value in patches:
            stack.enter_context(mock.patch.object(owner, name, value))
        stack.enter_context(self.inside())
        return self

    def __exit__(self, *error):
        return self._stack.__exit__(*error)


class _Functions(TorchFunctionMode):
    """Spells the device: what names it runs on the CPU, and its result is known to live there."""

    def __init__(self, emulated):
        super().__init__()
        self.emulated = emulated

    def __torch_function__(self, func, types, args=(), kwargs=None):
        e, kwargs = self.emulated, dict(kwargs or {})
        name = getattr(func, "__name__", "")
        if name == "__get__":
            owner = getattr(func, "__self__", None)
            attribute = getattr(owner, "__name__", "")
            if attribute in ("device", "is_cuda", "is_cpu") and e.kind(args[0]) == DEVICE:
                return {"device": e.device, "is_cuda": True, "is_cpu": False}[attribute]
            return func(*args, **kwargs)
        first = args[0] if args and isinstance(args[0], torch.Tensor) else None
        if name in ("to", "cpu", "cuda") and first is not None:
            return self._moved(name, args, kwargs)
        if name == "get_device" and first is not None:
            return 0 if e.kind(first) == DEVICE else -1
        if name == "pin_memory":
            return first.clone()
        if name in ("numpy", "__array__") and first is not None and e.kind(first) == DEVICE:
            e.error(f"{name} of a device tensor")
        if name == "tolist" and first is not None and e.kind(first) == DEVICE:
            e.synchronised("tolist")
        if name in MAKERS:
            return self._made(name, func, args, kwargs)
        if name == "__deepcopy__" and e.kind(first) == DEVICE:
            return e.put(first.detach().clone().requires_grad_(first.requires_grad), DEVICE)
        return func(*args, **kwargs)

    def _moved(self, name, args, kwargs):
        e, source = self.emulated, args[0]
        was, target, dtype = e.kind(source), None, kwargs.get("dtype")
        rest = list(args[1:])
        if name != "to":
            target = HOST if name == "cpu" else DEVICE
            rest = rest[1:] if name == "cuda" else rest
        elif rest and isinstance(rest[0], torch.Tensor):
            other = rest.pop(0)
            target, dtype = e.kind(other), other.dtype
        elif "other" in kwargs:
            target, dtype = e.kind(kwargs["other"]), kwargs["other"].dtype
        else:
            named = kwargs.get("device")
            if (
                rest
                and (rest[0] is None or isinstance(rest[0], (str, int, torch.device)))
                and not isinstance(rest[0], bool)
            ):
                named = rest.pop(0)
            if named is not None and torch.device(named).type == "meta":
                return source.to(*args[1:], **kwargs)
            target = None if named is None else DEVICE if on_device(named) else HOST
            if rest and (rest[0] is None or isinstance(rest[0], torch.dtype)):
                dtype = rest.pop(0)
        blocking = not (kwargs.get("non_blocking") or (rest and rest[0] is True))
        how = {k: v for k, v in kwargs.items() if k in ("copy", "memory_format") and v is not None}
        out = (
            source.to(**({"dtype": dtype} if dtype is not None else {}), **how) if dtype is not None or how else source
        )
        if source.device.type == "meta" or target is None or FREE in (target, was) or target == was:
            return e.put(out, DEVICE) if target == DEVICE and was == FREE else out
        if target == DEVICE and blocking:
            e.copied("to the device")
        if target == HOST:
            e.synchronised("copy to the host")
        if out.untyped_storage()._cdata == source.untyped_storage()._cdata:
            out = out.clone()
        return e.put(out, target)

    def _made(self, name, func, args, kwargs):
        e = self.emulated
        named = on_device(kwargs["device"]) if kwargs.get("device") is not None else None
        if (
            named is not None
            and torch.device(kwargs["device"] if not isinstance(kwargs["device"], int) else "cuda").type == "meta"
        ):
            return func(*args, **kwargs)
        given = list(tensors_in((args, kwargs)))
        kind = None
        if named is not None:
            kind = DEVICE if named else HOST
            kwargs["device"] = "cpu"
        elif name in LIKE or name in ("as_tensor", "asarray", "complex", "normal"):
            kind = e.kind(given[0]) if given else HOST
        else:
            kind = HOST
        generator = kwargs.get("generator")
        if kind == DEVICE and isinstance(generator, torch.Generator) and generator.device.type == "cpu":
            e.error(f"{name}: a host generator for random numbers on the device")
        if (
            kind == DEVICE
            and name in ("tensor", "as_tensor", "asarray")
            and not any(e.kind(t) == DEVICE for t in given)
        ):
            e.copied(f"{name} on the device")
        out = func(*args, **kwargs)
        if (
            given
            and isinstance(out, torch.Tensor)
            and any(out is t or out.data_ptr() == t.data_ptr() != 0 for t in given)
        ):
            if e.kind(given[0]) == kind:
                return out
            out = out.clone()
        return e.put(out, kind)


class _Operations(TorchDispatchMode):
    """Looks at every operation, those of backward passes included."""

    def __init__(self, emulated):
        super().__init__()
        self.emulated = emulated

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        e, kwargs = self.emulated, kwargs or {}
        given = list(tensors_in((args, kwargs)))
        kinds = [e.kind(t) for t in given]
        name = func._schema.name.partition("::")[2]
        if DEVICE in kinds:
            if HOST in kinds:
                self._mixed(name, args, kwargs, given, kinds)
            if name in SYNCHRONISE:
                e.synchronised(name.lstrip("_"))
            if name in ("index", "index_put", "index_put_", "_index_put_impl_"):
                for index in tensors_in(args[1]):
                    if index.dtype in (torch.bool, torch.uint8):
                        e.synchronised("boolean index")
            generator = kwargs.get("generator")
            if name in RANDOM and isinstance(generator, torch.Generator) and generator.device.type == "cpu":
                e.error(f"{name}: a host generator for random numbers on the device")
        out = func(*args, **kwargs)
        if name == "copy_":
            return out
        kind = DEVICE if DEVICE in kinds else HOST if HOST in kinds else FREE
        if kind != FREE:
            for t, k in zip(given, kinds, strict=True):
                if k == FREE:
                    e.put(t, kind)
        own = {id(t) for t in given}
        for t in tensors_in(out):
            made_here = id(t) not in own and not (kind == FREE and e.kind(t) != HOST)
            if made_here and (not func._schema.is_mutable or kind == DEVICE):
                e.put(t, kind)
        return out

    def _mixed(self, name, args, kwargs, given, kinds):
        e = self.emulated
        if name == "copy_":
            to_device = kinds[0] == DEVICE
            if to_device and not kwargs.get("non_blocking"):
                e.copied("copy_ to the device")
            if not to_device:
                e.synchronised("copy_ to the host")
            return
        hosts = [t for t, k in zip(given, kinds, strict=True) if k == HOST]
        if name in ("index", "index_put", "index_put_", "_index_put_impl_") and kinds[0] == DEVICE:
            indices = {id(t) for t in tensors_in(args[1])}
            if any(id(t) in indices for t in hosts):
                e.synchronised("index on the host")
            hosts = [t for t in hosts if id(t) not in indices]
        wrong = [t for t in hosts if t.ndim or name in STRICT]
        if wrong and name not in ("set_", "resize_", "_to_copy", "lift_fresh", "detach"):
            e.error(f"{name}: device and host tensors together, host {[tuple(t.shape) for t in wrong][:3]}")


# ---------------------------------------------------------------------- does it see?
def planted():
    """Mistakes and their corrections: {name: (function, whether it is an error, whether the host waits)}."""
    import numpy as np

    def ones(*shape, **how):
        return torch.ones(*shape, device="cuda", **how)

    def cotangent(of):
        w, x = ones(3, 3, requires_grad=True), ones(2, 3)
        (g,) = torch.autograd.grad((x @ w).sin().sum(), w, create_graph=True)
        return torch.autograd.grad(g, w, of)[0]

    def stepped():
        p = ones(3, requires_grad=True)
        p.sum().backward()
        torch.optim.AdamW([p]).step()
        assert p.grad.device.type == "cuda"
        return p + ones(3)

    host = torch.ones(3)
    call = torch.func.functional_call
    weights = lambda: {"weight": ones(3, 3), "bias": ones(3)}  # noqa: E731
    return {
        "a sum of both": (lambda: ones(3) + host, True, False),
        "a sum with an array's tensor": (lambda: ones(3) + torch.from_numpy(np.ones(3)), True, False),
        "a host number": (lambda: ones(3) + torch.tensor(2.0), False, False),
        "a stack with a host number": (lambda: torch.stack([ones(()), torch.tensor(2.0)]), True, False),
        "moved before": (lambda: host.to("cuda") * host.cuda(), False, False),
        "moved back": (lambda: ones(3).cpu() * host, False, True),
        "made like a device tensor": (lambda: torch.zeros_like(ones(3)) + ones(3).new_zeros(3), False, False),
        "made without saying where": (lambda: torch.arange(3) * ones(3), True, False),
        "item": (lambda: float(ones(3).sum()), False, True),
        "item in inference mode": (lambda: torch.inference_mode()(lambda: int(ones(3).sum()))(), False, True),
        "numpy": (lambda: ones(3).numpy(), True, False),
        "asarray": (lambda: np.asarray(ones(3)), True, False),
        "a host generator": (lambda: torch.randn(3, device="cuda", generator=torch.Generator()), True, False),
        "a host generator, in place": (
            lambda: torch.empty(3, device="cuda").normal_(generator=torch.Generator()),
            True,
            False,
        ),
        "a boolean index": (lambda: ones(3)[ones(3) > 0], False, True),
        "a host index": (lambda: ones(3)[torch.tensor([0, 1])], False, True),
        "a device index into the host": (lambda: host[torch.tensor([0, 1]).to("cuda")], True, False),
        "a view": (lambda: ones(4).view(2, 2).mT @ torch.ones(2, 2), True, False),
        "a cotangent on the host": (lambda: cotangent(torch.ones(3, 3)), True, False),
        "a cotangent on the device": (lambda: cotangent(ones(3, 3)), False, False),
        "an optimiser's step": (stepped, False, False),
        "functional_call": (lambda: call(torch.nn.Linear(3, 3), weights(), (ones(2, 3),)), False, False),
        "functional_call with host inputs": (
            lambda: call(torch.nn.Linear(3, 3), weights(), (torch.ones(2, 3),)),
            True,
            False,
        ),
        "a moved module": (lambda: torch.nn.Linear(3, 3).to("cuda")(ones(2, 3)), False, False),
        "a moved module with host inputs": (lambda: torch.nn.Linear(3, 3).to("cuda")(torch.ones(2, 3)), True, False),
        "in inference mode": (lambda: torch.inference_mode()(lambda: ones(3) + host)(), True, False),
        "a copy of a copy": (lambda: __import__("copy").deepcopy(ones(3)) + ones(3), False, False),
    }


if __name__ == "__main__":
    failed = 0
    for title, (run, wrong, waits) in planted().items():
        emulated = Emulated()
        with emulated:
            run()
        seen = bool(emulated.errors), bool(emulated.synchronisations)
        failed += seen != (wrong, waits)
        print("ok " if seen == (wrong, waits) else "NOT", title, *emulated.errors, *emulated.synchronisations)
    sys.exit(bool(failed))
