"""A to B and back to A is the identity, byte for byte: random shapes, features, layouts, padding and
numbers of ranks, for each pair of formats that are both source and target.

A case follows from its number alone: `pytest test_property.py -k "[17]"`. MGR_PROPERTY_CASES says how
many there are."""

import json
import os
import random

import pytest

import runner

CASES = int(os.environ.get("MGR_PROPERTY_CASES") or 32)
DENSE = ("megatron-torch", "megatron-dist", "huggingface", "hdf5")
MOE = ("megatron-torch", "megatron-dist", "moe-recipes", "hdf5")
MEGATRON = ("megatron-torch", "megatron-dist")


def powers(limit):
    return [n for n in (1, 2, 4, 8) if n <= limit]


class Model:
    """Sizes that split over up to 4 ranks of any kind, and features that all of `formats` can hold."""

    def __init__(self, r, formats, moe):
        self.layers = r.choice((2, 4, 6))
        self.heads = r.choice((4, 8))
        self.kv_heads = r.choice(powers(self.heads))
        self.hidden = self.heads * r.choice((4, 6, 8, 10))
        self.ffn = 4 * r.randrange(5, 30)
        self.vocab = r.randrange(50, 300) | 1  # never whole: args.vocab_size is kept where rows are padded
        self.positions = r.randrange(16, 100)
        self.dtype = r.choice(("bf16", "bf16", "fp16", "fp32"))
        self.tied = r.random() < 0.4
        self.experts = r.choice((2, 4, 6)) if moe else 0
        # a Mixtral has no dense layer, and cannot say how wide one would be
        self.formats = formats
        llama_like = not set(formats) <= set(MEGATRON)
        self.expert_ffn = self.ffn if llama_like else 4 * r.randrange(5, 30)
        self.top_k = r.randrange(1, 3)
        self.layer_freq = None
        self.features = self.draw_features(r, llama_like, moe)
        self.biased = "--bias" in self.features
        if moe and not llama_like and r.random() < 0.5:
            bits = [r.randrange(2) for _ in range(self.layers)]
            self.layer_freq = str(bits) if any(bits) else "2"

    def draw_features(self, r, llama_like, moe):
        words = ["--activation", r.choice(("swiglu", "geglu"))]
        if not llama_like:
            words = ["--activation", r.choice(("swiglu", "geglu", "gelu", "squared-relu"))]
            words += ["--norm", r.choice(("rmsnorm", "layernorm"))]
            words += ["--positions", r.choice(("rope", "learned"))]
            words += r.choice(([], ["--qkv-bias"], ["--bias"]))
            words += r.choice(([], ["--qk-norm"]))
        elif not moe:
            words += r.choice(([], ["--qkv-bias"], ["--bias"], ["--qk-norm"]))
        return words + ["--tied"] * self.tied

    def synth(self, out, r):
        words = [
            "--layers", self.layers, "--hidden", self.hidden, "--ffn", self.ffn, "--heads", self.heads,
            "--kv-heads", self.kv_heads, "--vocab", self.vocab, "--max-positions", self.positions,
            "--dtype", self.dtype, "--seed", r.randrange(1 << 32),
            "--make-vocab-size-divisible-by", r.choice((1, 16)), *self.features,
        ]  # fmt: skip
        if self.experts and not self.layer_freq:
            words += ["--experts", self.experts, "--expert-ffn", self.expert_ffn, "--top-k", self.top_k]
        result = runner.run([runner.program("mgr-synth"), out, *words])
        assert result.status == 0, str(result)
        return out


def megatron_torch(r, m):
    tp = r.choice([n for n in powers(4) if m.heads % n == 0])
    pp = r.choice([n for n in (1, 2, 3) if m.layers % n == 0])
    vpp = r.choice([n for n in (1, 2, 3) if m.layers % (pp * n) == 0]) if pp > 1 else 1
    changes = {"tensor_parallel": tp, "pipeline_parallel": pp, "virtual_pipeline": vpp}
    if pp == 2 and vpp == 1 and r.random() < 0.5:
        changes["first_stage_layers"] = r.randrange(1, m.layers)
    changes["names"] = r.choice(("te", "local"))
    if m.experts:
        etp = 1 if m.biased else r.choice(powers(tp))
        changes["expert_parallel"] = r.choice([n for n in (1, 2, 3) if m.experts % n == 0])
        changes["expert_tensor_parallel"] = etp
        kinds = ["sequential"] + ["grouped"] * (changes["names"] == "te") + ["grouped-old"] * (not m.biased)
        changes["expert_names"] = r.choice(kinds)
    return changes


def megatron_dist(r, m):
    changes = {"tensor_parallel": r.choice(powers(4)), "names": r.choice(("te", "local"))}
    changes["dist_keys"] = r.choice(("per-layer", "hybrid") + ("stacked",) * (not m.layer_freq))
    if changes["dist_keys"] == "hybrid":
        changes["names"] = "te"
    if m.experts:
        changes["expert_parallel"] = r.choice([n for n in (1, 2, 3) if m.experts % n == 0])
    return changes


def moe_recipes(r, m):
    if r.random() < 0.3:
        return {"names": "fused"}
    return {"expert_parallel": r.choice([n for n in (1, 2, 3) if m.experts % n == 0])}


def hdf5(r, m):
    changes = {"compression": r.choice(("none", "deflate"))}
    if m.experts:
        changes["expert_parallel"] = r.choice([n for n in (1, 2, 3) if m.experts % n == 0])
    return changes


LAYOUTS = {
    "megatron-torch": megatron_torch,
    "megatron-dist": megatron_dist,
    "huggingface": lambda r, m: {},
    "moe-recipes": moe_recipes,
    "hdf5": hdf5,
}


def layout(r, m, format_name):
    changes = {"format": format_name, "dtype": "source", **LAYOUTS[format_name](r, m)}
    if format_name in MEGATRON:
        changes["make_vocab_size_divisible_by"] = r.choice((2, 8, 40, 128))
        changes["iteration"] = r.choice((0, 7))
    elif format_name != "hdf5":
        changes["max_shard_size"] = r.choice(("1MiB", "5GB"))
    return {"target__" + key: value for key, value in changes.items()}


def convert(r, folder, source, name, model, changes):
    """Into folder/name, by some number of ranks. The padding of the source is cut off."""
    config = runner.write_config(
        folder / (name + ".yaml"),
        source,
        folder / name,
        **{"mode": "reshard", "upcycle": None, "model__vocab_size": model.vocab, **changes},
    )
    result = runner.upcycle(config, np=r.randrange(1, 4))
    assert result.status == 0, f"{config.read_text()}\n{result}"
    return folder / name


def make_source(r, folder, model):
    """By mgr-synth; where only some layers are to have experts, by upcycling what it makes."""
    out = model.synth(folder / "synth", r)
    if not model.layer_freq:
        return out
    upcycle = {"method": "naive", "experts": model.experts, "top_k": model.top_k}
    upcycle["moe_layer_freq"] = model.layer_freq
    changes = {"mode": "upcycle", "upcycle": upcycle, **layout(r, model, "megatron-torch")}
    return convert(r, folder, out, "mixed", model, changes)


@pytest.mark.parametrize("number", range(CASES))
def test_there_and_back(scratch, number):
    r = random.Random(number)
    moe = number % 2 == 1
    known = MOE if moe else DENSE
    pairs = [(a, b) for a in known for b in known]
    a, b = pairs[number // 2 % len(pairs)]
    model = Model(r, (a, b), moe)
    there, back = layout(r, model, a), layout(r, model, b)
    source = make_source(r, scratch, model)
    first = convert(r, scratch, source, "first", model, there)
    other = convert(r, scratch, first, "other", model, back)
    again = convert(r, scratch, other, "again", model, there)
    skip = (runner.MANIFEST, runner.LEDGER, "model.h5")  # which holds the manifest too
    told = f"{vars(model)}\n{there}\n{back}"
    hashes = [runner.hashes(out, skip) for out in (first, again)]
    if a in MEGATRON:  # config.json comes along from where it was, for the way back to there
        hashes = [{k: v for k, v in h.items() if "/tokenizer/" not in k} for h in hashes]
    assert hashes[0] == hashes[1], told
    if a == "hdf5":
        result = runner.run([runner.program("mgr-inspect"), first, again])
        assert result.status == 0 and " 0 differ" in result.out, f"{told}\n{result}"


def test_hdf5_keeps_geglu(scratch):
    r, model = random.Random(1), Model(random.Random(1), ("hdf5", "huggingface"), False)
    model.features = ["--activation", "geglu"]
    source = model.synth(scratch / "synth", r)
    straight = convert(r, scratch, source, "straight", model, layout(r, model, "huggingface"))
    hdf5 = convert(r, scratch, source, "hdf5", model, layout(r, model, "hdf5"))
    through = convert(r, scratch, hdf5, "through", model, layout(r, model, "huggingface"))
    config = [json.loads((out / "config.json").read_text()) for out in (straight, through)]
    assert config[0] == config[1]
