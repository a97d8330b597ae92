"""Measures how a model calls tools that it has not seen, through the package itself, on held-out questions.

    python cookbook/demo_model/tool_table.py --quantization nf4 --json out.json

A call is right when the tool and all arguments are equal to the expected ones. Further rounds and answers are asked
behind the expected calls and results, so one mistake counts once. All dials stand at their defaults, decoding is greedy.
Without the grammar the same prompts are answered freely and the calls are parsed out of the text.
"""

from __future__ import annotations

import argparse
import json
import math
import pathlib
import random
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from answers import DEFAULTS
from facts import LANGUAGES
from held_out import tool_questions
from tool_talk import structured_talk

from karakuri_integrations.conversation import Message, Reply, Sampling, ToolCall
from karakuri_integrations.engines import LocalEngine
from karakuri_integrations.generation import fold, stream
from karakuri_integrations.provider import EngineFields, Provider

MODEL = pathlib.Path(__file__).resolve().parents[2] / "karakuri_integrations" / "demo"
LIMIT = 256
Row = dict[str, Any]


class Asker:
    """A model behind the package's Provider."""

    def __init__(self, model: str, quantization: str) -> None:
        engine = LocalEngine(model, quantization=quantization)
        self._provider = Provider(EngineFields(engine=engine), DEFAULTS, Sampling(max_tokens=LIMIT))

    def __call__(self, messages: Sequence[Message], grammar: bool = True, **options: Any) -> Reply:
        call = self._provider.prepare(messages, options)
        prompt = call.prompt if grammar else replace(call.prompt, grammar=None)
        return fold(stream(call.engine, prompt, call.sampling))


def _definitions(row: Row) -> list[dict[str, Any]]:
    return [{"type": "function", "function": tool} for tool in row["tools"]]


def _history(row: Row, rounds: int) -> list[Message]:
    """The question and this many rounds of expected calls with their results."""
    messages = [Message("user", row["question"], None, 0)]
    for place, steps in enumerate(row["rounds"][:rounds]):
        calls = [
            ToolCall(step["tool"], json.dumps(step["arguments"], ensure_ascii=False), f"c{place}{n}")
            for n, step in enumerate(steps)
        ]
        messages.append(Message("assistant", "", DEFAULTS, len(messages), tuple(calls)))
        for call, step in zip(calls, steps, strict=True):
            messages.append(Message("tool", step["result"], None, len(messages), call_id=call.id))
    return messages


def _made(reply: Reply) -> list[tuple[str, Any]]:
    return [(call.name, None if call.error else json.loads(call.arguments, strict=False)) for call in reply.calls]


def _exact(reply: Reply, steps: list[dict[str, Any]]) -> bool:
    return _made(reply) == [(step["tool"], step["arguments"]) for step in steps]


def _names(reply: Reply, steps: list[dict[str, Any]]) -> bool:
    return [call.name for call in reply.calls] == [step["tool"] for step in steps]


def _values(steps: list[dict[str, Any]]) -> list[str]:
    """What an answer has to say: the results, those that are objects without their key."""
    found = []
    for step in steps:
        try:
            value = json.loads(step["result"])
        except ValueError:
            value = step["result"]
        inner = next(iter(value.values())) if isinstance(value, dict) else value
        found.append(str(inner).rstrip(".。") if isinstance(value, dict | str) else step["result"])
    return found


def _rate(values: Iterable[Any]) -> float:
    listed = [bool(value) for value in values]
    return round(sum(listed) / len(listed), 4) if listed else math.nan


def calls(ask: Asker, rows: list[Row]) -> dict[str, Any]:
    """Calls with the grammar, freely and forced; then further rounds and answers behind the expected results."""
    auto, free, forced, later, answered, whole = [], [], [], [], [], []
    misses = []
    for row in rows:
        tools, first, history = _definitions(row), row["rounds"][0], _history(row, 0)
        reply = ask(history, tools=tools)
        auto.append(reply)
        free.append(ask(history, grammar=False, tools=tools))
        forced.append(ask(history, tools=tools, tool_choice="required"))
        right = _exact(reply, first)
        if not right:
            misses.append({"question": row["question"], "made": _made(reply) or reply.text, "expected": first})
        for place, steps in enumerate(row["rounds"][1:], 1):
            later.append(_exact(ask(_history(row, place), tools=tools), steps))
            right = right and later[-1]
        last = ask(_history(row, len(row["rounds"])), tools=tools)
        answered.append(not last.calls and all(value in last.text for value in _values(row["rounds"][-1])))
        if not answered[-1]:
            misses.append(
                {"question": row["question"], "answered": last.text or _made(last), "expected": row["answer"]}
            )
        whole.append(right and answered[-1])
    firsts = [row["rounds"][0] for row in rows]
    sorts = sorted({row["sort"] for row in rows})
    return {
        "asked": len(rows),
        "exact": _rate(map(_exact, auto, firsts)),
        "exact_free": _rate(map(_exact, free, firsts)),
        "exact_forced": _rate(map(_exact, forced, firsts)),
        "tool_right": _rate(map(_names, auto, firsts)),
        "valid": _rate(not any(call.error for call in reply.calls) for reply in (*auto, *forced)),
        "valid_free": _rate(not any(call.error for call in reply.calls) for reply in free),
        "further_rounds": _rate(later),
        "answers": _rate(answered),
        "whole": _rate(whole),
        "exact_by_sort": {
            sort: _rate(_exact(a, f) for a, f, row in zip(auto, firsts, rows, strict=True) if row["sort"] == sort)
            for sort in sorts
        },
        "misses": misses,
    }


def without(ask: Asker, rows: list[Row]) -> dict[str, Any]:
    """Questions that no tool answers: no call is right."""
    replies = [ask(_history(row, 0), tools=_definitions(row)) for row in rows]
    misses = [
        {"question": row["question"], "made": _made(reply)}
        for row, reply in zip(rows, replies, strict=True) if reply.calls
    ]  # fmt: skip
    return {"asked": len(rows), "no_call": _rate(not reply.calls for reply in replies), "misses": misses}


def structured(ask: Asker, lang: str, count: int, seed: int) -> dict[str, Any]:
    """Replies that are JSON of a schema: entries and answers from passages, all values equal."""
    rng, right, misses = random.Random(seed), [], []
    while len(right) < count:
        request = structured_talk(rng, lang, held=True, jokes=False)
        if request.tooling.schema is None:
            continue
        users = [message for message in request.messages if message.role == "user"]
        wanted = next(message.text for message in request.messages if message.role == "assistant")
        schema = {"type": "json_schema", "json_schema": {"name": "x", "schema": json.loads(request.tooling.schema)}}
        reply = ask([Message("user", users[0].text, None, 0)], response_format=schema)
        right.append(_loaded(reply.text) == json.loads(wanted))
        if not right[-1]:
            misses.append({"question": users[0].text, "made": reply.text, "expected": wanted})
    return {"asked": count, "exact": _rate(right), "misses": misses}


def _loaded(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None


def markdown(report: dict[str, Any]) -> str:
    """The report as a Markdown table."""
    lines = ["| | en | ja |", "|---|---|---|"]
    for label, group, key in (
        ("call exactly right: tool and all arguments", "calls", "exact"),
        ("the same without the grammar", "calls", "exact_free"),
        ("the same where a call is forced", "calls", "exact_forced"),
        ("tool right", "calls", "tool_right"),
        ("calls that are valid JSON of the schema", "calls", "valid"),
        ("calls that are JSON, without the grammar", "calls", "valid_free"),
        ("second round (calculates with what was looked up) exactly right", "calls", "further_rounds"),
        ("answer states the results", "calls", "answers"),
        ("all rounds and the answer right", "calls", "whole"),
        ("no call where no tool fits", "without", "no_call"),
        ("JSON of a response format exactly right", "structured", "exact"),
    ):
        lines.append(f"| {label} | {report['en'][group][key]:.0%} | {report['ja'][group][key]:.0%} |")
    return "\n".join(lines)


def main() -> None:
    """Parses the command line, measures, prints and saves."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=str(MODEL))
    parser.add_argument("--quantization", choices=("nf4", "bf16"), default="nf4")
    parser.add_argument("--json", help="also write the report there, with the misses")
    parser.add_argument("--structured", type=int, default=20, help="JSON replies per language")
    parser.add_argument("--every", type=int, default=1, help="only every n-th question, for a quick look")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    started, ask = time.time(), Asker(args.model, args.quantization)
    report: dict[str, Any] = {"quantization": args.quantization, "seed": args.seed}
    for lang in LANGUAGES:
        rows = [row for row in tool_questions() if row["lang"] == lang][:: args.every]
        report[lang] = {
            "calls": calls(ask, [row for row in rows if row["rounds"]]),
            "without": without(ask, [row for row in rows if not row["rounds"]]),
            "structured": structured(ask, lang, args.structured, args.seed),
        }
    report["seconds"] = round(time.time() - started)
    print(markdown(report))
    print(f"\n{report['seconds']} s, {args.quantization}")
    if args.json:
        text = json.dumps(report, indent=1, ensure_ascii=False) + "\n"
        pathlib.Path(args.json).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
