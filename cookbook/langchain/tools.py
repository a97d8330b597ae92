"""Tools and structured output with LangChain: a call, its result, a stream of a call, answers of a schema."""

from typing import Literal

from langchain_core.messages import HumanMessage
from langchain_core.tools import tool
from pydantic import BaseModel, Field

from karakuri_integrations.langchain import ChatKarakuri

MODEL = None  # the embedded model; the real one: "karakuri-ai/karakuri-lm-70b-chat-v0.1"

llm = ChatKarakuri(model=MODEL, max_tokens=100)


@tool(parse_docstring=True)
def get_weather(city: str, unit: Literal["celsius", "fahrenheit"] = "celsius") -> str:
    """The weather of a city today.

    Args:
        city: The name of the city
        unit: The unit of the temperature
    """
    return f"{city}: 晴れ, 21 {unit}"


question = HumanMessage("京都の天気はどうですか。")
print("How the model is told of the tool:\n", llm.render_prompt([question], tools=[get_weather]), sep="")

print("\nA call, held to the tool's schema:")
calling = llm.bind_tools([get_weather], tool_choice="any", parallel_tool_calls=False)
reply = calling.invoke([question])
print(reply.tool_calls, reply.invalid_tool_calls)

print("\nThe answer from its result:")
results = [get_weather.invoke(call) for call in reply.tool_calls]
if results:
    print(llm.bind_tools([get_weather], tool_choice="none").invoke([question, reply, *results]).text)

print("\nA call as it is written: ", end="")
for chunk in calling.stream([question]):
    for fragment in chunk.tool_call_chunks:
        print(fragment["name"] or fragment["args"], end=" ", flush=True)


class Place(BaseModel):
    """A place to visit."""

    name: str = Field(description="its name", max_length=20)
    kind: Literal["temple", "museum", "park"]


print("\n\nAn answer of a schema, and the same as it grows:")
place = llm.with_structured_output(Place, include_raw=True).invoke("Name a place to visit in Kyoto.")
print(place["parsed"], place["parsing_error"])
for part in llm.with_structured_output(Place.model_json_schema()).stream("Name a place to visit in Kyoto."):
    print(part)
