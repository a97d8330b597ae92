"""Question answering over Japanese documents with LangChain: retrieve, put into the prompt, answer.

The documents are made up, so a right answer can only come from them. The toy embedding (character pairs) keeps this
recipe self-contained; put your embedding model in its place.
"""

import itertools
import math
import zlib

from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnablePassthrough
from langchain_core.vectorstores import InMemoryVectorStore

from karakuri_integrations.langchain import ChatKarakuri

MODEL = None  # the embedded model; the real one: "karakuri-ai/karakuri-lm-70b-chat-v0.1"

DOCUMENTS = [
    "ミナセ美術館は1987年に開館しました。ミナセ美術館の入場料は800円です。",
    "ハルノ商店は北川町にあります。ハルノ商店の定休日は水曜日です。",
    "トキワ農園の社員は24人です。トキワ農園は赤い茶で有名です。",
    "カザミ祭りは8月12日に行われます。カザミ祭りの来場者は年間3500人です。",
]
QUESTIONS = [
    "ミナセ美術館の入場料はいくらですか？",
    "ハルノ商店の定休日はいつですか？",
    "カザミ祭りはいつ行われますか？",
]


class CharacterPairs(Embeddings):
    """Counts of hashed character pairs, normalised: enough to find a document by its names."""

    def embed_query(self, text: str) -> list[float]:
        vector = [0.0] * 512
        for pair in itertools.pairwise(text):
            vector[zlib.crc32("".join(pair).encode()) % len(vector)] += 1.0
        length = math.sqrt(sum(x * x for x in vector)) or 1.0
        return [x / length for x in vector]

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return [self.embed_query(text) for text in texts]


def joined(documents: list[Document]) -> str:
    return "\n\n".join(document.page_content for document in documents)


store = InMemoryVectorStore(CharacterPairs())
store.add_texts(DOCUMENTS)
prompt = ChatPromptTemplate(
    [
        ("system", "あなたは質問応答のアシスタントです。以下の文脈を使って答えてください。\n\n{context}"),
        ("user", "{question}"),
    ]
)
# Documents are data: a page that holds [INST] or </s> cannot change the prompt's structure.
llm = ChatKarakuri(model=MODEL, attributes={"verbosity": 0, "complexity": 0, "helpfulness": 0}, max_tokens=200)
retriever = store.as_retriever(search_kwargs={"k": 2})
chain = {"context": retriever | joined, "question": RunnablePassthrough()} | prompt | llm | StrOutputParser()

for question, answer in zip(QUESTIONS, chain.batch(QUESTIONS), strict=True):
    print(f"問: {question}\n答: {answer}\n")
