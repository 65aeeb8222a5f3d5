"""Films of the trained demo checkpoint, each made once and judged by many tests."""

import pytest
import torch
from demo_films import DIRECTIONS, FOLDER, SCENES, STEPS, Film
from framepack_pack.tools.demo_world.captions import captions
from framepack_pack.tools.demo_world.sampling import held_out
from framepack_pack.tools.demo_world.scene import Scenes, join
from framepack_pack.tools.evaluation.films import Order, Prompts, Tools, decode_films, sample_films


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """The same sums in the same order on every machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def inference_mode():
    """ComfyUI runs every node so."""
    with torch.inference_mode():
        yield


@pytest.fixture(scope="session")
def tools() -> Tools:
    if not (FOLDER / "transformer.safetensors").is_file():
        pytest.skip(f"no trained checkpoint: {FOLDER / 'transformer.safetensors'} is not there")
    with torch.inference_mode():
        return Tools(FOLDER)


@pytest.fixture(scope="session")
def scenes() -> Scenes:
    films = join(list(SCENES))
    assert held_out(films).all()
    return films


@pytest.fixture(scope="session")
def prompts(scenes) -> Prompts:
    """A plain caption for each section, as a person would write it."""
    return [captions(scenes, section) for section in range(scenes.sections)]


@pytest.fixture(scope="session", params=DIRECTIONS, ids=lambda direction: direction.value)
def film(request, tools, scenes, prompts) -> Film:
    """Films from a start image, in each direction."""
    with torch.inference_mode():
        sampled = sample_films(tools, scenes, prompts, Order(request.param, STEPS))
        return Film(scenes, sampled, decode_films(tools, sampled.history))
