"""The soak in small: `cookbook/remote/soak.py` runs, and finds nothing."""

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("aiohttp")
pytest.importorskip("urllib3")
pytest.importorskip("langchain_core")
pytest.importorskip("llama_index.core")

SOAK = Path(__file__).parents[2] / "cookbook" / "remote" / "soak.py"


@pytest.mark.slow
def test_forty_streams_with_faults_among_them() -> None:
    command = [sys.executable, str(SOAK), "--streams", "40", "--events", "20", "--seeds", "2", "--faults", "0.5"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Nothing lost, repeated, crossed or left over." in done.stdout
    assert not done.stderr.strip(), done.stderr
