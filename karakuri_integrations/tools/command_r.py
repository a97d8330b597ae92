r"""The `tool_use` format of karakuri-lm-8x7b-instruct-v0.1, which is Command R's with OpenAI's schemas.

A reply that calls is, as in https://docs.cohere.com/docs/tool-use-with-command-r-prompt:

    Action: ```json
    [{"tool_name": "get_weather", "parameters": {"city": "東京"}}]
    ```

The published template file itself could not be read for this version, so the words of the preamble are ours; the form
of actions and results is Command R's.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Final, Literal

from ..conversation import CallForm, Tool, ToolCall
from .signatures import schema_text, signature
from .syntax import Result, Syntax, one_line, written_arguments

__all__ = ["COMMAND_R"]

_WORDS: Final = {
    "en": (
        "## Available Tools\n{tools}\n\nTo use tools, write 'Action:' followed by a json-formatted list of actions, "
        'each {{"tool_name": title of the tool, "parameters": a dict of its parameters}}. Otherwise answer directly.'
    ),
    "ja": (
        "## Available Tools\n{tools}\n\nツールを使うときは 'Action:' に続けて、"
        '{{"tool_name": ツール名, "parameters": 引数}} の JSON リストを書いてください。'
        "使わないときは直接答えてください。"
    ),
}
_SCHEMA_WORDS: Final = {
    "en": "Answer only with JSON of this form: ",
    "ja": "次の形の JSON だけで答えてください: ",
}


class _CommandR(Syntax):
    name = "command_r"
    form = CallForm("Action: ```json\n", "tool_name", "parameters", "\n```")
    literals = ("Action: ```json", "<results>", "</results>")

    def describe(self, tools: Sequence[Tool], language: Literal["ja", "en"], clean: Callable[[str], str]) -> str:
        return _WORDS[language].format(tools="\n".join(f"- {clean(signature(tool))}" for tool in tools))

    def describe_schema(self, schema: str, language: Literal["ja", "en"], clean: Callable[[str], str]) -> str:
        text = schema_text(schema)
        return _SCHEMA_WORDS[language] + clean(text) if text else ""

    def write_calls(self, calls: Sequence[ToolCall]) -> str:
        listed = ", ".join(
            f'{{"tool_name": {_json(call.name)}, "parameters": {written_arguments(call)}}}' for call in calls
        )
        return f"{self.form.opener}[{listed}]{self.form.closer}"

    def write_results(self, results: Sequence[Result]) -> str:
        documents = (
            f"Document: {place}\n{_json(result.name)}{' (error)' if result.failed else ''}\n{one_line(result.text)}"
            for place, result in enumerate(results)
        )
        return "<results>\n" + "\n\n".join(documents) + "\n</results>"


def _json(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


COMMAND_R: Final = _CommandR()
