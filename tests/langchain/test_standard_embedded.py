"""langchain-tests' standard suites on the embedded model, exactly as `ChatKarakuri()` builds it."""

import shutil
from pathlib import Path

import pytest
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_tests.integration_tests import ChatModelIntegrationTests
from langchain_tests.unit_tests import ChatModelUnitTests

import karakuri_integrations
from karakuri_integrations.langchain import ChatKarakuri

DEMO = Path(karakuri_integrations.__file__).parent / "demo"
OTHER = "karakuri-other"
SERDES = 'the suite loads with allowed_objects="all", which admits langchain-core\'s own classes only'

pytest.importorskip("torch")


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a second checkpoint, for the tests that override the model by name."""
    folder = tmp_path_factory.mktemp("checkpoints")
    shutil.copytree(DEMO, folder / OTHER)
    return folder


class _Embedded:
    @pytest.fixture(autouse=True)
    def _beside_the_other_checkpoint(self, checkpoints: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(checkpoints)

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatKarakuri

    @property
    def model_override_value(self) -> str:
        return OTHER


class TestUnit(_Embedded, ChatModelUnitTests):
    @property
    def init_from_env_params(self) -> tuple[dict, dict, dict]:
        return {"KARAKURI_API_KEY": "from-env"}, {}, {"api_key": "from-env"}

    @pytest.mark.xfail(reason=SERDES, strict=True)
    def test_serdes(self, model: BaseChatModel, snapshot: object) -> None:
        super().test_serdes(model, snapshot)


class TestIntegration(_Embedded, ChatModelIntegrationTests):
    @property
    def supports_json_mode(self) -> bool:
        return True

    @property
    def supports_anthropic_inputs(self) -> bool:
        return True
