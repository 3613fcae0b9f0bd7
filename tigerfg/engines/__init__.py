"""Inference engines: pixels and tokens in, embeddings out. One protocol for every runtime."""

from __future__ import annotations

from tigerfg.engines.base import Engine, EngineInfo, ItemEncoding
from tigerfg.engines.factory import ENGINES, available_engines, check_request, open_engine
from tigerfg.engines.select import Candidate, Choice, choose

__all__ = [
    "ENGINES",
    "Candidate",
    "Choice",
    "Engine",
    "EngineInfo",
    "ItemEncoding",
    "available_engines",
    "check_request",
    "choose",
    "open_engine",
]
