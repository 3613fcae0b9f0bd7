"""A bundle as a checkpoint: the float32 parameters that its graphs were made of."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from tigerfg.bundle import AGAIN, MANIFEST_FILE
from tigerfg.errors import BundleError, InputError
from tigerfg.model.config import ModelConfig

if TYPE_CHECKING:
    from tigerfg.bundle import Bundle

ORDERS = ("plain", "transposed")  # as the parameters lie in the file


def bundle_config(bundle: Bundle) -> ModelConfig:
    """The model's configuration, as a checkpoint's config.json has it.

    Raises:
        BundleError: the bundle does not say.
    """
    try:
        return ModelConfig.from_dict(bundle.manifest["model"])
    except (InputError, KeyError, TypeError, ValueError) as error:
        file = bundle.path / MANIFEST_FILE
        raise BundleError(f"{file}: model is missing or incomplete ({error}): {AGAIN}") from error


def bundle_weights(bundle: Bundle, shapes: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
    """The model's parameters, float32, as a checkpoint's model.safetensors has them.

    Args:
        shapes: name -> shape of the parameters that the model has.

    Raises:
        BundleError: the bundle was made without them, or they are not what they were then.
    """
    places = bundle.manifest.get("parameters")
    if places is None:
        raise BundleError(
            f"{bundle.path}: holds no float32 parameters to train or export from: use the "
            "checkpoint it was made of, or export that again with --fp32"
        )
    file = bundle.path / MANIFEST_FILE
    try:
        plain, transposed, digest = (places[key] for key in (*ORDERS, "sha256"))
        if sorted([*plain, *transposed]) != sorted(shapes):
            raise BundleError(f"{file}: parameters are not those of the model: {AGAIN}")
        data = (bundle.path / bundle.manifest["weights"]["file"]).read_bytes()
        weights = {k: _parameter(data, v, shapes[k]) for k, v in plain.items()}
        turned = {k: _parameter(data, v, shapes[k][::-1]).T for k, v in transposed.items()}
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
        raise BundleError(f"{file}: parameters cannot be read ({error}): {AGAIN}") from error
    found = weights | turned
    if parameter_digest({name: value.numpy() for name, value in found.items()}) != digest:
        raise BundleError(f"{file}: parameters and weight file do not belong together: {AGAIN}")
    return found


def parameter_digest(parameters: Mapping[str, np.ndarray]) -> str:
    """SHA-256 over names, shapes and values, as hex."""
    digest = hashlib.sha256()
    for name, value in sorted(parameters.items()):
        digest.update(f"{name} {value.shape}\n".encode())
        digest.update(np.ascontiguousarray(value))
    return digest.hexdigest()


def _parameter(data: bytes, offset: int, shape: Sequence[int]) -> Tensor:
    value = np.frombuffer(data, np.float32, math.prod(shape), offset)
    return torch.from_numpy(value.copy()).reshape(tuple(shape))  # copied: bytes cannot be written
