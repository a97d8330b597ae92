"""langchain-tests' standard suites against a real server of the embedded model (llama-server)."""

from typing import Any, ClassVar

import pytest
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_tests.integration_tests import ChatModelIntegrationTests
from langchain_tests.unit_tests import ChatModelUnitTests
from real_servers import DEMO, MODEL, TEMPLATE, RealServer

from karakuri_integrations.langchain import ChatKarakuri

pytestmark = pytest.mark.slow
SERDES = 'the suite loads with allowed_objects="all", which admits langchain-core\'s own classes only'


class _Served:
    fields: ClassVar[dict[str, Any]] = {}

    @pytest.fixture(autouse=True)
    def _of_this_server(self, llama_cpp: RealServer) -> None:
        known = {"base_url": llama_cpp.url, "server": llama_cpp.name, "model": MODEL, "template": TEMPLATE}
        type(self).fields = known | {"tokenizer": str(DEMO)}

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatKarakuri

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return self.fields

    @property
    def model_override_value(self) -> str:
        return "karakuri-other"  # llama-server answers whatever name it is asked by


class TestUnit(_Served, ChatModelUnitTests):
    @property
    def init_from_env_params(self) -> tuple[dict[str, str], dict[str, Any], dict[str, str]]:
        return {"KARAKURI_API_KEY": "from-env"}, self.fields, {"api_key": "from-env"}

    @pytest.mark.xfail(reason=SERDES, strict=True)
    def test_serdes(self, model: BaseChatModel, snapshot: object) -> None:
        super().test_serdes(model, snapshot)


class TestIntegration(_Served, ChatModelIntegrationTests):
    @property
    def supports_json_mode(self) -> bool:
        return True

    @property
    def supports_anthropic_inputs(self) -> bool:
        return True
