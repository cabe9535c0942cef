"""Does this device compute what the CPU computes? ``python -m insight.doctor [--device auto|cpu|mps|cuda] [--precision 32|bf16|16]``.

Also says which devices there are, and which of them compute bfloat16 natively.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.torch_version import TorchVersion

from insight.doctor_checks import Check, KnownBug, dtype_name, operator_checks
from insight.doctor_model import default_model, training_step_check
from insight.errors import InputError
from insight.models.multimodal import MultiModalTransformer

DEVICES = ("cuda", "mps", "cpu")  # in the order of preference
PRECISIONS = {"32": torch.float32, "bf16": torch.bfloat16, "16": torch.float16}
TOLERANCE = {
    torch.float32: 1e-4,
    torch.float16: 6e-3,
    torch.bfloat16: 4e-2,
}  # of the largest expected value; faults measured were 0.1 and more
TENSOR_FLOAT_32 = 5e-3  # CUDA may round the factors of float32 products to 10 bits; for convolutions it does by default
OLDEST_TORCH_ON_MACOS = "2.14"
EXIT_FAILED, EXIT_UNAVAILABLE = 1, 2


class CheckResult(NamedTuple):
    name: str
    operator: str
    max_error: float  # largest |got - expected| of the worst part, as a share of its largest |expected|
    tolerance: float
    passed: bool
    detail: str  # the worst part, or why the check could not run
    issue: str | None = None  # a known bug with these symptoms
    fixed_in: str | None = None  # first torch release said to have its fix


# --- devices ---
def available_devices() -> list[str]:
    """Those that torch can use here; the CPU always."""
    mps = torch.backends.mps.is_available() and os.environ.get("DISABLE_MPS") != "1"  # the variable that Lightning reads
    usable = {"cuda": torch.cuda.is_available(), "mps": mps, "cpu": True}
    return [device for device in DEVICES if usable[device]]


def choose_device(device: str = "auto") -> str:
    """``auto`` -> the best there is (cuda, mps, cpu); any other is checked and returned.

    Raises:
        InputError: the device is unknown or not available here; names those that are.
    """
    available = available_devices()
    if device == "auto":
        return available[0]
    if device not in DEVICES:
        raise InputError(f"device '{device}' is unknown: choose auto, {', '.join(DEVICES)}")
    if device not in available:
        raise InputError(f"device '{device}' is not available here; available: {', '.join(available)}")
    return device


def native_bf16(device: str | torch.device) -> bool:
    """Whether bfloat16 is worth choosing unasked: computed in hardware, and trusted. On MPS it must be asked for."""
    kind = torch.device(device).type
    if kind == "cuda":
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    return kind == "cpu" and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def device_name(device: str | torch.device) -> str:
    """What it calls itself, e.g. ``NVIDIA H100``, ``arm``, ``x86_64``."""
    kind = torch.device(device).type
    return torch.cuda.get_device_name(torch.device(device)) if kind == "cuda" else platform.processor() or platform.machine()


# --- checks ---
def run_checks(
    device: str | torch.device, dtype: torch.dtype = torch.float32, model_factory: Callable[[], nn.Module] | None = None
) -> list[CheckResult]:
    """All operators, and one training step of the model (of a small one by default). Random numbers of the program are left alone.

    Args:
        device: Where to compute; the expected values come from the CPU.
        dtype: Precision of the operators, and of autocast in the training step.
        model_factory: Makes the model; it is copied, never changed.

    Raises:
        InputError: an unknown precision, or a model whose training step is not known here.
    """
    device = torch.device(device)
    if dtype not in TOLERANCE:
        raise InputError(f"dtype={dtype}: the doctor compares {', '.join(dtype_name(known) for known in TOLERANCE)}")
    model = default_model() if model_factory is None else model_factory()
    if not isinstance(model, MultiModalTransformer):
        raise InputError(
            f"the doctor knows the training step of a MultiModalTransformer, not of {type(model).__name__}: leave model_factory out"
        )
    results = [check_version(device)]
    for check in [*operator_checks(), training_step_check(model)]:
        results.append(_run(check, device, check.dtype or dtype))
    return results


def check_version(device: torch.device) -> CheckResult:
    """On macOS an old torch is a failure by itself: several operators are silently wrong there."""
    old = sys.platform == "darwin" and TorchVersion(torch.__version__) < OLDEST_TORCH_ON_MACOS
    detail = f"torch {torch.__version__} on {sys.platform}" + (": several operators of MPS are silently wrong" if old else "")
    return CheckResult("version of torch", "torch", float(old), 0.0, not old, detail, fixed_in=OLDEST_TORCH_ON_MACOS if old else None)


def _run(check: Check, device: torch.device, dtype: torch.dtype) -> CheckResult:
    tolerance = check.slack * _tolerance(device, dtype)
    known = check.known_on_mps if device.type == "mps" else None
    issue, fixed_in = _cite(known)
    try:
        pairs = check.compare(device, dtype)
    except (RuntimeError, TypeError) as error:  # what torch raises for an operator or a type that a device lacks
        reason = str(error).strip().splitlines() or [type(error).__name__]
        return CheckResult(check.name, check.operator, float("inf"), tolerance, False, f"could not run: {reason[0]}", issue, fixed_in)
    errors = {part: relative_error(got, wanted) for part, (got, wanted) in pairs.items()}
    worst = max(errors, key=lambda part: errors[part])
    passed = errors[worst] <= tolerance
    return CheckResult(
        check.name, check.operator, errors[worst], tolerance, passed, worst, None if passed else issue, None if passed else fixed_in
    )


def relative_error(got: Tensor, wanted: Tensor) -> float:
    """Largest absolute difference over the largest absolute value wanted; infinite where shapes differ or something is not a number."""
    got, wanted = got.detach().cpu().double(), wanted.detach().cpu().double()
    if got.shape != wanted.shape or not got.isfinite().all():
        return float("inf")
    scale = max(wanted.abs().max().item(), torch.finfo(torch.float32).tiny)
    return (got - wanted).abs().max().item() / scale


def _tolerance(device: torch.device, dtype: torch.dtype) -> float:
    return TENSOR_FLOAT_32 if device.type == "cuda" and dtype == torch.float32 else TOLERANCE[dtype]


def _cite(known: KnownBug | None) -> tuple[str | None, str | None]:
    return (None, None) if known is None else (f"https://github.com/pytorch/pytorch/issues/{known.issue}", known.fixed_in)


# --- telling ---
def fix(result: CheckResult) -> str:
    """What to do about a failed check."""
    here = torch.__version__.split("+")[0]
    cited = f" ({result.issue})" if result.issue else ""
    if result.fixed_in and TorchVersion(here) < result.fixed_in:
        return f"fixed in torch {result.fixed_in}{cited}, this is {here}: pip install 'torch>={result.fixed_in}', or train with trainer=cpu"
    if result.issue:
        return f"a known bug of PyTorch{cited}, still here in {here}: train with trainer=cpu until a release mends it"
    return "not a known bug: train with trainer=cpu, or in precision 32-true, and report this table to https://github.com/pytorch/pytorch/issues"


def failures(results: Sequence[CheckResult]) -> list[str]:
    """One line per failed check: operator, error, fix."""
    return [
        f"{result.operator} ({result.name}): error {result.max_error:.2g}, allowed {result.tolerance:.2g} [{result.detail}]; {fix(result)}"
        for result in results
        if not result.passed
    ]


def report(results: Sequence[CheckResult]) -> str:
    """A table of all checks, then what failed and what to do."""
    width = max(len(result.name) for result in results)
    operator_width = max(len(result.operator) for result in results)
    lines = [f"{'':<5}{'check':<{width}}  {'operator':<{operator_width}}  {'error':>8}  {'allowed':>8}"]
    for result in results:
        verdict = "ok" if result.passed else "FAIL"
        figures = f"{result.max_error:>8.1e}  {result.tolerance:>8.1e}"
        lines.append(f"{verdict:<5}{result.name:<{width}}  {result.operator:<{operator_width}}  {figures}")
    failed = failures(results)
    lines += ["", *failed] if failed else []
    lines.append(f"\n{len(results) - len(failed)} of {len(results)} checks passed")
    return "\n".join(lines)


def as_json(results: Sequence[CheckResult], device: str | torch.device, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """The same as plain data, with where it was measured. An error that is not a number is null."""
    checks = [{**result._asdict(), "max_error": result.max_error if result.max_error < float("inf") else None} for result in results]
    return {
        "device": torch.device(device).type,
        "device_name": device_name(device),
        "dtype": dtype_name(dtype),
        "torch": torch.__version__,
        "platform": platform.platform(),
        "passed": all(result.passed for result in results),
        "checks": checks,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """0 = all passed, 1 = a check failed, 2 = there is no such device here."""
    parser = argparse.ArgumentParser(prog="python -m insight.doctor", description="Compare a device with plain formulas on the CPU.")
    parser.add_argument("--device", default="auto", choices=("auto", *DEVICES))
    parser.add_argument("--precision", default="32", choices=tuple(PRECISIONS))
    parser.add_argument("--json", action="store_true", help="write JSON instead of a table")
    options = parser.parse_args(arguments)
    try:
        device = choose_device(options.device)
    except InputError as error:
        sys.stderr.write(f"{error}\n")
        return EXIT_UNAVAILABLE
    dtype, started = PRECISIONS[options.precision], time.perf_counter()
    results = run_checks(device, dtype)
    if options.json:
        sys.stdout.write(json.dumps(as_json(results, device, dtype), indent=1) + "\n")
    else:
        seconds = time.perf_counter() - started
        headline = f"{device} ({device_name(device)}), {dtype_name(dtype)}, torch {torch.__version__}, {seconds:.1f} s"
        sys.stdout.write(f"{headline}\n\n{report(results)}\n")
    return 0 if all(result.passed for result in results) else EXIT_FAILED


if __name__ == "__main__":
    sys.exit(main())
