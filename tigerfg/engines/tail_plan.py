"""How the fused tails are launched: which kernels, how many programs, what memory.

What is planned here is what `kernels/attend.py`, `embedding.py` and `pooling.py` plan with torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from tigerfg.gpu_bundle import GpuPart, GpuShape

# Precision of an engine -> what its backbone gives, by Triton's names.
ELEMENTS = {"fp32": "fp32", "fp16": "fp16", "bf16": "bf16", "int8": "fp16", "fp8": "fp16"}
BYTES = {"fp32": 4, "fp16": 2, "bf16": 2}

Description = Mapping[str, Any]  # of a compiled kernel, see `tigerfg.kernels.aot`


class Launch(NamedTuple):
    """One kernel launch: pointer arguments by the names of buffers, integers by value."""

    kernel: Description
    programs: int
    buffers: dict[str, str]
    integers: dict[str, int]


class Plan(NamedTuple):
    """Launches in their order, the bytes of each buffer between them, and how many counters."""

    launches: tuple[Launch, ...]
    workspace: dict[str, int]
    counters: int


class Sizes(NamedTuple):
    """What a plan depends on: pictures, patches of a picture, and the device's multiprocessors."""

    batch: int
    patches: int
    multiprocessors: int


class ItemKernels(NamedTuple):
    """The pass over the patches and what follows, each for split and for whole items."""

    attend_split: Description
    attend_whole: Description
    tail_split: Description
    tail_whole: Description


def runs_on(kernel: Description, sm: int) -> bool:
    """Whether a compiled kernel runs on a compute capability.

    Code for sm_90a runs on 9.0 alone; code for sm_86 also on 8.7 and 8.9, but not on 9.0.
    """
    if kernel["target"].endswith("a"):
        return kernel["arch"] == sm
    return kernel["arch"] // 10 == sm // 10 and kernel["arch"] <= sm


# Pointer arguments of the kernels that are weights -> their names in a bundle.
WEIGHTS = {
    f"{name}_ptr": name
    for name in ("w_v", "w_o", "gate_pool", "gate_text", "norm_weight", "norm_bias", "projection")
} | {"query_ptr": "pool_query"}


def plan_item(kernels: ItemKernels, shape: GpuShape, sizes: Sizes) -> Plan:
    """Two launches: the pass over the patches, and from the pooled patches to the embedding."""
    batch, patches, multiprocessors = sizes
    width, heads = shape.width, shape.heads
    map_queries = heads * shape.queries_per_head
    queries = map_queries + 1  # the last pools the whole picture
    given = queries if shape.pool == "attention" else map_queries  # absent: zeros, which is a mean
    constants = kernels.attend_split["constexprs"]
    query_blocks = _ceil(queries, constants["BLOCK_Q"])
    splits = multiprocessors // (batch * query_blocks)
    most = min(_ceil(patches, constants["BLOCK_N"]), kernels.tail_split["constexprs"]["BLOCK_S"])
    splits = max(1, min(splits, most))
    whole = splits == query_blocks == 1
    attend = kernels.attend_whole if whole else kernels.attend_split
    tail = kernels.tail_whole if whole else kernels.tail_split
    block = tail["constexprs"]["BLOCK_I"]
    blocks = _ceil(batch, block)
    rows = batch * queries
    workspace = {
        "logits": 4 * rows * patches,
        "p": _element_bytes(attend, "p_ptr") * rows * width * splits,
        "stats": 0 if whole else 8 * rows * splits,
        "sums": 4 * blocks * (heads + 1) * width * block,
    }
    first = Launch(
        attend,
        batch * splits * query_blocks,
        {
            "x_ptr": "queries",
            "v_ptr": "patches",
            "mask_ptr": "patch_mask",
            "p_ptr": "p",
            "stats_ptr": "logits" if whole else "stats",  # not read where whole
            "logits_ptr": "logits",
            "map_ptr": "grounding_map",  # not written where split
        },
        {
            "stride_xb": given * width,
            "stride_vb": patches * width,
            "stride_vn": width,
            "stride_mb": patches,
            "stride_mn": 1,
            "patches": patches,
            "queries": queries,
            "splits": splits,
            "x_queries": given,
            "map_queries": map_queries,
        },
    )
    map_programs = 0 if whole else batch * _ceil(patches, tail["constexprs"]["BLOCK_N"])
    second = Launch(
        tail,
        blocks * heads + map_programs,
        {
            "p_ptr": "p",
            "stats_ptr": "sums" if whole else "stats",
            "logits_ptr": "logits",
            "text_ptr": "text",
            **{argument: name for argument, name in WEIGHTS.items() if argument != "query_ptr"},
            "sums_ptr": "sums",
            "counters_ptr": "counters",
            "z_ptr": "embedding",
            "map_ptr": "grounding_map",
        },
        {
            "batch": batch,
            "patches": patches,
            "queries": queries,
            "splits": splits,
            "heads": heads,
            "per_head": shape.queries_per_head,
        },
    )
    return Plan((first, second), workspace, blocks)


def plan_query(kernel: Description, shape: GpuShape, sizes: Sizes) -> Plan:
    """One launch: pooling, LayerNorm, projection and norm."""
    batch, patches, multiprocessors = sizes
    width, constants = shape.width, kernel["constexprs"]
    filling = max(1, 2 * multiprocessors // batch)
    splits = min(filling, constants["MAX_SPLITS"], _ceil(patches, constants["ROWS"]))
    parts = batch * splits if splits > 1 else 0
    workspace = {
        "normed": _element_bytes(kernel, "normed_ptr") * batch * width,
        "partial": 4 * parts * width,
        "stats": 8 * parts,
    }
    launch = Launch(
        kernel,
        batch * splits,
        {
            "v_ptr": "patches",
            "mask_ptr": "patch_mask",
            "query_ptr": "pool_query" if constants["ATTENTION"] else "norm_weight",
            "norm_weight_ptr": "norm_weight",
            "norm_bias_ptr": "norm_bias",
            "projection_ptr": "projection",
            "z_ptr": "embedding",
            "partial_ptr": "partial" if parts else "normed",  # these two are not read without parts
            "stats_ptr": "stats" if parts else "normed",
            "normed_ptr": "normed",
            "counters_ptr": "counters",
        },
        {
            "batch": batch,
            "patches": patches,
            "splits": splits,
            "width": width,
            "stride_b": patches * width,
            "stride_n": width,
        },
    )
    return Plan((launch,), workspace, batch + _ceil(batch, constants["GROUP"]))


def select(part: GpuPart, precision: str, sm: int, tower: str) -> Any:
    """The kernels that end a tower: ItemKernels, or one description; LookupError says why none."""
    kernels = part.kernels()
    if not kernels:
        raise LookupError("the bundle holds no compiled kernels")
    running = [kernel for kernel in kernels if runs_on(kernel, sm)]
    if not running:
        targets = ", ".join(sorted({kernel["target"] for kernel in kernels}))
        raise LookupError(f"the bundle's kernels are for {targets}, this GPU is sm_{sm}")
    newest = max(kernel["arch"] for kernel in running)
    running = [kernel for kernel in running if kernel["arch"] == newest]
    shape, element = part.shape, ELEMENTS[precision]

    def of(entry: str, argument: str, **constants: Any) -> Iterator[Description]:
        found = False
        for kernel in running:
            if (
                kernel["entry"] == entry
                and _type(kernel, argument) == element
                and all(
                    kernel["constexprs"].get(name) == value for name, value in constants.items()
                )
            ):
                found = True
                yield kernel
        if not found:
            wanted = ", ".join(f"{name} {value}" for name, value in constants.items())
            raise LookupError(f"the bundle has no {entry} for {element}, {wanted} on sm_{newest}")

    width = {"D": shape.width}
    if tower == "query":
        pooling = {**width, "E": shape.embedding_dim, "ATTENTION": shape.pool == "attention"}
        epsilons = {"NORM_EPS": shape.norm_eps, "KEY_EPS": shape.key_norm_eps}
        return next(of("pooled_embedding_kernel", "v_ptr", **pooling, **epsilons, MASKED=True))

    attend = {**width, "KEY_NORM_EPS": shape.key_norm_eps, "MASKED": True}
    queries = shape.heads * shape.queries_per_head + 1

    def tightest(kernel: Description) -> tuple[bool, int]:
        """The narrowest block that takes all queries, or else the widest."""
        block = kernel["constexprs"]["BLOCK_Q"]
        return (block < queries, block if block >= queries else -block)

    split = min(of("grounding_kernel", "v_ptr", **attend, FINISH=False), key=tightest)
    block = {"BLOCK_Q": split["constexprs"]["BLOCK_Q"]}
    whole = next(of("grounding_kernel", "v_ptr", **attend, FINISH=True, **block))
    head = {
        "HEAD": shape.width // shape.heads,
        "E": shape.embedding_dim,
        "NORM_EPS": shape.norm_eps,
    }
    tails = (
        next(of("tail_kernel", "text_ptr", **width, **head, SPLIT=value)) for value in (True, False)
    )
    return ItemKernels(split, whole, *tails)


def _type(kernel: Description, argument: str) -> str:
    """Element type of a pointer argument."""
    return next(a["type"][1:] for a in kernel["arguments"] if a["name"] == argument)


def _element_bytes(kernel: Description, argument: str) -> int:
    return BYTES[_type(kernel, argument)]


def _ceil(value: int, by: int) -> int:
    return -(-value // by)
