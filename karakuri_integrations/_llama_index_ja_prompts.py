"""LlamaIndex's prompts in Japanese: texts only, short, because 4,096 tokens is all there is.

Placeholders are those of LlamaIndex's own prompts, so that each stands where the English one does.
"""

from __future__ import annotations

from typing import Final

from llama_index.core.prompts import ChatMessage, ChatPromptTemplate, MessageRole, PromptTemplate

__all__ = [
    "CHOICE_SELECT_PROMPT",
    "CODE_ACT_PROMPT",
    "CORRECTNESS_PROMPT",
    "FAITHFULNESS_PROMPT",
    "FAITHFULNESS_REFINE_PROMPT",
    "HANDOFF_OUTPUT_PROMPT",
    "HANDOFF_PROMPT",
    "MULTI_SELECT_PROMPT",
    "NO_REFERENCE",
    "RANKGPT_PROMPT",
    "REACT_HEADER",
    "REACT_RETRY",
    "RELEVANCY_PROMPT",
    "RELEVANCY_REFINE_PROMPT",
    "SELECTION_FORMAT",
    "SINGLE_SELECT_PROMPT",
    "STATE_PROMPT",
    "SUB_QUESTION_PROMPT",
]

# -- agents ------------------------------------------------------------------------------------------------------------

REACT_HEADER: Final = """\
あなたは利用者の質問に答えます。必要ならツールを使えます。

ツール:
{tool_desc}
{context}
ツールを使うときは、次の形で書いてください。
思考: 次に何をするか
行動: ツール名 ({tool_names})
入力: ツールの引数の JSON (例: {{"city": "東京"}}。引数がなければ {{}})

答えるときは、次の形で書いてください。
思考: ツールはもう必要ない
回答: 質問への答え

必ず「思考:」から書き始めてください。ツールの結果は「観察:」としてあとから届きます。自分では書かないでください。"""

#: After a reply that could not be read.
REACT_RETRY: Final = """\
今の返答は読み取れませんでした ({reason})。次のどちらかの形で書き直してください。

思考: 次に何をするか
行動: ツール名
入力: 引数の JSON

思考: ツールはもう必要ない
回答: 質問への答え"""

HANDOFF_PROMPT: Final = """\
ほかの担当に引き継ぎます。自分では対応できないとき、またはほかの担当のほうが適しているときに使ってください。
担当の一覧: {agent_info}"""

HANDOFF_OUTPUT_PROMPT: Final = (
    "担当が {to_agent} に代わりました。理由: {reason}\n利用者の依頼への対応を続けてください。"
)

STATE_PROMPT: Final = "現在の状態:\n{state}\n\n利用者の発言:\n{msg}\n"

CODE_ACT_PROMPT: Final = """\
あなたは Python のコードを書いて実行し、問題を解きます。次のどれかを書いてください。
- <execute> と </execute> で囲んだ Python のコード。見たい結果は print で出力します。
- 利用者への質問、または最終的な答え。コードのことには触れず、結果を直接伝えます。

例:
<execute>
area = 3.14 * 5 ** 2
print(f"面積は {area} です")
</execute>

標準ライブラリと前に書いた関数や変数のほかに、次の関数を使えます。
{tool_descriptions}
"""

# -- choosing ----------------------------------------------------------------------------------------------------------

SINGLE_SELECT_PROMPT: Final = """\
次に 1 から {num_choices} までの選択肢があります。
---------------------
{context_list}
---------------------
上の選択肢だけを使い、次の質問に最も関係のあるものを一つ選んで、理由を添えてください。
質問: {query_str}
"""

MULTI_SELECT_PROMPT: Final = """\
次に 1 から {num_choices} までの選択肢があります。
---------------------
{context_list}
---------------------
上の選択肢だけを使い、次の質問に関係のあるものを必要なだけ (多くても {max_outputs} 個) 選んで、理由を添えてください。
質問: {query_str}
"""

SELECTION_FORMAT: Final = '次の形の JSON だけで答えてください。\n[{"choice": 1, "reason": "選んだ理由"}]\n'

SUB_QUESTION_PROMPT: Final = """\
質問とツールの一覧があります。質問に答えるために、どのツールに何を聞けばよいかを、小さな質問に分けてください。
sub_question は一つのことだけを聞く日本語の質問、tool_name はその質問に答えられるツールの名前です。

ツール:
{tools_str}

質問: {query_str}
"""

CHOICE_SELECT_PROMPT: Final = PromptTemplate(
    """\
番号のついた文書と質問があります。質問に答えるために読むべき文書の番号を、関連の強い順に、関連度 (1 から 10) とともに
書いてください。関係のない文書は書かないでください。

書き方の例:
文書: 9, 関連度: 7
文書: 3, 関連度: 4

{context_messages}

質問: {query_str}
答え:
"""
)

RANKGPT_PROMPT: Final = PromptTemplate(
    "検索の質問: {query}\n上の {num} 個の文章を、質問との関連が強い順に並べてください。"
    "[2] > [1] のように番号だけを書き、説明は書かないでください。"
)

# -- judging -----------------------------------------------------------------------------------------------------------

FAITHFULNESS_PROMPT: Final = PromptTemplate(
    """\
情報が文脈によって裏づけられているかどうかを、「はい」か「いいえ」で答えてください。
文脈の一部でも情報を裏づけていれば「はい」です。

情報: りんごは果物です。
文脈: りんごはバラ科の果物で、秋に実ります。
答え: はい

情報: りんごは魚です。
文脈: りんごはバラ科の果物で、秋に実ります。
答え: いいえ

情報: {query_str}
文脈: {context_str}
答え: """
)

FAITHFULNESS_REFINE_PROMPT: Final = PromptTemplate(
    """\
次の情報が文脈にあるかどうかを判定しています: {query_str}
これまでの答え: {existing_answer}
新しい文脈:
------------
{context_msg}
------------
これまでの答えが「はい」なら「はい」、新しい文脈に情報があれば「はい」、どちらでもなければ「いいえ」と答えてください。
答え: """
)

RELEVANCY_PROMPT: Final = PromptTemplate(
    """\
質問への回答が文脈に沿っているかどうかを、「はい」か「いいえ」で答えてください。

質問と回答:
{query_str}
文脈: {context_str}
答え: """
)

RELEVANCY_REFINE_PROMPT: Final = PromptTemplate(
    """\
次の質問と回答が文脈に沿っているかどうかを判定しています:
{query_str}
これまでの答え: {existing_answer}
新しい文脈:
------------
{context_msg}
------------
これまでの答えが「はい」なら「はい」、新しい文脈に沿っていれば「はい」、どちらでもなければ「いいえ」と答えてください。
答え: """
)

NO_REFERENCE: Final = "(なし)"

CORRECTNESS_PROMPT: Final = ChatPromptTemplate(
    message_templates=[
        ChatMessage(
            role=MessageRole.SYSTEM,
            content="""\
あなたは質問応答の採点者です。質問への回答を 1 (最も悪い) から 5 (最も良い) で採点してください。
- 質問と関係のない回答: 1
- 関係はあるが誤りを含む回答: 2 から 3
- 関係があり完全に正しい回答: 4 から 5
最初の行に点数だけを書き、次の行に理由を書いてください。

例:
4.0
参照回答と同じ内容ですが、少し長いです。""",
        ),
        ChatMessage(
            role=MessageRole.USER,
            content="質問:\n{query}\n\n参照回答:\n{reference_answer}\n\n採点する回答:\n{generated_answer}",
        ),
    ]
)
