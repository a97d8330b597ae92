"""The evaluation questions and the promise that no 8-gram of them is in the training questions.

An n-gram is eight tokens of the question text in a row, and for English also eight words in a row.
The training generator drops every conversation with a user text that shares one (see train.py).
"""

from __future__ import annotations

import functools
import json
import pathlib
import re
from typing import Any

N = 8
FILE = pathlib.Path(__file__).parent / "held_out.json"
TOOL_FILE = pathlib.Path(__file__).parent / "tool_held_out.json"


def grams(text: str, tokenizer: Any) -> set[Any]:
    """All token 8-grams and word 8-grams of a text."""
    ids = tokenizer._tokenizer.encode(text, add_special_tokens=False).ids
    words = re.findall(r"[a-z0-9']+", text.lower())
    out: set[Any] = {tuple(ids[i : i + N]) for i in range(len(ids) - N + 1)}
    return out | {" ".join(words[i : i + N]) for i in range(len(words) - N + 1)}


def questions() -> list[dict[str, str]]:
    """The held-out questions: text, topic, aspect and language."""
    return json.loads(FILE.read_text(encoding="utf-8")) if FILE.exists() else []


def tool_questions() -> list[dict[str, Any]]:
    """The held-out questions for tools: sort, language, tools, question, rounds of calls, answer."""
    return json.loads(TOOL_FILE.read_text(encoding="utf-8")) if TOOL_FILE.exists() else []


@functools.cache
def _held(key: int, tokenizer: Any) -> frozenset[Any]:
    texts = [q["text"] for q in questions()] + [q["question"] for q in tool_questions() if q["rounds"]]
    return frozenset(g for text in texts for g in grams(text, tokenizer))


def held_grams(tokenizer: Any) -> frozenset[Any]:
    """Every 8-gram of the held-out questions."""
    return _held(0, tokenizer)


def shares(text: str, tokenizer: Any, held: frozenset[Any]) -> bool:
    """Whether a training text shares an 8-gram with the held-out questions."""
    return not held.isdisjoint(grams(text, tokenizer))
