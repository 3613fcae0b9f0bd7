"""The kernels of one model's tails: what a bundle carries."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tigerfg.kernels.aot import OPERATORS, variants_of
from tigerfg.kernels.model_kernels import ModelKernels
from tigerfg.kernels.tuning import ARCHITECTURES

MODEL = ModelKernels("fp16", 96, 3, 2, 64, "attention")


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_a_model_gets_its_own_forms(arch):
    names = [name for op in OPERATORS for name in variants_of(op, arch, MODEL)]
    assert len(names) == 5
    kinds = [name.split("_fp16")[0] for name in names]
    pooled = "pooled_embedding_attention_masked"
    assert kinds == ["grounding_whole", "grounding_split", "tail_whole", "tail_split", pooled]
    for operator in ("grounding", "tail", "pooling"):
        for variant in variants_of(operator, arch, MODEL).values():
            assert variant.constexprs["D"] == 96
    queries = MODEL.heads * MODEL.queries_per_head + 1
    whole = variants_of("grounding", arch, MODEL)
    assert all(variant.constexprs["BLOCK_Q"] >= queries for variant in whole.values())


def test_what_the_kernels_do_not_take_is_said():
    assert MODEL.unserved(90) is None
    assert "multiple of 16" in ModelKernels("fp16", 40, 5, 1, 64, "mean").unserved(90)
    assert "dimensions" in ModelKernels("fp16", 96, 3, 1, 40, "mean").unserved(90)
    assert "heads of 256" in ModelKernels("fp16", 256, 1, 1, 64, "mean").unserved(90)
    assert "does not fit" in ModelKernels("fp32", 768, 12, 1, 256, "mean").unserved(90)


@pytest.mark.slow
def test_compiled_for_one_model_alone(tmp_path):
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tigerfg.kernels.aot", "--out", tmp_path, "--arch", "89"]
    command += ["--model", json.dumps(vars(MODEL)), "--jobs", "2"]
    subprocess.run(command, check=True, env=environment, capture_output=True)
    kernels = json.loads((tmp_path / "index.json").read_text())["kernels"]
    assert {entry["name"] for entry in kernels} == {
        name for op in OPERATORS for name in variants_of(op, 89, MODEL)
    }
    assert all((tmp_path / entry["file"]).stat().st_size > 1000 for entry in kernels)
