"""Writes tool_held_out.json: tools and questions in held-out names and wordings, free of 8-grams of the training.

    python cookbook/demo_model/make_tool_held_out.py --tokenizer karakuri_integrations/demo

As make_held_out.py does for questions on topics: what shares an 8-gram with a large sample of training questions is
dropped here, and the training drops every conversation that shares one with what is left.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import random
from collections.abc import Callable
from typing import Any

import tool_asks
from facts import LANGUAGES
from held_out import TOOL_FILE, grams
from tool_asks import Ask
from tool_talk import tools_for, unanswerable

from karakuri_integrations.conversation import Tool

#: How many questions of each sort, in each language.
COUNTS = (
    (tool_asks.lookup_ask, 16), (tool_asks.function_ask, 14), (tool_asks.action_ask, 14), (tool_asks.sum_ask, 6),
    (tool_asks.list_ask, 5), (tool_asks.chain_ask, 5),
)  # fmt: skip
WITHOUT = 30
Maker = Callable[[random.Random, str, bool], Ask]


def _tools(tools: tuple[Tool, ...]) -> list[dict[str, Any]]:
    return [{**dataclasses.asdict(tool), "parameters": json.loads(tool.parameters)} for tool in tools]


class _Fresh:
    """Questions that share nothing with the training's and have not been drawn yet."""

    def __init__(self, rng: random.Random, lang: str, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._seen: set[str] = set()
        self._trained: set[object] = set()
        for _ in range(20000):
            self._trained |= grams(tool_asks.ask(rng, lang).question, tokenizer)

    def __call__(self, question: str) -> bool:
        fresh = question not in self._seen and self._trained.isdisjoint(grams(question, self._tokenizer))
        self._seen.add(question)
        return fresh


def _asked(rng: random.Random, lang: str, maker: Maker, fresh: _Fresh) -> tuple[Ask, tuple[Tool, ...]]:
    """A question with its tools among others."""
    while True:
        made = maker(rng, lang, True)
        tools = tools_for(rng, lang, [made], rng.choice((1, 2, 3, 4, 5)), True) if fresh(made.question) else None
        if tools is not None:
            return made, tools


def _unasked(rng: random.Random, lang: str, fresh: _Fresh) -> tuple[str, tuple[Tool, ...]]:
    """A question that none of the tools answers."""
    while True:
        tools = tools_for(rng, lang, [], rng.choice((1, 2, 3, 4, 5)), True)
        question = unanswerable(rng, lang, tools, True) if tools else ""
        if tools and fresh(question):
            return question, tools


def rows(tokenizer: Any, seed: int = 2027) -> list[dict[str, Any]]:
    """The held-out questions with their tools, calls, results and answers."""
    rng, found = random.Random(seed), []
    for lang in LANGUAGES:
        fresh = _Fresh(rng, lang, tokenizer)
        for maker, count in COUNTS:
            for _ in range(count):
                made, tools = _asked(rng, lang, maker, fresh)
                calls = [[dataclasses.asdict(step) for step in steps] for steps in made.rounds]
                found.append({"sort": maker.__name__.removesuffix("_ask"), "lang": lang, "tools": _tools(tools),
                              "question": made.question, "rounds": calls, "answer": made.answer})  # fmt: skip
        for _ in range(WITHOUT):
            question, tools = _unasked(rng, lang, fresh)
            found.append({"sort": "none", "lang": lang, "tools": _tools(tools), "question": question, "rounds": [],
                          "answer": ""})  # fmt: skip
    return found


def main() -> None:
    """Writes the file."""
    from transformers import AutoTokenizer

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokenizer", required=True)
    args = parser.parse_args()
    made = rows(AutoTokenizer.from_pretrained(args.tokenizer))
    TOOL_FILE.write_text(json.dumps(made, ensure_ascii=False, indent=0) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
