"""The teacher of the joint stage: a crop encoder that is frozen, or follows the trained weights."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from tigerfg.model.towers import TigerFG


class Teacher:
    """Gives targets and plays no part in inference.

    Args:
        model: the towers as they begin, without gradients; used and changed in place.
        decay: None: frozen. Else its query tower becomes, step by step, the exponential moving
            average of the trained one: decay · teacher + (1 - decay) · trained.
    """

    def __init__(self, model: TigerFG, decay: float | None) -> None:
        self.model, self.decay = model.requires_grad_(False), decay

    @torch.no_grad()
    def follow(self, trained: TigerFG) -> None:
        """Take a step towards the trained weights; nothing for a frozen teacher."""
        if self.decay is not None:
            own, theirs = (list(_query_tower(m)) for m in (self.model, trained))
            get_ema_multi_avg_fn(self.decay)(own, theirs, None)

    def state(self) -> dict[str, Tensor]:
        """What a resumed run needs; nothing for a frozen teacher."""
        return self.model.state_dict() if self.decay is not None else {}

    def restore(self, state: dict[str, Tensor]) -> None:
        if state:
            self.model.load_state_dict(state)


def _query_tower(model: TigerFG) -> Iterator[Tensor]:
    for part in (model.vision, model.pool, model.head):
        yield from part.parameters()
