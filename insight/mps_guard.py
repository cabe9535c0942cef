"""Find on any machine what would break on Apple's GPU (device "mps"). It cannot see wrong numbers: that is the doctor's job.

``mps_guard()`` runs code for real on the CPU and refuses what MPS lacks: float64, CUDA calls, pinned memory, operators without a kernel.
``run_on_fake_device()`` runs a step without numbers on another device, and refuses a tensor that stayed on the CPU, and reading a value.
Both raise MpsBreak, which names the line that did it.
"""

from __future__ import annotations

import contextlib
import functools
import traceback
from collections.abc import Callable, Collection, Iterator, Sequence
from importlib.resources import files
from typing import Any, TypeVar

import torch
import yaml
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

FAKE_DEVICE = "meta"  # a fake tensor on "mps" aborts the process where torch is built without it
REFUSED_TYPES = {torch.float64, torch.complex128}
RUNS_ON_MPS = {"MPS", "CompositeImplicitAutograd", "CompositeExplicitAutograd", "CompositeExplicitAutogradNonFunctional"}
CPU_KERNELS = {  # what the CPU dispatches to where MPS has a kernel of its own for the same call
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_flash_attention_for_cpu_backward",
    "mkldnn_linear",
    "mkldnn_convolution",
    "mkldnn_rnn_layer",
    "mkldnn_rnn_layer_backward",
}
Result = TypeVar("Result")


class MpsBreak(RuntimeError):
    """Code that would fail on device "mps". The message says what and where."""


@contextlib.contextmanager
def mps_guard(allow: Collection[str] = ()) -> Iterator[None]:
    """Refuse, inside the context, what MPS lacks.

    Args:
        allow: Names of operators to let through although this torch lists no MPS kernel for them.

    Raises:
        MpsBreak: at the first thing that MPS lacks.

    >>> with mps_guard():
    ...     total = torch.ones(3).sum()
    """
    with _CallGuard(), _OperatorGuard(allow):
        yield


def run_on_fake_device(model: nn.Module, step: Callable[[nn.Module, torch.device], Result]) -> Result:
    """Call ``step(model, device)`` with the model's parameters and buffers moved to a device that holds no numbers. Uses the model up.

    Raises:
        MpsBreak: a tensor was left on the CPU (a plain attribute instead of a buffer, a tensor made without ``device=``), or the step
            reads a value (``.item()``, ``if tensor:``, boolean indexing), which makes a GPU wait.
    """
    device = torch.device(FAKE_DEVICE)
    with FakeTensorMode(allow_non_fake_inputs=True), _CallGuard():
        _move(model, device)
        try:
            return step(model, device)
        except (DataDependentOutputException, DynamicOutputShapeException) as error:
            raise MpsBreak(f"the step reads a value, which makes the device wait ({error})\n  at {_line_of(error)}") from error
        except RuntimeError as error:  # torch's fake tensors raise plain RuntimeErrors for mixed devices
            if isinstance(error, MpsBreak) or not _is_mixed_devices(error):
                raise
            raise MpsBreak(f"a tensor stayed on the CPU: {str(error).splitlines()[0]}\n  at {_line_of(error)}") from error


@functools.lru_cache(maxsize=1)
def mps_operators() -> tuple[frozenset[str], frozenset[str]]:
    """(all operators, those that run on MPS) of this torch, from the list in its own wheel."""
    text = (files("torchgen") / "packaged/ATen/native/native_functions.yaml").read_text()
    known: dict[str, set[str]] = {}
    structured: dict[str, str] = {}
    for function in yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
        operator = function["func"].split("(")[0]
        known[operator] = {key.strip() for keys in function.get("dispatch", {}) for key in keys.split(",")}
        if "structured_delegate" in function:
            structured[operator] = function["structured_delegate"]
        elif "dispatch" not in function:
            known[operator] = {"CompositeImplicitAutograd"}  # made of other operators
    runs = {operator for operator, keys in known.items() if RUNS_ON_MPS & (keys | known.get(structured.get(operator, ""), set()))}
    return frozenset(known), frozenset(runs)


class _OperatorGuard(TorchDispatchMode):
    def __init__(self, allow: Collection[str]) -> None:
        super().__init__()
        self.allow = CPU_KERNELS | set(allow)

    def __torch_dispatch__(self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        namespace, base = func._schema.name.split("::")
        operator = f"{base}.{func._overloadname}" if func._overloadname not in ("", "default") else base
        for tensor in tree_leaves(result):
            # a number without dimensions may be float64: torch wraps Python's own numbers so, and they stay on the CPU
            if isinstance(tensor, Tensor) and tensor.dtype in REFUSED_TYPES and (tensor.dim() > 0 or base == "_to_copy"):
                raise MpsBreak(f"{tensor.dtype} tensor from {operator}: MPS has none; use float32\n  at {_line()}")
        if namespace == "aten":
            known, runs = mps_operators()
            if operator in known and operator not in runs and base not in self.allow:
                raise MpsBreak(f"{operator} has no MPS kernel in torch {torch.__version__}\n  at {_line()}")
        return result


class _CallGuard(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", str(func))
        cuda = [
            str(value) for value in (*args, *kwargs.values()) if isinstance(value, (str, torch.device)) and str(value).startswith("cuda")
        ]
        if name in ("cuda", "pin_memory") or cuda or kwargs.get("pin_memory"):
            raise MpsBreak(f"{name}({', '.join(cuda)}) works with CUDA only: use .to(device), and pin memory on CUDA only\n  at {_line()}")
        return func(*args, **kwargs)


def _move(model: nn.Module, device: torch.device) -> None:
    """What ``.to(device)`` does: parameters and buffers move, plain attributes do not. A tensor shared by two modules stays shared."""
    moved: dict[int, Tensor] = {}
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is None:
                    continue
                if id(tensor) not in moved:
                    copy = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device)
                    moved[id(tensor)] = nn.Parameter(copy, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else copy
                tensors[name] = moved[id(tensor)]  # type: ignore[assignment]


def _is_mixed_devices(error: RuntimeError) -> bool:
    text = str(error)
    return "same device" in text or "Unhandled FakeTensor Device Propagation" in text or "different devices" in text


def _is_own(filename: str) -> bool:
    return "site-packages" not in filename and not filename.startswith("<") and filename != __file__ and "contextlib" not in filename


def _line() -> str:
    """The innermost line of the caller's own code."""
    return _told([frame for frame in traceback.extract_stack() if _is_own(frame.filename)])


def _line_of(error: BaseException) -> str:
    return _told([frame for frame in traceback.extract_tb(error.__traceback__) if _is_own(frame.filename)])


def _told(own: list[traceback.FrameSummary]) -> str:
    return f"{own[-1].filename}:{own[-1].lineno}: {own[-1].line}" if own else "an unknown line"
