"""ECom-RF-IMMR-style suites: training pairs in shards, two evaluation sets, from any cut-outs."""

from __future__ import annotations

from .build import Report, build
from .manifest import Manifest, verify
from .schema import NOISE, PAIRS_A_GROUP, SUITE_VERSION, Pair, pair_schema
from .settings import Settings
from .sources import Group, Listing, Source

__all__ = [
    "NOISE",
    "PAIRS_A_GROUP",
    "SUITE_VERSION",
    "Group",
    "Listing",
    "Manifest",
    "Pair",
    "Report",
    "Settings",
    "Source",
    "build",
    "pair_schema",
    "verify",
]
