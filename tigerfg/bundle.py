"""Model bundles: the directory that export writes and every engine loads."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tigerfg.bundle_files import AGAIN, BundleFiles, FileRecord
from tigerfg.errors import BundleError, InputError

if TYPE_CHECKING:
    from tigerfg.attention_crop import AttentionCrop
    from tigerfg.gpu_bundle import GpuPart
    from tigerfg.images import Preprocessing
    from tigerfg.text import TextTokenizer

BUNDLE_FORMAT = 2  # 1: none has an attention_crop, which its readers would pass over
DEFAULT_MODEL = "lite"  # of the bundles that are shipped
TOWERS = ("query", "item")
MANIFEST_FILE = "manifest.json"
TOKENIZER_FILE = "tokenizer.json"

_SHIPPED = Path(__file__).parent / "bundles"
_FIELDS: dict[str, type] = {
    "name": str,
    "fingerprint": str,
    "embedding_dim": int,
    "max_text_length": int,
    "vocab_size": int,
    "preprocessing": dict,
    "towers": dict,
    "tokenizer": dict,
}


class Bundle:
    """An exported model, read-only: manifest, tokenizer and one ONNX file per tower and precision.

    Open one with `Bundle.open`. The manifest may record tokenizer.json and the weight file that the
    ONNX files share as it records these (``"tokenizer": {"file", "sha256", "bytes"}``,
    ``"weights": ...``); they are then checked like them. A file is compared with its record before
    its first use.

    Attributes:
        path: the directory.
        manifest: the content of manifest.json.
        preprocessing: how the towers want their pixels.
        attention_crop: how items are looked at again; None if they are not.
    """

    def __init__(
        self,
        path: Path,
        manifest: dict[str, Any],
        preprocessing: Preprocessing,
        attention_crop: AttentionCrop | None = None,
    ) -> None:
        self.path = path
        self.manifest = manifest
        self.preprocessing = preprocessing
        self.attention_crop = attention_crop
        self._files = BundleFiles(path)

    @classmethod
    def open(cls, path_or_name: str | os.PathLike = DEFAULT_MODEL) -> Bundle:
        """Open a bundle directory, or a bundle shipped with tigerfg by its name (a `str`).

        Checks the manifest and that every file is there with its recorded size; a file's content
        is checked before its first use, and those of all by `verify`.

        Raises:
            BundleError: no such directory or name, no or a broken manifest, a format newer than
                this version reads, a file that is missing or of another size.
        """
        from tigerfg.attention_crop import AttentionCrop
        from tigerfg.images import Preprocessing

        path = _locate(path_or_name)
        manifest = _read_manifest(path)
        try:
            preprocessing = Preprocessing.from_dict(manifest["preprocessing"])
            crop = manifest.get("attention_crop")
            crop = None if crop is None else AttentionCrop.from_dict(crop)
        except InputError as error:
            raise BundleError(f"{path / MANIFEST_FILE}: {error}") from error
        bundle = cls(path, manifest, preprocessing, crop)
        for record in bundle._records():
            bundle._files.check_size(record)
        return bundle

    @property
    def name(self) -> str:
        """The model's name, e.g. "tiny"."""
        return self.manifest["name"]

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the checkpoint's weights, configuration and tokenizer, as hex: the model's
        identity."""
        return self.manifest["fingerprint"]

    @property
    def embedding_dim(self) -> int:
        """Width of the embeddings."""
        return self.manifest["embedding_dim"]

    @property
    def max_text_length(self) -> int:
        """Most tokens of an item's text."""
        return self.manifest["max_text_length"]

    @property
    def precisions(self) -> list[str]:
        """The precisions that both towers come in, in the manifest's order."""
        towers = self.manifest["towers"]
        return [name for name in towers["query"] if name in towers["item"]]

    @property
    def least_parity(self) -> float:
        """The lowest cosine to float32 torch that its parity report tells of any precision and
        engine; 1 where it tells none."""
        return min(_cosines(self.manifest.get("parity")), default=1.0)

    @cached_property
    def tokenizer(self) -> TextTokenizer:
        """The item tower's tokenizer, read on first use; BundleError if the file is damaged."""
        from tigerfg.text import TextTokenizer

        file = self._files.whole(self.manifest["tokenizer"])
        try:
            return TextTokenizer.from_file(file, self.max_text_length)
        except InputError as error:
            raise BundleError(str(error)) from error

    @cached_property
    def gpu(self) -> GpuPart | None:
        """Graphs, engines and kernels for GPUs; None if none were exported."""
        if "gpu" not in self.manifest:
            return None
        from tigerfg.gpu_bundle import GpuPart

        return GpuPart(self.path, self.manifest, self._files)

    def onnx(self, tower: str, precision: str) -> Path:
        """Path of a tower's ONNX file, which is whole, as are the weights that it refers to.

        Args:
            tower: "query" or "item".
            precision: one of the tower's, e.g. "fp32" or "int8".

        Raises:
            BundleError: no such tower or precision, or a file is damaged.
        """
        if tower not in TOWERS:
            raise BundleError(f"{self.path}: no tower {tower!r}: choose {' or '.join(TOWERS)}")
        records = self.manifest["towers"][tower]
        if precision not in records:
            raise BundleError(
                f"{self.path}: the {tower} tower has no precision {precision!r}: "
                f"choose {', '.join(records)}"
            )
        if "weights" in self.manifest:
            self._files.whole(self.manifest["weights"])
        return self._files.whole(records[precision])

    def verify(self) -> None:
        """Read every file and compare size and SHA-256 with the manifest; BundleError if one
        differs."""
        for record in self._records():
            self._files.compare(record)

    def __repr__(self) -> str:
        return f"Bundle({self.name!r}, {self.fingerprint[:12]}, {str(self.path)!r})"

    def _records(self) -> Iterator[FileRecord]:
        for tower in TOWERS:
            yield from self.manifest["towers"][tower].values()
        yield self.manifest["tokenizer"]
        if "weights" in self.manifest:
            yield self.manifest["weights"]
        for _, record in self.gpu.records() if self.gpu else ():
            yield record


def shipped() -> list[str]:
    """Names of the bundles that come with tigerfg."""
    return sorted(folder.parent.name for folder in _SHIPPED.glob(f"*/{MANIFEST_FILE}"))


def _cosines(parity: object) -> Iterator[float]:
    """The lowest cosines in a parity report, of every tower, precision and engine."""
    for name, value in parity.items() if isinstance(parity, dict) else ():
        if name == "cosine_min":
            yield value
        else:
            yield from _cosines(value)


def _locate(path_or_name: str | os.PathLike) -> Path:
    path = Path(path_or_name)
    if isinstance(path_or_name, str) and path_or_name in shipped():
        return _SHIPPED / path
    if path.is_dir():
        return path
    if path.exists():
        raise BundleError(f"{path}: a bundle is a directory with {MANIFEST_FILE}, this is a file")
    raise BundleError(
        f"{path}: no such bundle directory, and no shipped bundle of that name "
        f"(shipped: {', '.join(shipped()) or 'none'})"
    )


def _read_manifest(path: Path) -> dict[str, Any]:
    file = path / MANIFEST_FILE
    try:
        manifest = json.loads(file.read_bytes())
    except FileNotFoundError as error:
        raise BundleError(f"{path}: not a bundle, it has no {MANIFEST_FILE}") from error
    except OSError as error:
        raise BundleError(f"{file}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{file}: not valid JSON: {error}") from error
    if not isinstance(manifest, dict) or not _is(manifest.get("format"), int):
        raise BundleError(f"{file}: not a manifest, it has no format number")
    if manifest["format"] > BUNDLE_FORMAT:
        raise BundleError(
            f"{file}: bundle format {manifest['format']} is newer than {BUNDLE_FORMAT}, the one "
            "that this tigerfg reads: upgrade tigerfg"
        )
    for field, kind in _FIELDS.items():
        if not _is(manifest.get(field), kind):
            raise BundleError(f"{file}: {field} is missing or no {kind.__name__}")
    for tower in TOWERS:
        records = manifest["towers"].get(tower)
        if not isinstance(records, dict) or not records:
            raise BundleError(f"{file}: towers.{tower} is missing or empty")
        for precision, record in records.items():
            _check_record(record, f"{file}: towers.{tower}.{precision}")
    for field in ("tokenizer", "weights"):
        if field in manifest:
            _check_record(manifest[field], f"{file}: {field}")
    if "gpu" in manifest:
        _check_gpu(path, manifest)
    return manifest


def _check_gpu(path: Path, manifest: dict[str, Any]) -> None:
    """The GPU part is complete, and every file in it is named by a proper record."""
    from tigerfg.gpu_bundle import GpuPart

    file = path / MANIFEST_FILE
    if "weights" not in manifest:
        raise BundleError(f"{file}: gpu without weights: {AGAIN}")
    try:
        records = list(GpuPart(path, manifest, BundleFiles(path)).records())
    except (AttributeError, KeyError, TypeError) as error:
        raise BundleError(f"{file}: gpu is incomplete ({error!r}): {AGAIN}") from error
    for field, record in records:
        _check_record(record, f"{file}: {field}")


def _check_record(record: Any, field: str) -> None:
    """A file's record: a plain file name, its SHA-256 and its size."""
    kinds = {"file": str, "sha256": str, "bytes": int}
    for key, kind in kinds.items():
        if not isinstance(record, dict) or not _is(record.get(key), kind):
            raise BundleError(f"{field}.{key} is missing or no {kind.__name__}")
    name = record["file"]
    if Path(name).name != name or name in ("", ".", "..") or "\0" in name:
        raise BundleError(f"{field}.file {name!r} is not a plain file name inside the bundle")


def _is(value: Any, kind: type) -> bool:
    return isinstance(value, kind) and not (kind is int and isinstance(value, bool))
