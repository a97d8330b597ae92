"""What `karakuri demo` shows: the exact prompt, answers at different dials through both frameworks, a measured table.

The questions are data (`demo/questions.json`); any model can be shown with them.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from importlib.resources import files
from importlib.util import find_spec
from statistics import mean
from typing import Any, Final

from .attributes import SteeringAttributes
from .conversation import Message, Sampling
from .errors import KarakuriError
from .generation import fold
from .provider import EngineFields, Provider

__all__ = ["measured_lengths", "show"]

LANGUAGES: Final = ("ja", "en")
_BAR: Final = 40


def show(fields: EngineFields, attributes: SteeringAttributes) -> None:
    """Print the demonstration. The two frameworks share one loaded model."""
    questions = _questions()
    provider = Provider(fields, attributes, Sampling(max_tokens=800))
    prompt = provider.prepare([Message("user", questions["ja"][0])], {}).prompt
    _title("The exact prompt of a question, with its nine dials")
    print(prompt.text)
    arguments = {name: value for name, value in vars(fields).items() if value is not None and name != "engine"}
    _through("LangChain", "langchain_core", questions["ja"][0], attributes, lambda: _langchain(arguments))
    _through("LlamaIndex", "llama_index", questions["en"][0], attributes, lambda: _llama_index(arguments))
    _title("Measured: mean length of an answer in characters, by verbosity")
    _table(measured_lengths(provider, {language: questions[language][:2] for language in LANGUAGES}))
    print(
        "\nNext: karakuri chat, or in code: ChatKarakuri(attributes={...}) from karakuri_integrations.langchain, "
        "KarakuriLLM from karakuri_integrations.llama_index"
    )


def _questions() -> dict[str, list[str]]:
    text = (files("karakuri_integrations") / "demo" / "questions.json").read_text(encoding="utf-8")
    return dict(json.loads(text))


def _title(text: str) -> None:
    print(f"\n── {text}\n")


_Ask = Callable[[str, SteeringAttributes], Iterator[str]]


def _through(name: str, module: str, question: str, attributes: SteeringAttributes, make: Callable[[], _Ask]) -> None:
    _title(f"{name}: {question}")
    if find_spec(module) is None:
        extra = name.lower().replace("llamaindex", "llama-index")
        print(f'{name} is not installed; pip install "karakuri-integrations[{extra}]"')
        return
    ask = make()
    for dials in ({"verbosity": 0}, {"verbosity": 3}, {"verbosity": 1, "humor": 4, "creativity": 3}):
        print(f"[{' '.join(f'{dial}={value}' for dial, value in dials.items())}] ", end="", flush=True)
        for text in ask(question, SteeringAttributes.overlay(attributes, dials)):
            print(text, end="", flush=True)
        print("\n")


def _langchain(arguments: Mapping[str, Any]) -> _Ask:
    from .langchain import ChatKarakuri

    llm = ChatKarakuri(**arguments, max_tokens=800)

    def ask(question: str, attributes: SteeringAttributes) -> Iterator[str]:
        for chunk in llm.stream(question, attributes=attributes):
            yield str(chunk.text)

    return ask


def _llama_index(arguments: Mapping[str, Any]) -> _Ask:
    from llama_index.core.base.llms.types import ChatMessage

    from .llama_index import KarakuriLLM

    llm = KarakuriLLM(**arguments, max_tokens=800)

    def ask(question: str, attributes: SteeringAttributes) -> Iterator[str]:
        for part in llm.stream_chat([ChatMessage(role="user", content=question)], attributes=attributes):
            yield part.delta or ""

    return ask


def measured_lengths(provider: Provider, questions: Mapping[str, list[str]]) -> dict[str, list[float]]:
    """Mean characters of the answers at verbosity 0 to 4, by language; the other dials stay the provider's."""
    lengths: dict[str, list[float]] = {}
    total, done = 5 * sum(len(asked) for asked in questions.values()), 0
    for language, asked in questions.items():
        means = []
        for verbosity in range(5):
            sizes = []
            for question in asked:
                call = provider.prepare([Message("user", question)], {"attributes": {"verbosity": verbosity}})
                sizes.append(len(fold(call.stream(whole=True)).text))
                done += 1
                _progress(done, total)
            means.append(mean(sizes))
        lengths[language] = means
    return lengths


def _progress(done: int, total: int) -> None:
    if sys.stderr.isatty():
        print(f"\r{done} of {total} answers" if done < total else "\r\x1b[K", end="", flush=True, file=sys.stderr)


def _table(lengths: Mapping[str, list[float]]) -> None:
    if not lengths:
        raise KarakuriError("there are no questions to measure with")
    highest = max(max(means) for means in lengths.values()) or 1
    for language, means in lengths.items():
        for verbosity, size in enumerate(means):
            print(f"  {language}  verbosity={verbosity}  {size:6.0f}  {'█' * round(_BAR * size / highest)}")
        print()
