"""Reading prompts, and which holds for a section."""

import pytest
from framepack_pack.framepack_core.prompt_ranges import (
    PromptRange,
    check_in_film,
    check_range,
    parse_prompts,
    range_for,
)
from framepack_pack.framepack_core.section_plan import plan_backward, plan_forward


def chosen(text, count=5, plan=plan_backward):
    """Texts that hold for the sections of a film, in film order."""
    prompts = parse_prompts(text)
    film = plan(count, 9)
    ranges = [prompt.range for prompt in prompts if prompt.range]
    check_in_film(ranges, film)
    rest = [prompt.text for prompt in prompts if prompt.range is None]
    by_range = {prompt.range: prompt.text for prompt in prompts}
    texts = {}
    for section in film.sections:
        held = range_for(section, ranges, film, bool(rest))
        texts[film.place(section)] = rest[0] if held is None else by_range[held]
    return [texts[place] for place in range(count)]


@pytest.mark.parametrize("plan", [plan_backward, plan_forward])
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a cat", ["a cat"] * 5),
        ("a\nb\n\nc", ["a", "b", "c", "c", "c"]),
        ("[0: a][2: b]", ["a", "a", "b", "b", "b"]),
        ("[2: b]\n[0: a]", ["a", "a", "b", "b", "b"]),
        ("[1-2: b] rest", ["rest", "b", "b", "rest", "rest"]),
        ("[1-2: b]", ["b", "b", "b", "b", "b"]),
        ("[0: a][2-3: b]", ["a", "a", "b", "b", "b"]),
        ("[0: a] [-1: end]", ["a", "a", "a", "a", "end"]),
        ("[0s-2.4s: a][2.4s-: b]", ["a", "a", "b", "b", "b"]),
        ("[0s-2s: a][2s: b]", ["a", "a", "b", "b", "b"]),
        ("[0s-1s: a]\n[1.0s - 3s: two\nlines]\n[3s: c]", ["a", "two\nlines", "two\nlines", "c", "c"]),
        ("rest (really:1.3)\n[0s-1.2s: a]", ["a", *["rest (really:1.3)"] * 4]),
    ],
)  # fmt: skip
def test_prompts_of_sections(text, expected, plan):
    assert chosen(text, plan=plan) == expected


def test_the_range_that_covers_most_of_a_section_holds():
    assert chosen("[0s-1.7s: a][1.7s: b]", 2) == ["a", "b"]
    assert chosen("[0s-1.9s: a][1.9s: b]", 2) == ["a", "a"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "prompt list is empty"),
        (" \n ", "prompt list is empty"),
        ("[2: ]", r"prompt of \[2\] is empty"),
        ("[3s-1s: a]", r"\[3s-1s\] ends before it starts"),
        ("[3-1: a]", "ends before it starts"),
        ("[0s-1s: a][1: b]", "mix seconds and section numbers"),
        ("[-1s: a]", "starts before the film"),
        ("[-1-2: a] rest", r"\[-1-2\] counts from the end of the film and takes one number"),
        ("[-2--1: a]", "'\\[-2--1:' is no range; write"),
        ("rest [0: a] [1 - 2 - 3: b]", "is no range"),
        ("[0-2: a][2: b]", r"\[0-2\] and \[2\] overlap"),
        ("[0s-3s: a][2s-4s: b]", r"\[0s-3s\] and \[2s-4s\] overlap"),
        ("[1: a][1: b]", r"\[1\] and \[1\] overlap"),
        ("[5: a]", r"\[5\] lies outside the film, whose sections are 0 to 4 \(6.0 s\)"),
        ("[6s-8s: a]", "outside the film"),
        ("[-6: a]", "outside the film"),
        ("a\nb\nc\nd\ne\nf", "outside the film"),
    ],
)
def test_prompts_that_make_no_sense_are_refused(text, message):
    with pytest.raises(ValueError, match=message):
        chosen(text)


@pytest.mark.parametrize("text", ["[0-2: a][2: b]", "[0s-3s: a][2s-4s: b]", "[1: a][1: b]", "[3-1: a]"])
def test_what_needs_no_film_is_refused_when_reading(text):
    with pytest.raises(ValueError, match="overlap|ends before it starts"):
        parse_prompts(text)


def test_a_range_of_no_length_is_refused():
    with pytest.raises(ValueError, match="ends before it starts"):
        check_range(PromptRange(2.0, 2.0, "seconds"))


def test_brackets_that_are_not_headers_stay_text():
    assert [prompt.text for prompt in parse_prompts("a [red] cat [v2]")] == ["a [red] cat [v2]"]
