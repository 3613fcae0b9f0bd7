"""A bundle as a checkpoint: the float32 parameters that its graphs were made of."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from tigerfg.errors import BundleError

if TYPE_CHECKING:
    from tigerfg.bundle import Bundle

ORDERS = ("plain", "transposed")  # as the parameters lie in the file


def bundle_config(bundle: Bundle) -> dict[str, Any]:
    """The model's configuration, as a checkpoint's config.json has it.

    Raises:
        BundleError: the bundle does not say.
    """
    config = bundle.manifest.get("model")
    if not isinstance(config, dict):
        raise BundleError(f"{bundle.path}: the manifest has no model: export the checkpoint again")
    return config


def bundle_weights(bundle: Bundle, shapes: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
    """The model's parameters, float32, as a checkpoint's model.safetensors has them.

    Args:
        shapes: name -> shape of the parameters that the model has.

    Raises:
        BundleError: the bundle was made without them, they are not the model's, or its weight
            file is damaged.
    """
    places = bundle.manifest.get("parameters")
    if places is None:
        raise BundleError(
            f"{bundle.path}: holds no float32 parameters to train or export from: use the "
            "checkpoint it was made of, or export that again with --fp32"
        )
    try:
        record, plain, transposed = bundle.manifest["weights"], *map(places.get, ORDERS)
        if plain.keys() | transposed.keys() != shapes.keys():
            raise ValueError("not those of the model")
        data = (bundle.path / record["file"]).read_bytes()
        if hashlib.sha256(data).hexdigest() != record["sha256"]:
            raise BundleError(f"{bundle.path / record['file']}: damaged: copy the bundle again")
        weights = {k: _parameter(data, v, shapes[k]) for k, v in plain.items()}
        turned = {k: _parameter(data, v, shapes[k][::-1]).T for k, v in transposed.items()}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise BundleError(f"{bundle.path}: parameters of the manifest: {error}") from error
    return weights | turned


def _parameter(data: bytes, offset: int, shape: Sequence[int]) -> Tensor:
    value = np.frombuffer(data, np.float32, math.prod(shape), offset)
    return torch.from_numpy(value.copy()).view(*shape)  # copied: these bytes cannot be written
