#!/usr/bin/env python3
"""The first steps of training, seen on tiny models: usage: tools/train/first_steps.py FOLDER [OPTION]...

A dense Llama is trained on half of the text, then upcycled by mgr-upcycle in each way, and every arm is
trained on the same fresh text: the dense model itself, naive copies, drop 0.5, drop 1.0, and a mixture
from scratch. The text is the source of Python's own library, its bytes the tokens, so that nothing is
downloaded. FOLDER gets the checkpoints, losses.json and, where matplotlib is installed, losses.png.

  --minutes N      about how long (default 12): of that, and of the pace of a few steps, come the numbers of steps
  --pretrain N     steps of the dense model, --steps N of each arm: in the place of --minutes
  --device NAME    cpu (default), cuda, ...
  --bin FOLDER     where mgr-upcycle is, if not in PATH
  --seed N         of everything (default 1)
  --threads N      of torch (default 1: so small a model gains nothing by more)

Needs torch and transformers (tools/requirements-interop.txt). Exit: 0 done; 1 a run failed; 2 usage.
"""

import argparse
import json
import math
import pathlib
import shutil
import subprocess
import sys
import sysconfig
import time

import torch
import transformers

transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()

EXPERTS, TOP_K, LENGTH, ROWS = 8, 2, 128, 16  # 2048 tokens a step
RATE, WARMUP, AUX = 2e-3, 50, 0.02
SIZES = dict(vocab_size=256, hidden_size=96, intermediate_size=256, num_hidden_layers=4, num_attention_heads=4,
             num_key_value_heads=2, max_position_embeddings=LENGTH, tie_word_embeddings=False)  # fmt: skip
ARMS = {  # name: keys of the section `upcycle`; None is the dense model itself
    "dense": None,
    "naive": {"method": "naive"},
    "drop 0.5": {"ratio": 0.5},
    "drop 1.0": {"ratio": 1.0},
    "from scratch": {"method": "from-scratch"},
}
SECONDS = {"dense": 0.20, "mixture": 0.45}  # of a step, on one core; how much a machine differs is measured


def read_text():
    """Bytes of Python's library, in two halves that share no file, and what is held out."""
    root = pathlib.Path(sysconfig.get_paths()["stdlib"])
    files = sorted(p for p in root.rglob("*.py") if "site-packages" not in p.parts and "dist-packages" not in p.parts)
    parts = [bytearray(), bytearray(), bytearray()]
    for i, path in enumerate(files):
        parts[2 if i % 20 == 19 else i % 2] += path.read_bytes()
    return [torch.frombuffer(part, dtype=torch.uint8) for part in parts]


def batch(text, generator, device):
    starts = torch.randint(len(text) - LENGTH, (ROWS,), generator=generator)
    return torch.stack([text[s : s + LENGTH] for s in starts.tolist()]).long().to(device)


def held_out(model, text, device):
    """Mean loss, without what balances experts."""
    generator, total = torch.Generator().manual_seed(99), 0.0
    model.eval()
    with torch.no_grad():
        for _ in range(4):
            ids = batch(text, generator, device)
            logits = model(input_ids=ids).logits[:, :-1].float()
            total += torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()).item()
    model.train()
    return total / 4


def rate(step, steps):
    if step < WARMUP:
        return RATE * (step + 1) / WARMUP
    return RATE * 0.5 * (1 + math.cos(math.pi * (step - WARMUP) / max(1, steps - WARMUP)))


def train(model, text, evaluation, steps, seed, device, every):
    """[[step, held-out loss], ...]"""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, betas=(0.9, 0.95), weight_decay=0.1)
    mixture = hasattr(model.config, "num_local_experts")
    losses = [[0, held_out(model, evaluation, device)]]
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate(step, steps)
        ids = batch(text, generator, device)
        words = {"output_router_logits": True} if mixture else {}
        loss = model(input_ids=ids, labels=ids, **words).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if (step + 1) % every == 0 or step + 1 == steps:
            losses.append([step + 1, held_out(model, evaluation, device)])
    return losses


def shares(model, evaluation, device):
    """The share of tokens that the least used expert of any layer gets; None of a dense model."""
    if not hasattr(model.config, "num_local_experts"):
        return None
    generator, counts = torch.Generator().manual_seed(98), 0
    with torch.no_grad():
        for _ in range(4):
            routers = model(input_ids=batch(evaluation, generator, device), output_router_logits=True).router_logits
            chosen = [logits.topk(TOP_K).indices.flatten().cpu() for logits in routers]
            counts = counts + torch.stack([torch.bincount(each, minlength=EXPERTS) for each in chosen])
    return (counts / counts.sum(1, keepdim=True)).min().item()


def upcycle(program, folder, name, keys, seed):
    out = folder / name.replace(" ", "-")
    shutil.rmtree(out, ignore_errors=True)
    config = {
        "source": {"path": str(folder / "dense")},
        "upcycle": {"experts": EXPERTS, "top_k": TOP_K, "seed": seed, **keys},
        "target": {"path": str(out), "format": "huggingface", "dtype": "float32"},
    }
    path = folder / (out.name + ".yaml")
    path.write_text(json.dumps(config, indent=1) + "\n")  # JSON is YAML
    done = subprocess.run([program, "-q", str(path)], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit("first_steps: " + done.stderr.strip())
    return out


def load(folder, device):
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    if hasattr(model.config, "num_local_experts"):
        model.router_aux_loss_coef = model.config.router_aux_loss_coef = AUX
    return model.to(device)


def draw(results, path):
    try:
        import matplotlib
    except ImportError:
        return print("no matplotlib: the losses are in losses.json alone")
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 5))
    for name, result in results["arms"].items():
        axes.plot(*zip(*result["losses"]), label=name)
    axes.set(xlabel="step (%d tokens each)" % (ROWS * LENGTH), ylabel="held-out loss, nats a byte")
    axes.axhline(math.log(256), color="gray", lw=0.5, ls=":")
    axes.legend()
    figure.savefig(path, dpi=110, bbox_inches="tight")


def table(results):
    points = [step for step, _ in next(iter(results["arms"].values()))["losses"]]
    chosen = sorted({points[round(i * (len(points) - 1) / 5)] for i in range(6)})
    yield "| held-out loss at step | " + " | ".join(results["arms"]) + " |"
    yield "|---" * (len(results["arms"]) + 1) + "|"
    for step in chosen:
        cells = ["%.3f" % dict(map(tuple, r["losses"]))[step] for r in results["arms"].values()]
        yield "| %d | %s |" % (step, " | ".join(cells))


def dense_model(device):
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES)).to(device)


def pace(text, evaluation, device):
    """The time of a step here, by that of SECONDS: of a few of the dense model, the first of which is not counted."""
    model = dense_model(device)
    train(model, text, evaluation, 1, 0, device, 1)
    start = time.time()
    train(model, text, evaluation, 8, 0, device, 8)
    looks = 2 * 4 / 3  # each is of four batches, forwards alone
    return (time.time() - start) / (8 + looks) / SECONDS["dense"]


def steps_of(options, pace_here):
    """Of both phases: a third of the time for the dense model."""
    seconds = options.minutes * 60 / pace_here
    pretrain = options.pretrain or max(20, int(seconds / 3 / SECONDS["dense"]))
    mixtures = len(ARMS) - 1
    steps = options.steps or max(20, int(seconds * 2 / 3 / (mixtures * SECONDS["mixture"] + SECONDS["dense"])))
    return pretrain, steps


def run(options):
    folder, device = options.folder, torch.device(options.device)
    folder.mkdir(parents=True, exist_ok=True)
    first, second, evaluation = read_text()
    both = options.pretrain and options.steps
    pretrain, steps = steps_of(options, 1 if both else pace(first, evaluation, device))
    torch.manual_seed(options.seed)
    model = dense_model(device)
    start = time.time()
    losses = train(model, first, evaluation, pretrain, options.seed, device, max(5, pretrain // 10))
    print("dense: %d steps, held-out loss %.3f, %d s" % (pretrain, losses[-1][1], time.time() - start), flush=True)
    model.save_pretrained(folder / "dense")
    results = {"pretrain": losses, "arms": {}}
    for name, keys in ARMS.items():
        start = time.time()
        place = folder / "dense" if keys is None else upcycle(options.program, folder, name, keys, options.seed)
        arm = load(place, device)
        losses = train(arm, second, evaluation, steps, options.seed + 1, device, max(5, steps // 40))
        results["arms"][name] = {"losses": losses, "least_used": shares(arm, evaluation, device)}
        print("%s: from %.4f to %.4f, %d s" % (name, losses[0][1], losses[-1][1], time.time() - start), flush=True)
    (folder / "losses.json").write_text(json.dumps(results, indent=1) + "\n")
    draw(results, folder / "losses.png")
    print("\n".join(table(results)))


def main():
    parser = argparse.ArgumentParser(usage=__doc__.split("usage: ")[1].split("\n")[0])
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--minutes", type=float, default=12)
    parser.add_argument("--pretrain", type=int)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--bin", type=pathlib.Path)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    options.program = shutil.which("mgr-upcycle", path=options.bin)  # before the minutes, not after
    if not options.program:
        parser.error("no mgr-upcycle in %s; build it, or name its folder by --bin" % (options.bin or "PATH"))
    torch.set_num_threads(options.threads)
    run(options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
