"""Importing is lean, and every package imports only what the architecture lets it import."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import tigerfg

ROOT = Path(__file__).resolve().parents[1]
HEAVY = {"torch", "triton", "transformers", "faiss", "PIL", "numpy", "onnxruntime", "openvino"}
FRAMEWORKS = {"torch", "triton", "transformers", "safetensors", "onnx", "onnxscript"}

# The units of the architecture page, by the modules and packages right under tigerfg.
BASE = {"errors", "boxes", "decoding", "images", "text", "records", "catalog", "bundle", "bundles"}
BASE |= {"bundle_files", "gpu_bundle", "levels", "settings", "files", "rows", "attention_crop"}
SERVING = {"engines", "index", "searcher", "encoder", "ingest", "results", "sheet", "serving"}
SERVING |= {
    "verify",
    "download",
    "fetch_limits",
    "prepare",
    "stage_clock",
    "lazy_encoder",
    "catalog_model",
    "bulk",
    "reader",
    "writer",
    "query_sample",
    "update",
    "ingest_run",
}
MAY_IMPORT = {
    **dict.fromkeys(BASE, BASE),
    **dict.fromkeys(SERVING, BASE | SERVING),
    "kernels": {"kernels"},
    "model": BASE | {"model", "kernels"},
    "benchmark": BASE | SERVING | {"benchmark", "model"},
    # The renderer (benchmark) draws training products and the pictures of the parity check.
    "training": BASE | {"training", "model", "benchmark"},
    "export": BASE | {"export", "model", "kernels", "engines", "benchmark"},
    "cli": BASE | SERVING | {"cli", "model", "benchmark", "training", "export", "kernels"},
}
NO_FRAMEWORKS = BASE | SERVING | {"benchmark"}
# The torch engine is for development; it reads a checkpoint, so it alone may reach the model.
TORCH_ENGINE = "tigerfg/engines/torch.py"
# Counts operations in ONNX graphs where the package onnx happens to be there.
GRAPH_COST = "tigerfg/benchmark/cost.py"


class Import(NamedTuple):
    file: str
    line: int
    unit: str  # "images", "engines", ...: what the file belongs to
    target: str  # the dotted module that it imports
    lazy: bool  # inside a function or for type checkers only

    def __str__(self) -> str:
        return f"{self.file}:{self.line} imports {self.target}"


def sources() -> Iterator[tuple[Path, str]]:
    """Every source file with its dotted module name."""
    for folder, package in (("tigerfg", "tigerfg"), ("kernels", "tigerfg.kernels")):
        yield from _modules(ROOT / folder, package)
    yield from _modules(ROOT / "export", "tigerfg.export")


def _modules(folder: Path, package: str) -> Iterator[tuple[Path, str]]:
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(folder).with_suffix("").parts
        yield path, ".".join([package, *(part for part in parts if part != "__init__")])


def imports_of(path: Path, module: str, text: str | None = None) -> Iterator[Import]:
    tree = ast.parse(path.read_text() if text is None else text)
    file = path.relative_to(ROOT).as_posix()
    unit = module.split(".")[1] if "." in module else ""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]

    def visit(node: ast.AST, lazy: bool) -> Iterator[Import]:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            lazy = True
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            for child in node.body:
                yield from visit(child, True)
            for child in node.orelse:
                yield from visit(child, lazy)
            return
        for target in targets(node):
            yield Import(file, getattr(node, "lineno", 0), unit, target, lazy)
        for child in ast.iter_child_nodes(node):
            yield from visit(child, lazy)

    def targets(node: ast.AST) -> list[str]:
        if isinstance(node, ast.Import):
            return [alias.name for alias in node.names]
        if isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")
                base = ".".join([*parents[: len(parents) - node.level + 1], *filter(None, [base])])
            if base == "tigerfg":  # from tigerfg import images: the unit is the name
                return [f"tigerfg.{alias.name}" for alias in node.names]
            return [base]
        if isinstance(node, ast.Call):
            function = node.func
            name = getattr(function, "attr", getattr(function, "id", ""))
            if name in ("import_module", "__import__") and node.args:
                value = getattr(node.args[0], "value", None)
                return [value] if isinstance(value, str) else []
        return []

    yield from visit(tree, False)


@pytest.fixture(scope="module")
def all_imports() -> list[Import]:
    return [entry for path, module in sources() for entry in imports_of(path, module)]


def unit_of(target: str) -> str | None:
    """The unit of ours that a dotted name belongs to; public names count as their module."""
    parts = target.split(".")
    if parts[0] != "tigerfg" or len(parts) == 1:
        return None
    return tigerfg._MODULES.get(parts[1], parts[1])


def test_every_module_has_a_place():
    units = {module.split(".")[1] for _, module in sources() if "." in module}
    unknown = units - set(MAY_IMPORT)
    assert not unknown, f"say in MAY_IMPORT what these may import: {sorted(unknown)}"


def test_who_may_import_whom(all_imports):
    wrong = []
    for entry in all_imports:
        target = unit_of(entry.target)
        if not entry.unit or target is None or target.startswith("__"):
            continue
        allowed = MAY_IMPORT.get(entry.unit, set())
        if entry.file == TORCH_ENGINE:
            allowed = allowed | {"model"}
        if target not in allowed:
            wrong.append(str(entry))
    assert not wrong, "\n".join(wrong)


def test_serving_path_never_imports_a_training_framework(all_imports):
    wrong = [
        str(entry)
        for entry in all_imports
        if entry.target.split(".")[0] in FRAMEWORKS
        and entry.unit in NO_FRAMEWORKS
        and entry.file != TORCH_ENGINE
        and not (entry.file == GRAPH_COST and entry.lazy and entry.target == "onnx")
    ]
    assert not wrong, "\n".join(wrong)


def test_torch_engine_is_imported_lazily(all_imports):
    wrong = [
        str(entry)
        for entry in all_imports
        if entry.target.startswith("tigerfg.engines.torch")
        and not entry.lazy
        and entry.unit != "export"  # which needs torch in any case
    ]
    assert not wrong, "\n".join(wrong)


def test_commands_import_frameworks_lazily(all_imports):
    trainers = {"torch", "model", "training", "export", "kernels"}
    wrong = [
        str(entry)
        for entry in all_imports
        if entry.unit == "cli"
        and not entry.lazy
        and (entry.target.split(".")[0] in FRAMEWORKS or unit_of(entry.target) in trainers)
    ]
    assert not wrong, "\n".join(wrong)


def test_kernels_import_torch_and_triton_only(all_imports):
    allowed = {"torch", "triton", "tigerfg", *sys.stdlib_module_names}
    wrong = [
        str(entry)
        for entry in all_imports
        if entry.unit == "kernels" and entry.target.split(".")[0] not in allowed
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("source", "targets"),
    [
        ("import torch", [("torch", False)]),
        ("def f():\n    import torch.nn as nn", [("torch.nn", True)]),
        ("from tigerfg import model", [("tigerfg.model", False)]),
        ("from ..model import x", [("tigerfg.model", False)]),
        ("from . import flat", [("tigerfg.index", False)]),
        ("importlib.import_module('torch')", [("torch", False)]),
        ("f = lambda: __import__('torch')", [("torch", True)]),
        ("if TYPE_CHECKING:\n    import torch\nelse:\n    import faiss",
         [("torch", True), ("faiss", False)]),
        ("try:\n    import torch\nexcept ImportError:\n    pass", [("torch", False)]),
    ],
)  # fmt: skip
def test_the_check_itself_sees_every_kind_of_import(source, targets):
    found = imports_of(ROOT / "tigerfg/index/store.py", "tigerfg.index.store", source)
    assert [(entry.target, entry.lazy) for entry in found] == targets


def run_python(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_import_is_fast_and_loads_nothing_heavy():
    code = (
        "import time, sys, json; start = time.perf_counter(); import tigerfg;"
        "print(json.dumps([time.perf_counter() - start, sorted(sys.modules)]))"
    )
    runs = [json.loads(run_python(code)) for _ in range(5)]
    # The best of several: a busy machine makes an import slower, never faster.
    assert min(seconds for seconds, _ in runs) <= 0.15
    for _, modules in runs:
        assert not HEAVY & {name.split(".")[0] for name in modules}


def test_data_classes_and_errors_load_nothing_heavy():
    code = (
        "import sys, json; from tigerfg import Item, Query, InputError, MissingExtraError;"
        "import tigerfg.catalog; print(json.dumps(sorted(sys.modules)))"
    )
    modules = json.loads(run_python(code))
    assert not HEAVY & {name.split(".")[0] for name in modules}


def test_preprocessing_and_searcher_load_no_framework():
    code = (
        "import sys, json; from tigerfg import Bundle, Hit, Searcher;"
        "import tigerfg.images, tigerfg.text, tigerfg.encoder, tigerfg.engines;"
        "print(json.dumps(sorted(sys.modules)))"
    )
    modules = json.loads(run_python(code))
    assert not FRAMEWORKS & {name.split(".")[0] for name in modules}


def test_every_public_name_is_there():
    assert set(tigerfg.__all__) <= set(dir(tigerfg))
    for name in tigerfg.__all__:
        assert getattr(tigerfg, name) is not None
    assert tigerfg.__version__.count(".") == 2
    with pytest.raises(AttributeError, match="'tigerfg' has no attribute 'Sercher'"):
        _ = tigerfg.Sercher


def test_every_error_is_a_tigerfg_error():
    for name in tigerfg.__all__:
        if name.endswith("Error"):
            assert issubclass(getattr(tigerfg, name), tigerfg.TigerfgError)
    assert issubclass(tigerfg.InputError, ValueError)
    assert issubclass(tigerfg.MissingExtraError, ImportError)
    error = tigerfg.MissingExtraError("reading parquet", "pyarrow", "scale")
    assert str(error) == "reading parquet needs the package pyarrow: pip install 'tigerfg[scale]'"
