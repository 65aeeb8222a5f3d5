"""The sampler node with short settings."""

from framepack_pack.nodes.sampler import FramePackSampler

STEPS = 4


def sample(tiny, positive, history, **changes):
    """(history, latent) of the sampler node on the tiny set."""
    return run(tiny, positive, history, **changes)[:2]


def run(tiny, positive, history, **changes):
    """All outputs of the sampler node on the tiny set."""
    widgets = {"steps": STEPS, "cfg": 1.0, "guidance_rescale": 0.0, "shift": 0.0, "max_sections": 0}
    model = changes.pop("model", None) or tiny.model
    return FramePackSampler.execute(
        **{"model": model, "positive": positive, "history": history, **widgets, **changes}
    ).args
