"""Exceptions that tigerfg raises on purpose: one clear line each, naming the field and the fix."""

from __future__ import annotations


class TigerfgError(Exception):
    """Base of every error that tigerfg raises on purpose."""


class InputError(TigerfgError, ValueError):
    """An image, a box, a text or a line of a data file that cannot be used."""


class BundleError(TigerfgError):
    """A model bundle that is missing, incomplete, damaged or of an unknown format."""


class CatalogError(TigerfgError):
    """A catalogue directory, its SQLite store or its vector index that cannot be used."""


class EngineError(TigerfgError):
    """An inference engine that is unknown, cannot start or returned an unusable result."""


class MissingExtraError(TigerfgError, ImportError):
    """An optional package is not installed.

    Args:
        feature: what needs the package, e.g. ``"reading parquet"``.
        package: the package's name on the package index, e.g. ``"pyarrow"``.
        extra: the extra of tigerfg that brings it, e.g. ``"scale"``.
    """

    def __init__(self, feature: str, package: str, extra: str) -> None:
        super().__init__(
            f"{feature} needs the package {package}: pip install 'tigerfg[{extra}]'", name=package
        )
        self.feature, self.package, self.extra = feature, package, extra

    def __reduce__(self) -> tuple[type[MissingExtraError], tuple[str, str, str]]:
        return type(self), (self.feature, self.package, self.extra)
