"""Cold start: a fresh Python process, from its start to the first hit, beside eager PyTorch."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from tigerfg import Searcher
from tigerfg.bundle import Bundle
from tigerfg.catalog import read_items, read_queries
from tigerfg.encoder import Encoder
from tigerfg.engines import open_engine

OURS = """
import sys
from tigerfg import Searcher
with Searcher.open(sys.argv[1], read_only=True, threads=int(sys.argv[4])) as searcher:
    print(searcher.search(sys.argv[3], k=1)[0].item_id)
"""
EAGER = """
import sys
import numpy as np
import torch
from tigerfg.images import load_image, preprocess
from tigerfg.model import load_checkpoint
torch.set_num_threads(int(sys.argv[4]))
model = load_checkpoint(sys.argv[2] + "/checkpoint")
spec = model.config.preprocessing
pixels, mask, _ = preprocess([load_image(sys.argv[3])], spec.query_size, spec)
with torch.inference_mode():
    query = model.encode_query(torch.from_numpy(pixels), torch.from_numpy(mask)).numpy()
vectors = np.load(sys.argv[2] + "/vectors.npy")
ids = open(sys.argv[2] + "/ids.txt").read().splitlines()
print(ids[int((query @ vectors.T).argmax())])
"""


@pytest.fixture(scope="module")
def shop(catalog, bundle, threads, tmp_path_factory):
    """A catalogue and the same vectors for the torch side; random weights, tiny towers."""
    import torch

    from tigerfg.export import export_bundle
    from tigerfg.model import TigerFG, preset, save_checkpoint

    folder = tmp_path_factory.mktemp("cold")
    torch.manual_seed(0)
    save_checkpoint(TigerFG(preset("tiny")), bundle.path / "tokenizer.json", folder / "checkpoint")
    model = export_bundle(folder / "checkpoint", folder / "bundle", precisions=("fp32",))
    items = list(read_items(catalog))
    with Searcher.create(folder / "catalogue", model=model, threads=threads) as searcher:
        searcher.add(items)
    exported = Bundle.open(model)
    encoded = Encoder(exported, open_engine(exported, threads=threads)).encode_items(items)
    np.save(folder / "vectors.npy", np.stack([item.embedding for item in encoded]))
    (folder / "ids.txt").write_text("\n".join(item.item_id for item in items))
    return folder, str(next(iter(read_queries(catalog))).image)


@pytest.mark.parametrize("contender", ["torch eager fp32", "tigerfg Searcher"])
def test_cold_start(contender, shop, threads, compare):
    folder, photo = shop
    script = OURS if contender.startswith("tigerfg") else EAGER
    command = [sys.executable, "-c", script, str(folder / "catalogue"), str(folder), photo]

    def call() -> str:
        done = subprocess.run(
            [*command, str(threads)], capture_output=True, text=True, check=True, timeout=120
        )
        return done.stdout.strip()

    with Searcher.open(folder / "catalogue", read_only=True, threads=threads) as searcher:
        wanted = searcher.search(photo, k=1)[0].item_id
    compare("cold start", contender, call, 1, float(call() == wanted), rounds=7, warmup=1)
