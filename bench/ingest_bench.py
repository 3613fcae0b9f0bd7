"""Ingest beside the usual loops, same model, same cores; and its memory over many items.

    python bench/ingest_bench.py --ckpt CHECKPOINT --items FOLDER --out FOLDER [--memory 100000]

Contenders encode the same items of FOLDER (`tigerfg render`, a suite, any catalogue); ours stores
them in a catalogue besides:

- plain loop: one picture at a time, PIL and a default ONNX Runtime session;
- batch loop: what sentence-transformers and open_clip users write: load and preprocess 32 pictures,
  stack them, one forward pass of the eager torch model under inference_mode;
- DataLoader loop: the same with torch's DataLoader loading in as many processes as there are cores;
- tigerfg: `Searcher.add`, fp32 and auto.

--memory N: after that, resident memory while N items (the same pictures under other ids) are added.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from conditions import conditions
from contenders import PlainLoop
from engine_report import markdown
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from tigerfg import Item, Searcher
from tigerfg.bundle import Bundle
from tigerfg.catalog import read_items
from tigerfg.engines.accuracy import cosines
from tigerfg.engines.cpu import thread_count
from tigerfg.images import letterbox, patch_mask
from tigerfg.model import load_checkpoint
from tigerfg.text import item_text

HERE = Path(__file__).resolve().parent
BATCH, ROUNDS = 32, 3
MEMORY_EVERY = 2000  # items between two readings

Encode = Callable[[], np.ndarray]


class Pictures(Dataset):
    """An item's picture and text as the torch model takes them, with torchvision-like steps."""

    def __init__(self, items: list[Item], bundle: Bundle) -> None:
        self.items, self.spec = items, bundle.preprocessing
        self.mean = torch.tensor(self.spec.mean)[:, None, None]
        self.std = torch.tensor(self.spec.std)[:, None, None]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, number: int) -> tuple[torch.Tensor, torch.Tensor]:
        size = self.spec.item_size
        with Image.open(self.items[number].image) as image:
            pixels, extent = letterbox(image.convert("RGB"), size, self.spec.interpolation)
        tensor = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1))).float()
        tensor = (tensor / 255 - self.mean) / self.std
        tensor[:, extent[1] :] = 0
        tensor[:, :, extent[0] :] = 0
        mask = torch.from_numpy(patch_mask(np.asarray([extent]), size, self.spec.patch)[0])
        return tensor, mask


def torch_loops(
    items: list[Item], bundle: Bundle, checkpoint: Path, threads: int
) -> dict[str, Encode]:
    """The batch loop and the DataLoader loop."""
    model = load_checkpoint(checkpoint).eval()
    torch.set_num_threads(threads)
    pictures = Pictures(items, bundle)
    texts = [item_text(item) for item in items]

    def forward(pixels: torch.Tensor, masks: torch.Tensor, first: int) -> np.ndarray:
        ids, token_mask = bundle.tokenizer(texts[first : first + len(pixels)])
        with torch.inference_mode():
            encoded = model.encode_item(
                pixels, masks, torch.from_numpy(ids), torch.from_numpy(token_mask)
            )
        return encoded.embedding.numpy()

    def batch_loop() -> np.ndarray:
        parts = []
        for first in range(0, len(pictures), BATCH):
            loaded = [pictures[n] for n in range(first, min(first + BATCH, len(pictures)))]
            pixels, masks = (torch.stack(column) for column in zip(*loaded, strict=True))
            parts.append(forward(pixels, masks, first))
        return np.concatenate(parts)

    def loader_loop() -> np.ndarray:
        loader = DataLoader(pictures, batch_size=BATCH, num_workers=threads)
        return np.concatenate(
            [forward(*batch, number * BATCH) for number, batch in enumerate(loader)]
        )

    return {"batch loop, eager torch": batch_loop, "DataLoader loop, eager torch": loader_loop}


def ours(items: list[Item], bundle: Bundle, precision: str, out: Path) -> tuple[Encode, dict]:
    """`Searcher.add` into a new catalogue each time; its last report's stages besides."""
    stages: dict[str, float] = {}
    folder = out / f"catalog-{precision}"

    def add() -> np.ndarray:
        shutil.rmtree(folder, ignore_errors=True)
        with Searcher.create(folder, bundle, precision=precision) as searcher:
            searcher.encode_query(items[0].image)  # the engine has started
            started = time.perf_counter()
            report = searcher.add(items)
            add.seconds = time.perf_counter() - started
            stages.update(report.stages)
            matrix = [searcher._collection._store.vectors_since(0)]
            return np.concatenate([vectors for _, vectors in matrix[0]])

    return add, stages


def measure(name: str, call: Encode, expected: np.ndarray | None, count: int) -> dict[str, Any]:
    """Median seconds of a few rounds; the cosine with the first contender's embeddings."""
    seconds = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        found = call()
        seconds.append(getattr(call, "seconds", time.perf_counter() - started))
    cosine = None if expected is None else float(cosines(found, expected).mean())
    row = {"contender": name, "seconds": seconds, "images_s": count / statistics.median(seconds)}
    print(f"{name}: {row['images_s']:.0f} images/s", flush=True)
    return {**row, "cosine": cosine, "_found": found}


def memory(items: list[Item], bundle: Bundle, count: int, out: Path) -> list[tuple[int, float]]:
    """(items stored, resident MB) while `count` items are added."""
    folder = out / "catalog-memory"
    shutil.rmtree(folder, ignore_errors=True)
    readings: list[tuple[int, float]] = []

    def many() -> Iterator[Item]:
        for number in range(count):
            one = items[number % len(items)]
            yield dataclasses.replace(one, item_id=f"{one.item_id}-{number}")

    def read(report: Any) -> None:
        if not readings or report.added - readings[-1][0] >= MEMORY_EVERY:
            readings.append((report.added, resident()))

    with Searcher.create(folder, bundle, index="flat") as searcher:
        searcher.add(many(), progress=read)
    readings.append((count, resident()))
    shutil.rmtree(folder)
    return readings


def resident() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ckpt", type=Path, required=True, help="of the model, for torch")
    parser.add_argument("--items", type=Path, required=True, help="a catalogue to encode")
    parser.add_argument("--count", type=int, default=1000, help="of its items")
    parser.add_argument("--memory", type=int, default=0, help="items for the memory reading")
    parser.add_argument("--out", type=Path, required=True, help="bundle and catalogues")
    parser.add_argument("--results", type=Path, default=HERE / "results")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    folder = options.out / "bundle"
    if not (folder / "manifest.json").exists():
        command = ["tigerfg-export", "--ckpt", options.ckpt, "--out", folder, "--engine", "none"]
        subprocess.run([Path(sys.executable).with_name(command[0]), *command[1:]], check=True)
    bundle, threads = Bundle.open(folder), thread_count(None)
    if bundle.attention_crop:
        parser.error("--ckpt: the torch loops take no attention crop; give a model without one")
    items = list(read_items(options.items))[: options.count]
    for item in items:
        Path(item.image).read_bytes()  # the page cache is warm for all alike
    plain = PlainLoop(bundle, threads)
    contenders: dict[str, Encode] = {
        "plain loop, ONNX Runtime": lambda: np.stack([plain.encode_item(item) for item in items]),
        **torch_loops(items, bundle, options.ckpt, threads),
    }
    told: dict[str, dict] = {}
    for precision in ("fp32", "auto"):
        name = f"tigerfg {precision}"
        contenders[name], told[name] = ours(items, bundle, precision, options.out)
    rows: list[dict[str, Any]] = []
    expected = None
    for name, call in contenders.items():
        row = measure(name, call, expected, len(items))
        found = row.pop("_found")
        expected = found if expected is None else expected
        rows.append({**row, "stages": told.get(name, {})})
    readings = memory(items, bundle, options.memory, options.out) if options.memory else []
    content = {"items": len(items), "conditions": conditions(), "rows": rows, "memory_mb": readings}
    file = options.results / "ingest.json"
    file.write_text(json.dumps(content, indent=1) + "\n")
    first = rows[0]["images_s"]
    body = [
        [
            r["contender"],
            f"{r['images_s']:.0f}",
            f"{r['images_s'] / first:.2f}",
            f"{r['cosine'] or 1:.4f}",
        ]
        for r in rows
    ]
    print("\n".join(markdown(["", "images/s", "ratio", "cosine"], body)))
    if readings:
        print(f"memory: {readings[len(readings) // 10]} ... {readings[-1]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
