"""Every row of the fault table, for both classes, whole and streamed, sync and async."""

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
from calls import OURS, Run, problems, run_row, servers
from fault_table import ROWS, Row

pytest.importorskip("aiohttp")
pytest.importorskip("urllib3")
pytest.importorskip("langchain_core")
pytest.importorskip("llama_index.core")


def _id(row: Row) -> str:
    return f"{row.case}: {row.name}"


@pytest.fixture(scope="module")
def runs(request: pytest.FixtureRequest) -> Iterator[dict[str, "Future[list[Run]]"]]:
    """The rows that were selected, some at a time: most of their time is spent in waiting."""
    wanted = {item.name.partition("[")[2][:-1] for item in request.session.items}
    with servers() as at, ThreadPoolExecutor(6) as threads:
        yield {row.name: threads.submit(run_row, row, OURS, at) for row in ROWS if _id(row) in wanted}


@pytest.mark.parametrize("row", ROWS, ids=_id)
def test_row(row: Row, runs: dict[str, "Future[list[Run]]"]) -> None:
    made = runs[row.name].result()
    found = [f"{run.client.name}.{run.way}: {problem}" for run in made for problem in problems(row, run)]
    assert not found, "\n".join(found)


_GROWTH = """
import resource, sys
sys.path.insert(0, sys.argv[1])
from calls import OURS, problems, run_row, servers
from fault_table import ROWS

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024

with servers() as at:
    run_row(next(row for row in ROWS if row.name == "an event of 300 kB"), OURS, at)
    before = peak()
    for row in [row for row in ROWS if row.heavy]:
        for client in OURS:
            for run in run_row(row, (client,), at):
                assert not problems(row, run), problems(row, run)
        print(peak() - before, row.name)
"""


def test_huge_answers_cost_little_memory() -> None:
    command = [sys.executable, "-c", _GROWTH, str(Path(__file__).parent)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    growth = int(done.stdout.splitlines()[-1].split()[0])
    assert growth <= 64, f"MiB more at the peak: {done.stdout}"  # two calls at once, 3 x a limit of 8 MiB each


def test_rows_have_names_of_their_own() -> None:
    assert len({row.name for row in ROWS}) == len(ROWS)
