"""Makes the modules of cookbook/demo_model importable."""

from __future__ import annotations

import importlib.resources
import pathlib
import sys
from typing import Any

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "cookbook" / "demo_model"))


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    """The demo model's."""
    transformers = pytest.importorskip("transformers")
    folder = pathlib.Path(str(importlib.resources.files("karakuri_integrations"))) / "demo"
    return transformers.AutoTokenizer.from_pretrained(folder)
