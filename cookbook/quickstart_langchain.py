"""Quick start with LangChain: one answer, a stream, dials at every level, async, a chain."""

import asyncio

from langchain_core.messages import HumanMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate

from karakuri_integrations import SteeringAttributes
from karakuri_integrations.langchain import ChatKarakuri

MODEL = None  # the embedded model; the real one: "karakuri-ai/karakuri-lm-70b-chat-v0.1"

llm = ChatKarakuri(model=MODEL, attributes=SteeringAttributes.preset("balanced"), max_tokens=300)

print("One answer:", llm.invoke("富士山について教えてください。").content)

print("\nStreamed, with more humor for this call: ", end="")
for chunk in llm.stream("What is Mount Fuji?", attributes={"humor": 3}):
    print(chunk.text, end="", flush=True)

print("\n\nA conversation; each past answer keeps the dials it was given with:")
history = [HumanMessage("桜とは何ですか。", additional_kwargs={"attributes": {"verbosity": 0}})]
history.append(llm.invoke(history))
history.append(HumanMessage("もっと教えてください。"))
answer = llm.invoke(history)
print(answer.content)
print("dials:", answer.response_metadata["attributes"])
print("tokens:", answer.usage_metadata)

print("\nA chain, for three inputs at once:")
prompt = ChatPromptTemplate([("system", "Answer briefly."), ("user", "What is {thing}?")])
concise = ChatKarakuri(model=MODEL, attributes=SteeringAttributes.preset("concise"))
chain = prompt | concise | StrOutputParser()
things = ["sushi", "Kyoto", "the cherry blossom"]
for thing, text in zip(things, chain.batch([{"thing": thing} for thing in things]), strict=True):
    print(f"- {thing}: {text}")


async def main() -> None:
    print("\nAsync: ", end="")
    async for chunk in concise.astream("京都について教えてください。"):
        print(chunk.text, end="", flush=True)
    print()


asyncio.run(main())
