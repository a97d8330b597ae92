"""Tools with LlamaIndex: a forced call, an agent that looks up and calculates, an object instead of text."""

import asyncio

from llama_index.core.agent.workflow import FunctionAgent, ToolCallResult
from llama_index.core.prompts import PromptTemplate
from llama_index.core.tools import FunctionTool
from pydantic import BaseModel, Field

from karakuri_integrations.llama_index import KarakuriLLM

MODEL = None  # the embedded model; the real one: "karakuri-ai/karakuri-lm-70b-chat-v0.1"

llm = KarakuriLLM(model=MODEL, max_tokens=120)


def built_in(place: str) -> str:
    """建物が建てられた年を調べる"""
    return {"清水寺": "778", "金閣寺": "1397"}.get(place, "分かりません")


def subtract(a: int, b: int) -> int:
    """a から b を引く"""
    return a - b


print(
    "What the prompt says of tools:\n", llm.render_prompt("清水寺はいつ建てられましたか。", tools=[built_in, subtract])
)

print("\nA forced call, held to the tool's schema:")
response = llm.chat_with_tools(
    [FunctionTool.from_defaults(built_in)], user_msg="清水寺はいつ建てられましたか。", tool_required=True
)
for call in llm.get_tool_calls_from_response(response, error_on_no_tool_call=False):
    print(call.tool_name, call.tool_kwargs)


class Place(BaseModel):
    """A place in Japan."""

    name: str = Field(max_length=20)
    famous: bool


print("\nAn object instead of text:")
print(repr(llm.structured_predict(Place, PromptTemplate("{place}について教えてください。"), place="京都")))


async def main() -> None:
    print("\nAn agent; its first step is a call of built_in:")
    agent = FunctionAgent(
        tools=[built_in, subtract],
        llm=llm,
        initial_tool_choice="built_in",
        allow_parallel_tool_calls=False,
        early_stopping_method="generate",
    )
    handler = agent.run(user_msg="清水寺は2026年の何年前に建てられましたか。", max_iterations=4)
    async for event in handler.stream_events():
        if isinstance(event, ToolCallResult):
            print(f"{event.tool_name}({event.tool_kwargs}) -> {event.tool_output.content}")
    output = await handler
    print(output.response.content)
    print("tokens of the last step:", output.raw["usage"])


asyncio.run(main())
