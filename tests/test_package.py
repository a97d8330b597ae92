"""What importing costs, what the package exports, and that errors survive pickling without leaking."""

import pickle
import subprocess
import sys

import pytest

import karakuri_integrations
from karakuri_integrations import errors

HEAVY = ("torch", "transformers", "numpy", "httpx", "pydantic", "langchain_core", "llama_index", "bitsandbytes")


def loaded_by(code: str) -> set[str]:
    script = f"{code}\nimport sys\nprint(*[m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_importing_the_core_loads_nothing_heavy() -> None:
    assert loaded_by("import karakuri_integrations; karakuri_integrations.SteeringAttributes(humor=1)") == set()
    assert loaded_by("import karakuri_integrations.provider, karakuri_integrations.cli") == set()
    assert loaded_by("from karakuri_integrations.engines import ScriptedEngine, LocalEngine; LocalEngine()") == set()


@pytest.mark.parametrize(
    ("module", "framework", "other"),
    [("langchain", "langchain_core", "llama_index"), ("llama_index", "llama_index", "langchain_core")],
)
def test_an_adapter_loads_neither_the_other_framework_nor_torch(module: str, framework: str, other: str) -> None:
    pytest.importorskip(framework)
    loaded = loaded_by(f"import karakuri_integrations.{module}")
    assert framework in loaded
    assert not loaded & {other, "torch", "transformers", "bitsandbytes"}


def test_unknown_names_are_attribute_errors() -> None:
    with pytest.raises(AttributeError):
        karakuri_integrations.Nothing  # noqa: B018
    assert set(karakuri_integrations.__all__) <= set(dir(karakuri_integrations))


@pytest.mark.parametrize(
    ("name", "place"), [("ChatKarakuri", "langchain"), ("KarakuriLLM", "llama_index"), ("ScriptedEngine", "engines")]
)
def test_a_name_that_lives_elsewhere_says_where(name: str, place: str) -> None:
    with pytest.raises(ImportError, match=f"write: from karakuri_integrations.{place} import {name}$"):
        exec(f"from karakuri_integrations import {name}")


@pytest.mark.parametrize(
    ("module", "framework", "extra"),
    [
        ("langchain", "langchain_core", "langchain"),
        ("llama_index", "llama_index", "llama-index"),
        ("llama_index_ja", "llama_index", "llama-index"),
    ],
)
def test_without_the_framework_the_extra_is_named(module: str, framework: str, extra: str) -> None:
    script = f"""
import sys
sys.modules[{framework!r}] = None  # as if it were not installed
from karakuri_integrations.errors import MissingDependencyError
try:
    import karakuri_integrations.{module}
except ImportError as error:
    print(type(error) is MissingDependencyError, error)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("True karakuri_integrations.")
    assert done.stdout.endswith(f'pip install "karakuri-integrations[{extra}]"\n')


def test_every_error_is_listed_documented_and_pickles() -> None:
    samples = {
        "TemplateInjectionError": (3, 7, "[INST]"),
        "ContextOverflowError": (4000, 100, 4096),
        "MessageError": ("text", 3),
        "NumericalError": ("text", 3),
    }
    for name in errors.__all__:
        kind = getattr(errors, name)
        assert issubclass(kind, errors.KarakuriError)
        assert kind.__doc__
        assert name in (errors.__doc__ or "")
        error = kind(*samples.get(name, ("text",)))
        again = pickle.loads(pickle.dumps(error))
        assert (type(again), str(again), vars(again)) == (type(error), str(error), vars(error))


def test_no_error_shadows_a_builtin() -> None:
    import builtins

    assert not [name for name in errors.__all__ if hasattr(builtins, name)]
