"""The tools of these tests stand beside them and are used by `cookbook/remote` as well."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from loopback import Loopback  # found by the line above
from real_servers import llama_cpp, llama_cpp_4bit, transformers_server  # noqa: F401  # fixtures


@pytest.fixture
def loopback() -> Iterator[Loopback]:
    """A scripted server of this test's own."""
    with Loopback() as server:
        yield server
