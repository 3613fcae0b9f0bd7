"""Hugging Face encoders: built from their configuration, or loaded from a directory or hub id."""

from __future__ import annotations

from typing import Any

from torch import nn

from tigerfg.errors import InputError


def load_encoder(
    part: str, name: str | None, hf_config: dict[str, Any] | None, pretrained: bool
) -> nn.Module:
    """The `part` ("vision" or "text") encoder; of a two-tower model, that tower alone.

    Args:
        name: local directory or hub id, needed with `pretrained`.
        hf_config: the encoder's configuration with its `model_type`, needed without.

    Raises:
        InputError: the one that is needed is missing, or cannot be loaded.
    """
    from transformers import AutoConfig, AutoModel

    if pretrained:
        if name is None:
            raise InputError(f"{part}.name: a local directory or hub id is needed")
        try:
            model = AutoModel.from_pretrained(name)
        except (OSError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise InputError(f"{part}.name: cannot load {name}: {reason}") from error
    elif hf_config is not None:
        settings = dict(hf_config)
        model = AutoModel.from_config(AutoConfig.for_model(settings.pop("model_type"), **settings))
    else:
        raise InputError(f"{part}.hf_config: needed to build the encoder without its weights")
    return getattr(model, f"{part}_model", model)


def configuration(model: nn.Module) -> dict[str, Any]:
    """What `load_encoder` needs to build `model` again without its source."""
    settings = model.config.to_diff_dict()
    for name in ("architectures", "dtype", "transformers_version", "_name_or_path"):
        settings.pop(name, None)
    return {"model_type": model.config.model_type, **settings}
