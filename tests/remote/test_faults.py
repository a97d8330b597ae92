"""Every row of the fault table, for both classes, whole and streamed, sync and async."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from calls import OURS, Servers, problems, run_row, servers
from fault_table import ROWS, Row

pytest.importorskip("aiohttp")
pytest.importorskip("urllib3")
pytest.importorskip("langchain_core")
pytest.importorskip("llama_index.core")


@pytest.fixture(scope="module")
def at() -> Iterator[Servers]:
    with servers() as running:
        yield running


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.case}: {row.name}")
def test_row(row: Row, at: Servers) -> None:
    found = [
        f"{run.client.name}.{run.way}: {problem}" for run in run_row(row, OURS, at) for problem in problems(row, run)
    ]
    assert not found, "\n".join(found)


_GROWTH = """
import resource, sys
sys.path.insert(0, sys.argv[1])
from calls import OURS, problems, run_row, servers
from fault_table import ROWS, Row

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024

with servers() as at:
    warm = next(row for row in ROWS if row.name == "an event of 300 kB")
    run_row(warm, OURS, at)
    before = peak()
    row = next(row for row in ROWS if row.name == sys.argv[2])
    for client in OURS:
        for run in run_row(row, (client,), at):
            assert not problems(row, run), problems(row, run)
    print(peak() - before)
"""


@pytest.mark.parametrize("name", [row.name for row in ROWS if row.heavy])
def test_a_huge_answer_costs_little_memory(name: str) -> None:
    command = [sys.executable, "-c", _GROWTH, str(Path(__file__).parent), name]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env={**os.environ})
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) <= 48, f"{done.stdout.strip()} MiB more at the peak"  # two calls at once, 3 x a limit of 8


def test_rows_have_names_of_their_own() -> None:
    assert len({row.name for row in ROWS}) == len(ROWS)
