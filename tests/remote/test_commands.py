"""The commands of `cookbook/remote` run, in small, and say what they found."""

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("aiohttp")
pytest.importorskip("urllib3")
pytest.importorskip("langchain_core")
pytest.importorskip("llama_index.core")

REMOTE = Path(__file__).parents[2] / "cookbook" / "remote"


def run(name: str, *options: str) -> str:
    command = [sys.executable, str(REMOTE / name), *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    assert not done.stderr.strip(), done.stderr
    return done.stdout


@pytest.mark.slow
def test_soak_forty_streams_with_faults_among_them() -> None:
    shown = run("soak.py", "--streams", "40", "--events", "20", "--seeds", "1", "--faults", "0.5", "--idle", "2")
    assert "Nothing lost, repeated, crossed or left over." in shown


@pytest.mark.slow
def test_faults_names_the_others_and_judges_ours() -> None:
    shown = run("faults.py", "--only", "drop mid-stream")
    assert "rows hold for both of our classes" in shown
    assert shown.count("`StreamInterruptedError`, 8/25 | `StreamInterruptedError`, 8/25") == 3
    for package in ("langchain-openai", "llama-index-llms-openai-like"):
        assert package in shown  # its version, or that it is absent


@pytest.mark.slow
def test_cost_compares_at_each_size() -> None:
    pytest.importorskip("httpx")
    shown = run("cost.py", "--only", "bare", "--rounds", "1", "--sizes", "1x20,3x10", "--pace", "0.001")
    assert shown.count("| core (RemoteEngine) | bare aiohttp |") == 4
    assert "one delta per server event" in shown
