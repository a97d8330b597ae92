"""LlamaIndex in Japanese: what a Japanese model writes is read where LlamaIndex's own parsers read English only."""

import asyncio
from typing import Any

import pytest
from llama_index.core.agent.react.output_parser import ReActOutputParser
from llama_index.core.agent.react.types import ActionReasoningStep, ObservationReasoningStep, ResponseReasoningStep
from llama_index.core.agent.workflow import AgentInput, AgentWorkflow, CodeActAgent, FunctionAgent, ToolCallResult
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.embeddings import MockEmbedding
from llama_index.core.evaluation import CorrectnessEvaluator, FaithfulnessEvaluator
from llama_index.core.indices.utils import default_parse_choice_select_answer_fn
from llama_index.core.memory import ChatMemoryBuffer
from llama_index.core.query_engine import RouterQueryEngine, SubQuestionQueryEngine
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode
from llama_index.core.selectors import PydanticSingleSelector
from llama_index.core.tools import FunctionTool, QueryEngineTool, ToolMetadata

from karakuri_integrations import llama_index_ja as ja
from karakuri_integrations.engines.scripted import ScriptedEngine
from karakuri_integrations.errors import ReplyFormatError
from karakuri_integrations.llama_index import KarakuriLLM


def model(*replies: Any, **fields: Any) -> KarakuriLLM:
    return KarakuriLLM(engine=ScriptedEngine(list(replies), context_window=20000), **fields)


def get_weather(city: str, days: int = 1) -> str:
    """天気を調べる"""
    if city == "火星":
        raise ValueError("火星の天気は分かりません")
    return f"{city}は晴れ"


# -- ReAct -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        '思考: 天気を調べる。\n行動: get_weather\n入力: {"city": "東京"}',
        '思考：天気を調べる。\n行動：get_weather\n入力：{"city": "東京"}\n',
        '考え: 天気を調べる。\nアクション: get_weather\nアクション入力: {"city": "東京"}',
        '思考: 天気を調べる。\n行動: get_weather\n行動の入力: {"city": "東京"}\n観察: 東京は雨\n回答: 雨です。',
        "**思考:** 天気を調べる。\n**行動:** `get_weather`\n**引数:** {'city': '東京'}",
        '思考: 天気を調べる。行動: get_weather。入力: {"city": "東京"}',
        '天気を調べる。\n行動: get_weather(東京)\n入力:\n```json\n{\n "city": "東京"\n}\n```',
        "思考: 天気を調べる。\n行動: 「get_weather」\n入力: ｛“city”：“東京”｝",
        'Thought: 天気を調べる。\nAction: get_weather\nAction Input: {"city": "東京"}',
        'Thought: 天気を調べる。\nAction: get_weather\nAction Input: {"city": "東京"}\nObservation: 雨\nAnswer: 雨',
    ],
)
def test_an_action_in_every_form(text: str) -> None:
    step = ja.JapaneseReActOutputParser().parse(text)
    assert isinstance(step, ActionReasoningStep)
    assert (step.thought, step.action, step.action_input) == ("天気を調べる。", "get_weather", {"city": "東京"})
    assert step.get_content() == '思考: 天気を調べる。\n行動: get_weather\n入力: {"city": "東京"}'


@pytest.mark.parametrize(
    ("text", "thought", "answer"),
    [
        ("思考: 分かった。\n回答: 晴れです。", "分かった。", "晴れです。"),
        ("思考：分かった。\n最終回答：晴れです。\n二行目: ここも。", "分かった。", "晴れです。\n二行目: ここも。"),
        ("分かった。\n答え: 晴れです。\n行動: 傘は不要。", "分かった。", "晴れです。\n行動: 傘は不要。"),
        ("思考: 分かった。回答: 晴れです。", "分かった。", "晴れです。"),
        ("回答: 晴れです。", "(ツールなしで答えられる)", "晴れです。"),
        ("Answer: 晴れです。", "(ツールなしで答えられる)", "晴れです。"),
        ("Thought: 分かった。\nAnswer: 晴れです。", "分かった。", "晴れです。"),
        (r"Thought: The result is 8\Answer: 8", "The result is 8\\", "8"),
    ],
)
def test_an_answer_in_every_form(text: str, thought: str, answer: str) -> None:
    step = ja.JapaneseReActOutputParser().parse(text)
    assert isinstance(step, ResponseReasoningStep)
    assert (step.thought, step.response, step.is_done) == (thought, answer, True)


def test_text_without_any_word_is_an_answer_as_in_llama_index() -> None:
    assert ja.JapaneseReActOutputParser().parse("東京は晴れです。").response == "東京は晴れです。"


def test_labels_within_arguments_are_arguments() -> None:
    text = '行動: f\n入力: {"text": "質問です。回答: 42。行動: なし"}'
    assert ja.JapaneseReActOutputParser().parse(text).action_input == {"text": "質問です。回答: 42。行動: なし"}


def test_a_tool_without_arguments_needs_no_input() -> None:
    step = ja.JapaneseReActOutputParser().parse("思考: 時刻だ。\n行動: now\n")
    assert (step.action, step.action_input) == ("now", {})


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("思考: うーん", "行動も回答もありません"),
        ("思考: t\n行動:\n入力: {}", "ツール名がありません"),
        ('行動: f\n入力: {"a": "秘密', "途中で切れています"),
        ("行動: f\n入力: {秘密 秘密}", "JSON ではありません"),
    ],
)
def test_what_cannot_be_read_says_why(text: str, why: str) -> None:
    with pytest.raises(ReplyFormatError, match=why) as caught:
        ja.JapaneseReActOutputParser().parse(text)
    assert isinstance(caught.value, ValueError)  # the agent asks again on those
    assert caught.value.partial_text == text
    assert "秘密" not in str(caught.value)


def test_llama_indexs_own_parser_takes_a_japanese_step_for_an_answer() -> None:
    """Why this parser exists."""
    assert ReActOutputParser().parse('思考: t\n行動: f\n入力: {"a": 1}').is_done


def test_the_prompt_is_short_and_holds_tools_steps_and_context() -> None:
    tools = [FunctionTool.from_defaults(get_weather)]
    formatter = ja.JapaneseReActChatFormatter(context="寺に詳しい{案内人}です。")
    steps = [
        ActionReasoningStep(thought="t", action="get_weather", action_input={"city": "東京"}),
        ObservationReasoningStep(observation="晴れ {x}"),
    ]
    system, question, action, observation = formatter.format(tools, [ChatMessage(content="東京は?")], steps)
    assert "- get_weather(city: string, days?: integer): 天気を調べる" in system.content
    assert "寺に詳しい{案内人}です。" in system.content
    assert '例: {"city": "東京"}' in system.content
    assert question.content == "東京は?"
    assert action.content == '思考: t\n行動: get_weather\n入力: {"city": "東京"}'
    assert (observation.role.value, observation.content) == ("user", "観察: 晴れ {x}")
    bare = ja.JapaneseReActChatFormatter().format([], [ChatMessage(content="q")])
    assert "{context}" not in bare[0].content
    assert len(bare[0].content) < 350


async def run(agent: Any, text: str, **options: Any) -> tuple[Any, list[Any]]:
    handler = agent.run(user_msg=text, **options)
    events = [event async for event in handler.stream_events()]
    return await handler, events


@pytest.mark.parametrize("streaming", [True, False])
async def test_the_agent_thinks_in_japanese(streaming: bool) -> None:
    llm = model(
        '思考：天気を調べる。\n行動：get_weather\n入力：{"city": "東京"}\n観察：東京は雨\n回答：雨です。',
        "思考：分かった。\n回答：東京は晴れです。",
    )
    agent = ja.JapaneseReActAgent(tools=[get_weather], llm=llm, system_prompt="案内人です。", streaming=streaming)
    memory = ChatMemoryBuffer.from_defaults(token_limit=10000)
    output, events = await run(agent, "東京の天気は?", memory=memory)
    assert output.response.content == "東京は晴れです。"
    (result,) = [event for event in events if isinstance(event, ToolCallResult)]
    assert result.tool_kwargs == {"city": "東京"}
    first, second = llm.engine.prompts
    assert "案内人です。" in first
    assert "観察: 東京は晴れ" in second
    assert "東京は雨" not in second
    assert llm.engine.samplings[0].stop == ja.OBSERVATION_STOPS
    assert memory.get_all()[-1].content == (
        '思考: 天気を調べる。\n行動: get_weather\n入力: {"city": "東京"}\n観察: 東京は晴れ\n思考: 分かった。\n回答: 東京は晴れです。'
    )
    assert llm.stop is None  # the agent has a copy


async def test_a_stop_of_ones_own_stays() -> None:
    llm = model("回答: はい。", stop=["。"])
    output, _ = await run(ja.JapaneseReActAgent(tools=[get_weather], llm=llm), "?")
    assert output.response.content == "はい"


@pytest.mark.parametrize(
    ("bad", "why"),
    [("思考: うーん", "行動も回答もありません"), ("", "空です"), ("行動: f\n入力: {a", "途中で切れています")],
)
async def test_the_agent_asks_again_in_japanese(bad: str, why: str) -> None:
    llm = model(bad, "思考: 分かった。\n回答: 晴れです。")
    output, events = await run(ja.JapaneseReActAgent(tools=[get_weather], llm=llm), "東京の天気は?")
    asked = [event.input[-1].content or "" for event in events if isinstance(event, AgentInput)]
    assert any(why in text and "書き直してください" in text for text in asked)
    assert "Error while parsing" not in llm.engine.prompts[1]
    assert output.response.content == "晴れです。"


async def test_a_failing_tool_is_observed_and_a_direct_one_answers() -> None:
    llm = model('行動: get_weather\n入力: {"city": "火星"}', "回答: 分かりません。")
    output, _ = await run(ja.JapaneseReActAgent(tools=[get_weather], llm=llm), "?")
    assert "観察: 火星の天気は分かりません" in llm.engine.prompts[1]
    direct = FunctionTool.from_defaults(get_weather, return_direct=True)
    llm = model('行動: get_weather\n入力: {"city": "東京"}')
    output, _ = await run(ja.JapaneseReActAgent(tools=[direct], llm=llm), "?")
    assert output.response.content == "東京は晴れ"


# -- prompts of the agents ---------------------------------------------------------------------------------------------


async def test_the_workflow_prompts_stand_where_the_english_ones_do() -> None:
    handoff = '[TOOL_CALLS]\n[{"name": "handoff", "arguments": {"to_agent": "b", "reason": "天気だから"}}]'
    first, second = model(handoff), model("晴れです。")
    agents = [
        FunctionAgent(name="a", description="受付", llm=first),
        FunctionAgent(name="b", description="天気の担当", llm=second),
    ]
    workflow = AgentWorkflow(
        agents=agents,
        root_agent="a",
        handoff_prompt=ja.HANDOFF_PROMPT,
        handoff_output_prompt=ja.HANDOFF_OUTPUT_PROMPT,
        state_prompt=ja.STATE_PROMPT,
        initial_state={"n": 1},
    )
    output, _ = await run(workflow, "東京の天気は?")
    assert output.response.content == "晴れです。"
    assert "引き継ぎます" in first.engine.prompts[0] and "天気の担当" in first.engine.prompts[0]
    assert "現在の状態:\n{'n': 1}\n\n利用者の発言:\n東京の天気は?" in first.engine.prompts[0]
    assert "担当が b に代わりました。理由: 天気だから" in second.engine.prompts[0]


async def test_the_code_act_prompt() -> None:
    llm = model("<execute>print(1)</execute>", "1です。")
    agent = CodeActAgent(code_execute_fn=lambda code: "1", llm=llm, code_act_system_prompt=ja.CODE_ACT_PROMPT)
    assert (await run(agent, "?"))[0].response.content == "1です。"
    assert 'print(f"面積は {area} です")' in llm.engine.prompts[0]


# -- short answers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("はい", True),
        ("はい。", True),
        ("はい、裏づけられています。", True),
        ("答え：はい", True),
        ("「はい」", True),
        ("**はい**", True),
        ("はいです", True),
        ("ＹＥＳ", True),
        ("Yes, it is.", True),
        ("裏づけがあります。したがって、はい。", True),
        ("いいえ", False),
        ("いいえ、はい とは言えません。", False),
        ("答え: いいえ", False),
        ("No.", False),
        ("「はい」か「いいえ」で答えると、いいえです。", False),
        ("それはいい考えです", None),
        ("東京ではいつも晴れです", None),
        ("yesterday was nothing", None),
        ("", None),
    ],
)
def test_yes_and_no(text: str, expected: bool | None) -> None:
    assert ja.parse_yes_no(text) is expected


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("4.0\n参照と同じ", 4.0),
        ("4.0", 4.0),
        ("\n\n 3\n理由", 3.0),
        ("スコア: 4.0", 4.0),
        ("スコア：４．５点\n良い", 4.5),
        ("スコア（1〜5）：3", 3.0),
        ("評価は4です", 4.0),
        ("5点満点中4点", 4.0),
        ("4/5", 4.0),
        ("この回答は正しいので、5点です。", 5.0),
        ("**2**", 2.0),
        ("80", None),
        ("0", None),
        ("とても良い", None),
        ("", None),
    ],
)
def test_scores(text: str, score: float | None) -> None:
    assert ja.parse_score(text)[0] == score


def test_reasons_and_bounds_of_scores() -> None:
    assert ja.parse_score("スコア：４\n理由：同じ内容です。\n以上") == (4.0, "理由：同じ内容です。\n以上")
    assert ja.parse_score("4") == (4.0, "4")
    assert ja.parse_score("スコア: 80", lowest=0, highest=100)[0] == 80.0


def test_relevances() -> None:
    answer = "文書：１、関連度：７\nDoc: 2, Relevance: 5\n3, 4\n文書 9（関連度 8）\n1. 文書4、関連度 6.5\n関係なし\n文書1, 関連度: 1"
    assert ja.parse_choices(answer, 5) == ([1, 2, 3, 4], [7.0, 5.0, 4.0, 6.5])
    assert default_parse_choice_select_answer_fn("文書：１、関連度：７", 5) == ([], [])  # why it exists
    assert ja.parse_choices("文書: 0, 関連度: 3\n", 5) == ([], [])
    with pytest.raises(ReplyFormatError, match="names no document"):
        ja.parse_choices("文書1、関連度 2\n分かりません", 5, raise_error=True)


@pytest.mark.parametrize(
    ("text", "chosen"),
    [
        ('[{"choice": 2, "reason": "r"}]', [2]),
        ('{"選択": "２", "理由": "r"}', [2]),
        ('こちらです。\n```json\n[{"番号": 1, "理由": "a"}, {"番号": 3, "理由": "b"}]\n```', [1, 3]),
        ('［｛"choice"：２，"reason"："r"｝］', [2]),
        ("選択肢２が最も関連します。", [2]),
        ("答え：(2)", [2]),
        ("2", [2]),
        ("1と3", [1, 3]),
        ("１、３です", [1, 3]),
        ("(2) 2023年の資料だから", [2]),
        ("1. 天気だから\n3. 地図だから", [1, 3]),
    ],
)
def test_selections(text: str, chosen: list[int]) -> None:
    found = ja.JapaneseSelectionOutputParser().parse(text)
    assert [answer.choice for answer in found.parsed_output] == chosen
    assert found.raw_output == text


@pytest.mark.parametrize("text", ["", "分かりません。", "0", '[{"choice": 0, "reason": "秘密"}]'])
def test_what_selects_nothing_is_an_error(text: str) -> None:
    with pytest.raises(ReplyFormatError, match="selects nothing") as caught:
        ja.JapaneseSelectionOutputParser().parse(text)
    assert "秘密" not in str(caught.value)


# -- selectors, sub-questions, rerankers -------------------------------------------------------------------------------

CHOICES = [
    ToolMetadata("天気の資料", name="weather"),
    ToolMetadata("地図の資料", name="map"),
    ToolMetadata("歴史", name="past"),
]


async def test_selectors() -> None:
    llm = model("選択肢２です。", "２", "１と３")
    single = ja.japanese_single_selector(llm)
    assert single.select(CHOICES, "道は?").ind == (await single.aselect(CHOICES, "道は?")).ind == 1
    assert ja.japanese_multi_selector(llm, 2).select(CHOICES, "?").inds == [0, 2]
    assert "(2) 地図の資料" in llm.engine.prompts[0]
    assert '[{"choice": 1, "reason": "選んだ理由"}]' in llm.engine.prompts[0]
    assert "多くても 2 個" in llm.engine.prompts[2]
    assert all(prompt.count("JSON だけで") == 1 and "{{" not in prompt for prompt in llm.engine.prompts)


def test_the_prompts_work_in_pydantic_selectors() -> None:
    llm = model('[{"name": "SingleSelection", "arguments": {"index": 2, "reason": "地図"}}]')
    assert (
        PydanticSingleSelector.from_defaults(llm=llm, prompt_template_str=ja.SINGLE_SELECT_PROMPT)
        .select(CHOICES, "?")
        .ind
        == 1
    )


def engines(llm: KarakuriLLM) -> list[QueryEngineTool]:
    from llama_index.core import Document, SummaryIndex

    texts = {"weather": "東京は晴れ", "map": "京都駅の北"}
    return [
        QueryEngineTool.from_defaults(
            SummaryIndex.from_documents([Document(text=text)]).as_query_engine(llm=llm), name=name, description=name
        )
        for name, text in texts.items()
    ]


def test_a_router() -> None:
    llm = model("選択肢：２", "京都駅の北です。")
    router = RouterQueryEngine(ja.japanese_single_selector(llm), engines(llm), llm=llm)
    assert str(router.query("どこですか。")) == "京都駅の北です。"
    assert "京都駅の北" in llm.engine.prompts[1]


async def test_sub_questions_are_held_to_the_tools() -> None:
    reply = '{"items": [{"sub_question": "天気は?", "tool_name": "weather"}, {"sub_question": "道は?", "tool_name": "map"}]}'
    llm = model(reply, reply, '{"items": [{"sub_question": "?", "tool_name": "gone"}]}')
    generator = ja.JapaneseQuestionGenerator(llm)
    for found in (generator.generate(CHOICES, QueryBundle("?")), await generator.agenerate(CHOICES, QueryBundle("?"))):
        assert [(one.sub_question, one.tool_name) for one in found] == [("天気は?", "weather"), ("道は?", "map")]
    assert '"weather"|"map"|"past"' in llm.engine.prompts[0]
    assert "- weather: 天気の資料" in llm.engine.prompts[0]
    with pytest.raises(ReplyFormatError, match="tool_name"):
        generator.generate(CHOICES, QueryBundle("?"))
    assert generator.get_prompts()["question_gen_prompt"].template == ja.SUB_QUESTION_PROMPT


def test_a_sub_question_engine() -> None:
    items = '{"items": [{"sub_question": "天気は?", "tool_name": "weather"}]}'
    llm = model(items, "晴れです。", "東京は晴れです。")
    engine = SubQuestionQueryEngine.from_defaults(
        engines(llm), llm=llm, question_gen=ja.JapaneseQuestionGenerator(llm), use_async=False, verbose=False
    )
    assert str(engine.query("東京はどうですか。")) == "東京は晴れです。"


def nodes(*texts: str) -> list[NodeWithScore]:
    return [NodeWithScore(node=TextNode(text=text)) for text in texts]


async def test_reranking() -> None:
    llm = model("文書：３、関連度：９\n文書：１、関連度：４", "文書3, 関連度9\n文書1, 関連度4")
    rerank = ja.japanese_rerank(llm, top_n=2)
    given = nodes("一", "二 {x}", "三")
    for found in (
        rerank.postprocess_nodes(given, query_str="?"),
        await rerank.apostprocess_nodes(given, query_str="?"),
    ):
        assert [(one.node.get_content(), one.score) for one in found] == [("三", 9.0), ("一", 4.0)]
    assert "文書 2:\n二 {x}" in llm.engine.prompts[0]


def test_rankgpt() -> None:
    llm = model("[３] > [1] > [2]")
    found = ja.JapaneseRankGPTRerank(top_n=2, llm=llm, passage_characters=5).postprocess_nodes(
        nodes("あ" * 3000, "いろは", "三"), query_str="質問"
    )
    assert [one.node.get_content()[:2] for one in found] == ["三", "ああ"]
    (prompt,) = llm.engine.prompts
    assert "あ" * 5 in prompt and "あ" * 6 not in prompt
    assert "次の質問との関連が強い順に" in prompt


# -- evaluators --------------------------------------------------------------------------------------------------------


@pytest.fixture
def embedding(monkeypatch: pytest.MonkeyPatch) -> None:
    """The evaluators' index asks Settings for an embedding model that it does not use."""
    from llama_index.core import Settings

    monkeypatch.setattr(Settings, "_embed_model", MockEmbedding(embed_dim=1))


@pytest.mark.usefixtures("embedding")
@pytest.mark.parametrize("name", ["JapaneseFaithfulnessEvaluator", "JapaneseRelevancyEvaluator"])
async def test_judges_read_japanese(name: str) -> None:
    given = {"query": "天気は?", "response": "晴れです。", "contexts": ["東京は晴れ"]}
    llm = model("はい。", "いいえ。", "分かりません。", "いいえ", "はい")
    judge = getattr(ja, name)(llm=llm)
    yes, no, unclear = [await judge.aevaluate(**given) for _ in range(3)]
    assert (yes.passing, yes.score, yes.feedback, yes.invalid_result) == (True, 1.0, "はい。", False)
    assert (no.passing, no.score, no.invalid_result) == (False, 0.0, False)
    assert (unclear.passing, unclear.score, unclear.invalid_result) == (False, 0.0, True)
    assert "「はい」か「いいえ」で答えてください" in llm.engine.prompts[0]
    assert "東京は晴れ" in llm.engine.prompts[0] and "晴れです。" in llm.engine.prompts[0]
    strict = getattr(ja, name)(llm=llm, raise_error=True)
    with pytest.raises(ReplyFormatError, match="invalid"):
        await strict.aevaluate(**given)
    assert (await asyncio.to_thread(strict.evaluate, **given)).passing is True


@pytest.mark.usefixtures("embedding")
async def test_llama_indexs_own_judge_never_passes_a_japanese_yes() -> None:
    judge = FaithfulnessEvaluator(llm=model("はい。"))
    assert (await judge.aevaluate(response="晴れ", contexts=["晴れ"])).passing is False


async def test_correctness() -> None:
    llm = model("スコア：４．５\n同じ内容です。", "4", "良い", "2\n誤りです。")
    judge = ja.JapaneseCorrectnessEvaluator(llm=llm)
    given = {"query": "天気は?", "response": "晴れです。"}
    scored = [await judge.aevaluate(**given, reference="晴れ"), *[await judge.aevaluate(**given) for _ in range(3)]]
    assert [(one.score, one.passing) for one in scored] == [(4.5, True), (4.0, True), (None, None), (2.0, False)]
    assert scored[0].feedback == "同じ内容です。"
    assert "参照回答:\n晴れ\n" in llm.engine.prompts[0]
    assert "参照回答:\n(なし)\n" in llm.engine.prompts[1]
    with pytest.raises(ValueError, match="unpack"):
        await CorrectnessEvaluator(llm=model("4")).aevaluate(**given)  # why it exists
