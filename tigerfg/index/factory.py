"""Indexes of faiss by their factory strings: made, and taken apart."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from tigerfg.errors import InputError
from tigerfg.index.derived import import_faiss

_SPANNED = re.compile(
    r"SVD(?P<dims>[1-9]\d*|),IVF(?P<lists>[1-9]\d*)(?P<graph>_HNSW\d+)?,(?P<code>.+)"
)
_HINT = (
    "give one with inverted lists, such as SVD,IVF4096,PQx4fs or IVF4096,PQ64 (refinement comes by "
    "itself)"
)


class Spanned(NamedTuple):
    """A factory string that begins with SVD, which is ours, not faiss's (see `span`).

    Attributes:
        dims: of the subspace; None: as many as the vectors ask for.
        lists, graph: of IVF, and of the centres: "", or "_HNSW16". code: "PQx4fs" has four bits
            for each dimension of the subspace.
    """

    dims: int | None
    lists: int
    graph: str
    code: str

    def __str__(self) -> str:
        code = self.code if self.dims is None else self.code.replace("PQx", f"PQ{self.dims}x")
        return f"SVD{self.dims or ''},IVF{self.lists}{self.graph},{code}"


def spanned(factory: str) -> Spanned | None:
    """The parts of a factory string that begins with SVD; None for any other.

    Raises:
        InputError: what follows SVD is not what can.
    """
    if not factory.startswith("SVD"):
        return None
    found = _SPANNED.fullmatch(factory)
    if found is None:
        raise InputError(
            f"index {factory!r}: SVD goes before IVF<lists> or IVF<lists>_HNSW<links> and a code, "
            "as in SVD,IVF4096,PQx4fs or SVD128,IVF4096,RaBitQfs"
        )
    dims, lists, graph, code = found.group("dims", "lists", "graph", "code")
    return Spanned(int(dims) if dims else None, int(lists), graph or "", code)


def transforms_of(index: Any) -> list[Any]:
    """What is done to vectors before the index behind it, in order: matrices (D, E) of what is
    linear, transforms of faiss else."""
    faiss = import_faiss()
    index = faiss.downcast_index(index)
    if not isinstance(index, faiss.IndexPreTransform):
        return []
    chain = (index.chain.at(place) for place in range(index.chain.size()))
    return [_plain(faiss.downcast_VectorTransform(transform)) for transform in chain]


def transformed(transforms: Sequence[Any], vectors: np.ndarray) -> np.ndarray:
    """Vectors (N, E) as the lists have them, (N, D): behind the transforms, in order."""
    for transform in transforms:
        if isinstance(transform, np.ndarray):
            vectors = vectors @ transform.T
        else:
            vectors = transform.apply(vectors)
    return vectors


def require_ivf(factory: str, dim: int) -> Any:
    """An empty inner-product index by its factory string; with SVD, of all dimensions if it leaves
    them open.

    Raises:
        InputError: faiss does not know it, it is no IVF index, or faiss cannot keep removed items
            out of its results, remove them, or compare all its centres.
    """
    faiss = import_faiss()
    if parts := spanned(factory):
        dims = parts.dims or dim
        if dims > dim:
            raise InputError(f"index {factory!r}: vectors have {dim} dimensions, not {dims}")
        _, inner = str(parts._replace(dims=dims)).split(",", 1)
        return faiss.IndexPreTransform(
            faiss.LinearTransform(dim, dims, False), _ivf(inner, dims, factory)
        )
    return _ivf(factory, dim, factory)


def list_count_of(index: Any) -> int:
    """Inverted lists of an index that `require_ivf` made."""
    return import_faiss().extract_index_ivf(index).nlist


def ids_by_list(ivf: Any) -> Iterator[tuple[int, np.ndarray]]:
    """Every list that is not empty, and the ids in it."""
    lists = ivf.invlists
    for number in range(ivf.nlist):
        if size := lists.list_size(number):
            yield number, import_faiss().rev_swig_ptr(lists.get_ids(number), size).copy()


def _ivf(factory: str, dim: int, asked: str) -> Any:
    """`require_ivf` of what faiss knows; asked: the whole string, for errors."""
    faiss = import_faiss()
    if re.search(r"HNSW0*[01]?(?!\d)", factory):
        raise InputError(f"index {asked!r}: a graph needs two links or more, as in _HNSW16")
    if re.search(r"(?<!\d)0+(?!\d)", factory):  # some end the process
        raise InputError(f"index {asked!r}: numbers are at least 1; {_HINT}")
    try:
        index = faiss.index_factory(dim, factory, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as error:
        reason = str(error).split("Error: ")[-1].split("\n")[0]
        raise InputError(f"index {asked!r}: faiss refuses it ({reason}); {_HINT}") from error
    inner = faiss.downcast_index(index)
    if isinstance(inner, faiss.IndexPreTransform):
        inner = faiss.downcast_index(inner.index)
    if not isinstance(inner, faiss.IndexIVF):
        raise InputError(f"index {asked!r} is no IVF index: {_HINT}")
    additive = (faiss.IndexIVFAdditiveQuantizer, faiss.IndexIVFAdditiveQuantizerFastScan)
    if isinstance(inner, additive):
        raise InputError(f"index {asked!r}: faiss cannot leave out items with its codes; {_HINT}")
    if isinstance(inner, faiss.IndexIVFFlatDedup):
        raise InputError(f"index {asked!r}: faiss loses items beside equal ones that go; {_HINT}")
    if isinstance(inner, faiss.IndexIVFFastScan) and inner.bbs != 32:
        plain = re.sub(r"(fsr?\d*)_\d+$", r"\1", asked)
        raise InputError(
            f"index {asked!r}: faiss damages blocks of {inner.bbs} when items are removed; "
            f"give {plain}, whose blocks are of 32"
        )
    if isinstance(faiss.downcast_index(inner.quantizer), faiss.IndexIVF):
        raise InputError(f"index {asked!r}: its centres are never all compared; {_HINT}")
    if isinstance(inner, faiss.IndexIVFPQ):
        inner.do_polysemous_training = False  # most of the training's time, for a search not used
    return index


def _plain(transform: Any) -> Any:
    faiss = import_faiss()
    if not isinstance(transform, faiss.LinearTransform) or transform.have_bias:
        return transform
    return faiss.vector_to_array(transform.A).reshape(transform.d_out, transform.d_in)
