"""A tower as an ONNX graph: standard operators, dynamic batch and text length, readable names.

The whole tower runs in any runtime; the backbone ends where the fused kernels of the tail begin.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import warnings
from collections import Counter
from collections.abc import Iterator

import onnx
import torch
from torch import Tensor, nn

from tigerfg.engines.base import BACKBONE_INPUTS, BACKBONE_OUTPUTS, INPUTS, OUTPUTS
from tigerfg.export.fold import fold_constants
from tigerfg.model import TigerFG

OPSET = 20
IR_VERSION = 10  # the newest that every onnxruntime since 1.20 reads

_SCOPES = "pkg.torch.onnx.name_scopes"


class _QueryTower(nn.Module):
    """The query tower as a module of its own, which is what the exporter takes."""

    def __init__(self, model: TigerFG) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor, patch_mask: Tensor) -> Tensor:
        return self.model.encode_query(pixels, patch_mask)


class _ItemTower(_QueryTower):
    """The item tower, likewise."""

    def forward(
        self, pixels: Tensor, patch_mask: Tensor, token_ids: Tensor, token_mask: Tensor
    ) -> tuple[Tensor, ...]:
        return tuple(self.model.encode_item(pixels, patch_mask, token_ids, token_mask))


class _QueryBackbone(_QueryTower):
    """What the query tail reads."""

    def forward(self, pixels: Tensor) -> Tensor:
        return self.model.vision(pixels)


class _ItemBackbone(_QueryTower):
    """What the item tail reads."""

    def forward(self, pixels: Tensor, token_ids: Tensor, token_mask: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.model.tail_inputs(pixels, token_ids, token_mask))


_MODULES = {
    ("query", "tower"): _QueryTower,
    ("item", "tower"): _ItemTower,
    ("query", "backbone"): _QueryBackbone,
    ("item", "backbone"): _ItemBackbone,
}


def interface(tower: str, cut: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names of a graph's inputs and outputs."""
    if cut == "tower":
        return INPUTS[tower], OUTPUTS[tower]
    return BACKBONE_INPUTS[tower], BACKBONE_OUTPUTS[tower]


def example_inputs(
    model: TigerFG, tower: str, batch: int = 2, length: int = 7
) -> dict[str, Tensor]:
    """Inputs of the right shapes, by name."""
    config = model.config
    side = config.query_size if tower == "query" else config.item_size
    patches = (side // config.vision.patch) ** 2
    return {
        "pixels": torch.zeros(batch, 3, side, side),
        "patch_mask": torch.ones(batch, patches, dtype=torch.bool),
        "token_ids": torch.zeros(batch, length, dtype=torch.int64),
        "token_mask": torch.ones(batch, length, dtype=torch.bool),
    }


def tower_graph(model: TigerFG, tower: str, cut: str = "tower") -> onnx.ModelProto:
    """Export one tower (weights inside), with the inputs and outputs of the bundle format.

    Nodes are named after their module ("vision.blocks.0.up/MatMul"); what the exporter records
    about the machine (paths, stack traces) is removed.

    Args:
        tower: "query" or "item".
        cut: "tower": all of it; "backbone": up to the fused tail, see `TigerFG.tail_inputs`.
    """
    batch = torch.export.Dim("batch")
    length = torch.export.Dim("length", max=model.config.text.max_length)
    picture, text = {0: batch}, {0: batch, 1: length}
    module = _MODULES[tower, cut](model)
    inputs, outputs = interface(tower, cut)
    examples = example_inputs(model, tower)
    with _quiet():
        program = torch.onnx.export(
            module.eval(),
            tuple(examples[name] for name in inputs),
            dynamo=True,
            opset_version=OPSET,
            input_names=list(inputs),
            # an inner value may be called "embedding" already: renamed below
            output_names=[f"output.{name}" for name in outputs],
            dynamic_shapes={
                name: text if name.startswith("token_") else picture for name in inputs
            },
            verbose=False,
        )
    # Constants computed once in float64 or float32: a rotary embedding's angles among them, which
    # lose all meaning in float16.
    proto = fold_constants(program.model_proto)
    proto.ir_version = min(proto.ir_version, IR_VERSION)
    _tidy(proto, outputs)
    onnx.checker.check_model(proto, full_check=True)
    return proto


def _tidy(proto: onnx.ModelProto, names: tuple[str, ...]) -> None:
    graph = proto.graph
    count: Counter[str] = Counter()
    for node in graph.node:
        node.name = _node_name(node, count)
        del node.metadata_props[:]
        node.doc_string = ""
    for holder in (
        proto,
        graph,
        *graph.initializer,
        *graph.value_info,
        *graph.input,
        *graph.output,
    ):
        del holder.metadata_props[:]
        holder.doc_string = ""
    outputs = {f"output.{name}": name for name in names}
    taken = {name: f"{name}.inner" for name in outputs.values()}  # make room for the outputs
    renamed = {**taken, **outputs}
    for info in (*graph.initializer, *graph.value_info, *graph.output):
        info.name = _value_name(info.name, renamed)
    for node in graph.node:
        for values in (node.input, node.output):
            values[:] = [_value_name(name, renamed) for name in values]
    proto.producer_name = "tigerfg"
    proto.producer_version = ""


def _node_name(node: onnx.NodeProto, count: Counter[str]) -> str:
    scopes = next((entry.value for entry in node.metadata_props if entry.key == _SCOPES), "[]")
    modules = [name for name in json.loads(scopes.replace("'", '"')) if name.startswith("model.")]
    scope = modules[-1].removeprefix("model.") if modules else "tower"
    name = f"{scope}/{node.op_type}"
    count[name] += 1
    return name if count[name] == 1 else f"{name}.{count[name]}"


def _value_name(name: str, renamed: dict[str, str]) -> str:
    return renamed.get(name, name.removeprefix("model."))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's progress and its notes about optional packages off the terminal."""
    level = logging.getLogger("torch.onnx").level
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.getLogger("torch.onnx").setLevel(level)
