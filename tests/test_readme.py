"""The README's and the cookbook's code runs, on the embedded model."""

import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
_BLOCK = re.compile(r"(<!-- not run: [^\n]*-->\n)?```python\n(.*?)```", re.DOTALL)

pytest.importorskip("torch", reason="the embedded model needs the extra `local`")
pytest.importorskip("langchain_core")
pytest.importorskip("llama_index.core")


def test_the_readmes_code_runs_in_order(capsys: pytest.CaptureFixture[str]) -> None:
    blocks = _BLOCK.findall((ROOT / "README.md").read_text(encoding="utf-8"))
    run = [code for skipped, code in blocks if not skipped]
    assert len(run) >= 5
    namespace: dict[str, object] = {}
    for code in run:
        exec(compile(code, "README.md", "exec"), namespace)  # the README's own code
    shown = capsys.readouterr().out
    assert "はい、承知しました。" in shown
    assert "[ATTR] helpfulness: 4" in shown


@pytest.mark.parametrize("recipe", sorted((ROOT / "cookbook").glob("*.py")), ids=lambda path: path.stem)
def test_recipe(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(recipe), run_name="__main__")
    assert len(capsys.readouterr().out) > 40


@pytest.mark.slow
def test_an_agents_task_of_several_steps(capsys: pytest.CaptureFixture[str]) -> None:
    """Look up, calculate, answer: the embedded model through both frameworks' agents, whole, async and streamed."""
    shown: list[str] = []
    main = runpy.run_path(str(ROOT / "cookbook" / "agents" / "several_steps.py"))["main"]
    assert main([], shown.append) == 0
    steps = "\n".join(shown)
    assert steps.count('find_price({"item": "Kavari"})') >= 3
    assert steps.count('multiply({"a": 42, "b": 7})') >= 3
    assert steps.count("294") >= 5


@pytest.mark.slow
def test_random_schemas_are_kept_to() -> None:
    """`cookbook/tools/schemas.py` in small: what finishes is valid."""
    program = [sys.executable, str(ROOT / "cookbook" / "tools" / "schemas.py"), "--count", "12", "--weights", "demo"]
    shown = subprocess.run(program, capture_output=True, text=True, timeout=240, check=True).stdout
    rows = [row.split("|") for row in shown.splitlines() if row.startswith(("| ChatKarakuri", "| KarakuriLLM"))]
    assert len(rows) == 2
    for row in rows:
        assert int(row[2]) == 12
        assert "(100.0 %)" in row[5]
