"""langchain-tests' standard suites on a scripted engine; `model` names choose it, so overriding them works.

The script does what a model does that understands: it calls when a tool is wanted, answers after a result, and gives
the JSON that it is asked for. What it reads is the prompt alone.
"""

import re

import pytest
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_tests.integration_tests import ChatModelIntegrationTests
from langchain_tests.unit_tests import ChatModelUnitTests

from karakuri_integrations import provider
from karakuri_integrations.engines import ScriptedEngine
from karakuri_integrations.langchain import ChatKarakuri

MODEL = "karakuri-ai/karakuri-lm-70b-chat-v0.1"
SERDES = 'the suite loads with allowed_objects="all", which admits langchain-core\'s own classes only'


@pytest.fixture(autouse=True)
def scripted_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """Model ids are answered by a script where they would be loaded."""
    monkeypatch.setattr(provider, "_local_engine", lambda fields: ScriptedEngine(_reply, fields.model))


OPENER = "[TOOL_CALLS]\n"
CALLS = {
    "magic_function(input": '[{"name": "magic_function", "arguments": {"input": 3}}]',
    "magic_function_no_args": '[{"name": "magic_function_no_args", "arguments": {}}]',
    "greeting_generator": '[{"name": "greeting_generator", "arguments": {"answer_style": "Pirate"}}]',
    "get_weather": '[{"name": "get_weather", "arguments": {"location": "San Francisco, CA"}}]',
    "unicode_customer": '[{"name": "unicode_customer", "arguments": {"customer_name": "%s", "description": "a company"}}]',
    "my_adder_tool": '[{"name": "my_adder_tool", "arguments": {"a": 3, "b": 4}}]',
}


def _reply(prompt: str) -> str:
    if "punchline" in prompt:
        return '{"setup": "Why do cats purr?", "punchline": "Because they can."}'
    if "[TOOL_RESULTS]" in prompt and not prompt.endswith(OPENER):
        return "Well, that is it."
    call = next((call for name, call in CALLS.items() if f"\n{name}" in prompt), None)
    if call is None:
        return "Well, thank you."
    said = re.search("named '(.*?)'", prompt)
    call = call.replace("%s", said[1] if said else "")
    return call if prompt.endswith(OPENER) else OPENER + call


class _Scripted:
    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatKarakuri

    @property
    def chat_model_params(self) -> dict:
        return {"model": MODEL}

    @property
    def model_override_value(self) -> str:
        return "karakuri-ai/karakuri-lm-8x7b-chat-v0.1"


class TestUnit(_Scripted, ChatModelUnitTests):
    @property
    def init_from_env_params(self) -> tuple[dict, dict, dict]:
        return {"KARAKURI_API_KEY": "from-env"}, self.chat_model_params, {"api_key": "from-env"}

    @pytest.mark.xfail(reason=SERDES, strict=True)
    def test_serdes(self, model: BaseChatModel, snapshot: object) -> None:
        super().test_serdes(model, snapshot)


class TestIntegration(_Scripted, ChatModelIntegrationTests):
    @property
    def supports_json_mode(self) -> bool:
        return True

    @property
    def supports_anthropic_inputs(self) -> bool:
        return True
