"""The cookbook's recipe for tools runs on the embedded model, whatever the model says."""

import runpy
from pathlib import Path

import pytest

pytest.importorskip("torch")


@pytest.mark.slow
def test_the_recipe_runs(capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(Path(__file__).parents[2] / "cookbook" / "langchain" / "tools.py"), run_name="__main__")
    shown = capsys.readouterr().out
    assert "get_weather(city: string // The name of the city" in shown
    assert "'name': 'get_weather'" in shown
    assert "kind=" in shown
