"""What a measurement ran on: CPU, versions, commit."""

from __future__ import annotations

import datetime
import importlib.metadata
import platform
import subprocess
from pathlib import Path
from typing import Any

from tigerfg.engines.cpu import cpu, thread_count

PACKAGES = (
    *("tigerfg", "torch", "onnxruntime", "openvino", "faiss-cpu", "faiss-gpu-cuvs"),
    *("numpy", "pillow"),
)


def conditions() -> dict[str, Any]:
    """As JSON-able values; what is not installed is None."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    here = str(Path(__file__).parent)
    command = ["git", "-C", here, "describe", "--always", "--dirty"]
    try:
        commit = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:  # no git
        commit = ""
    return {
        "cpu": cpu().model,
        "features": cpu().features,
        "threads": thread_count(None),
        "python": platform.python_version(),
        "versions": versions,
        "commit": commit or None,
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }
