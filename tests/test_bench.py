"""`karakuri bench`: every row is there and says what it counted. How fast anything is is never asserted."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET

import pytest

from karakuri_integrations import cli
from karakuri_integrations.bench import measures
from karakuri_integrations.bench.figures import Figure, Spread, quantile, ratios
from karakuri_integrations.bench.picture import picture
from karakuri_integrations.bench.shown import number, table

FIGURES = [
    Figure("One stream", "LocalEngine.stream", "tokens/s", Spread(100.0, 90.0, 110.0), note="first"),
    Figure("One stream", "富士山", "tokens/s", Spread(50.0, 50.0, 50.0), Spread(2.0, 1.8, 2.2), "over it", (9, 10)),
    Figure("One stream", "A <peer>", note="not installed"),
    Figure("Several at once", "one after another", "tokens/s", Spread(100.0, 90.0, 110.0)),
    Figure(
        "Several at once", "2 at once", "tokens/s", Spread(1234.0, 190.0, 1300.0), Spread(1.9, 1.8, 2.0), "over one"
    ),
]


def test_a_spread_is_the_median_and_both_ends():
    assert Spread.of([3.0, 1.0, 2.0, 9.0]) == Spread(2.5, 1.0, 9.0)


def test_ratios_are_taken_round_by_round():
    """The machine was half as fast in the second round, for both."""
    assert ratios([100.0, 50.0, 100.0], [50.0, 25.0, 40.0]) == Spread(2.0, 2.0, 2.5)


def test_a_quantile_is_a_value_that_was_measured():
    values = [float(one) for one in range(100)]
    assert (quantile(values, 0.5), quantile(values, 0.99), quantile([7.0], 0.99)) == (50.0, 99.0, 7.0)


@pytest.mark.parametrize(
    ("value", "shown"), [(0.051, "0.05"), (1.234, "1.23"), (12.34, "12.3"), (123.4, "123"), (12345.6, "12,346")]
)
def test_numbers_have_three_digits(value, shown):
    assert number(value) == shown


def test_the_table_lines_up_and_says_what_is_absent():
    shown = table(FIGURES, {"model": "m", "device": "cpu"})
    assert shown.startswith("model m, device cpu\n")
    rows = [line for line in shown.splitlines() if "tokens/s" in line]
    begins = [line.index("tokens/s") + line.count("富士山") * 3 for line in rows]  # each of the three is two wide
    assert len(rows) == 4 and len(set(begins)) == 2  # one place in each of both sections
    assert "50.0  tokens/s" in rows[1] and "2.00x  1.80 to 2.20   over it  9/10" in rows[1]
    assert "1,234" in rows[3]
    assert any(line.split("  ", 1)[0] == "A <peer>" and line.endswith("not installed") for line in shown.splitlines())


def test_the_picture_is_svg_with_a_bar_and_a_point_for_each():
    root = ET.fromstring(picture(FIGURES, "m <on> cpu"))
    tags = [one.tag.rpartition("}")[2] for one in root.iter()]
    assert tags.count("circle") == 2
    assert tags.count("rect") == 1 + 2  # the paper, and a bar each; none for what was not measured
    texts = [one.text for one in root.iter() if one.text and one.text.strip()]
    assert "m <on> cpu" in texts and "1.90x" in texts and "富士山" in texts


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rounds", "0"], "--rounds must be at least 1, got 0"),
        (["--tokens", "-1"], "--tokens must be at least 1"),
        (["--load", "0"], "--load must be 1 to 86400 seconds"),
        (["--load", "5", "--peers"], "leave out --peers, --svg and --only"),
        (["--load", "5", "--only", "batch"], "leave out --peers, --svg and --only"),
        (["--synthetic", "70b", "--only", "batch"], "leave out --peers, --load and --only"),
        (["--only", "lookup", "--peers"], "add --only stream or --only batch"),
        (["--only", "lookup", "--svg", "x.svg"], "add --only stream and --only batch"),
        (["--synthetic", "7b"], "--synthetic must be one of 1m, 94m, 70b, 70b-small, got '7b'"),
        (["--synthetic", "1m", "--model", "m"], "give one of them"),
        (["--json", "/nowhere/at/all.json"], "its folder does not exist"),
        (["--quantization", "nf5"], "quantization must be one of"),
    ],
)
def test_wrong_options_are_exit_code_2_before_anything_is_loaded(capsys, arguments, message):
    assert cli.main(["bench", *arguments]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert "loading" not in captured.err and captured.out == ""


def bench(capsys, *arguments: str) -> tuple[str, str]:
    pytest.importorskip("torch", reason="a local model needs the extra `local`")
    assert cli.main(["bench", "--device", "cpu", *arguments]) == 0
    captured = capsys.readouterr()
    return captured.out, captured.err


@pytest.mark.slow
def test_the_embedded_model_is_measured(capsys, tmp_path, monkeypatch):
    pytest.importorskip("langchain_core")
    pytest.importorskip("llama_index.core")
    for name in ("_CALLS", "_PROMPTS"):
        monkeypatch.setattr(measures, name, 10)
    monkeypatch.setattr(measures, "AT_ONCE", 6)
    files = (tmp_path / "figures.json", tmp_path / "figures.svg")
    small = ("--rounds", "1", "--tokens", "2", "--peers", "--json", str(files[0]), "--svg", str(files[1]))
    shown, said = bench(capsys, *small)
    found = json.loads(files[0].read_text("utf-8"))
    rows = {(one["section"], one["name"]): one for one in found["figures"]}

    assert found["about"]["model"] == "karakuri-demo"
    assert {section for section, _ in rows} == {
        "One stream",
        "Time to first token",
        "Several at once",
        "Prompts that begin alike",
        "Prompt lookup",
        "Keys and values in 8 bits",
        "Memory",
        "Ceiling of this machine",
    }
    for _section, name in rows:
        assert name in shown
    for name in ("bare loop", "ChatKarakuri.stream", "KarakuriLLM.stream_chat", "transformers: generate"):
        assert rows["One stream", name]["same"] == [2, 2]  # greedy, one at a time: the very same tokens
    peers = [one for (_, name), one in rows.items() if name.startswith(("ChatHuggingFace", "HuggingFaceLLM"))]
    assert peers and all("value" in one or "not installed (pip install" in one["note"] for one in peers)

    curve = [name for section, name in rows if section == "Several at once"]
    assert curve[:5] == ["one after another", "2 at once", "4 at once", "8 at once", "16 at once"]
    assert {"ChatKarakuri.batch", "ChatKarakuri.abatch", "KarakuriLLM.achat, gathered"} <= set(curve)
    assert all(rows["Several at once", name]["same"][1] == 12 for name in curve[1:])

    reused = rows["Prompts that begin alike", "question 20 on a document, reused"]
    assert int(re.match(r"\d+", reused["note"])[0]) > 1800
    assert rows["Prompt lookup", "text that copies"]["same"] == [2, 2]
    assert rows["Memory", "keys and values of a token"]["value"]["median"] == 2.5
    assert rows["Memory", "the same in 8 bits"]["value"]["median"] == 5 * 2 * 2 * (64 + 2) / 1024
    short, long, error, best = [row for (section, _), row in rows.items() if section == "Keys and values in 8 bits"]
    assert long["name"].startswith("behind 2,0") and short["same"][1] == long["same"][1] == 2
    assert 0 < error["value"]["median"] < 10
    assert int(re.match(r"(\d+) of 32;", best["note"])[1]) > 28  # two kinds of 8 questions, 2 tokens each
    assert rows["Memory", "kept at most"]["value"]["median"] <= 16
    ET.fromstring(files[1].read_text("utf-8"))
    assert "one stream: round 1 of 1" in said


def test_one_part_only(capsys):
    shown, said = bench(capsys, "--only", "lookup", "--rounds", "1", "--tokens", "2")
    assert [line for line in shown.splitlines() if "──" in line] == ["── Prompt lookup"]
    assert "one stream" not in said


@pytest.mark.slow
def test_random_weights_and_clients_that_come_at_random(capsys):
    shown, said = bench(capsys, "--synthetic", "1m", "--quantization", "fp32", "--load", "2", "--tokens", "4")
    assert "random-llama-1m" in shown
    assert "32 clients for 2 s" in said
    for row in ("one client", "32 clients", "gap between tokens, p99", "first token, p99"):
        assert row in shown
    replies = int(re.search(r"(\d+) replies in", shown)[1])
    assert replies >= 32
    deepest = int(re.search(r"at most (\d+)$", shown, re.MULTILINE)[1])
    assert 1 <= deepest <= 32
