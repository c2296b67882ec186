"""The families of Hugging Face as mixtures of Megatron: the real trainer loads what becomes of each dense class, by
the printed options, and computes what the dense class computes; what Megatron has no arg for is refused by name.
GPTModels in both formats, HybridModels with experts in each layer and in some.

MGR_EVERY_GRID=1 takes all families in all cells; else some families have one of a GPTModel's each, and some one of a
HybridModel's."""

import os

import pytest
import torch

import harness
import runner
import test_families as families
import trainer

VOCAB = families.SIZES["vocab_size"]
IDS = (torch.arange(24)[None] * 13 + 5) % VOCAB  # as in megatron_trainer.py
GIVEN = ["--vocab-size", str(VOCAB), "--global-batch-size", "8"]

# class, its options, and a word of the refusal where Megatron cannot compute it
DENSE = {
    "llama": ("Llama", {}, None),
    "llama with biases": ("Llama", {"attention_bias": True, "mlp_bias": True}, None),
    "llama with biases of attention": ("Llama", {"attention_bias": True}, "none of the FFN"),
    "llama3 rope": ("Llama", {"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0,
                                                  "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                                                  "original_max_position_embeddings": 8192}}, None),
    "mistral": ("Mistral", {}, None),
    "mistral with a window": ("Mistral", {"sliding_window": 8}, None),
    "phi3": ("Phi3", {}, None),
    "smollm3 with RoPE everywhere": ("SmolLM3", {"no_rope_layers": [1, 1]}, None),
    "smollm3": ("SmolLM3", {"no_rope_layers": [1, 0]}, None),
    "qwen2": ("Qwen2", {}, None),
    "qwen3": ("Qwen3", {"head_dim": 16}, None),
    "seed-oss": ("SeedOss", {"head_dim": 16}, None),
    "ministral": ("Ministral", {"sliding_window": 4096, "head_dim": 8}, None),
    "ministral with windows": (
        "Ministral",
        {"sliding_window": 8, "head_dim": 8, "layer_types": ["sliding_attention", "full_attention"]},
        None,
    ),
    "ernie": ("Ernie4_5", {"head_dim": 8, "tie_word_embeddings": True}, None),
    "olmo2": ("Olmo2", families.THETA, "norm"),
    "granite": ("Granite", families.GRANITE, "multiplier"),
}
USUAL = ("llama with biases", "llama3 rope", "phi3", "smollm3", "qwen2", "qwen3", "ministral with windows", "ernie")
CELLS = [
    ("torch", {"tensor_parallel": 2, "pipeline_parallel": 2}),
    ("dist", {"tensor_parallel": 2, "expert_parallel": 2}),
    ("torch", {"tensor_parallel": 2, "expert_parallel": 2}),
    ("dist", {"tensor_parallel": 2, "pipeline_parallel": 2}),
]
HYBRID = [
    ("hybrid", {"tensor_parallel": 2, "expert_parallel": 2}),
    ("hybrid", {"tensor_parallel": 2, "pipeline_parallel": 2}),  # a dense layer, and one of experts
]
HYBRIDS = {"llama": 1, "phi3": 0, "qwen3": 1, "smollm3": 0, "llama3 rope": 0}  # which of them
# What its args, which count half layers, or its code cannot say
NOT_HYBRID = {
    **dict.fromkeys(["mistral with a window", "smollm3", "ministral with windows", "ernie"], "count half layers"),
    "llama3 rope": "cannot scale RoPE",
}


def hybrid_keys(grid):
    """Of the target, and which layers have experts."""
    freq = {"upcycle__moe_layer_freq": "[0,1]"} if "pipeline_parallel" in grid else {}
    return {"target__dist_keys": "hybrid", "target__names": "auto", **freq}


def convert(scratch, source, format, grid):
    hybrid = hybrid_keys(grid) if format == "hybrid" else {}
    format = "dist" if hybrid else format
    own = {"expert_tensor_parallel": 1} if format == "torch" else {}  # biases of experts are not split
    split = own | {key: value for key, value in grid.items() if format == "torch" or key != "pipeline_parallel"}
    out = scratch / f"{source.name}-{'hybrid' if hybrid else format}-{'-'.join(grid)}"
    config = runner.write_config(
        scratch / "run.yaml",
        source,
        out,
        upcycle={"experts": 4, "top_k": 2, "method": "naive", "seed": 1},
        target__format=f"megatron-{format}",
        target__dtype="source",
        target__make_vocab_size_divisible_by=8,
        **{"target__names": "local", **hybrid},
        **{f"target__{name}": value for name, value in {"expert_parallel": 1, **split}.items()},
    )
    return runner.upcycle(config, np=2), out


def own_choice(format, grid):
    if format == "torch":
        return []
    stages = str(grid.get("pipeline_parallel", 1))
    return ["--pipeline-model-parallel-size", stages, "--dist-ckpt-strictness", "raise_unexpected"]


@pytest.fixture(scope="module")
def judge(module_scratch):
    with trainer.started(module_scratch) as it:
        yield it


def taken(at, name, refused):
    if os.environ.get("MGR_EVERY_GRID"):
        return CELLS + HYBRID
    one = [CELLS[at % len(CELLS)]] if refused or name in USUAL else []
    return one + ([HYBRID[HYBRIDS[name]]] if name in HYBRIDS else [])


def test_each_family_computes_the_same_in_megatron(judge, scratch, capsys):
    jobs, told = {}, {}
    for at, (name, (kind, options, refused)) in enumerate(DENSE.items()):
        lm = families.real(kind, **options)
        source = scratch / name.replace(" ", "-")
        lm.save_pretrained(source)
        with torch.no_grad():
            wanted = lm(IDS).logits
        for format, grid in taken(at, name, refused):
            result, out = convert(scratch, source, format, grid)
            word = refused or (NOT_HYBRID.get(name) if format == "hybrid" else None)
            if word:
                assert result.status in (runner.DATA, runner.CONFIG) and len(result.errors()) == 1, f"{name}: {result}"
                assert word in result.err and not out.exists(), f"{name}: {result}"
                told[name + " (hybrid)" * (format == "hybrid" and not refused)] = "refused by name"
                continue
            assert result.status == 0, f"{name}: {result}"
            cli = [*GIVEN, *trainer.way_on(out)[True], *own_choice(format, grid)]
            step = {"do": "load", "from": out, "cli": cli, "vocab": VOCAB, "logits": out.with_suffix(".pt")}
            jobs.setdefault((*grid, "--expert-tensor-parallel-size" in cli), []).append((name, step, wanted))
    for steps in jobs.values():  # of each its own ranks: they split into groups once
        judge.run(4, *(step for _, step, _ in steps), seconds=900)
        for name, step, wanted in steps:
            difference = harness.relative_difference(torch.load(step["logits"])["logits"], wanted)
            assert difference < 1e-5, f"{name}: {difference} in {step['from'].name}"
            name += " (hybrid)" * ("hybrid" in step["from"].name)
            told[name] = f"{max(difference, float(told.get(name, 0))):.1e}"
    with capsys.disabled():
        print("\n" + "\n".join(f"{name:40} {text}" for name, text in told.items()))
