"""tigerfg: product image search, a cropped photo in, the right catalogue items out.

Everything below is imported on first use, so that ``import tigerfg`` costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tigerfg.bundle import Bundle
    from tigerfg.errors import (
        BundleError,
        CatalogError,
        EngineError,
        InputError,
        MissingExtraError,
        TigerfgError,
    )
    from tigerfg.records import Item, Query
    from tigerfg.searcher import Hit, Searcher

__all__ = [
    "Bundle",
    "BundleError",
    "CatalogError",
    "EngineError",
    "Hit",
    "InputError",
    "Item",
    "MissingExtraError",
    "Query",
    "Searcher",
    "TigerfgError",
    "__version__",
]

_MODULES = {
    "Bundle": "bundle",
    "Item": "records",
    "Query": "records",
    "Hit": "searcher",
    "Searcher": "searcher",
    "BundleError": "errors",
    "CatalogError": "errors",
    "EngineError": "errors",
    "InputError": "errors",
    "MissingExtraError": "errors",
    "TigerfgError": "errors",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        value: Any = version("tigerfg")
    elif name in _MODULES:
        from importlib import import_module

        value = getattr(import_module(f"tigerfg.{_MODULES[name]}"), name)
    else:
        raise AttributeError(f"module 'tigerfg' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
