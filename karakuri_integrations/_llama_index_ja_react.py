"""LlamaIndex's ReAct agent for a model that thinks in Japanese.

The parser reads 「思考」, 「行動」, 「入力」 and 「回答」 with any colon, and the English words too, at the beginning
of a line or of a sentence. What a model invents as the tool's result (「観察」) is cut. Whatever the core parser takes
is taken.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any, Final

from llama_index.core.agent.react.formatter import ReActChatFormatter
from llama_index.core.agent.react.output_parser import ReActOutputParser
from llama_index.core.agent.react.types import (
    ActionReasoningStep,
    BaseReasoningStep,
    ObservationReasoningStep,
    ResponseReasoningStep,
)
from llama_index.core.agent.workflow import AgentOutput, ReActAgent
from llama_index.core.agent.workflow.agent_context import AgentContext
from llama_index.core.base.llms.types import ChatMessage, TextBlock
from llama_index.core.memory import BaseMemory
from llama_index.core.tools import AsyncBaseTool, BaseTool
from llama_index.core.workflow import Context
from pydantic import Field, model_validator

from ._llama_index_ja_prompts import REACT_HEADER, REACT_RETRY
from ._llama_index_ja_reading import normalised
from ._llama_index_tools import openai_tool
from .conversation import Tool
from .errors import ReplyFormatError
from .llama_index import KarakuriLLM
from .tools.signatures import signature

__all__ = [
    "OBSERVATION_STOPS",
    "JapaneseReActAgent",
    "JapaneseReActChatFormatter",
    "JapaneseReActOutputParser",
]

#: Where a reply has to end, before the model writes the tool's result itself.
OBSERVATION_STOPS: Final = ("\n観察:", "\n観察：", "\nObservation:")

_WORDS: Final = {
    "input": "Action Input|行動の?入力|アクションの?入力|ツールの?入力|入力|引数",
    "action": "Action|行動|アクション",
    "answer": "Final Answer|Answer|最終回答|回答|答え",
    "observation": "Observation|観察結果|観察",
    "thought": "Thought|思考|考え",
}
_LABEL: Final = re.compile(
    r"(?:^[\s>#*-]*|(?<=[。．！？!?]))\s*\*{0,2}(?:"
    + "|".join(f"(?P<{kind}>{words})" for kind, words in _WORDS.items())
    + r")\*{0,2}\s*[:：]\*{0,2}[ \t　]*",
    re.MULTILINE,
)
_NAME: Final = re.compile(r"[^\s()（）「」『』`'\"、。,.:：]+")
_IMPLICIT: Final = "(ツールなしで答えられる)"


class _JapaneseAction(ActionReasoningStep):
    def get_content(self) -> str:
        arguments = json.dumps(self.action_input, ensure_ascii=False, default=str)
        return f"思考: {self.thought}\n行動: {self.action}\n入力: {arguments}"


class _JapaneseObservation(ObservationReasoningStep):
    def get_content(self) -> str:
        return f"観察: {self.observation}"


class _JapaneseResponse(ResponseReasoningStep):
    def get_content(self) -> str:
        return f"思考: {self.thought}\n回答: {self.response}"


_STEPS: Final = (
    (ActionReasoningStep, _JapaneseAction),
    (ObservationReasoningStep, _JapaneseObservation),
    (ResponseReasoningStep, _JapaneseResponse),
)


def in_japanese(step: BaseReasoningStep) -> BaseReasoningStep:
    """The step as one that is written with Japanese words."""
    for base, own in _STEPS:
        if isinstance(step, base) and not isinstance(step, own):
            return own(**step.model_dump())
    return step


class JapaneseReActOutputParser(ReActOutputParser):
    """LlamaIndex's ReAct parser, which also reads Japanese words, full-width colons and answers without a thought."""

    def parse(self, output: str, is_streaming: bool = False) -> BaseReasoningStep:
        """The step that a reply takes.

        Raises:
            ReplyFormatError: a thought or an action alone, or arguments that are no JSON object; it is a ValueError.
        """
        labels = list(_LABEL.finditer(output))
        first = next((one for one in labels if one.lastgroup in ("action", "answer")), None)
        if first is None:
            return self._without_labels(output, labels, is_streaming)
        thought = _LABEL.sub("", output[: first.start()]).strip() or _IMPLICIT
        if first.lastgroup == "answer":
            response = output[first.end() :].strip()
            return _JapaneseResponse(thought=thought, response=response, is_streaming=is_streaming)
        return _action(output, thought, first, labels)

    def _without_labels(self, output: str, labels: list[re.Match[str]], is_streaming: bool) -> BaseReasoningStep:
        if labels and "Action:" not in output and "Answer:" not in output:
            raise _unread(output, "行動も回答もありません")
        try:
            return in_japanese(super().parse(output, is_streaming))
        except ValueError:
            pass
        raise _unread(output, "形が違います")


def _action(output: str, thought: str, at: re.Match[str], labels: list[re.Match[str]]) -> BaseReasoningStep:
    after = [one for one in labels if one.start() > at.start()]
    name = _NAME.search(output[at.end() : after[0].start() if after else len(output)])
    if name is None:
        raise _unread(output, "ツール名がありません")
    given = bool(after) and after[0].lastgroup == "input"
    start = after[0].end() if given else at.end() + name.end()
    # Within the arguments a sentence may begin with such a word; a line cannot.
    lines = (one.start() for one in after[given:] if output[one.start() - 1] == "\n")
    end = next(lines, len(output))
    return _JapaneseAction(thought=thought, action=name.group(), action_input=_arguments(output, output[start:end]))


def _arguments(output: str, text: str) -> dict[str, Any]:
    """The JSON object in the text; {} where there is none at all."""
    import dirtyjson  # type: ignore[import-untyped]

    found = re.search(r"[{｛].*[}｝]", text, re.DOTALL)
    if found is None:
        if re.search(r"[{｛]", text):
            raise _unread(output, "入力の JSON が途中で切れています")
        return {}
    for read, one in ((json.loads, found.group()), (dirtyjson.loads, found.group())):
        arguments = _attempt(read, one)
        if isinstance(arguments, dict):
            return dict(arguments)
    arguments = _attempt(dirtyjson.loads, normalised(found.group()).replace("“", '"').replace("”", '"'))
    if isinstance(arguments, dict):
        return dict(arguments)
    raise _unread(output, "入力が JSON ではありません")


def _attempt(read: Any, text: str) -> Any:
    try:
        return read(text)
    except Exception:  # noqa: BLE001 - dirtyjson raises whatever its scanner runs into
        return None


def _unread(output: str, why: str) -> ReplyFormatError:
    error = ReplyFormatError(why)  # shown to the model, so in its language
    error.partial_text = output
    return error


class JapaneseReActChatFormatter(ReActChatFormatter):
    """Writes the tools, a line each, and the steps so far with Japanese words."""

    system_header: str = REACT_HEADER

    def format(
        self,
        tools: Sequence[BaseTool],
        chat_history: list[ChatMessage],
        current_reasoning: list[BaseReasoningStep] | None = None,
    ) -> list[ChatMessage]:
        header = self.system_header.format(
            tool_desc="\n".join(f"- {signature(_tool(tool))}" for tool in tools) or "(なし)",
            tool_names=", ".join(tool.metadata.get_name() for tool in tools),
            context=f"\n{self.context}\n" if self.context else "",
        )
        steps = [in_japanese(step) for step in current_reasoning or []]
        written = self.model_copy(update={"system_header": header.replace("{", "{{").replace("}", "}}")})
        return ReActChatFormatter.format(written, tools, chat_history, steps)


def _tool(tool: BaseTool) -> Tool:
    function = openai_tool(tool)["function"]
    return Tool(function["name"], function["description"], json.dumps(function["parameters"], ensure_ascii=False))


class JapaneseReActAgent(ReActAgent):
    """LlamaIndex's ReAct agent in Japanese.

    A KarakuriLLM without stop strings is asked to stop before it writes the tool's result itself.
    """

    output_parser: ReActOutputParser = Field(default_factory=JapaneseReActOutputParser)
    formatter: ReActChatFormatter = Field(default_factory=JapaneseReActChatFormatter)

    @model_validator(mode="after")
    def _stops(self) -> JapaneseReActAgent:
        if isinstance(self.llm, KarakuriLLM) and not self.llm.stop:
            self.llm = self.llm.model_copy(update={"stop": list(OBSERVATION_STOPS)})
        return self

    async def take_step(
        self, ctx: AgentContext, llm_input: list[ChatMessage], tools: Sequence[AsyncBaseTool], memory: BaseMemory
    ) -> AgentOutput:
        output = await super().take_step(ctx, llm_input, tools, memory)
        if output.retry_messages:
            output.retry_messages = [output.retry_messages[0], self._again(output.response.content or "")]
        return output

    def _again(self, said: str) -> ChatMessage:
        reason = "空です"
        if said:
            try:
                self.output_parser.parse(said)
            except ValueError as error:
                reason = str(error)
        return ChatMessage(role="user", content=REACT_RETRY.format(reason=reason))

    async def finalize(self, ctx: Context, output: AgentOutput, memory: BaseMemory) -> AgentOutput:
        steps = [in_japanese(step) for step in await ctx.store.get(self.reasoning_key, default=[])]
        await ctx.store.set(self.reasoning_key, steps)
        output = await super().finalize(ctx, output, memory)
        if steps and isinstance(steps[-1], ResponseReasoningStep):
            _answer(output.response, steps[-1].response)
        return output


def _answer(message: ChatMessage, text: str) -> None:
    """The final answer alone, as LlamaIndex takes "Answer:" off."""
    for block in message.blocks:
        if isinstance(block, TextBlock):
            block.text = text
            return
