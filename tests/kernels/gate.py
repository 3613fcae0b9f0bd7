"""What the compile gate compiles, what it asks of each kernel, and how it reports."""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass

from tigerfg.kernels.resources import Resources
from tigerfg.kernels.tuning import SHARED_MEMORY

# What is compiled in the tests, for every architecture: each kernel in each dtype, most of what the
# native library holds by default, in four minutes on two cores. Wide float16 is the first not to
# fit; float32 has no wider grounding kernels on small architectures.
GATED = (
    "*_fp16_d768*",
    "*_split_fp16_d1280*",
    *(f"{name}_bf16_d768*" for name in ("grounding_*", "tail_*", "pooled_embedding_attention_*")),
    *(f"{name}_fp32_d384*" for name in ("grounding_*", "tail_*", "pooled_embedding_attention_*")),
    "preprocess_fp16_*",
    "preprocess_bf16_bilinear",
    "preprocess_fp32_lanczos",
)
USAGE_HEADER = (
    f"{'target':8} {'kernel':50} {'registers':>9} {'spills':>6} {'shared':>7}  "
    f"{'16-byte loads':13}  matrix instructions"
)
USAGE = "what a compiled kernel uses"


@dataclass(frozen=True)
class Expected:
    """What the SASS of a kernel must show.

    Attributes:
        dot: matrix instructions of any kind.
        warp_group: on sm_90, HGMMA among them: what Hopper's full rate needs.
        wide: 16-byte loads. A tile loaded narrowly counts 4 to 16 times, so a third of all loads
            says that the tiles are wide, and leaves room for masks and statistics.
    """

    dot: bool = True
    warp_group: bool = True
    wide: bool = True


EXPECTED = {  # by a pattern of the name, the first that fits
    "grounding_combine_*": Expected(dot=False, warp_group=False),  # weighted sums of few rows
    # wgmma takes tf32 operands along their rows alone, which p = aᵀ V does not give.
    "grounding_*_fp32_*": Expected(warp_group=False),
    # Interleaved bytes that begin anywhere: no boundary for 16-byte loads. The tiles are 16 wide,
    # and the weights are made in registers: what wgmma would gain, its shared memory takes.
    "preprocess_*": Expected(warp_group=False, wide=False),
    "*": Expected(),
}


def expected(name: str) -> Expected:
    return next(want for pattern, want in EXPECTED.items() if fnmatch.fnmatchcase(name, pattern))


def faults(resources: Resources, wanted: Expected, arch: int, shared: int) -> list[str]:
    """What is wrong with a compiled kernel, in words."""
    found = []
    if resources.spills or resources.stack or resources.local:
        found.append(
            f"spills: {resources.spills} local loads and stores, stack {resources.stack} bytes"
        )
    if shared > SHARED_MEMORY[arch]:
        found.append(f"shared memory: {shared} bytes, sm_{arch} has {SHARED_MEMORY[arch]}")
    if wanted.dot and not resources.matrix:
        found.append("no matrix instruction")
    if wanted.warp_group and arch == 90 and "HGMMA" not in resources.matrix:
        found.append(f"no HGMMA, only {', '.join(resources.matrix)}")
    if wanted.wide and 3 * resources.wide_loads < resources.global_loads:
        found.append(
            f"narrow loads: {resources.wide_loads} of {resources.global_loads} are 16 bytes wide"
        )
    return found
