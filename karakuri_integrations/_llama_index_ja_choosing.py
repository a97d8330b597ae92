"""Selectors, sub-questions and rerankers in Japanese, made of LlamaIndex's own with Japanese prompts and parsers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from llama_index.core.base.llms.types import ChatMessage, MessageRole
from llama_index.core.llms.llm import LLM
from llama_index.core.postprocessor import LLMRerank
from llama_index.core.postprocessor.rankGPT_rerank import RankGPTRerank
from llama_index.core.prompts import BasePromptTemplate, PromptTemplate
from llama_index.core.prompts.mixin import PromptDictType
from llama_index.core.question_gen.types import BaseQuestionGenerator, SubQuestion
from llama_index.core.schema import BaseNode, MetadataMode, QueryBundle
from llama_index.core.selectors import LLMMultiSelector, LLMSingleSelector
from llama_index.core.settings import Settings
from llama_index.core.tools.types import ToolMetadata
from pydantic import BaseModel, create_model

from ._llama_index_ja_prompts import (
    CHOICE_SELECT_PROMPT,
    MULTI_SELECT_PROMPT,
    RANKGPT_PROMPT,
    SINGLE_SELECT_PROMPT,
    SUB_QUESTION_PROMPT,
)
from ._llama_index_ja_reading import JapaneseSelectionOutputParser, parse_choices

__all__ = [
    "JapaneseQuestionGenerator",
    "JapaneseRankGPTRerank",
    "japanese_multi_selector",
    "japanese_rerank",
    "japanese_single_selector",
]


def japanese_single_selector(llm: LLM | None = None) -> LLMSingleSelector:
    """A selector of one choice, for a RouterQueryEngine."""
    return LLMSingleSelector.from_defaults(llm, SINGLE_SELECT_PROMPT, JapaneseSelectionOutputParser())


def japanese_multi_selector(llm: LLM | None = None, max_outputs: int | None = None) -> LLMMultiSelector:
    """A selector of several choices."""
    parser = JapaneseSelectionOutputParser()
    return LLMMultiSelector.from_defaults(llm, MULTI_SELECT_PROMPT, parser, max_outputs)


class JapaneseQuestionGenerator(BaseQuestionGenerator):
    """Sub-questions of a question, held to the names of the tools: `SubQuestionQueryEngine(question_gen=...)`."""

    def __init__(self, llm: LLM | None = None, prompt: BasePromptTemplate | None = None) -> None:
        self._llm = llm or Settings.llm
        self._prompt: Any = prompt or PromptTemplate(SUB_QUESTION_PROMPT)

    def _get_prompts(self) -> PromptDictType:
        return {"question_gen_prompt": self._prompt}

    def _update_prompts(self, prompts: PromptDictType) -> None:
        self._prompt = prompts.get("question_gen_prompt", self._prompt)

    def generate(self, tools: Sequence[ToolMetadata], query: QueryBundle) -> list[SubQuestion]:
        found = self._llm.structured_predict(_questions(tools), self._prompt, **_said(tools, query))
        return _plain(found)

    async def agenerate(self, tools: Sequence[ToolMetadata], query: QueryBundle) -> list[SubQuestion]:
        found = await self._llm.astructured_predict(_questions(tools), self._prompt, **_said(tools, query))
        return _plain(found)


def _questions(tools: Sequence[ToolMetadata]) -> type[BaseModel]:
    """A list of sub-questions whose tools are these."""
    names: Any = Literal[tuple(tool.get_name() for tool in tools)]
    one = create_model("SubQuestion", sub_question=(str, ...), tool_name=(names, ...))
    return create_model("SubQuestionList", items=(list[one], ...))  # type: ignore[valid-type]


def _said(tools: Sequence[ToolMetadata], query: QueryBundle) -> dict[str, str]:
    listed = "\n".join(f"- {tool.get_name()}: {' '.join(tool.description.split())}" for tool in tools)
    return {"tools_str": listed, "query_str": query.query_str}


def _plain(found: Any) -> list[SubQuestion]:
    return [SubQuestion(sub_question=one.sub_question, tool_name=one.tool_name) for one in found.items]


def japanese_rerank(llm: LLM | None = None, top_n: int = 10, choice_batch_size: int = 10) -> LLMRerank:
    """LlamaIndex's LLMRerank with a Japanese prompt; reads full-width digits and punctuation."""
    return LLMRerank(
        llm=llm,
        choice_select_prompt=CHOICE_SELECT_PROMPT,
        choice_batch_size=choice_batch_size,
        format_node_batch_fn=_documents,
        parse_choice_select_answer_fn=parse_choices,
        top_n=top_n,
    )


def _documents(nodes: Sequence[BaseNode]) -> str:
    texts = (node.get_content(metadata_mode=MetadataMode.LLM) for node in nodes)
    return "\n\n".join(f"文書 {number}:\n{text}" for number, text in enumerate(texts, 1))


class JapaneseRankGPTRerank(RankGPTRerank):
    """RankGPT in Japanese. LlamaIndex cuts passages after 300 words, which Japanese text does not have."""

    passage_characters: int = 600

    def __init__(
        self,
        top_n: int = 5,
        llm: LLM | None = None,
        verbose: bool = False,
        rankgpt_rerank_prompt: BasePromptTemplate | None = None,
        passage_characters: int = 600,
    ) -> None:
        super().__init__(top_n, llm or Settings.llm, verbose, rankgpt_rerank_prompt or RANKGPT_PROMPT)
        self.passage_characters = passage_characters

    @classmethod
    def class_name(cls) -> str:
        return "JapaneseRankGPTRerank"

    def _get_prefix_prompt(self, query: str, num: int) -> list[ChatMessage]:
        asked = f"{num} 個の文章を、[] の番号をつけて渡します。次の質問との関連が強い順に並べてください: {query}"
        return [
            ChatMessage(role=MessageRole.SYSTEM, content="あなたは、文章を質問との関連の強さで並べる助手です。"),
            ChatMessage(role=MessageRole.USER, content=asked),
            ChatMessage(role=MessageRole.ASSISTANT, content="はい、文章を送ってください。"),
        ]

    def create_permutation_instruction(self, item: dict[str, Any]) -> list[ChatMessage]:
        messages = self._get_prefix_prompt(item["query"], len(item["hits"]))
        for number, hit in enumerate(item["hits"], 1):
            passage = " ".join(hit["content"].split())[: self.passage_characters]
            messages.append(ChatMessage(role=MessageRole.USER, content=f"[{number}] {passage}"))
            messages.append(ChatMessage(role=MessageRole.ASSISTANT, content=f"文章 [{number}] を受け取りました。"))
        last = self._get_post_prompt(item["query"], len(item["hits"]))
        return [*messages, ChatMessage(role=MessageRole.USER, content=last)]
