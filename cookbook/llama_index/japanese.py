"""LlamaIndex in Japanese: a ReAct agent, a router and evaluators that read what a Japanese model writes.

The embedded model knows none of these tasks; scripted replies stand in for it. The real model needs the line MODEL.
"""

import asyncio

from llama_index.core import MockEmbedding, Settings
from llama_index.core.schema import NodeWithScore, TextNode
from llama_index.core.tools import ToolMetadata

from karakuri_integrations.engines import ScriptedEngine
from karakuri_integrations.llama_index import KarakuriLLM
from karakuri_integrations.llama_index_ja import (
    JapaneseFaithfulnessEvaluator,
    JapaneseReActAgent,
    japanese_rerank,
    japanese_single_selector,
)

MODEL = None  # scripted replies; the real one: "karakuri-ai/karakuri-lm-70b-chat-v0.1"

REPLIES = [
    '思考：天気を調べます。\n行動：get_weather\n入力：{"city": "東京"}',
    "思考：分かりました。\n回答：東京は晴れです。",
    "選択肢２です。理由：道を聞いているからです。",
    "文書：２、関連度：９",
    "はい。",
]
llm = KarakuriLLM(model=MODEL) if MODEL else KarakuriLLM(engine=ScriptedEngine(REPLIES))
Settings.embed_model = MockEmbedding(embed_dim=8)  # the evaluator's index asks for one and does not use it


def get_weather(city: str) -> str:
    """天気を調べる"""
    return f"{city}は晴れ"


async def main() -> None:
    output = await JapaneseReActAgent(tools=[get_weather], llm=llm).run(user_msg="東京の天気は?")
    print("Agent:", output.response.content)

    choices = [ToolMetadata("天気の資料", name="weather"), ToolMetadata("地図の資料", name="map")]
    print("Router:", choices[japanese_single_selector(llm).select(choices, "京都駅への道は?").ind].name)

    nodes = [NodeWithScore(node=TextNode(text=text)) for text in ("東京は晴れ", "京都駅の北にある")]
    print("Reranked:", japanese_rerank(llm).postprocess_nodes(nodes, query_str="どこ?")[0].node.get_content())

    judge = JapaneseFaithfulnessEvaluator(llm=llm)
    result = await judge.aevaluate(response="東京は晴れです。", contexts=["東京は晴れ"])
    print("Faithful:", result.passing)


asyncio.run(main())
