"""Prompts for a text encoder that knows only some words."""

import re
from collections.abc import Collection

KNOWN_WORDS_ENTRY = "known_words"
"""In a text encoder's metadata: all words it knows, in lower case."""
_WORD = re.compile(r" ?([^\W\d_]+(?:['’][^\W\d_]+)*)")


def known_text(text: str, known_words: Collection[str]) -> tuple[str, list[str]]:
    """The text without unknown words, and these as they were written, each once.

    Known words come in lower case behind a blank, even at the start: tokenizers split a word differently in each of its
    forms, and a small encoder knows one. What is no word stays: punctuation, line breaks, digits, weights "(red:1.2)".
    """
    unknown: dict[str, None] = {}

    def known_form(match: re.Match[str]) -> str:
        word = match[1].lower()
        if word in known_words:
            return f" {word}"
        unknown[match[1]] = None
        return ""

    return _WORD.sub(known_form, text), list(unknown)
