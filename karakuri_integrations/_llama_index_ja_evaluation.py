"""LlamaIndex's evaluators with Japanese prompts, which read 「はい」, 「いいえ」 and scores of any form."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llama_index.core.evaluation import (
    CorrectnessEvaluator,
    EvaluationResult,
    FaithfulnessEvaluator,
    RelevancyEvaluator,
)
from llama_index.core.llms.llm import LLM
from llama_index.core.prompts import BasePromptTemplate

from ._llama_index_ja_prompts import (
    CORRECTNESS_PROMPT,
    FAITHFULNESS_PROMPT,
    FAITHFULNESS_REFINE_PROMPT,
    NO_REFERENCE,
    RELEVANCY_PROMPT,
    RELEVANCY_REFINE_PROMPT,
)
from ._llama_index_ja_reading import parse_score, parse_yes_no
from .errors import ReplyFormatError

__all__ = ["JapaneseCorrectnessEvaluator", "JapaneseFaithfulnessEvaluator", "JapaneseRelevancyEvaluator"]


def _judged(result: EvaluationResult, raise_error: bool) -> EvaluationResult:
    """The result, read again: LlamaIndex looks for "yes" only."""
    passing = parse_yes_no(result.feedback or "")
    if passing is None:
        result.invalid_result, result.invalid_reason = True, "the reply says neither yes nor no"
    result.passing = bool(passing)
    result.score = 1.0 if passing else 0.0
    if raise_error and not passing:
        raise ReplyFormatError("the response is invalid: the context does not support it")
    return result


class JapaneseFaithfulnessEvaluator(FaithfulnessEvaluator):
    """Whether the contexts support a response."""

    def __init__(
        self,
        llm: LLM | None = None,
        raise_error: bool = False,
        eval_template: str | BasePromptTemplate | None = None,
        refine_template: str | BasePromptTemplate | None = None,
    ) -> None:
        super().__init__(
            llm, False, eval_template or FAITHFULNESS_PROMPT, refine_template or FAITHFULNESS_REFINE_PROMPT
        )
        self._raises = raise_error

    async def aevaluate(self, *args: Any, **kwargs: Any) -> EvaluationResult:
        return _judged(await super().aevaluate(*args, **kwargs), self._raises)


class JapaneseRelevancyEvaluator(RelevancyEvaluator):
    """Whether a response is in line with the contexts and the question."""

    def __init__(
        self,
        llm: LLM | None = None,
        raise_error: bool = False,
        eval_template: str | BasePromptTemplate | None = None,
        refine_template: str | BasePromptTemplate | None = None,
    ) -> None:
        super().__init__(llm, False, eval_template or RELEVANCY_PROMPT, refine_template or RELEVANCY_REFINE_PROMPT)
        self._raises = raise_error

    async def aevaluate(self, *args: Any, **kwargs: Any) -> EvaluationResult:
        return _judged(await super().aevaluate(*args, **kwargs), self._raises)


class JapaneseCorrectnessEvaluator(CorrectnessEvaluator):
    """How correct a response is, from 1 to 5; the reply may be a score alone."""

    def __init__(
        self,
        llm: LLM | None = None,
        eval_template: BasePromptTemplate | str | None = None,
        score_threshold: float = 4.0,
        parser_function: Any = parse_score,
    ) -> None:
        super().__init__(llm, eval_template or CORRECTNESS_PROMPT, score_threshold, parser_function)

    async def aevaluate(
        self,
        query: str | None = None,
        response: str | None = None,
        contexts: Sequence[str] | None = None,
        reference: str | None = None,
        sleep_time_in_seconds: int = 0,
        **kwargs: Any,
    ) -> EvaluationResult:
        reference = reference or NO_REFERENCE
        return await super().aevaluate(query, response, contexts, reference, sleep_time_in_seconds, **kwargs)
