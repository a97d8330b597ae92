"""Trains the demo model from scratch: tokenizer, data, training, export. One command.

    python cookbook/demo_model/train.py --minutes 60 --out my_model --work my_work

The work folder keeps the data and a checkpoint; the same command run again goes on from there.
Two CPU cores train about 3,000 to 5,000 tokens a second. How well the result is steered is measured
by steering_table.py.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import pathlib
import random
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from conversations import conversation, questions_of
from prompt import prompt_text
from transformers import AutoTokenizer, GenerationConfig, LlamaConfig, LlamaForCausalLM

SIZES = {  # layers, hidden, intermediate, heads, key-value heads
    "tiny": (4, 128, 384, 2, 1),
    "small": (5, 256, 640, 4, 2),
    "medium": (8, 320, 832, 5, 1),
    "large": (8, 384, 1024, 6, 2),
}
WINDOW = 4096
WIDTHS = (128, 192, 256, 320, 384, 512, 640, 768, 1024, 1280, 1536, 2048, 3072, 4096)
IGNORE = -100


def encode(tokenizer, messages) -> tuple[np.ndarray, np.ndarray]:
    """Token ids and a mask of those that the model has to write."""
    text, spans = prompt_text(messages)
    encoding = tokenizer._tokenizer.encode(text, add_special_tokens=False)
    starts = np.array([o[0] for o in encoding.offsets])
    mask = np.zeros(len(starts), bool)
    for start, end in spans:
        mask |= (starts >= start) & (starts < end)
    return np.array(encoding.ids, np.uint16), mask


def _make(job: tuple[str, int, int, bool, frozenset]) -> list[tuple[np.ndarray, np.ndarray]]:
    from held_out import shares

    folder, seed, count, short, grams = job
    tokenizer, rng = AutoTokenizer.from_pretrained(folder), random.Random(seed)
    out: list[tuple[np.ndarray, np.ndarray]] = []
    while len(out) < count:
        messages = conversation(rng, short)
        if any(shares(text, tokenizer, grams) for text in questions_of(messages)):
            continue
        ids, mask = encode(tokenizer, messages)
        if len(ids) <= WINDOW - 64:
            out.append((ids, mask))
    return out


def make_data(folder: pathlib.Path, file: pathlib.Path, count: int, short: bool, seed: int, workers: int) -> None:
    """Writes count conversations as three flat arrays."""
    from held_out import held_grams

    tokenizer = AutoTokenizer.from_pretrained(folder)
    grams, size = held_grams(tokenizer), 1000
    jobs = [(str(folder), seed * 100003 + k, size, short, grams) for k in range(-(-count // size))]
    started, rows = time.time(), []
    with ProcessPoolExecutor(workers) as pool:
        for k, part in enumerate(pool.map(_make, jobs)):
            rows += part
            if k % 10 == 0:
                print(f"data: {len(rows)} conversations, {time.time() - started:.0f} s", flush=True)
    np.savez(
        file,
        ids=np.concatenate([r[0] for r in rows]),
        mask=np.concatenate([r[1] for r in rows]),
        length=np.array([len(r[0]) for r in rows], np.int32),
    )


def batches(lengths: np.ndarray, budget: int, seed: int) -> Iterator[tuple[int, list[int]]]:
    """Endless (width, rows): few fixed shapes, since every new shape costs seconds of set-up on CPU."""
    rng = np.random.default_rng(seed)
    waiting: dict[int, list[int]] = {width: [] for width in WIDTHS}
    while True:
        for i in rng.permutation(len(lengths)):
            width = next(w for w in WIDTHS if w >= lengths[i])
            waiting[width].append(int(i))
            if len(waiting[width]) == max(1, budget // width):
                yield width, waiting[width]
                waiting[width] = []


def loss_of(model: LlamaForCausalLM, ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean loss over the written tokens; the head runs on those only."""
    kind = ids.device.type
    with torch.autocast(kind, torch.bfloat16):
        # Padding is on the right, behind every real token, so the causal mask is enough.
        hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state
        targets = labels[:, 1:]
        keep = (targets != IGNORE).flatten().nonzero().squeeze(1)
        count = len(keep)
        keep = torch.cat([keep, keep.new_zeros(-count % 512)])
        logits = model.lm_head(hidden[:, :-1].flatten(0, 1)[keep])
    wanted = targets.flatten()[keep]
    wanted[count:] = IGNORE
    return torch.nn.functional.cross_entropy(logits.float(), wanted)


def quantized(weights: torch.Tensor, kind: str) -> torch.Tensor:
    """The weights as they are read back from 4 bits: "nf4" of bitsandbytes, or llama.cpp's "q4_0"."""
    if kind == "nf4":
        from bitsandbytes import functional

        return functional.dequantize_4bit(
            *functional.quantize_4bit(weights, blocksize=64, compress_statistics=True, quant_type="nf4")
        )
    blocks = weights.reshape(-1, 32)
    scale = blocks.gather(1, blocks.abs().argmax(1, keepdim=True)) / -8
    inverse = torch.where(scale == 0, scale, 1 / scale)
    steps = (blocks * inverse + 8.5).floor().clamp(0, 15) - 8
    return (steps * scale.half().float()).view_as(weights)


@contextlib.contextmanager
def as_quantized(matrices: list[torch.nn.Parameter], kind: str | None) -> Iterator[None]:
    """Within it the matrices are what 4 bits leave of them; gradients go straight through to the whole ones."""
    whole = [p.data for p in matrices] if kind else []
    for p, data in zip(matrices, whole, strict=False):
        p.data = quantized(data, str(kind))
    yield
    for p, data in zip(matrices, whole, strict=False):
        p.data = data


class Group:
    """The processes that train together: each takes its own batches, gradients are averaged.

    Two processes of one thread are faster on two cores than one process of two threads.
    """

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size

    def average(self, parameters: list[torch.nn.Parameter]) -> None:
        """Averages the gradients over the processes."""
        if self.size > 1:
            flat = torch.cat([p.grad.flatten() for p in parameters])
            dist.all_reduce(flat)
            at = 0
            for p in parameters:
                p.grad.copy_(flat[at : at + p.numel()].view_as(p) / self.size)
                at += p.numel()

    def share(self, parts: list[list[torch.nn.Parameter]]) -> None:
        """Sends each process's part of the parameters to the others."""
        for rank, part in enumerate(parts if self.size > 1 else []):
            flat = torch.cat([p.detach().flatten() for p in part])
            dist.broadcast(flat, rank)
            at = 0
            for p in part:
                p.data.copy_(flat[at : at + p.numel()].view_as(p))
                at += p.numel()

    def done(self, spent: float, total: float) -> float:
        """The share of the time that is over, by the first process's clock."""
        value = torch.tensor([min(1.0, spent / total)])
        if self.size > 1:
            dist.broadcast(value, 0)
        return float(value)


def matrices_of(model: LlamaForCausalLM) -> list[torch.nn.Parameter]:
    """The weights of the layers that Muon trains."""
    return [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]


def optimizers(model: LlamaForCausalLM, rate: float, matrices: list[torch.nn.Parameter]) -> list[torch.optim.Optimizer]:
    """Muon for these matrices of the layers, AdamW for the embedding and the norms."""
    others = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    return [
        torch.optim.Muon(matrices, lr=rate, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=rate, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def new_model(size: str, vocabulary: int) -> LlamaForCausalLM:
    """A fresh model of one of the sizes."""
    layers, hidden, inner, heads, kv = SIZES[size]
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=hidden, intermediate_size=inner, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=kv, max_position_embeddings=WINDOW,
        tie_word_embeddings=True, bos_token_id=1, eos_token_id=2, rms_norm_eps=1e-5,
    )  # fmt: skip
    config.rope_parameters = {"rope_type": "default", "rope_theta": 10000.0}
    return LlamaForCausalLM(config)


def export(model: LlamaForCausalLM, out: pathlib.Path) -> None:
    """Saves bf16 weights and configs beside the tokenizer."""
    state = {k: v.to(torch.bfloat16) for k, v in model.state_dict().items()}
    copy = LlamaForCausalLM(model.config).to(torch.bfloat16)
    copy.load_state_dict(state)
    copy.generation_config = GenerationConfig(bos_token_id=1, eos_token_id=2, pad_token_id=2)
    copy.save_pretrained(out)


def _load(path: pathlib.Path) -> dict[str, np.ndarray]:
    with np.load(path) as file:
        data = {name: file[name] for name in file.files}
    return data | {"offset": np.concatenate([[0], np.cumsum(data["length"])])}


def _batch(data: dict[str, np.ndarray], width: int, rows: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    ids = np.zeros((len(rows), width), np.int64)
    labels = np.full((len(rows), width), IGNORE, np.int64)
    for row, i in enumerate(rows):
        a, n = data["offset"][i], data["length"][i]
        ids[row, :n] = data["ids"][a : a + n]
        labels[row, :n] = np.where(data["mask"][a : a + n], ids[row, :n], IGNORE)
    return torch.from_numpy(ids), torch.from_numpy(labels)


def train(rank: int, args: argparse.Namespace, work: pathlib.Path, out: pathlib.Path) -> None:
    """Trains for the asked minutes, with a checkpoint every few minutes. One of args.processes."""
    device = args.device if args.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    group = Group(rank, args.processes)
    if group.size > 1:
        torch.set_num_threads(1)
        dist.init_process_group(
            "gloo", init_method=f"file://{work.resolve()}/meeting", rank=rank, world_size=group.size
        )
    data, short = _load(work / "data.npz"), _load(work / "short.npz")
    vocabulary = len(AutoTokenizer.from_pretrained(out))
    torch.manual_seed(args.seed)
    model = new_model(args.size, vocabulary).to(device)
    matrices = matrices_of(model)
    parts = [matrices[k :: group.size] for k in range(group.size)]
    opts = optimizers(model, args.rate, parts[rank])
    spent, tokens, step = 0.0, 0, 0
    path = work / f"checkpoint{rank}.pt"
    if path.exists():
        saved = torch.load(path, weights_only=True)
        model.load_state_dict(saved["model"])
        for opt, state in zip(opts, saved["opts"], strict=True):
            opt.load_state_dict(state)
        spent, tokens, step = saved["spent"], saved["tokens"], saved["step"]
    elif args.start_from:
        start = LlamaForCausalLM.from_pretrained(args.start_from, dtype=torch.float32)
        model.load_state_dict(start.state_dict())
    if rank == 0:
        sizes = f"{len(data['length'])} conversations, {len(data['ids']):,} tokens, {data['mask'].sum():,} to write"
        print(f"{sizes}; {sum(p.numel() for p in model.parameters()):,} parameters; {device}", flush=True)
    total, running, every = args.minutes * 60, 0.0, args.save_every * 60
    last = logged_at = time.time()
    saves = int(spent // every)
    parameters = list(model.parameters())
    seed = args.seed + step + 7919 * rank
    drawn = random.Random(seed)
    streams = [(d, batches(d["length"], args.batch_tokens, seed)) for d in (short, data)]
    while True:
        done = group.done(spent, total)
        source, stream = streams[done >= args.short_share]
        width, rows = next(stream)
        scale = min(1.0, (step + 1) / 60) * min(1.0, (1 - done) / (1 - args.plateau))
        for opt in opts:
            for g in opt.param_groups:
                g["lr"] = args.rate * scale
        ids, labels = _batch(source, width, rows)
        kind = drawn.choice(("nf4", "q4_0")) if drawn.random() < args.quantized_share else None
        with as_quantized(matrices, kind):
            loss = loss_of(model, ids.to(device), labels.to(device))
            loss.backward()
        group.average(parameters)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        for opt in opts:
            opt.step()
        group.share(parts)
        model.zero_grad(set_to_none=True)
        now = time.time()
        spent, last = spent + now - last, now
        step, tokens = step + 1, tokens + group.size * int(sum(source["length"][i] for i in rows))
        value = float(loss.detach())
        running = value if not running else 0.97 * running + 0.03 * value
        if rank == 0 and now - logged_at > 15:
            logged_at = now
            print(f"{spent / 60:.1f} min step {step} tokens {tokens:,} loss {running:.4f} lr {args.rate * scale:.5f}"
                  f" {tokens / spent:.0f} tok/s", flush=True)  # fmt: skip
        if done >= 1 or done * total // every > saves:
            saves = int(done * total // every)
            state = {"model": model.state_dict(), "opts": [o.state_dict() for o in opts],
                     "spent": spent, "tokens": tokens, "step": step}  # fmt: skip
            torch.save(state, path.with_suffix(".tmp"))
            os.replace(path.with_suffix(".tmp"), path)
            if rank == 0:
                export(model, out)
        if done >= 1:
            break
    if rank == 0:
        note = {"minutes": round(spent / 60, 1), "tokens": tokens, "steps": step, "loss": round(running, 4)}
        (work / "result.json").write_text(json.dumps(note))
        print(f"done: {note}", flush=True)


def main() -> None:
    """Parses the command line and runs the stages that are not done yet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=60, help="training time")
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--out", required=True, help="folder of the finished model")
    parser.add_argument("--work", required=True, help="folder for data and checkpoint")
    parser.add_argument("--tokenizer", help="a folder whose tokenizer is used instead of a new one")
    parser.add_argument("--start-from", help="a model folder whose weights are the start")
    parser.add_argument("--conversations", type=int, default=60000)
    parser.add_argument("--vocabulary", type=int, default=4096)
    parser.add_argument("--batch-tokens", type=int, default=4096, help="per process")
    parser.add_argument("--rate", type=float, default=3e-3)
    parser.add_argument("--short-share", type=float, default=0.25, help="share of the time, at first, on short turns")
    parser.add_argument("--plateau", type=float, default=0.0, help="share of the time at full rate")
    parser.add_argument("--quantized-share", type=float, default=0.0, help="share of the steps on 4-bit weights")
    parser.add_argument("--save-every", type=float, default=5, help="minutes between checkpoints")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--processes", type=int, default=1, help="on CPU: one per core")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    out, work = pathlib.Path(args.out), pathlib.Path(args.work)
    out.mkdir(parents=True, exist_ok=True)
    work.mkdir(parents=True, exist_ok=True)
    if not (out / "tokenizer.json").exists():
        here = pathlib.Path(__file__).resolve().parents[2] / "karakuri_integrations" / "demo"
        source = pathlib.Path(args.tokenizer) if args.tokenizer else here
        for name in ("chat_template.jinja", *(("tokenizer.json", "tokenizer_config.json") if args.tokenizer else ())):
            if source != out:
                shutil.copy(source / name, out / name)
        if not args.tokenizer:
            from tokenizer import build

            build(out, args.vocabulary)
    for name, count, short in (("short", args.conversations // 2, True), ("data", args.conversations, False)):
        if not (work / f"{name}.npz").exists():
            make_data(out, work / f"{name}.npz", count, short, args.seed + short, args.workers)
    (work / "meeting").unlink(missing_ok=True)
    if args.processes > 1:
        multiprocessing.spawn(train, (args, work, out), args.processes)
    else:
        train(0, args, work, out)


if __name__ == "__main__":
    main()
