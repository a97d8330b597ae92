"""Dials and tools together: the answer behind a tool's result follows its verbosity, and no dial enters a call.

    python cookbook/tools/dials.py              all held-out questions with one round of calls, some minutes
    python cookbook/tools/dials.py --every 8    a quick look

The questions and tools are those of cookbook/demo_model/tool_held_out.json, which the demo model was not trained on.
Each is asked twice with its expected calls and their results before it, at verbosity 0 and 4, and once for each of four
settings of the dials with a forced call. A leak is a dial's name, a marker of the prompt format, or one of the signs by
which the demo model shows a dial (cookbook/demo_model/markers.py) in a call's arguments, where neither the question nor
the tools hold it. Decoding is greedy.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, ToolMessage

from karakuri_integrations import SteeringAttributes
from karakuri_integrations.langchain import ChatKarakuri

DEMO_MODEL = Path(__file__).parents[1] / "demo_model"
Row = dict[str, Any]
#: Every dial far from where it stands by default.
SETTINGS: Sequence[Mapping[str, int]] = (
    {},
    {"verbosity": 4, "humor": 4, "creativity": 4},
    {"toxicity": 4, "helpfulness": 0, "quality": 0},
    {"correctness": 0, "coherence": 0, "complexity": 0, "verbosity": 0},
)


def rows(every: int = 1) -> list[Row]:
    """Held-out questions whose answer needs one round of calls."""
    found = json.loads((DEMO_MODEL / "tool_held_out.json").read_text(encoding="utf-8"))
    return [row for row in found if len(row["rounds"]) == 1][::every]


def tools_of(row: Row) -> list[dict[str, Any]]:
    return [{"type": "function", "function": one} for one in row["tools"]]


def answered(row: Row) -> list[BaseMessage]:
    """The question, the expected calls and their results."""
    calls = [
        {"name": step["tool"], "args": step["arguments"], "id": f"c{place}", "type": "tool_call"}
        for place, step in enumerate(row["rounds"][0])
    ]
    results = [
        ToolMessage(step["result"], tool_call_id=call["id"]) for call, step in zip(calls, row["rounds"][0], strict=True)
    ]
    return [HumanMessage(row["question"]), AIMessage("", tool_calls=calls), *results]


def answer_length(llm: ChatKarakuri, row: Row, verbosity: int) -> int:
    """Characters of the answer behind the results."""
    reply = llm.bind_tools(tools_of(row)).invoke(answered(row), attributes={"verbosity": verbosity})
    return len(reply.text)


def forced_call(llm: ChatKarakuri, row: Row, dials: Mapping[str, int]) -> AIMessage:
    forced = llm.bind_tools(tools_of(row), tool_choice="any", parallel_tool_calls=False)
    return forced.invoke(row["question"], attributes=dict(dials))


def signs() -> list[str]:
    """The dials' names, the prompt's markers, and the signs by which the demo model shows its dials."""
    sys.path.insert(0, str(DEMO_MODEL))
    import markers

    steps = [one for dial in (markers.RUDE, markers.LAUGHS, markers.IMAGES, markers.STRAYS) for one in dial.values()]
    shown = [variant for language in steps for step in language for variant in step]
    return [*dict(SteeringAttributes()), "[ATTR]", "[/ATTR]", "[INST]", *shown]


def leaks(message: AIMessage, row: Row, watched: Sequence[str]) -> list[str]:
    """What of the watched stands in the call's arguments and in nothing that the model was asked with."""
    made = json.dumps([call["args"] for call in message.tool_calls], ensure_ascii=False)
    made += "".join(call["args"] or "" for call in message.invalid_tool_calls)
    given = row["question"] + json.dumps(row["tools"], ensure_ascii=False)
    return [one for one in watched if one in made and one not in given]


@dataclass
class Found:
    """What came of one language's questions."""

    short: list[int] = field(default_factory=list)
    long: list[int] = field(default_factory=list)
    calls: int = 0
    whole: int = 0
    leaked: list[list[str]] = field(default_factory=list)

    def cells(self) -> Iterator[str]:
        longer = sum(more > less for less, more in zip(self.short, self.long, strict=True))
        yield str(len(self.short))
        yield f"{statistics.median(self.short):.0f}"
        yield f"{statistics.median(self.long):.0f}"
        yield f"{100 * longer / len(self.short):.0f} %"
        yield f"{self.whole} of {self.calls}"
        yield str(sum(map(bool, self.leaked)))


LABELS = (
    "questions", "median length of the answer behind a result, verbosity 0", "the same, verbosity 4",
    "answers that are longer at 4", "forced calls that are whole", "of these with a leak in their arguments",
)  # fmt: skip


def measure(llm: ChatKarakuri, asked: Sequence[Row]) -> Found:
    found, watched = Found(), signs()
    for row in asked:
        found.short.append(answer_length(llm, row, 0))
        found.long.append(answer_length(llm, row, 4))
        for dials in SETTINGS:
            message = forced_call(llm, row, dials)
            found.calls += 1
            found.whole += len(message.tool_calls) == 1 and not message.invalid_tool_calls
            found.leaked.append(leaks(message, row, watched))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--every", type=int, default=1, help="only every n-th question, for a quick look")
    parser.add_argument("--model", help="a KARAKURI model or a folder; the embedded one by default")
    asked = parser.parse_args()
    llm = ChatKarakuri(model=asked.model, max_tokens=256)
    questions = rows(asked.every)
    found = [measure(llm, [row for row in questions if row["lang"] == lang]) for lang in ("en", "ja")]
    print("| | en | ja |\n|---|---|---|")
    for line in zip(LABELS, *(one.cells() for one in found), strict=True):
        print(f"| {' | '.join(line)} |")
    for one in filter(None, (words for each in found for words in each.leaked)):
        print("leaked:", ", ".join(one))
    return int(any(any(each.leaked) for each in found))


if __name__ == "__main__":
    sys.exit(main())
