"""The recipes under cookbook/llama_index run as they stand."""

import subprocess
import sys
from pathlib import Path

import pytest

RECIPES = Path(__file__).parents[2] / "cookbook" / "llama_index"


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("tools.py", ["\nbuilt_in(place: string): 建物が建てられた年を調べる", "Place(name=", "built_in({'place'"]),
        ("japanese.py", ["Agent: 東京は晴れです。", "Router: map", "Reranked: 京都駅の北にある", "Faithful: True"]),
    ],
)
def test_a_recipe_runs(name: str, shown: list[str]) -> None:
    if name == "tools.py":
        pytest.importorskip("llguidance", reason="the grammars need the extra `local`")
    done = subprocess.run(
        [sys.executable, str(RECIPES / name)],
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
        encoding="utf-8",
    )
    assert done.returncode == 0, done.stderr
    for text in shown:
        assert text in done.stdout
