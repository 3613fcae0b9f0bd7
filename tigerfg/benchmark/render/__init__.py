"""Procedural product renderer: products, cut-outs, scenes and whole catalogues, by seed."""

from __future__ import annotations

from .catalog import write_catalog
from .cutout import pose, render_cutout
from .distractors import Distractors
from .products import Product, make_products
from .scenes import Scene, compose, compose_query, compose_scene, render_item, render_query

__all__ = [
    "Distractors",
    "Product",
    "Scene",
    "compose",
    "compose_query",
    "compose_scene",
    "make_products",
    "pose",
    "render_cutout",
    "render_item",
    "render_query",
    "write_catalog",
]
