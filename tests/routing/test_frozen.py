"""Whatever a model is converted to, what was committed keeps its bits."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lemoe_hf.routing.anchors import Anchor, Anchors
from lemoe_hf.routing.frozen import Frozen
from lemoe_hf.routing.kv_anchor import KVRouter
from lemoe_hf.routing.relations import Relations
from lemoe_hf.tuners.experts import Experts
from tiny import assert_same


STORED = {
    "experts": lambda: Experts(3, 8, 4, gated=True, trainable=False),
    "router": lambda: KVRouter(3, 1, 2, 8, 4, trainable=False),
    "anchors": lambda: Anchors(2, 5),
    "relations": lambda: Relations(9, 4, 1, 1, 2),
}


def stored(name: str) -> Frozen:
    """One of the modules with what an adapter has committed, with values that half precision would round."""
    module = STORED[name]()
    for buffer in module.buffers():
        if buffer.is_floating_point():
            buffer.copy_(torch.randn(buffer.shape))
    return module


@pytest.mark.parametrize("convert", [nn.Module.half, nn.Module.bfloat16, nn.Module.double])
@pytest.mark.parametrize("name", STORED)
def test_conversion_leaves_what_was_committed_alone(name, convert):
    module = stored(name)
    before = {name: buffer.clone() for name, buffer in module.named_buffers()}
    assert isinstance(module, Frozen)
    assert convert(module) is module
    assert_same(dict(module.named_buffers()), before)
    assert all(buffer.dtype == before[name].dtype for name, buffer in module.named_buffers())


@pytest.mark.parametrize("name", STORED)
def test_what_was_committed_moves_between_devices(name):
    module = stored(name)
    dtypes = {name: buffer.dtype for name, buffer in module.named_buffers()}
    module.to("meta", torch.float16)
    assert {name: buffer.dtype for name, buffer in module.named_buffers()} == dtypes
    assert all(buffer.is_meta for buffer in module.buffers())


def test_what_is_in_training_is_converted():
    for module in (Experts(1, 8, 4, gated=False, trainable=True), KVRouter(1, 1, 0, 8, 4, trainable=True)):
        assert all(weight.dtype == torch.float16 for weight in module.half().parameters())


def test_anchors_are_looked_up_where_they_were_moved_to():
    anchors = Anchors()
    anchors.add([Anchor((5, 6), edit=0, expert=0, start=1)])
    anchors.segments()
    assert anchors.to("meta")._segments is None
