"""Everything that needs a GPU, in one command of less than ten minutes; results in $RESULTS_DIR.

`python bench/gpu.py [--minutes 9.3] [--steps tests sanitizer benchmarks engines tune index
native training] [--resume]`

A step that fails or runs out of time is reported at the end and keeps no other from running. The
benchmarks take what time is left; compiling torch's forms takes most of it, and what was cut off
follows with `--steps benchmarks --resume`, which measures ours again and only those peers that
kernels.json in $RESULTS_DIR does not have. Engines want calls of their own, `--steps engines`, then
with --resume until nothing is missing. The vector index, `--steps index`, needs faiss-gpu-cuvs. The
C library, `--steps native`, is built for all architectures and runs its example. `--steps training`
measures pairs a second of the joint stage.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parent
STEPS = ("tests", "sanitizer", "benchmarks", "tune", "engines", "index", "native", "training")
# What runs on the GPU where there is one; what else tests/kernels holds needs none.
KERNEL_TESTS = ("grounding", "embedding", "pooling", "preprocess", "resample", "properties")
CUDA_TOOLS = "/usr/local/cuda/bin"
SANITIZER_ENV = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
GRACE = 20  # seconds between asking a step to end and ending it
SHORTEST = 5  # seconds that a step is started for


@dataclass(frozen=True)
class Step:
    """One command; `limit` in seconds, None for all that is left, where the rest may follow."""

    name: str
    command: list[str]
    limit: float | None
    env: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """`result`: passed, cut off (of a step without limit), failed, time limit, or skipped: why."""

    name: str
    result: str
    seconds: float = 0.0
    code: int | None = None


def steps(chosen: list[str], folder: Path, resume: bool) -> Iterator[Step]:
    pytest = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    if "tests" in chosen:
        # compiling takes most of the time, so the tests of a file are shared out too
        parallel = ["-n", "8", "--dist", "load"] if importlib.util.find_spec("xdist") else []
        kernels = [f"tests/kernels/test_{name}.py" for name in KERNEL_TESTS]
        yield Step("kernel tests", [*pytest, *kernels, *parallel], 180)
        marked = ["tests/test_gpu.py", "tests/test_gpu_tail.py"]
        if importlib.util.find_spec("faiss"):
            marked.append("tests/test_gpu_index.py")
        yield Step("GPU tests", [*pytest, *marked, "-m", "gpu"], 120)
    if "sanitizer" in chosen:
        script = [sys.executable, str(HERE / "sanitize_kernels.py")]
        # Compiled here first: a process that is watched is slow.
        yield Step("sanitizer's kernels", script, 90)
        sanitizer = shutil.which("compute-sanitizer") or f"{CUDA_TOOLS}/compute-sanitizer"
        for tool in ("memcheck", "racecheck"):
            watch = [sanitizer, "--tool", tool, "--target-processes", "application-only"]
            command = [*watch, "--error-exitcode", "9", *script]
            yield Step(f"compute-sanitizer {tool}", command, 130, SANITIZER_ENV)
    if "tune" in chosen:
        tables = [str(REPOSITORY / "kernels" / "tuning"), str(folder / "tuning")]
        command = [sys.executable, str(HERE / "tune_kernels.py"), "--out", *tables]
        yield Step("tuning", command, None)  # benchmarks after it have the new parameters
    if "benchmarks" in chosen:
        only = ["bench/test_kernels.py", "--benchmark-only"]
        known = measured_peers(folder) if resume else []
        yield Step("benchmarks", [*pytest, *only, *(f"--deselect={test}" for test in known)], None)
    if "engines" in chosen:
        command = [sys.executable, str(HERE / "engine_bench.py"), *(["--resume"] if resume else [])]
        yield Step("engines", command, None)
    if "index" in chosen:
        yield Step("index", [sys.executable, str(HERE / "gpu_index_bench.py")], None)
    if "training" in chosen:
        yield Step("training", [sys.executable, str(HERE / "training_bench.py")], 240)
    if "native" in chosen:
        yield Step("native library", [*pytest, "tests/kernels/test_native.py"], 300)


def measured_peers(folder: Path) -> list[str]:
    """Tests of contenders other than ours that kernels.json has."""
    file = folder / "kernels.json"
    rows = json.loads(file.read_text())["rows"] if file.exists() else []
    return [row["test"] for row in rows if not row["contender"].startswith("tigerfg")]


def run(step: Step, log: Path, seconds_left: float) -> Outcome:
    """Run a step, its output appended to the log; asked to end at its limit, then made to."""
    if shutil.which(step.command[0]) is None:
        return Outcome(step.name, f"skipped: {step.command[0]} is not installed")
    limit = min(step.limit or seconds_left, seconds_left)
    if limit < SHORTEST:
        return Outcome(step.name, "skipped: no time left")
    print(f"{step.name} ...", flush=True)
    start = time.monotonic()
    with log.open("a") as output:
        output.write(f"\n===== {step.name}: {' '.join(step.command)[:400]}\n")
        output.flush()
        process = subprocess.Popen(
            step.command,
            cwd=REPOSITORY,
            env={**os.environ, "PYTHONUNBUFFERED": "1", "TRITON_INTERPRET": "0", **step.env},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = process.wait(timeout=limit)
            result = "passed" if code == 0 else "failed"
        except subprocess.TimeoutExpired:
            result = "cut off" if step.limit is None else "time limit"
            process.send_signal(signal.SIGINT)  # pytest then ends with its report
            try:
                code = process.wait(timeout=GRACE)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                code = process.wait()
    outcome = Outcome(step.name, result, round(time.monotonic() - start, 1), code)
    print(f"{step.name}: {outcome.result} after {outcome.seconds} s", flush=True)
    return outcome


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=9.3, help="for everything together")
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=list(STEPS[:3]))
    parser.add_argument("--resume", action="store_true", help="leave out what was measured before")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print("torch sees no CUDA device: nothing here can be tested or measured without one")
        return 1
    folder = Path(os.environ.get("RESULTS_DIR") or HERE / "results").resolve()
    folder.mkdir(parents=True, exist_ok=True)
    os.environ["RESULTS_DIR"] = str(folder)
    log = folder / "gpu.log"
    log.write_text("")
    deadline = time.monotonic() + 60 * options.minutes - GRACE
    outcomes = [
        run(step, log, deadline - time.monotonic())
        for step in steps(options.steps, folder, options.resume)
    ]
    (folder / "gpu.json").write_text(json.dumps([asdict(one) for one in outcomes], indent=1) + "\n")
    if "benchmarks" in options.steps and (folder / "kernels.json").exists():
        subprocess.run([sys.executable, str(HERE / "kernel_report.py"), str(folder)], check=False)
    if "engines" in options.steps and (folder / "engines.json").exists():
        subprocess.run([sys.executable, str(HERE / "engine_report.py"), str(folder)], check=False)
    for outcome in outcomes:
        print(f"{outcome.name:<28} {outcome.result} ({outcome.seconds} s)")
    print(f"log: {log}")
    return 0 if all(outcome.result in ("passed", "cut off") for outcome in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
