"""Float32 graphs that several test modules take: traced once a process, never altered."""

from __future__ import annotations

from functools import cache

import onnx
from small_models import CONV, HF, build

from tigerfg.export.fold import fold_constants
from tigerfg.export.graph import tower_graph

CONFIGS = {"conv": CONV, "hf": HF}


@cache
def graph(config: str, tower: str, cut: str = "tower") -> onnx.ModelProto:
    return fold_constants(tower_graph(build(CONFIGS[config]), tower, cut))
