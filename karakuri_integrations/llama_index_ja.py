"""LlamaIndex in Japanese: prompts, parsers, agents and evaluators for models that answer in Japanese.

LlamaIndex parses some answers by English words: a ReAct step by "Action:", an evaluation by "yes", a score by a line
of its own. Where a Japanese model writes 「行動：」, 「はい」 or 「スコア：４」, these classes read it. Each is
LlamaIndex's own class with Japanese words, and takes English answers too:

    from llama_index.core.query_engine import RouterQueryEngine
    from karakuri_integrations.llama_index_ja import JapaneseReActAgent, japanese_single_selector

    agent = JapaneseReActAgent(tools=[get_weather], llm=llm)
    router = RouterQueryEngine(selector=japanese_single_selector(llm), query_engine_tools=tools)

The prompts stand in the places of LlamaIndex's: `AgentWorkflow(handoff_prompt=HANDOFF_PROMPT, ...)`,
`CodeActAgent(code_act_system_prompt=CODE_ACT_PROMPT, ...)`.
"""

from __future__ import annotations

try:
    import llama_index.core  # noqa: F401  # asked first, so that what is missing is named with its extra
except ModuleNotFoundError as error:
    from .errors import MissingDependencyError

    raise MissingDependencyError(
        'karakuri_integrations.llama_index_ja needs llama-index-core: pip install "karakuri-integrations[llama-index]"'
    ) from error

from ._llama_index_ja_choosing import (
    JapaneseQuestionGenerator,
    JapaneseRankGPTRerank,
    japanese_multi_selector,
    japanese_rerank,
    japanese_single_selector,
)
from ._llama_index_ja_evaluation import (
    JapaneseCorrectnessEvaluator,
    JapaneseFaithfulnessEvaluator,
    JapaneseRelevancyEvaluator,
)
from ._llama_index_ja_prompts import (
    CHOICE_SELECT_PROMPT,
    CODE_ACT_PROMPT,
    CORRECTNESS_PROMPT,
    FAITHFULNESS_PROMPT,
    FAITHFULNESS_REFINE_PROMPT,
    HANDOFF_OUTPUT_PROMPT,
    HANDOFF_PROMPT,
    MULTI_SELECT_PROMPT,
    RANKGPT_PROMPT,
    REACT_HEADER,
    RELEVANCY_PROMPT,
    RELEVANCY_REFINE_PROMPT,
    SINGLE_SELECT_PROMPT,
    STATE_PROMPT,
    SUB_QUESTION_PROMPT,
)
from ._llama_index_ja_react import (
    OBSERVATION_STOPS,
    JapaneseReActAgent,
    JapaneseReActChatFormatter,
    JapaneseReActOutputParser,
)
from ._llama_index_ja_reading import JapaneseSelectionOutputParser, parse_choices, parse_score, parse_yes_no

__all__ = [
    "CHOICE_SELECT_PROMPT",
    "CODE_ACT_PROMPT",
    "CORRECTNESS_PROMPT",
    "FAITHFULNESS_PROMPT",
    "FAITHFULNESS_REFINE_PROMPT",
    "HANDOFF_OUTPUT_PROMPT",
    "HANDOFF_PROMPT",
    "MULTI_SELECT_PROMPT",
    "OBSERVATION_STOPS",
    "RANKGPT_PROMPT",
    "REACT_HEADER",
    "RELEVANCY_PROMPT",
    "RELEVANCY_REFINE_PROMPT",
    "SINGLE_SELECT_PROMPT",
    "STATE_PROMPT",
    "SUB_QUESTION_PROMPT",
    "JapaneseCorrectnessEvaluator",
    "JapaneseFaithfulnessEvaluator",
    "JapaneseQuestionGenerator",
    "JapaneseRankGPTRerank",
    "JapaneseReActAgent",
    "JapaneseReActChatFormatter",
    "JapaneseReActOutputParser",
    "JapaneseRelevancyEvaluator",
    "JapaneseSelectionOutputParser",
    "japanese_multi_selector",
    "japanese_rerank",
    "japanese_single_selector",
    "parse_choices",
    "parse_score",
    "parse_yes_no",
]
