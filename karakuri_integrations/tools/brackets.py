r"""KARAKURI's chat models were taught no tools; this is the syntax that we give them, short and in plain text.

The system text ends with how to call tools and the tools themselves, one line each. The name begins the line, with no
mark before it: there, as after the quote in a call, Llama's tokenizer writes it in the same ids, which a model can
copy. A reply that calls is, after any text:

    [TOOL_CALLS]\n[{"name": "get_weather", "arguments": {"city": "東京"}}]

The turn after it holds the results, in the order of the calls, with "error" where a tool failed:

    [TOOL_RESULTS]\n[{"name": "get_weather", "result": "晴れ"}]

Results that are JSON stay JSON. The opener ends with a line feed because Llama's tokenizer never joins one with what
follows: the same ids come out whether the model wrote the opener or the prompt ends with it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any, Final, Literal

from ..conversation import CallForm, Tool, ToolCall
from .signatures import schema_text, signature
from .syntax import Result, Syntax, one_line, written_arguments

__all__ = ["BRACKETS"]

_CALLS: Final = "[TOOL_CALLS]"
_RESULTS: Final = "[TOOL_RESULTS]"

_WORDS: Final = {
    "en": (
        'To use a tool, answer with [TOOL_CALLS] and a JSON list such as [{"name": "tool", "arguments": {}}] on the '
        "next line. Otherwise answer in words.\nTools:"
    ),
    "ja": (
        'ツールを使うときは [TOOL_CALLS] と書き、次の行に [{"name": "tool", "arguments": {}}] のような JSON の'
        "リストを書いてください。使わないときは言葉で答えてください。\nツール:"
    ),
}
_SCHEMA_WORDS: Final = {
    "en": "Answer only with JSON of this form: ",
    "ja": "次の形の JSON だけで答えてください: ",
}


class _Brackets(Syntax):
    name = "brackets"
    form = CallForm(opener=f"{_CALLS}\n")
    literals = (_CALLS, _RESULTS)

    def describe(self, tools: Sequence[Tool], language: Literal["ja", "en"], clean: Callable[[str], str]) -> str:
        return "\n".join([_WORDS[language], *(clean(signature(tool)) for tool in tools)])

    def describe_schema(self, schema: str, language: Literal["ja", "en"], clean: Callable[[str], str]) -> str:
        text = schema_text(schema)
        return _SCHEMA_WORDS[language] + clean(text) if text else ""

    def write_calls(self, calls: Sequence[ToolCall]) -> str:
        return self.form.opener + f"[{', '.join(map(_call, calls))}]"

    def write_results(self, results: Sequence[Result]) -> str:
        return f"{_RESULTS}\n[{', '.join(map(_result, results))}]"


def _call(call: ToolCall) -> str:
    return f'{{"name": {_json(call.name)}, "arguments": {written_arguments(call)}}}'


def _result(result: Result) -> str:
    key = "error" if result.failed else "result"
    return f'{{"name": {_json(result.name)}, "{key}": {one_line(result.text)}}}'


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


BRACKETS: Final = _Brackets()
