"""What every dataset has in common."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tigerfg.benchmark.datasets import DATASETS, load_dataset
from tigerfg.errors import InputError


def test_names():
    assert set(DATASETS) == {
        "sop",
        "inshop",
        "product1m",
        "shopee",
        "abo",
        "products10k",
        "grocery",
    }


def test_unknown_name(root):
    with pytest.raises(InputError, match="dataset 'imagenet' is none of sop, inshop"):
        load_dataset("imagenet", root)


@pytest.mark.parametrize("name", DATASETS)
def test_unknown_split_and_missing_data(root, name):
    with pytest.raises(InputError, match=f"split 'nothing' of {name} is none of "):
        load_dataset(name, root, "nothing")
    with pytest.raises(InputError) as caught:
        load_dataset(name, root)
    assert DATASETS[name].download in str(caught.value)
    assert str(root) in str(caught.value)
    with pytest.raises(InputError, match="gone: no such directory"):
        load_dataset(name, root / "gone")


def test_importing_loads_nothing_heavy():
    code = (
        "import sys, tigerfg.benchmark.datasets; "
        "print({'torch', 'numpy', 'PIL', 'pyarrow'} & set(sys.modules) or 'lean')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240)
    assert done.stdout.strip() == "lean", done.stderr
