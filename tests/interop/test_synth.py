"""What mgr-synth writes is a Megatron checkpoint to real torch, a model to transformers, and the same model
at any split and in any format."""

import re
import zipfile

import pytest
import torch

import harness
import megatron_like as ml
import real_models
import runner

SHAPE = dict(layers=4, hidden=64, ffn=96, heads=8, kv_heads=4, vocab=128, seed=11)
SPLITS = [(1, 1, "te"), (2, 1, "local"), (1, 2, "te"), (2, 2, "te"), (4, 2, "local"), (4, 4, "te")]


@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"])
def test_torch_loads_it_and_every_split_is_one_model(scratch, dtype):
    models = []
    for tp, pp, names in SPLITS:
        root = runner.synth(scratch / f"{tp}-{pp}", tp=tp, pp=pp, names=names, dtype=dtype, **SHAPE)
        files = sorted(root.rglob("model_optim_rng.pt"))
        assert len(files) == tp * pp
        assert all(zipfile.ZipFile(file).testzip() is None for file in files)
        model, shape = ml.load(root)
        assert (shape.layers, shape.hidden, shape.ffn, shape.heads, shape.kv_heads) == (4, 64, 96, 8, 4)
        models.append(model)
    want = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[dtype]
    assert {t.dtype for t in models[0].values()} == {want}
    assert all(t.float().std() > 0 or "norm" in name for name, t in models[0].items())
    for model in models[1:]:
        assert model.keys() == models[0].keys()
        assert all(harness.same_bits(model[name], models[0][name]) for name in model)


def test_the_names_are_megatrons(scratch):
    """The tensors of a rank, by name and shape, are those that the module of this spec has."""
    for names in ("te", "local"):
        root = runner.synth(scratch / names, tp=2, pp=2, names=names, **SHAPE)
        shape = ml.load(root)[1]
        model = ml.dense_model(shape)
        for t in range(2):
            for p in range(2):
                (file,) = root.glob(f"iter_*/mp_rank_{t:02d}_{p:03d}/model_optim_rng.pt")
                state = torch.load(file, weights_only=False)["model"]
                real = {n: v for n, v in state.items() if not n.endswith("_extra_state")}
                want = ml.rank_tensors(model, shape, t, p, 2, 2, names)
                assert {n: v.shape for n, v in real.items()} == {n: v.shape for n, v in want.items()}


def test_safe_loading_needs_the_namespace_only(scratch):
    import argparse

    root = runner.synth(scratch / "dense", **SHAPE)
    (file,) = root.glob("iter_*/mp_rank_00/model_optim_rng.pt")
    assert set(torch.serialization.get_unsafe_globals_in_checkpoint(file)) <= {"argparse.Namespace"}
    with torch.serialization.safe_globals([argparse.Namespace]):
        assert "args" in torch.load(file, weights_only=True)


FORMATS = {
    "torch": ["--tp", 2, "--pp", 2],
    "chunks": ["--tp", 4, "--pp", 2, "--vpp", 2, "--names", "local"],
    "dist": ["--format", "megatron-dist"],
    "hybrid": ["--format", "megatron-dist", "--dist-keys", "hybrid"],
    "hf": ["--format", "huggingface"],
    "hdf5": ["--format", "hdf5"],
}


BIASED = ["--qkv-bias", "--qk-norm", "--tied"]


@pytest.mark.parametrize(
    "target,options,formats",
    [
        ("moe-recipes", [], FORMATS),
        ("megatron-torch", [], FORMATS),
        ("megatron-torch", BIASED, ["torch", "chunks", "dist", "hybrid"]),  # no class of transformers has both
    ],
)
def test_every_format_is_one_model(scratch, target, options, formats):
    """The same seed gives the same values, and they the same upcycled bytes."""
    hashes = {}
    for name in formats:
        words = FORMATS[name]
        source = write(scratch / name, *options, *words)
        # what formats without args do not keep is said
        changes = {"model__max_position_embeddings": 64, "model__norm_epsilon": 1e-5}
        if target.startswith("megatron"):
            changes["target__make_vocab_size_divisible_by"] = 16
            changes["target__names"] = "te"  # else as the source has it
        config = runner.write_config(
            scratch / (name + ".yaml"), source, scratch / ("Mixtral-" + name), **changes,
            target__format=target, target__expert_parallel=2,
        )
        result = runner.upcycle(config, np=2)
        assert result.status == 0, str(result)
        hashes[name] = runner.tensor_sums(scratch / ("Mixtral-" + name))  # what is carried beside them differs
    first = hashes.pop("torch")
    assert len(first) >= 2 and all(other == first for other in hashes.values()), hashes


# ---- kinds of models

DENSE = ["huggingface", "megatron-torch", "megatron-dist"]
MEGATRON = DENSE[1:]
MOE = ["moe-recipes", *MEGATRON]
QK_BIAS = ["--qk-norm", "--bias"]
KINDS = [
    (DENSE, ["--qkv-bias"], "Qwen2"),
    (DENSE, ["--qk-norm"], "Qwen3"),
    (DENSE, ["--bias"], "Llama"),
    (DENSE, ["--activation", "geglu", "--tied"], "Llama"),
    (MOE, ["--experts", 4, "--expert-ffn", 48, "--top-k", 3], "Mixtral"),
    (["huggingface", "megatron-dist"], ["--experts", 4, "--expert-ffn", 48, "--qk-norm"], "Qwen3Moe"),
    (MEGATRON, ["--norm", "layernorm", "--activation", "gelu", "--positions", "learned", *QK_BIAS], None),
    (MEGATRON, ["--activation", "squared-relu", "--experts", 4, "--bias"], None),
]
SPLIT = ["--tp", 2, "--pp", 2, "--vpp", 2]


def synth(out, *options, seed=11):
    sizes = ["--layers", 4, "--hidden", 64, "--ffn", 96, "--heads", 8, "--kv-heads", 4, "--vocab", 128]
    return runner.run([runner.program("mgr-synth"), out, *sizes, "--max-positions", 64, "--seed", seed, *options])


def write(out, *options, seed=11):
    result = synth(out, *options, seed=seed)
    assert result.status == 0, str(result)
    return out


FAMILIES = (runner.ROOT / "src" / "model" / "huggingface_family.c").read_text()


SELECTION = dict.fromkeys(["glm4_moe", "ernie4_5_moe", "dots1", "minimax_m2"], "a selection bias")
NOT_IN_MEGATRON = {
    **dict.fromkeys(["olmo2", "flex_olmo", "olmoe", "minimax_m2"], "norms of q and k over all heads"),
    **dict.fromkeys(["granite", "granitemoe", "granitemoeshared"], "multipliers"),
    "ernie4_5_moe": "a selection bias and no sigmoid",
}
NOT_IN = {"deepspeed": SELECTION, "megatron-dist": NOT_IN_MEGATRON}  # and in what words it says so


@pytest.mark.parametrize("family", re.findall(r'\.type = "(\w+)"[^}]*?"\w+ForCausalLM"', FAMILIES))
def test_every_class_is_written(scratch, family):
    """Strictly loaded by transformers, with its name; and in every other format that holds such a model."""
    out = write(scratch / "hf", "--class", family, "--format", "huggingface", "--dtype", "fp32")
    lm = real_models.load(out)
    assert lm.config.model_type == family
    shown = runner.run([runner.program("mgr-inspect"), "--summary", out])
    assert shown.status == 0 and "4 layers, hidden 64" in shown.out, str(shown)
    with torch.no_grad():
        assert torch.isfinite(lm(torch.arange(20)[None]).logits).all()
    for name in ("hdf5", "deepspeed", "megatron-dist"):
        result = synth(scratch / name, "--class", family, "--format", name, "--dtype", "fp32")
        refused = NOT_IN.get(name, {}).get(family)
        if refused:
            assert result.status == runner.DATA and refused in result.err, str(result)
            continue
        assert result.status == 0 and compare(out, scratch / name).status == 0, str(result)


def test_no_class_or_format_is_left_out():
    """Each row of the table is written or refused by name, and so is each format that there is."""
    types = re.findall(r'\.type = "(\w+)"', FAMILIES)
    asked = dict(re.findall(r'\.type = "(\w+)"[^}]*?"(\w+)ForCausalLM"', FAMILIES))
    assert set(types) - set(asked) == {"t5", "switch_transformers"}
    form = runner.ROOT / "src" / "form"
    read, written = (
        set(re.findall(rf"^extern const mgr_{kind}_format mgr_{kind}_(\w+);", (form / file).read_text(), re.M))
        for kind, file in (("source", "source.c"), ("target", "target_table.c"))
    )
    assert len(written) == 7 and read - written == {"torch_dcp"}, (read, written)


def compare(a, b):
    return runner.run([runner.program("mgr-inspect"), a, b])


@pytest.mark.parametrize("formats,options,class_name", KINDS)
def test_every_kind_is_one_model_in_every_format(scratch, formats, options, class_name):
    first, *others = (write(scratch / name, *options, "--format", name) for name in formats)
    for other in others:
        result = compare(first, other)
        assert result.status == 0 and "logical" in result.out, str(result)
    moe = "--experts" in options
    split = write(scratch / "split", *options, *SPLIT, *(["--ep", 2, "--etp", 1] if moe else []))
    assert len(list(split.rglob("*.pt"))) == 2 * 2 * (2 if moe else 1)
    assert compare(first, split).status == 0
    assert compare(first, write(scratch / "other-seed", *options, seed=12)).status == 1
    if class_name:
        check_loads(first, class_name)


def check_loads(folder, class_name):
    """Strictly by transformers; norms about 1, all else, their biases and experts among it, about 0."""
    from transformers import AutoModelForCausalLM

    lm, info = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert type(lm).__name__ == class_name + "ForCausalLM"
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    for name, tensor in lm.state_dict().items():
        assert abs(tensor.mean() - float("norm" in name)) < 0.02 and 0 < tensor.std() < 0.04, name
        experts = tensor if tensor.ndim == 3 else []
        assert all(not torch.equal(a, b) for a, b in zip(experts, experts[1:])), name


@pytest.mark.parametrize(
    "options,words",
    [
        (["--norm", "batchnorm"], ["--norm 'batchnorm'", "rmsnorm, layernorm"]),
        (["--format", "gguf"], ["--format 'gguf'", "moe-recipes", "megatron-dist"]),
        (["--format", "torch-dcp"], ["'torch-dcp'", "read alone", "PyTorch"]),
        (["--class", "t5"], ["'t5'", "no causal LM", "save_pretrained"]),
        (["--class", "switch_transformers"], ["'switch_transformers'", "no causal LM", "save_pretrained"]),
        (["--class", "gemma3_text"], ["'gemma3_text'", "qwen3_moe", "save_pretrained"]),
        (["--names", "other"], ["--names 'other'", "per-expert, fused"]),
        (["--top-k", 2], ["--experts"]),
        (["--experts", 2, "--top-k", 3], ["--top-k"]),
        (["--layers", 4, "--vpp", 3], ["4 layers", "3 pipeline chunks"]),
    ],
)
def test_words_that_make_no_sense(scratch, options, words):
    result = runner.run([runner.program("mgr-synth"), scratch / "x", *options])
    assert result.status == runner.USAGE and not (scratch / "x").exists(), str(result)
    for word in words:
        assert word in result.err, str(result)
