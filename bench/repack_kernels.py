"""New kernels in shipped bundles, after launch parameters or a kernel changed; the rest stays.

python bench/repack_kernels.py tiny lite
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path

from tigerfg.bundle import MANIFEST_FILE, Bundle
from tigerfg.export.manifest import record
from tigerfg.export.tail import tail_kernels
from tigerfg.files import publish, write_whole
from tigerfg.model import load_checkpoint


def repack(name: str) -> None:
    """Compile a bundle's kernels again, and put them in place of those it has: of a copy beside it,
    which takes its place when it is whole."""
    bundle = Bundle.open(name)
    precisions = tuple(bundle.gpu.precisions)
    old, out = bundle.manifest["gpu"]["kernels"], bundle.path
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as folder:
        staged = Path(folder) / out.name
        shutil.copytree(out, staged)
        for entry in (old["index"], *old["files"].values()):
            (staged / entry["file"]).unlink()
        index, files = tail_kernels(staged, load_checkpoint(name), precisions, (), print)
        new = {
            "index": record(index),
            "files": {file: record(path) for file, path in files.items()},
        }
        bundle.manifest["gpu"]["kernels"] = new
        write_whole(staged / MANIFEST_FILE, json.dumps(bundle.manifest, indent=2) + "\n")
        Bundle.open(staged).verify()
        publish(staged, out, Path(folder) / "old")
    changed = sum(old["files"].get(file) != entry for file, entry in new["files"].items())
    print(f"{name}: {changed} of {len(new['files'])} kernels changed")


if __name__ == "__main__":
    for each in sys.argv[1:]:
        repack(each)
