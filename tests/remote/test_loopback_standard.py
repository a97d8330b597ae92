"""langchain-tests' standard suite on a scripted server that answers as a model does that understands: held and read.

As vLLM, a call takes two requests and the second one carries the schema; as "openai", calls are read out of the text.
"""

import re
import warnings
from collections.abc import Iterator
from typing import Any, ClassVar

import pytest
from loopback import Loopback, Reply, Request
from wires import COMPLETION, DONE, sse

pytest.importorskip("aiohttp")
pytest.importorskip("urllib3")
pytest.importorskip("langchain_tests")

from langchain_core.language_models.chat_models import BaseChatModel
from langchain_tests.integration_tests import ChatModelIntegrationTests

from karakuri_integrations.langchain import ChatKarakuri

OPENER = "[TOOL_CALLS]\n"
CALLS = {
    "magic_function(input": '[{"name": "magic_function", "arguments": {"input": 3}}]',
    "magic_function_no_args": '[{"name": "magic_function_no_args", "arguments": {}}]',
    "greeting_generator": '[{"name": "greeting_generator", "arguments": {"answer_style": "Pirate"}}]',
    "get_weather": '[{"name": "get_weather", "arguments": {"location": "San Francisco, CA"}}]',
    "unicode_customer": '[{"name": "unicode_customer", "arguments": {"customer_name": "%s", "description": "a"}}]',
    "my_adder_tool": '[{"name": "my_adder_tool", "arguments": {"a": 3, "b": 4}}]',
}


def written(prompt: str) -> str:
    """What a model that understands writes after this prompt."""
    if "punchline" in prompt:
        return ' {"setup": "Why do cats purr?", "punchline": "Because they can."}'
    if "[TOOL_RESULTS]" in prompt and not prompt.endswith(OPENER):
        return " Well, that is it."
    call = next((call for name, call in CALLS.items() if f"\n{name}" in prompt), None)
    if call is None:
        return " Well, thank you."
    said = re.search("named '(.*?)'", prompt)
    call = call.replace("%s", said[1] if said else "")
    return call if prompt.endswith(OPENER) else f" {OPENER}{call}"


def answer(request: Request) -> Reply:
    """In pieces of three characters, counted as a server that was asked to does."""
    prompt, running = request.prompt, "continuous_usage_stats" in (request.json.get("stream_options") or {})
    text, counts = written(prompt), {"prompt_tokens": len(prompt) // 3, "completion_tokens": 0}
    parts = []
    for place in range(0, len(text), 3):
        counts = {**counts, "completion_tokens": counts["completion_tokens"] + 1}
        parts.append(sse(COMPLETION.delta(text[place : place + 3], **({"usage": counts} if running else {}))))
    return Reply([*parts, COMPLETION.end(), sse({**COMPLETION.base, "choices": [], "usage": counts}), DONE])


@pytest.fixture(scope="module")
def scripted() -> Iterator[Loopback]:
    with Loopback(answer) as server:
        yield server


class _Suite(ChatModelIntegrationTests):
    server: ClassVar[str]
    fields: ClassVar[dict[str, Any]] = {}

    @pytest.fixture(autouse=True)
    def _of_this_server(self, scripted: Loopback) -> Iterator[None]:
        known = {"base_url": scripted.url(self.server), "server": self.server, "max_tokens": 500}
        type(self).fields = known | {"model": "karakuri-ai/karakuri-lm-70b-chat-v0.1"}
        scripted.forget()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*cannot hold replies")
            yield
        for exchange in scripted.exchanges(self.server):
            body = exchange.request.json
            held = "structured_outputs" in body
            assert held == (self.server == "vllm" and self._is_held(body["prompt"]))

    @staticmethod
    def _is_held(prompt: str) -> bool:
        """A call that has begun, or a reply that must be JSON, which is what asks for a punchline without tools."""
        return prompt.endswith(OPENER) or ("punchline" in prompt and "Answer only with JSON" in prompt)

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatKarakuri

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return self.fields

    @property
    def model_override_value(self) -> str:
        return "karakuri-ai/karakuri-lm-8x7b-chat-v0.1"

    @property
    def supports_json_mode(self) -> bool:
        return True

    @property
    def supports_anthropic_inputs(self) -> bool:
        return True


class TestHeld(_Suite):
    server = "vllm"


class TestRead(_Suite):
    server = "openai"
