"""Quick start with LlamaIndex: one answer, a stream, dials at every level, async, a chat engine."""

import asyncio

from llama_index.core.chat_engine import SimpleChatEngine
from llama_index.core.llms import ChatMessage

from karakuri_integrations import SteeringAttributes
from karakuri_integrations.llama_index import KarakuriLLM

MODEL = None  # the embedded model; the real one: "karakuri-ai/karakuri-lm-70b-chat-v0.1"

llm = KarakuriLLM(model=MODEL, attributes=SteeringAttributes.preset("balanced"), max_tokens=300)

print("One answer:", llm.complete("富士山について教えてください。"))

print("\nStreamed, with more humor for this call: ", end="")
for part in llm.stream_chat([ChatMessage(role="user", content="What is Mount Fuji?")], attributes={"humor": 3}):
    print(part.delta, end="", flush=True)

question = ChatMessage(role="user", content="桜とは何ですか。", additional_kwargs={"attributes": {"verbosity": 0}})
response = llm.chat([question])
print("\n\nThe message's own dials:", response.message.content)
print("dials:", response.raw["attributes"])
print("tokens:", response.raw["usage"])

print("\nA chat engine; its memory keeps the dials of each answer:")
engine = SimpleChatEngine.from_defaults(llm=llm)
print(engine.chat("What is sushi?"))
print(engine.chat("Tell me more."))


async def main() -> None:
    print("\nAsync: ", end="")
    async for part in await llm.astream_complete("京都について教えてください。", attributes={"verbosity": 0}):
        print(part.delta, end="", flush=True)
    print()


asyncio.run(main())
