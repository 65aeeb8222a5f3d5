"""Blocks fetched one ahead by the host: with a stand-in for its queue, whose copies need a card, and with its own."""

import pytest
import torch
from framepack_pack.framepack_core.comfy_host import prefetch
from framepack_pack.framepack_core.comfy_host.prefetch import prefetched
from framepack_pack.framepack_core.comfy_host.step_skipping import skip_steps
from framepack_pack.framepack_core.history import film_latents
from framepack_pack.framepack_core.skipping.first_block import FirstBlockCache
from sampler_run import STEPS, sample
from torch import nn

X = torch.zeros(1)
DYNAMIC = {"prefetch_dynamic_vbars": True}


class Queue:
    """The host's protocol: a pop lets go of what came before, and fetches what stands first."""

    def __init__(self):
        self.fetched, self.held, self.full = [], set(), None

    def make_prefetch_queue(self, blocks, _device, options):
        return [None, *blocks, None] if options.get("prefetch_dynamic_vbars") else None

    def prefetch_queue_pop(self, queue, _device, module):
        consumed = queue.pop(0)
        if consumed is not None:
            (layers,) = consumed  # as the host, which expects a tuple here
            self.held -= layers
        if module is None:
            assert queue[0] is None
            return
        if module is self.full:
            raise torch.OutOfMemoryError("the card is full")
        layers = {layer for layer in queue[0].modules() if hasattr(layer, "_v")}
        assert layers <= set(module.modules())
        self.fetched.append(module)
        self.held |= layers
        queue[0] = (layers,)


@pytest.fixture
def host(monkeypatch):
    queue = Queue()
    monkeypatch.setattr(prefetch, "model_prefetch", queue)
    return queue


@pytest.fixture
def blocks():
    """Three blocks of two layers that the host manages."""
    blocks = [nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2)) for _ in range(3)]
    for block in blocks:
        for layer in (block[0], block[2]):
            layer._v = object()
    return blocks


@pytest.fixture
def dynamic(tiny):
    """The tiny model as the host's dynamic memory would run it."""
    model = tiny.model.clone()

    def call(executor, x, timestep, context, options, **conds):
        return executor(x, timestep, context, {**options, **DYNAMIC}, **conds)

    model.add_wrapper_with_key("diffusion_model", "dynamic", call)
    return model


def test_without_the_service_the_blocks_are_given_as_they_are(monkeypatch, host, blocks):
    assert list(prefetched(blocks, X, {})) == blocks
    monkeypatch.setattr(prefetch, "model_prefetch", None)
    assert list(prefetched(blocks, X, DYNAMIC)) == blocks
    assert not host.fetched


def test_a_block_is_there_while_it_runs_and_gone_after(host, blocks):
    for block in prefetched(blocks, X, DYNAMIC):
        assert host.held == {block[0], block[2]}
    assert host.fetched == blocks
    assert not host.held


@pytest.mark.parametrize("name", ["weight_lowvram_function", "bias_lowvram_function", "weight_function"])
def test_a_layer_with_a_lora_is_left_to_be_fetched_for_every_call(host, blocks, name):
    setattr(blocks[1][2], name, [lambda weight: weight])
    held = [set(host.held) for _ in prefetched(blocks, X, DYNAMIC)]
    assert held == [{blocks[0][0], blocks[0][2]}, {blocks[1][0]}, {blocks[2][0], blocks[2][2]}]


def test_nothing_stays_when_no_more_blocks_are_wanted(host, blocks):
    given = prefetched(blocks, X, DYNAMIC)
    next(given)
    given.close()
    assert host.fetched == blocks[:1]
    assert not host.held


def test_an_error_of_the_host_is_what_arrives(host, blocks):
    host.full = blocks[1]
    with pytest.raises(torch.OutOfMemoryError, match="full"):
        list(prefetched(blocks, X, DYNAMIC))


def test_every_step_fetches_all_blocks_and_the_film_is_the_same(host, dynamic, tiny, positive, new_film):
    plain = film_latents(sample(tiny, positive, new_film())[0])
    assert not host.fetched
    assert torch.equal(film_latents(sample(tiny, positive, new_film(), model=dynamic)[0]), plain)
    transformer = tiny.model.model.diffusion_model
    blocks = [*transformer.transformer_blocks, *transformer.single_transformer_blocks]
    assert host.fetched == 2 * STEPS * blocks  # of two sections
    assert not host.held


def test_a_step_cache_that_stops_after_the_first_block_leaves_nothing_behind(host, dynamic, tiny, positive, new_film):
    model = skip_steps(dynamic, FirstBlockCache(threshold=100.0, retention=0.0))
    sample(tiny, positive, new_film(), model=model)
    first = tiny.model.model.diffusion_model.transformer_blocks[0]
    last = tiny.model.model.diffusion_model.single_transformer_blocks[-1]
    assert host.fetched.count(first) == 2 * STEPS > host.fetched.count(last)
    assert not host.held


@pytest.mark.skipif(prefetch.model_prefetch is None, reason="a service of newer hosts")
def test_the_hosts_own_queue_is_followed(monkeypatch, dynamic, tiny, positive, new_film):
    """On a CPU, where the host would not use it: it has nothing to fetch there, and goes through the same steps."""
    queues = []

    def make(blocks, _device, options):
        if options.get("prefetch_dynamic_vbars"):
            queues.append([None, *blocks, None])
            return queues[-1]
        return None

    monkeypatch.setattr(prefetch.model_prefetch, "make_prefetch_queue", make)
    plain = film_latents(sample(tiny, positive, new_film())[0])
    assert torch.equal(film_latents(sample(tiny, positive, new_film(), model=dynamic)[0]), plain)
    assert len(queues) == 2 * 2 * STEPS  # double and single blocks, two sections
    assert all(queue == [None] for queue in queues)
