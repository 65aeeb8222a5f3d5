"""What an encoder of few words and few table rows makes of prompts and files."""

import pytest
import torch
from framepack_pack.framepack_core.embedding_rows import stored_table, whole_shapes, whole_tables
from framepack_pack.framepack_core.known_words import known_text

WORDS = {"a", "red", "green", "ball", "moves", "left"}


@pytest.mark.parametrize(
    ("text", "known", "unknown"),
    [
        ("a red ball", " a red ball", []),
        ("A Red BALL", " a red ball", []),
        ("a shiny red zebra moves, left.", " a red moves, left.", ["shiny", "zebra"]),
        ("Zebra", "", ["Zebra"]),
        ("a (red:1.2) ball", " a ( red:1.2) ball", []),
        ("a ((shiny)) \\(red\\)", " a (()) \\( red\\)", ["shiny"]),
        ("a ball\nmoves\n\nleft", " a ball\n moves\n\n left", []),
        ("a red-green ball", " a red- green ball", []),
        ("it doesn't doesn't move", "", ["it", "doesn't", "move"]),
        ("über ball", " ball", ["über"]),
        ("12 + 3 = 15", "12 + 3 = 15", []),
        ("", "", []),
    ],
)
def test_unknown_words_go_and_the_rest_stays(text, known, unknown):
    assert known_text(text, WORDS) == (known, unknown)


@pytest.mark.parametrize("text", ["a zebra red ball moves", "zebra a red ball moves", "a red ball moves zebra"])
def test_a_text_with_an_unknown_word_is_the_text_without_it(text):
    assert known_text(text, WORDS)[0] == known_text("a red ball moves", WORDS)[0]


def test_a_table_of_some_rows_becomes_whole_again():
    rows = {7: torch.tensor([1.0, 2.0]), 2: torch.tensor([3.0, 4.0])}
    stored = {"other": torch.ones(3), **stored_table("words", rows)}
    shapes = {key: tuple(tensor.shape) for key, tensor in stored.items()}
    whole = whole_tables(stored, {"words": 9})
    assert whole["words.weight"].shape == (9, 2)
    assert torch.equal(whole["words.weight"][[2, 7]], torch.stack([rows[2], rows[7]]))
    assert whole["words.weight"].abs().sum() == 10, "all other rows are zero"
    assert whole["other"] is stored["other"]
    assert whole_shapes(shapes, {"words": 9}) == {key: tuple(tensor.shape) for key, tensor in whole.items()}
    assert whole_tables(stored, {}).keys() == stored.keys()
