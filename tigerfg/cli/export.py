"""``tigerfg-export``: a checkpoint in, a bundle out that proves its own accuracy."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tigerfg.cli.app import OneLineCommand
from tigerfg.cli.console import print_table, say, shown_path
from tigerfg.errors import InputError

if TYPE_CHECKING:
    from tigerfg.bundle import Bundle
    from tigerfg.export import GpuRequest

ENGINES = ("auto", "tensorrt", "tensorrt-rtx", "cpu", "none")
FOR_GPUS = {"fp16", "fp8"}
FOR_CPUS = {"fp32", "bf16", "int8"}

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(cls=OneLineCommand)
def command(
    ctx: typer.Context,
    ckpt: Annotated[
        Path,
        typer.Option(
            "--ckpt", help="Checkpoint or bundle directory, or the name of a shipped model."
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", file_okay=False, help="Bundle directory; else CKPT-bundle here."),
    ] = None,
    fp32: Annotated[bool, typer.Option("--fp32", help="float32.")] = False,
    fp16: Annotated[bool, typer.Option("--fp16", help="float16, the default for GPUs.")] = False,
    bf16: Annotated[bool, typer.Option("--bf16", help="bfloat16.")] = False,
    int8: Annotated[bool, typer.Option("--int8", help="int8, calibrated on pictures.")] = False,
    fp8: Annotated[bool, typer.Option("--fp8", help="float8 (E4M3), for GPUs.")] = False,
    engine: Annotated[
        str,
        typer.Option(
            "--engine",
            help="auto, tensorrt, tensorrt-rtx; cpu: nothing for GPUs; none: graphs and kernels "
            "for GPUs, engines are built at first use.",
        ),
    ] = "auto",
    sm: Annotated[
        list[int] | None,
        typer.Option("--sm", help="Build for this compute capability (89 for 8.9); repeatable."),
    ] = None,
    profiles: Annotated[
        str, typer.Option("--profiles", help="Batch ranges of the engines.")
    ] = "1,2-32,33-256",
    workspace: Annotated[
        int | None, typer.Option("--workspace", min=1, help="MiB that a build may use.")
    ] = None,
    fused_tail: Annotated[
        bool,
        typer.Option(
            "--fused-tail/--no-fused-tail", help="End engines before our kernels, or at the end."
        ),
    ] = True,
    parity_data: Annotated[
        Path | None,
        typer.Option(
            "--parity-data",
            exists=True,
            help="Items and queries for calibration and the parity check; else rendered ones.",
        ),
    ] = None,
    triton_repository: Annotated[
        Path | None,
        typer.Option(
            "--triton-repository", file_okay=False, help="Also a Triton Inference Server folder."
        ),
    ] = None,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
) -> None:
    """Export a checkpoint to a bundle; fails if a tower does not match torch."""
    ctx.command.debug = debug
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # an end that leaves nothing behind
    flags = {"fp32": fp32, "fp16": fp16, "bf16": bf16, "int8": int8, "fp8": fp8}
    asked = tuple(name for name, wanted in flags.items() if wanted)
    sms = tuple(sm or ())
    precisions, gpu = _plan(asked, engine, sms, profiles, workspace, fused_tail)
    from tigerfg.bundle import Bundle
    from tigerfg.export import export_bundle

    if triton_repository is not None:
        from tigerfg.export.triton_repository import check_repository, write_triton_repository

        check_repository(triton_repository)
    out = out or Path(f"{ckpt.resolve().name}-bundle")
    if triton_repository is not None:
        folders = (out.resolve(), *out.resolve().parents)
        repository = (triton_repository.resolve(), *triton_repository.resolve().parents)
        if repository[0] in folders or folders[0] in repository:
            raise InputError("triton-repository: lies in the bundle, or holds it; choose another")
    export_bundle(ckpt, out, precisions, parity_data=parity_data, progress=say, gpu=gpu)
    bundle = Bundle.open(out)
    _print_report(bundle)
    if triton_repository is not None:
        write_triton_repository(bundle, triton_repository)
        typer.echo(f"triton repository: {shown_path(triton_repository)}")
    typer.echo(f"bundle: {shown_path(out)}")


def _plan(
    asked: tuple[str, ...],
    engine: str,
    sms: tuple[int, ...],
    profiles: str,
    workspace: int | None,
    fused_tail: bool,
) -> tuple[tuple[str, ...], GpuRequest | None]:
    """The graphs for CPUs, and what is made for GPUs.

    auto: for GPUs if a precision or `sms` asks for it, or if there is a GPU and a builder.
    """
    from tigerfg.engines.base import installed
    from tigerfg.engines.builder import parse_profiles
    from tigerfg.engines.trt_library import NAMES, current_gpu
    from tigerfg.export import PRECISIONS, GpuRequest

    if engine not in ENGINES:
        raise InputError(f"engine: {engine!r} is unknown; choose {', '.join(ENGINES)}")
    ranges = parse_profiles(profiles)
    wants_gpu = bool(FOR_GPUS & set(asked) or sms or (current_gpu() and installed(NAMES)))
    if engine == "cpu" or (engine == "auto" and not wants_gpu):
        if wrong := sorted(set(asked) - FOR_CPUS):
            raise InputError(f"precision: {wrong[0]} is for GPUs; leave out --engine cpu")
        if sms or workspace or not fused_tail:
            raise InputError("engine: cpu takes no --sm, --workspace or --no-fused-tail")
        # bfloat16 on a CPU is how OpenVINO runs the float32 graph
        stored = {"fp32" if name == "bf16" else name for name in asked}
        return tuple(name for name in PRECISIONS if name in stored) or PRECISIONS, None
    request = GpuRequest(
        precisions=asked or ("fp16",),
        engine=engine,
        sms=sms,
        profiles=ranges,
        fused_tail=fused_tail,
        workspace=None if workspace is None else workspace << 20,
    )
    return ("fp32",) if asked else PRECISIONS, request


def _print_report(bundle: Bundle) -> None:
    """The parity report and the engines, as tables."""
    parity = bundle.manifest["parity"]
    recalls = parity.get("recall_at_1", {})
    rows = []
    for runtime in ("onnx", "openvino", "gpu"):
        part = parity if runtime == "onnx" else parity.get(runtime, {})
        for tower in ("query", "item"):
            for precision, result in part.get(tower, {}).items():
                recall = recalls.get(f"{runtime} {precision}")
                rows.append(_row(tower, runtime, precision, result, recall))
    columns = ("tower", "runtime", "precision", "cosine mean", "p1", "min", "top-10", "map")
    title = f"parity with float32 PyTorch on {parity['data']}"
    print_table(title, (*columns, "Recall@1 (float32)", "kept finer"), rows)
    engines = bundle.manifest.get("gpu", {}).get("engines", [])
    if engines:
        print_table(
            "engines",
            ("file", "MB", "build s", "parity"),
            [
                (entry["file"], entry["bytes"] / 1e6, entry["seconds"], entry["parity"])
                for entry in engines
            ],
        )


def _row(
    tower: str,
    runtime: str,
    precision: str,
    result: dict[str, Any],
    recall: dict[str, Any] | None,
) -> tuple[object, ...]:
    cosines = (f"{result[f'cosine_{name}']:.5f}" for name in ("mean", "p1", "min"))
    found = f"{100 * recall['found']:.1f} % ({100 * recall['reference']:.1f} %)" if recall else "-"
    spread = f"{result['map_distance']:.4f}" if "map_distance" in result else ""
    overlap = f"{result['top10_overlap']:.3f}"
    where = result.get("runtime", runtime)
    return tower, where, precision, *cosines, overlap, spread, found, len(result.get("kept", []))


def main() -> None:
    """Entry point of ``tigerfg-export``."""
    app(prog_name="tigerfg-export")
