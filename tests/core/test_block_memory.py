"""What a block holds at once in plain torch, where there is no Triton, beside what the plan counts with."""

import weakref
from functools import partial

import pytest
import torch
from framepack_pack.framepack_core.model import elementwise, fp8
from framepack_pack.framepack_core.model import operations as plain_operations
from framepack_pack.framepack_core.model.blocks import DoubleBlock, Extent, Services, SingleBlock
from framepack_pack.framepack_core.model.config import FramePackConfig
from framepack_pack.framepack_core.model.rope import Rotation
from framepack_pack.framepack_core.planning.cost import activation_bytes
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

CONFIG = FramePackConfig(num_attention_heads=3, attention_head_dim=128, mlp_dim=4 * 384)  # ratios of the released one
TEXT, TOKENS = 100, 6000
SERVICES = Services(plain_operations.attention, plain_operations.weight_for)
random = partial(torch.randn, dtype=torch.bfloat16)


class Storages(TorchDispatchMode):
    """Bytes of the given tensor and of all storages that come up inside, and the most of them at once."""

    def __init__(self, given):
        super().__init__()
        self.alive, self.now, self.peak = {}, 0, 0
        self._count(given)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor):
                self._count(leaf)
        return out

    def _count(self, tensor):
        storage = tensor.untyped_storage()
        if storage._cdata not in self.alive:
            self.alive[storage._cdata] = storage.nbytes()
            weakref.finalize(storage, self._gone, storage._cdata)
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)

    def _gone(self, key):
        self.now -= self.alive.pop(key)


@pytest.fixture(autouse=True)
def few_at_once(monkeypatch):
    """As many pieces as there are at 640x640."""
    for module, name in ((elementwise, "TOKENS"), (fp8, "ROWS")):
        monkeypatch.setattr(module, name, getattr(module, name) * TOKENS // 19229)


@pytest.mark.parametrize("pieces", [1, 2, 6])
@pytest.mark.parametrize("kind", [SingleBlock, DoubleBlock])
def test_a_block_stays_within_the_plan(kind, pieces):
    piece = -(-TOKENS // pieces)
    block = kind(CONFIG, plain_operations, SERVICES, dtype=torch.bfloat16)
    angle = torch.randn(1, 1, TOKENS - TEXT, 64)
    rotation, extent = Rotation(angle.cos(), angle.sin()), Extent(None, piece)
    tokens, vectors = random(1, TOKENS, CONFIG.width), random(1, 12, CONFIG.width)
    with torch.inference_mode(), Storages(tokens) as storages:
        if kind is SingleBlock:
            block(tokens, vectors[:, :3], rotation, extent, {})
        else:
            block(tokens[:, :-TEXT], tokens[:, -TEXT:], vectors, rotation, extent, {})
    planned = activation_bytes(CONFIG, TOKENS, tokens.element_size(), piece)
    assert 0.5 * planned < storages.peak <= 1.05 * planned


def test_rows_are_quantised_without_their_float32():
    x = random(TOKENS, 15 * 128)
    with torch.inference_mode(), Storages(x) as storages:
        fp8.quantise_rows_eager(x)
    assert storages.peak <= 2.5 * x.numel() * x.element_size()
