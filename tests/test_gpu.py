"""What must hold on a CUDA device; skipped with the reason where there is none."""

from __future__ import annotations

import pytest
import torch

from tigerfg.model import TigerFG, preset

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device"),
]


@pytest.mark.parametrize("batch", [1, 3, 16])
def test_item_tower_gives_the_cpu_results(batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    torch.manual_seed(batch)
    model = TigerFG(preset("tiny")).eval().requires_grad_(False)
    inputs = (
        torch.randn(batch, 3, 128, 128),
        torch.rand(batch, 256) < 0.9,
        torch.randint(0, 3072, (batch, 17)),
        torch.arange(17).expand(batch, 17) < 11,
    )
    expected = model.encode_item(*inputs)
    found = model.cuda().encode_item(*(value.cuda() for value in inputs))
    for one, other in zip(found, expected, strict=True):
        # float32 on both sides, sums in another order: far below what float16 would give
        torch.testing.assert_close(one.cpu(), other, rtol=0, atol=2e-5)
