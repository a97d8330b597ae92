"""Question answering over Japanese documents with LlamaIndex: an index, a Japanese prompt, a query engine.

The documents are made up, so a right answer can only come from them. The toy embedding (character pairs) keeps this
recipe self-contained; put your embedding model in its place.
"""

import itertools
import math
import zlib

from llama_index.core import Document, PromptTemplate, Settings, VectorStoreIndex
from llama_index.core.base.embeddings.base import BaseEmbedding

from karakuri_integrations.llama_index import KarakuriLLM

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
PROMPT = PromptTemplate(
    "コンテキスト情報は以下のとおりです。\n---------------------\n{context_str}\n---------------------\n"
    "事前知識ではなくコンテキスト情報を使って、質問に答えてください。\n質問: {query_str}\n回答: "
)


class CharacterPairs(BaseEmbedding):
    """Counts of hashed character pairs, normalised: enough to find a document by its names."""

    def _get_text_embedding(self, text: str) -> list[float]:
        vector = [0.0] * 512
        for pair in itertools.pairwise(text):
            vector[zlib.crc32("".join(pair).encode()) % len(vector)] += 1.0
        length = math.sqrt(sum(x * x for x in vector)) or 1.0
        return [x / length for x in vector]

    def _get_query_embedding(self, query: str) -> list[float]:
        return self._get_text_embedding(query)

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return self._get_text_embedding(query)


llm = KarakuriLLM(model=MODEL, attributes={"verbosity": 0, "complexity": 0, "helpfulness": 0}, max_tokens=200)
llm.configure_settings()  # Settings.llm, .tokenizer and the sizes, from this model
Settings.embed_model = CharacterPairs()

index = VectorStoreIndex.from_documents([Document(text=text) for text in DOCUMENTS])
engine = index.as_query_engine(similarity_top_k=2, text_qa_template=PROMPT)

for question in QUESTIONS:
    print(f"問: {question}\n答: {engine.query(question)}\n")
