"""What commands that need the extra ``train`` say without it."""

from __future__ import annotations

from tigerfg.errors import MissingExtraError


def need_torch(command: str) -> None:
    """Raise a `MissingExtraError` that names the command if torch is missing."""
    try:
        import torch  # noqa: F401
    except ModuleNotFoundError as error:
        raise MissingExtraError(command, "torch", "train") from error
