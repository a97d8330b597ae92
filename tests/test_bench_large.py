"""`karakuri bench --synthetic 70b`: what is made, what fits, what is written down. Its small form runs; no speed is asserted."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from types import SimpleNamespace

import pytest

from karakuri_integrations import cli
from karakuri_integrations.bench import cells
from karakuri_integrations.bench.book import Book
from karakuri_integrations.bench.cells import GENERATE, Ceiling, Cell, Record, figures_of, missed
from karakuri_integrations.bench.figures import Spread
from karakuri_integrations.bench.measures import OURS
from karakuri_integrations.bench.subject import Answer, Run
from karakuri_integrations.bench.synthetic import SIZES, make_checkpoint, make_outline
from karakuri_integrations.doctor.sizing import MODELS, need_of
from karakuri_integrations.engines.checkpoint import Checkpoint, source_of
from karakuri_integrations.engines.precision import precision_of
from karakuri_integrations.errors import InsufficientMemoryError

torch = pytest.importorskip("torch", reason="a local model needs the extra `local`")

from karakuri_integrations.bench import fitting, large, plain_generate, profiling, random_model  # noqa: E402
from karakuri_integrations.engines import batching  # noqa: E402

GIB = 2**30
#: As on an H100: the shape's own arithmetic, and 3.35 TB/s.
H100 = Ceiling(36_100_000_000, 327_680, Spread(3350.0, 3350.0, 3350.0))


def record(own: list[float], theirs: list[float], batch: int = 1) -> Record:
    """Rounds of two runs of 100 tokens at these rates."""
    found = Record(Cell(batch, 256))
    for mine, other in zip(own, theirs, strict=True):
        runs = {OURS: mine, GENERATE: other}
        found.add({name: [Run(100, 100 / one, ("same",), 0.5)] * 2 for name, one in runs.items()})
    return found


# --- arithmetic ---


def test_the_shape_is_the_70bs():
    shape, known = SIZES["70b"], MODELS["karakuri-lm-70b-chat-v0.1"].config
    assert known is not None
    assert list(shape) == [
        known[name]
        for name in (
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "num_attention_heads",
            "num_key_value_heads",
            "vocab_size",
        )
    ]
    small = SIZES["70b-small"]
    assert small.heads / small.shared == shape.heads / shape.shared
    assert small.intermediate / small.hidden == shape.intermediate / shape.hidden


def test_the_ceiling_is_the_bytes_that_a_token_reads_at_the_speed_of_copying():
    assert H100.rate(Cell(1, 0), 0) == pytest.approx(92.8, abs=0.05)
    assert H100.rate(Cell(8, 4096), 0) == pytest.approx(573, rel=0.01)  # the keys and values are read too


def test_aims_are_those_of_one_reply_and_of_the_ratio():
    assert missed(record([60.0, 61.0], [10.0, 10.0]), H100, 64) == []
    assert [one[:4] for one in missed(record([40.0, 40.0], [10.0, 10.0]), H100, 64)] == ["0.43", "4.00"]
    assert [one[:4] for one in missed(record([40.0, 40.0], [10.0, 10.0], batch=8), H100, 64)] == ["4.00"]


def test_ratios_are_taken_round_by_round_and_what_is_absent_says_why():
    both = record([60.0, 30.0], [20.0, 15.0])
    alone = Record(Cell(8, 256), absent={GENERATE: "it needs about 99.0 GiB and 80.0 GiB are free"})
    alone.add({OURS: [Run(100, 1.0, ("a",), 0.5)] * 2})
    first, other, third, missing = figures_of([alone, both], H100, 64)
    assert other.ratio == Spread(2.5, 2.0, 3.0) and other.same == (4, 4)
    assert first.ratio is not None and first.ratio.median == pytest.approx(45 / H100.rate(Cell(1, 256), 64))
    assert third.value == Spread(100.0, 100.0, 100.0)
    assert missing.value is None and missing.note == "it needs about 99.0 GiB and 80.0 GiB are free"


def test_a_record_comes_back_from_its_file_as_it_was(tmp_path):
    book = Book({"model": "m", "tokens": 64}, tmp_path / "a.json", [1.0, 2.0], 10, 20, [record([60.0], [10.0])])
    book.records[0].profile = ["a line"]
    book.write()
    found = Book.opened(book.path, book.about, True)
    assert json.dumps(found.as_json()) == json.dumps(book.as_json()) and found.records[0].profile == ["a line"]
    assert Book.opened(book.path, book.about, False).records == []


def answer(*times: float) -> Answer:
    return Answer(0.0, "text", [*times])


def test_a_rate_is_that_of_the_time_in_which_all_replies_are_made():
    """One begins before the other: its slow beginning does not count, nor does what the other makes alone."""
    run = large._while_all([answer(1.0, 9.0, 10.0, 11.0, 12.0), answer(9.01, 10.01, 11.01, 12.01, 12.5)])
    assert run.tokens / run.seconds == pytest.approx(2.0)
    assert (run.tokens, run.first_text, run.texts) == (4, 9.01, ("text", "text"))
    alone = large._while_all([answer(1.0, 2.0, 4.0)])
    assert (alone.tokens, alone.seconds) == (2, 3.0)


@pytest.mark.slow
def test_replies_that_were_not_made_together_are_no_figure(small, capsys, monkeypatch):
    """As where the engine finds memory for one reply at a time only."""
    assert large._while_all([answer(1.0, 2.0, 3.0), answer(3.5, 4.5)]) is None
    monkeypatch.setattr(batching.Batch, "has_room", lambda self, job: not self.active)
    _, _, found = small(capsys)
    rows = [one for one in found["figures"] if one["name"] == f"3 at once, {OURS}"]
    assert [one.get("value") for one in rows] == [None, None]
    assert all(
        one["note"].startswith("3 such replies were never made all at once: the device's memory does not hold them")
        for one in rows
    )


# --- what is made ---


def layout(model):
    """Modules, weights and how they are quantised, as far as a pass can tell."""
    found = {}
    for name, one in model.named_parameters():
        state = getattr(one, "quant_state", None)
        nested = () if state is None else (state.blocksize, state.nested, state.quant_type, state.dtype, state.shape)
        module = model.get_submodule(name.rpartition(".")[0])
        found[name] = (type(module), type(one), one.dtype, tuple(one.shape), nested, module.training)
        found[name] += (getattr(module, "compute_dtype", None), getattr(state, "state2", None) is not None)
    return found


@pytest.mark.parametrize("quantization", ["nf4", "bf16"])
def test_made_weights_are_as_loaded_ones(tmp_path, quantization):
    """Otherwise what is measured would not be what is loaded."""
    from karakuri_integrations.engines.loading import load

    precision = precision_of(quantization)
    loaded = load(Checkpoint(source_of(str(make_checkpoint("1m", tmp_path / "a")))), precision, "cpu")
    outline = make_outline("1m", tmp_path / "b")
    assert not [*outline.glob("*.safetensors")]
    made = random_model.make_model(Checkpoint(source_of(str(outline))), precision, "cpu", lambda _: None)
    assert layout(made.model) == layout(loaded.model)
    assert made.report == loaded.report
    assert made.model.config._attn_implementation == loaded.model.config._attn_implementation == "sdpa"
    assert [*dict(made.model.named_buffers())] == [*dict(loaded.model.named_buffers())]
    for one, other in zip(made.model.buffers(), loaded.model.buffers(), strict=True):
        assert torch.equal(one, other)


def test_no_reply_ends_and_each_token_is_one_of_the_tokenizers(tmp_path):
    outline = Checkpoint(source_of(str(make_outline("70b-small", tmp_path))))
    model = random_model.make_model(outline, precision_of("bf16"), "cpu", lambda _: None).model
    with torch.inference_mode():
        best = model(torch.arange(400)[None]).logits[0].argmax(-1)
    assert int(best.max()) < 4096 < model.config.vocab_size
    assert outline.eos_ids.isdisjoint(best.tolist()) and len(set(best.tolist())) > 100


# --- what fits ---


def fit(tmp_path, monkeypatch, free: float, size: str = "70b", layers: int | None = None) -> fitting.Fit:
    monkeypatch.setattr(fitting, "free_ram", lambda: round(free * GIB))
    outline = Checkpoint(source_of(str(make_outline(size, tmp_path, layers))))
    every = [Cell(batch, context) for batch in (1, 8, 24) for context in (256, 4000)]
    return fitting.fit_of(outline, precision_of("nf4"), torch.device("cpu"), 64, every)


def test_the_estimate_is_the_doctors(tmp_path, monkeypatch):
    found, known = fit(tmp_path, monkeypatch, 80), need_of("karakuri-lm-70b-chat-v0.1", "nf4")
    assert (found.needed.weights, found.per_token) == (known.weights, known.per_token) == (36_802_609_152, 327_680)


def test_on_80_gib_all_fits_but_generate_must_read_long_prompts_in_chunks(tmp_path, monkeypatch):
    found = fit(tmp_path, monkeypatch, 78)
    for cell in [Cell(batch, context) for batch in (1, 8, 24) for context in (256, 4000)]:
        assert not found.why_not(cell, OURS) and not found.why_not(cell, GENERATE)
    assert [found.chunk(Cell(24, 256)), found.chunk(Cell(8, 4000)), found.chunk(Cell(24, 4000))] == [None, None, 512]


def test_what_does_not_fit_says_both_numbers(tmp_path, monkeypatch):
    found = fit(tmp_path, monkeypatch, 48)
    assert not found.why_not(Cell(1, 4000), OURS)
    why = found.why_not(Cell(24, 4000), OURS)
    assert re.fullmatch(r"it needs about 7\d\.\d GiB and 48\.0 GiB are free", why)


def test_a_model_that_does_not_fit_is_refused_before_anything_is_made(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(large, "copy_rate", lambda _: pytest.fail("something was measured"))
    monkeypatch.setattr(large, "make_model", lambda *_: pytest.fail("something was made"))
    monkeypatch.setattr(fitting, "free_ram", lambda: 20 * GIB)
    assert cli.main(["bench", "--synthetic", "70b", "--device", "cpu", "--json", str(tmp_path / "a.json")]) == 1
    said = capsys.readouterr().err
    assert re.search(r"it needs about 4\d\.\d GiB and 20\.0 GiB are free", said) and "--layers" in said
    assert not (tmp_path / "a.json").exists()


def test_fewer_layers_need_less(tmp_path, monkeypatch):
    assert fit(tmp_path, monkeypatch, 20, layers=2).needed.weights < 4 * GIB
    with pytest.raises(InsufficientMemoryError):
        fit(tmp_path, monkeypatch, 20)


# --- the command ---


@pytest.fixture
def small(monkeypatch, tmp_path):
    """The command in small, with few replies and short prompts; gives what it printed, said and wrote."""
    monkeypatch.setattr(large, "BATCHES", (1, 3))
    monkeypatch.setattr(large, "CONTEXTS", (60, 600))

    def run(capsys, *arguments: str, code: int = 0, rounds: int = 1):
        file = tmp_path / "figures.json"
        common = ["--synthetic", "70b-small", "--device", "cpu", "--rounds", str(rounds), "--tokens", "12"]
        assert cli.main(["bench", *common, "--json", str(file), *arguments]) == code
        captured = capsys.readouterr()
        return captured.out, captured.err, json.loads(file.read_text("utf-8")) if file.exists() else None

    return run


@pytest.mark.slow
def test_the_small_form_measures_all_and_says_what_holds_it(small, capsys, monkeypatch, tmp_path):
    """In fp32, where the tokens of both are the very same: alone, together, prompts of one chunk and of two."""
    monkeypatch.setattr(cells, "LEAST_RATIO", 1e9)
    shown, said, found = small(capsys, "--quantization", "fp32", "--svg", str(tmp_path / "a.svg"))
    rows = {(one["section"], one["name"]): one for one in found["figures"]}
    for context in (60, 600):
        for batch in (1, 3):
            own, other = (
                rows[f"After {context} tokens of prompt", f"{batch} at once, {name}"] for name in (OURS, "generate")
            )
            assert other["same"] == [2 * batch, 2 * batch]
            assert own["ratio_to"] == "of the ceiling" and other["ratio_to"] == "LocalEngine.stream over it"
            assert own["name"] in shown and other["name"] in shown
    for cell in found["cells"]:
        batch = cell["cell"]["batch"]
        assert all(tokens == 11 * batch for tokens, _, _ in cell["runs"][GENERATE][0])  # the first is not counted
        # Of ours not all are made together, and a reader that sleeps sees some of them late.
        assert all(batch <= tokens <= 11 * batch for tokens, _, _ in cell["runs"][OURS][0])
        assert cell["profile"][0].startswith(f"one step of {batch} at once takes")
        assert any("aten::mm" in line or "aten::addmm" in line for line in cell["profile"])
    assert "Aims on a GPU that were not reached" in shown and "times generate, aim 1e+09" in shown
    assert rows["Ceiling of this machine", "copying, read and written"]["value"]["median"] > 0
    assert found["about"]["layers"] == 2 and "bitsandbytes" in found["about"]
    assert "3 at once after 600 tokens: round 1 of 1" in said
    bars = [one for one in ET.parse(tmp_path / "a.svg").getroot().iter() if one.tag.endswith("rect")]
    assert len(bars) == 1 + 8


@pytest.mark.slow
def test_what_was_cut_off_goes_on_where_it_was(small, capsys, monkeypatch):
    monkeypatch.setattr(cells, "LEAST_RATIO", 0.0)
    monkeypatch.setattr(cells, "LEAST_SHARE", 0.0)
    real, calls = plain_generate.PlainGenerate.run, []

    def cut(self, *arguments):
        calls.append(arguments)
        if len(calls) == 5:  # the second round of the first cell: one call warms up, two are a round
            raise KeyboardInterrupt
        return real(self, *arguments)

    monkeypatch.setattr(plain_generate.PlainGenerate, "run", cut)
    _, _, before = small(capsys, rounds=2, code=130)
    assert [len(one) for one in before["cells"][0]["runs"].values()] == [1, 1] and len(before["cells"]) == 1
    _, said, after = small(capsys, "--resume", rounds=2)
    assert after["cells"][0]["runs"][OURS][0] == before["cells"][0]["runs"][OURS][0]
    assert [len(one["runs"][OURS]) for one in after["cells"]] == [2, 2, 2, 2]
    assert "1 at once after 60 tokens: round 1 of 2" not in said and "1 at once after 60 tokens: round 2 of 2" in said
    assert not any(one["profile"] for one in after["cells"])
    _, said, _ = small(capsys, "--resume", "--quantization", "bf16", rounds=2, code=2)
    assert "differs from this run in quantization; leave out --resume" in said


@pytest.mark.slow
def test_what_runs_out_of_memory_is_left_out_of_its_cell_only(small, capsys, monkeypatch):
    real = plain_generate.PlainGenerate.run

    def full(self, ids, count, chunk):
        if count > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(self, ids, count, chunk)

    monkeypatch.setattr(plain_generate.PlainGenerate, "run", full)
    _, _, found = small(capsys)
    rows = {(one["section"], one["name"]): one for one in found["figures"]}
    for context in (60, 600):
        section = f"After {context} tokens of prompt"
        assert "value" in rows[section, "1 at once, generate"] and "value" in rows[section, f"3 at once, {OURS}"]
        assert "out of memory" in rows[section, "3 at once, generate"]["note"]


@pytest.mark.slow
def test_a_cell_that_does_not_fit_is_said_and_shown_with_both_numbers(small, capsys, monkeypatch):
    def ours(self, cell):
        return 10**15 if cell == Cell(3, 600) else 0

    monkeypatch.setattr(fitting.Fit, "ours", ours)
    _, said, found = small(capsys)
    note = next(one["note"] for one in found["figures"] if one["name"] == f"3 at once, {OURS}" and "value" not in one)
    assert re.fullmatch(r"it needs about 931322\.6 GiB and \d+\.\d GiB are free", note)
    assert f"3 at once after 600 tokens, {OURS}: not measured, {note}" in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--peers"], "leave out --peers, --load and --only"),
        (["--load", "5"], "leave out --peers, --load and --only"),
        (["--template", "karakuri-lm-70b-chat-v0.1"], "leave out --template"),
        (["--json", "/"], "'/' cannot be written: it is a folder"),
        (["--layers", "0"], "--layers must be at least 1, got 0"),
        (["--resume"], "give that too"),
        (["--tokens", "97"], "--tokens must be 2 to 96 with this size, got 97"),
        (["--quantization", "int8"], "--quantization must be one of nf4, fp4, bf16, fp16, fp32 with this size"),
        (["--device", "balanced"], "--device balanced spreads a model"),
        (["--device", "offload"], "--device offload spreads a model"),
        (["--synthetic", "94m", "--layers", "2"], "--layers, --resume and --cuda-graphs go with --synthetic 70b"),
        (["--cuda-graphs", "--device", "cpu"], "--cuda-graphs is for a GPU, and the device is cpu"),
        (["--synthetic", "94m", "--cuda-graphs"], "--cuda-graphs go with --synthetic 70b"),
    ],
)
def test_wrong_options_are_exit_code_2(capsys, arguments, message):
    assert cli.main(["bench", "--synthetic", "70b-small", *arguments]) == 2
    captured = capsys.readouterr()
    assert message in captured.err and captured.out == ""


# --- the profile ---


def event(name: str, count: int, device: str, host: float, own: float) -> SimpleNamespace:
    kind = SimpleNamespace(name=device)
    return SimpleNamespace(
        key=name, count=count, device_type=kind, self_cpu_time_total=host, self_device_time_total=own
    )


def test_a_profile_of_a_gpu_says_how_long_it_waits_for_the_host():
    events = [
        event("gemm", 560, "CUDA", 0.0, 11_000.0),
        event("Memcpy DtoH", 2, "CUDA", 0.0, 1000.0),
        event("aten::mul", 900, "CPU", 9000.0, 0.0),
        event("ProfilerStep*", 1, "CUDA", 0.0, 90_000.0),
    ]
    lines = profiling._lines(events, SimpleNamespace(type="cuda"), 0.030)
    assert lines[0] == (
        "the device computes 12.00 ms of it, in 562 kernels and copies; for 18.00 ms it waits for the host"
    )
    assert lines[1] == "kernels and copies of the device, 12.00 ms while they are watched:"
    assert lines[2] == "   11.000 ms  91.7%    560x  gemm"
    assert lines[-1].endswith("900x  aten::mul") and "gemm" not in "".join(lines[4:])
