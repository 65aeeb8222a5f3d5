"""A film that grows section by section has the frames of a film that is decoded at once."""

import pytest
import torch
from framepack_pack.framepack_core.decoding import decode_film, plan_sections
from framepack_pack.framepack_core.generate import generate
from framepack_pack.framepack_core.growing_film import GrowingFilm, SectionDecoder, glimpse, pictures
from framepack_pack.framepack_core.history import film_frames, film_latents, new_history
from framepack_pack.framepack_core.section_plan import plan_backward, plan_forward

PLANS = {"backward": plan_backward, "forward": plan_forward}


class Vae:
    """4 T - 3 frames that depend on all latents of the call, as a causal VAE with group norms gives."""

    def __init__(self):
        self.latents = 0

    def __call__(self, latents):
        self.latents += latents.shape[2]
        frames = latents.repeat_interleave(4, dim=2)[:, :3, 3:] + latents.amax()
        return frames.movedim(1, -1).clone()


def history(kind, count, window=9, start=True):
    start_latent = torch.randn(2, 16, 1, 4, 6, generator=torch.manual_seed(1)) if start else None
    return new_history(PLANS[kind](count, window), 5, 48, 32, start_latent)


def grow(made, chunk):
    """All frames, by the rule that `joined` replaces what was open."""
    film, parts = GrowingFilm(), []
    for section in SectionDecoder(Vae(), chunk).new_sections(made):
        growth = film.join(section)
        if growth.joined is not None:
            parts[-1 if growth.at_end else 0] = growth.joined
        parts.insert(len(parts) if growth.at_end else 0, growth.open)
    return parts


def decoded(made, chunk):
    return torch.cat([piece.clone() for piece in decode_film(film_latents(made), plan_sections(made, chunk), Vae())], 1)


@pytest.mark.parametrize("start", [True, False])
@pytest.mark.parametrize(("window", "chunk"), [(9, 5), (9, 100), (3, 5), (4, 3), (1, 5)])
@pytest.mark.parametrize("kind", PLANS)
def test_after_every_section_it_is_the_film_decoded_at_once(kind, window, chunk, start):
    whole = generate(history(kind, 4, window, start), lambda section, packed, noise: noise)
    for sections in range(1, 5):
        made = generate(history(kind, 4, window, start), lambda section, packed, noise: noise, sections)
        parts = grow(made, chunk)
        expected = decoded(made, chunk)
        assert torch.equal(torch.cat(parts, dim=1), expected)
        assert expected.shape[1] == film_frames(film_latents(made).shape[2])
    assert torch.equal(torch.cat(grow(whole, chunk), dim=1), decoded(whole, chunk))


@pytest.mark.parametrize("kind", PLANS)
def test_sections_decoded_in_two_calls_are_those_of_one(kind):
    made = generate(history(kind, 3), lambda section, packed, noise: noise, 2)
    decoder = SectionDecoder(Vae(), 5)
    list(decoder.new_sections(made))
    assert decoder.sections == 2
    assert not list(decoder.new_sections(made))
    made = generate(made, lambda section, packed, noise: noise)
    (last,) = decoder.new_sections(made)
    again = list(SectionDecoder(Vae(), 5).new_sections(made))[-1]
    assert last._replace(frames=()) == again._replace(frames=())
    assert all(map(torch.equal, last.frames, again.frames))


@pytest.mark.parametrize("kind", PLANS)
def test_chunks_that_two_windows_share_are_decoded_once(kind):
    made = generate(history(kind, 6, start=False), lambda section, packed, noise: noise, 4)
    vae = Vae()
    decoder = SectionDecoder(vae, 5)
    list(decoder.new_sections(made))
    before = vae.latents
    list(decoder.new_sections(generate(made, lambda section, packed, noise: noise, 1)))
    assert vae.latents - before == 18  # of 28 in six chunks


def test_a_glimpse_takes_two_latents_for_a_picture():
    made = generate(history("backward", 2), lambda section, packed, noise: noise, 1)
    vae = Vae()
    pictures = glimpse(made, vae)
    assert pictures.shape == (3, 4, 6, 3)
    assert vae.latents == 6
    for picture, place in zip(pictures, (1, 4, 8), strict=True):
        assert torch.equal(picture, Vae()(made.sections[1][:1, :, place - 1 : place + 1])[0, -1])
    made = generate(history("forward", 2, window=1), lambda section, packed, noise: noise, 1)
    assert glimpse(made, Vae()).shape == (3, 4, 6, 3)


@pytest.mark.parametrize("chunk", [5, 100])
@pytest.mark.parametrize("kind", PLANS)
def test_pictures_are_of_what_a_section_adds(kind, chunk):
    """Of a VAE whose frames are the same in every chunk, so that joining changes none."""
    made = generate(history(kind, 3), lambda section, packed, noise: noise)
    film = GrowingFilm()
    decoder = SectionDecoder(lambda latents: latents.repeat_interleave(4, dim=2)[:, :3, 3:].movedim(1, -1), chunk)
    for section in decoder.new_sections(made):
        new = film.join(section).open[0]
        torch.testing.assert_close(pictures(section), new[[0, round((len(new) - 1) / 2), -1]])
