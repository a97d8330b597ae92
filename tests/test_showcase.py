"""`karakuri demo`: what a newcomer sees first, on the embedded model."""

import re

import pytest

from karakuri_integrations import cli, showcase
from karakuri_integrations.engines import ScriptedEngine
from karakuri_integrations.provider import EngineFields, Provider


def test_lengths_are_means_by_verbosity_and_language() -> None:
    engine = ScriptedEngine(lambda prompt: "x" * (10 + int(re.findall(r"verbosity: (\d)", prompt)[-1])))
    lengths = showcase.measured_lengths(Provider(EngineFields(engine=engine)), {"ja": ["a", "b"], "en": ["c"]})
    assert lengths == {"ja": [10, 11, 12, 13, 14], "en": [10, 11, 12, 13, 14]}
    assert len(engine.prompts) == 15


def test_the_demo_runs_and_the_table_rises(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torch", reason="the embedded model needs the extra `local`")
    pytest.importorskip("langchain_core")
    pytest.importorskip("llama_index.core")
    assert cli.main(["demo"]) == 0
    shown = capsys.readouterr().out
    assert "[ATTR] helpfulness: 4" in shown
    assert "LangChain:" in shown
    assert "LlamaIndex:" in shown
    for language in showcase.LANGUAGES:
        sizes = [float(size) for size in re.findall(rf"  {language}  verbosity=\d\s+([\d.]+)", shown)]
        assert len(sizes) == 5
        assert sizes == sorted(sizes)
        assert sizes[4] > 2 * sizes[0]
