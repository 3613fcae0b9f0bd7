"""Fixtures that every test may use."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

# Without a GPU Triton kernels run in its interpreter; it is chosen when they are first imported.
if not Path("/dev/nvidiactl").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# gRPC's threads, of Milvus Lite, stay in a process that starts Ray later: its handlers of fork()
# then end children of Ray before they begin, now and then.
os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"

# Workers of xdist share the cores: OpenMP's threads, in torch and faiss, would wait for each other.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
from fakes import FakeBundle, FakeEngine
from milvus_places import PLACES, new_place
from picture_server import Server, serving
from PIL import Image

from tigerfg.searcher import Searcher

with contextlib.suppress(ModuleNotFoundError):  # a GPU machine may have pytest only
    from hypothesis import settings

    settings.register_profile("tigerfg", deadline=None)  # no test hangs on a speed
    settings.load_profile("tigerfg")

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The real product photos: $TIGERFG_SHARED_DATA, else ../shared/data beside the repository."""
    folder = Path(os.environ.get("TIGERFG_SHARED_DATA", REPOSITORY.parent / "shared" / "data"))
    if not (folder / "grocery" / "standard" / "items.jsonl").is_file():
        pytest.skip(f"no product photos in {folder}: set TIGERFG_SHARED_DATA to their folder")
    return folder


@pytest.fixture
def engine() -> FakeEngine:
    """That of `searcher`, which counts what it encodes."""
    return FakeEngine()


@pytest.fixture(params=PLACES)
def place(request: pytest.FixtureRequest, tmp_path: Path):
    """Where a catalogue may be made: a directory, or a collection in Milvus."""
    yield from new_place(request.param, tmp_path)


@pytest.fixture
def searcher(place, engine: FakeEngine):
    """An empty catalogue at every place, with a model that is none."""
    with Searcher.create(place, FakeBundle(), engine=engine) as searcher:
        yield searcher


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """A web server of the pictures 0.png to 19.png, which are in tmp_path."""
    with serving(tmp_path) as server:
        yield server


@pytest.fixture(scope="session")
def make_image() -> Callable[..., Image.Image]:
    """``make_image(width, height, seed=0)``: an RGB image of smooth random colours.

    Smooth, so that JPEG keeps it; without symmetry, so that a flip or a turn shows.
    """

    def make(width: int = 48, height: int = 32, seed: int = 0) -> Image.Image:
        coarse = np.random.default_rng(seed).integers(0, 256, (5, 7, 3), dtype=np.uint8)
        return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)

    return make


@pytest.fixture(scope="session")
def parity_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small rendered catalogue (items.jsonl, queries.jsonl) for exports in tests."""
    from tigerfg.benchmark.render import write_catalog

    folder = tmp_path_factory.mktemp("parity")
    write_catalog(folder, 24, seed=5, layout="cluttered", image_size=96, workers=1)
    return folder


@pytest.fixture(scope="session")
def small_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a small random model with a model card beside it; not to be altered."""
    from small_models import CONV, build, tokenizer_file

    from tigerfg.model import save_checkpoint

    folder = tmp_path_factory.mktemp("checkpoint")
    tokenizer = tokenizer_file(folder / "tokenizer.json")
    checkpoint = save_checkpoint(build(CONV), tokenizer, folder / "small")
    (checkpoint / "MODEL_CARD.md").write_text("# small\n\nRandom weights.\n")
    return checkpoint


@pytest.fixture(scope="session")
def small_bundle(
    tmp_path_factory: pytest.TempPathFactory, small_checkpoint: Path, parity_folder: Path
) -> Path:
    """The bundle of `small_checkpoint` in fp32 and int8; not to be altered."""
    from tigerfg.export import export_bundle

    out = tmp_path_factory.mktemp("bundle") / "small"
    return export_bundle(small_checkpoint, out, parity_data=parity_folder)
