"""What a worker does for a cell, by the word under "do"; torch is imported when the first cell asks for it."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from attnres_compile.cli.output import read_record

from .plan import JSON

PASSED, MEASURED, WRONG, FAILED = "passed", "measured", "wrong", "failed"
OUTPUT_LINES = 3
"""Last lines of a command that failed, which its reason holds."""

Answer = dict[str, Any]


def do(work: dict[str, Any]) -> Answer:
    """Do a cell's work and say how it went: a status, a reason if it went badly, and what was found.

    work: by ``plan``; with a ``fault`` only in a rehearsal.
    """
    if "fault" in work:
        from .rehearsal import spoil

        work = spoil(work)
    try:
        return _KINDS[work["do"]](work)
    finally:
        _free_memory()


def _free_memory() -> None:
    if "torch" in sys.modules:
        import torch

        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            torch.cuda.empty_cache()


def _describe(work: dict[str, Any]) -> Answer:
    """What the GPU and its software are: what every cell of the record was measured with."""
    import torch

    from attnres_compile.report.records import describe_environment, package_version

    from ..against_peers.arms.peers import PACKAGES

    device = torch.device(work["device"])
    environment = describe_environment(device)
    environment["versions"] |= {name: package_version(name) for name in PACKAGES} | {"cuda": torch.version.cuda}
    if device.type == "cuda":
        found = torch.cuda.get_device_properties(device)
        environment["gpu"] = {
            "capability": f"{found.major}.{found.minor}",
            "memory": found.total_memory,
            "multiprocessors": found.multi_processor_count,
        }
    return {"status": PASSED, "environment": environment}


def _check(work: dict[str, Any]) -> Answer:
    """Every arm on our kernels against the definition in fp64, and its two runs against each other."""
    import torch

    from ..against_peers.arms.arm import EAGER
    from ..against_peers.arms.generated import kernel_arms
    from ..against_peers.gate import beyond, errors, reference, results
    from ..against_peers.run import kernels_missing
    from ..against_peers.work import TRAINING, Shape, make_inputs

    shape, device, training = Shape(**work["shape"]), torch.device(work["device"]), work["direction"] == TRAINING
    inputs = make_inputs(shape, device, training)
    wanted = reference(shape, inputs, training)
    found, wrong = {}, []
    change: Callable[..., Any] = work.get("change", lambda arm: arm)
    for arm in map(change, kernel_arms(shape, EAGER, kernels_missing(shape, device))):
        if arm.call is None:
            found[arm.name] = {"left out": arm.unsupported or f"the same calls as {arm.same_as}"}
            continue

        def outputs(arm: Any = arm) -> Any:
            with torch.set_grad_enabled(training):
                return arm.call(inputs, arm.prepare(inputs))

        one, two = (results(wanted.output_grads, shape, inputs, outputs, training) for _ in range(2))
        off, same = errors(wanted, one), one.same_bits(two)
        found[arm.name] = {"errors": off, "same_bits": same}
        reasons = [beyond(off, shape.dtype), "" if same else "two runs, different bits"]
        wrong += [f"{arm.name}: {reason}" for reason in reasons if reason]
    if not any("errors" in one for one in found.values()):
        return {"status": FAILED, "reason": "no kernel ran: " + next(iter(found.values()))["left out"], "arms": found}
    return {"status": WRONG if wrong else PASSED, "reason": "; ".join(wrong), "arms": found}


def _kernels(work: dict[str, Any]) -> Answer:
    """One cell of ``kernels.benchmarks peers``, as a record of its own."""
    from ..against_peers.arms.arm import KERNELS
    from ..against_peers.run import KernelJob, all_arms, measure_kernels

    job = KernelJob(**_tuples(work["job"]))
    change: Callable[..., Any] = work.get("change", lambda arm: arm)
    of_shape = all_arms(job)
    command = ("python", "-m", "kernels.benchmarks.gpu")
    record = measure_kernels(job, command, arms=lambda shape, device: list(map(change, of_shape(shape, device))))
    (cell,) = record["cells"]
    own = [arm for arm in cell.get("arms", []) if arm["kind"] == KERNELS and arm["status"] in (WRONG, FAILED)]
    reason = cell.get("skipped") or "; ".join(f"{arm['name']}: {arm['reason']}" for arm in own)
    # What raised may have broken the GPU for this process.
    raised = "skipped" in cell or any(arm["status"] == FAILED for arm in own)
    status = FAILED if raised else WRONG if own else MEASURED
    return {"status": status, "reason": reason, "record": record}


def _warm_up(work: dict[str, Any]) -> Answer:
    """Every arm once, as it is timed later: what is compiled for it is then in the caches on disk."""
    import torch

    from ..against_peers.gate import results
    from ..against_peers.run import KernelJob, all_arms, is_chosen
    from ..against_peers.timing import first_line
    from ..against_peers.work import TRAINING, make_inputs, output_names

    job = KernelJob(**_tuples(work["job"]))
    ((shape, direction),) = job.cells()
    device, training, reasons = job.torch_device(), direction == TRAINING, []
    inputs = make_inputs(shape, device, training)
    output_grads = [torch.ones_like(inputs.sources[0]) for _ in output_names(shape)]
    for arm in all_arms(job)(shape, device):
        if arm.call is None or not is_chosen(arm, job.arms):
            continue

        def outputs(arm: Any = arm) -> Any:
            with torch.set_grad_enabled(training):
                return arm.call(inputs, arm.prepare(inputs))

        try:
            results(output_grads, shape, inputs, outputs, training)
        except Exception as error:  # the cell that times it says so
            reasons.append(f"{arm.name}: {first_line(error)}")
    return {"status": PASSED, "reason": "; ".join(reasons)}


def _command(work: dict[str, Any]) -> Answer:
    """A command of Python that keeps a record, or none."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "record.json"
        words = [sys.executable, *(str(path) if word == JSON else word for word in work["words"])]
        done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
        print(done.stdout)
        lines = [line for line in done.stdout.splitlines() if line.strip()]
        if done.returncode != 0:
            reason = f"exit code {done.returncode}: {' / '.join(lines[-OUTPUT_LINES:])}"
            return {"status": FAILED, "reason": reason[:500]}
        if not path.exists():
            return {"status": PASSED, "reason": "", "output": lines[-1:]}
        record = read_record(str(path))
    missing = [f"{cell['workload']}: {cell['missing']}" for cell in record["cells"] if "missing" in cell]
    return {"status": FAILED if missing else MEASURED, "reason": "; ".join(missing), "record": record}


def _tuples(job: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in job.items()}


_KINDS: dict[str, Callable[[dict[str, Any]], Answer]] = {
    "describe": _describe,
    "check": _check,
    "kernels": _kernels,
    "warm-up": _warm_up,
    "command": _command,
}
