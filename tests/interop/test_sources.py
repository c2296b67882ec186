"""Several sources: Branch-Train-MiX from models in four formats, against the rule in numpy; the same bytes by any
ranks, splits and memory; resumed and verified; what does not go together is refused."""

import json
import re
import shutil

import numpy as np
import pytest
import torch

import harness
import runner

SYNTH = ["--layers", 3, "--hidden", 64, "--ffn", 96, "--heads", 4, "--kv-heads", 2, "--vocab", 120]
LAYERS, FFN = 3, re.compile(r"layers\.(\d+)\.mlp\.(gate|up|down)_proj\.weight")
DTYPES = ["bf16", "bf16", "fp32", "bf16"]
FORMATS = [
    None,
    dict(format="megatron-torch", tensor_parallel=2, pipeline_parallel=3),
    dict(format="megatron-dist", tensor_parallel=2),
    dict(format="hdf5", compression="deflate"),
]


def reshard(scratch, source, name, **how):
    config = runner.write_config(
        scratch / f"{name}.yaml", source, scratch / name, mode="reshard", target__dtype="source",
        **{"target__" + k: v for k, v in how.items()},
    )  # fmt: skip
    result = runner.upcycle(config)
    assert result.status == 0, str(result)
    return scratch / name


@pytest.fixture(scope="module")
def plain(module_scratch):
    """Four siblings as Hugging Face folders, and what is in them."""
    folders = [
        runner.synth_folder(module_scratch / f"s{i}", "--seed", 10 + i, "--dtype", d, *SYNTH)
        for i, d in enumerate(DTYPES)
    ]
    return folders, [harness.read_output(f) for f in folders]


@pytest.fixture(scope="module")
def mixed(module_scratch, plain):
    """The same in four formats."""
    return [f if how is None else reshard(module_scratch, f, f"m{i}", **how) for i, (f, how) in enumerate(zip(plain[0], FORMATS))]


def mix(scratch, sources, name="out", np=2, options=(), env=None, **how):
    changes = {"upcycle__" + k if "__" not in k else k: v for k, v in how.items()}
    changes = {"upcycle__experts": None, "target__dtype": "source", **changes}
    sources = [s if isinstance(s, dict) else {"path": str(s)} for s in sources]
    config = runner.write_config(
        scratch / f"{name}.yaml", "unused", scratch / name, source__path=None, sources=sources,
        **{"upcycle__method": "branch-train-mix", "upcycle__ratio": None, **changes},
    )  # fmt: skip
    return runner.upcycle(config, np=np, options=options, env=env), scratch / name


def made(*args, **how):
    result, out = mix(*args, **how)
    assert result.status == 0, str(result)
    return out


def to_bf16(x):
    """The nearest of 8 significant bits, ties to even; of float64, once."""
    part, exponent = np.frexp(x)
    return np.ldexp(np.rint(part * 256), exponent - 8)


def wide(tensor):
    return tensor.to(torch.float64).numpy()


def check_experts(new, tensors, source_of):
    """Every expert is the FFN of its source, bit for bit, or as wide as it has to be."""
    roles = {"gate": "w1", "up": "w3", "down": "w2"}
    for layer in range(LAYERS):
        for e, s in enumerate(source_of):
            for role, w in roles.items():
                was = tensors[s][f"model.layers.{layer}.mlp.{role}_proj.weight"]
                is_ = new[harness.EXPERT % (layer, e, w)]
                assert (wide(is_) == wide(was)).all(), (layer, e, role)


def others(tensors):
    return [name for name in tensors[0] if not FFN.search(name)]


def test_the_rule_from_four_formats(scratch, plain, mixed):
    out = made(scratch, mixed)
    new, tensors = harness.read_output(out), plain[1]
    check_experts(new, tensors, [0, 1, 2, 3])
    for name in others(tensors):
        mean = (((wide(tensors[0][name]) + wide(tensors[1][name])) + wide(tensors[2][name])) + wide(tensors[3][name])) / 4
        assert new[name].dtype == torch.float32  # the narrowest that holds all
        assert (wide(new[name]) == mean.astype(np.float32)).all(), name
    manifest = json.loads((out / runner.MANIFEST).read_text())
    assert [s["format"] for s in manifest["sources"]] == ["huggingface", "megatron-torch", "megatron-dist", "hdf5"]
    assert not manifest["step_zero"]["identical"] and manifest["experts_from"] == [0, 1, 2, 3]
    assert runner.run([runner.program("mgr-verify"), out]).status == 0
    # the configuration that the manifest holds makes the same again
    again = scratch / "again.yaml"
    again.write_text(manifest["config"].replace(str(out), str(scratch / "again")))
    assert runner.upcycle(again, np=1).status == 0
    assert runner.tensor_sums(scratch / "again") == runner.tensor_sums(out)


def test_the_manifests_configuration_whichever_is_first(scratch, mixed):
    """Keys of the model that only one of the formats reads are in it."""
    for first in range(4):
        name = f"first{first}"
        out = made(scratch, [mixed[first], mixed[(first + 1) % 4]], name)
        assert runner.upcycle(scratch / f"{name}.yaml", options=["--verify"]).status == 0
        again = scratch / "again.yaml"
        text = json.loads((out / runner.MANIFEST).read_text())["config"]
        again.write_text(text.replace(str(out), str(scratch / f"again{first}")))
        result = runner.upcycle(again, np=1)
        assert result.status == 0, str(result)
        assert runner.tensor_sums(scratch / f"again{first}") == runner.tensor_sums(out)


def test_one_rounding_to_bfloat16_and_a_map(scratch, plain, mixed):
    new = harness.read_output(
        made(scratch, mixed, target__dtype="bfloat16", experts_from="3,0-2,0", top_k=3, router="zeros")
    )
    tensors = plain[1]
    for name in others(tensors):
        mean = sum(wide(t[name]) for t in tensors) / 4
        assert (wide(new[name]) == to_bf16(mean)).all(), name
    for layer in range(LAYERS):
        assert not new[harness.ROUTER % layer].any() and new[harness.ROUTER % layer].shape == (5, 64)
    rounded = [{n: torch.from_numpy(to_bf16(wide(x))) for n, x in t.items()} for t in tensors]
    check_experts(new, rounded, [3, 0, 1, 2, 0])


def test_others_of_the_base(scratch, plain, mixed):
    new = harness.read_output(made(scratch, mixed, others="base", experts=8))
    for name in others(plain[1]):
        assert harness.same_bits(new[name], plain[1][0][name]), name
    check_experts(new, plain[1], [0, 0, 1, 1, 2, 2, 3, 3])
    assert runner.run([runner.program("mgr-verify"), scratch / "out"]).status == 0


def siblings(scratch, plain, change=None):
    """Folder 1 with the tensors of folder 0, but for the FFNs, and for what `change` does."""
    from safetensors.torch import save_file

    folder = scratch / "sibling"
    shutil.copytree(plain[0][1], folder)
    tensors = {n: plain[1][1][n] if FFN.search(n) else plain[1][0][n].clone() for n in plain[1][0]}
    if change:
        change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def test_others_that_are_equal(scratch, plain, mixed):
    other = reshard(scratch, siblings(scratch, plain), "other", format="megatron-torch", tensor_parallel=2)
    new = harness.read_output(made(scratch, [plain[0][0], other], others="equal"))
    for name in others(plain[1]):
        assert harness.same_bits(new[name], plain[1][0][name]), name
    check_experts(new, plain[1], [0, 1])


def test_others_that_should_be_equal(scratch, plain):
    def change(tensors):
        tensors["model.layers.1.self_attn.k_proj.weight"][5, 7] += 1

    result, out = mix(scratch, [plain[0][0], siblings(scratch, plain, change)], others="equal")
    assert result.status == runner.DATA and not out.exists(), str(result)
    assert "layer 1 k" in result.err and "sibling" in result.err and "differs" in result.err, str(result)


def test_dense_layers_are_averaged(scratch, plain, mixed):
    out = made(scratch, mixed[:2], moe_layer_freq="[0,1,1]", target__format="megatron-torch")
    back = torch.load(next(out.glob("*/mp_rank_00/model_optim_rng.pt")), weights_only=False)["model"]
    dense, expert = "decoder.layers.0.mlp.linear_%s.weight", "decoder.layers.1.mlp.experts.local_experts.%d.linear_%s.weight"
    fused = [{n: wide(x) for n, x in t.items() if FFN.search(n)} for t in plain[1][:2]]
    for layer in (0, 1):
        at = f"model.layers.{layer}.mlp.%s_proj.weight"
        fc1 = [np.concatenate([t[at % "gate"], t[at % "up"]]) for t in fused]
        fc2 = [t[at % "down"] for t in fused]
        for name, parts in (("fc1", fc1), ("fc2", fc2)):
            if layer == 0:
                assert (wide(back[dense % name]) == to_bf16((parts[0] + parts[1]) / 2)).all(), name
            for e in range(2 * layer):
                assert (wide(back[expert % (e, name)]) == parts[e]).all(), (name, e)


def test_the_same_bytes_by_any_ranks_and_splits(scratch, plain, mixed):
    seen = [runner.tensor_sums(made(scratch, mixed, f"r{n}", np=n)) for n in (1, 2, 3)]
    options = ["--unit-bytes", "4096"]
    seen.append(runner.tensor_sums(made(scratch, mixed, "small", options=options)))
    seen.append(runner.tensor_sums(made(scratch, plain[0], "plain")))
    assert all(s == seen[0] for s in seen)


def test_resume_and_verify(scratch, mixed):
    whole = made(scratch, mixed, "whole")
    target = scratch / "part"
    stop = {"MGR_FAULT": "rank:1,pwrite:20:ENOSPC"}
    result, _ = mix(scratch, mixed, "part", options=["--journal", "0", "--unit-bytes", "4096"], env=stop)
    assert result.status != 0, str(result)
    assert "--resume" in result.err, str(result)
    assert runner.upcycle(scratch / "part.yaml", options=["--resume"], np=3).status == 0
    assert runner.tensor_sums(target) == runner.tensor_sums(whole)
    assert runner.upcycle(scratch / "part.yaml", options=["--verify"], np=1).status == 0
    file = sorted(target.glob("*.safetensors"))[-1]
    data = bytearray(file.read_bytes())
    data[-9] ^= 4
    file.write_bytes(data)
    assert runner.upcycle(scratch / "part.yaml", options=["--verify"], np=2).status == 1


def changed_config(source, folder, **fields):
    shutil.copytree(source, folder)
    config = json.loads((folder / "config.json").read_text())
    config.update(fields)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_strangers_are_refused(scratch, plain):
    first = plain[0][0]
    wider = runner.synth_folder(scratch / "wider", "--ffn", 128, *[w for w in SYNTH if w not in ("--ffn", 96)])
    words = [128 if w == 120 else w for w in SYNTH]
    vocabulary = runner.synth_folder(scratch / "vocabulary", *words)
    epsilon = changed_config(plain[0][1], scratch / "epsilon", rms_norm_eps=0.5)
    mixture = runner.synth_folder(scratch / "mixture", *SYNTH, "--experts", 2)
    for i, folder in enumerate([scratch / "t0", scratch / "t1"]):
        shutil.copytree(plain[0][i], folder)
        (folder / "tokenizer.json").write_text('{"version": "%d"}' % i)
    cases = [
        ([first, wider], {}, "ffn size: 128 and 96"),
        ([first, vocabulary], {}, "vocabulary: 128 and 120"),
        ([first, epsilon], {}, "norm epsilon: 0.5 and 1e-05"),
        ([first, mixture], {}, "is a mixture of experts already"),
        ([scratch / "t0", scratch / "t1"], {}, "its tokenizer's tokenizer.json is another one"),
        ([first, plain[0][1]], dict(experts=3, top_k=2), "no multiple of the 2 sources"),
        ([first, plain[0][1]], dict(experts_from="0,0"), "makes no expert of sources[1]"),
        ([first, plain[0][1]], dict(experts_from="0,2"), "must be numbers below 2"),
        ([first, plain[0][1]], dict(top_k=3), "must not exceed the 2 experts"),
        ([first, plain[0][1]], dict(router="source"), "the source is dense"),
        ([first, plain[0][1]], dict(method="naive", others=None), "there are 'sources'"),
        ([first, scratch / "nothing"], {}, "does not exist"),
        ([first], {}, "must have two or more"),
        ([first, {"path": str(first), "formt": "hdf5"}], {}, "unknown key 'formt'"),
    ]
    for sources, how, why in cases:
        result, out = mix(scratch, sources, "refused", **how)
        assert result.status and len(result.errors()) == 1 and why in result.err, (why, str(result))
        assert not list(scratch.glob("refused*/")) and not list(scratch.glob("refused.partial*")), why
    # one folder named as the tokenizer of both is an answer
    named = [{"path": str(scratch / f"t{i}"), "tokenizer": str(scratch / "t0")} for i in (0, 1)]
    out = made(scratch, named, "named")
    assert (out / "tokenizer.json").read_text() == (scratch / "t0" / "tokenizer.json").read_text()


def test_the_list_and_one_source_are_one_or_the_other(scratch, plain):
    config = runner.write_config(scratch / "c.yaml", plain[0][0], scratch / "out", upcycle__method="branch-train-mix", upcycle__ratio=None)
    result = runner.upcycle(config)
    assert result.status == runner.CONFIG and "'sources' lists them" in result.err, str(result)
    text = config.read_text()
    for both in (text + 'sources: ["a", "b"]\n', 'sources: ["a", "b"]\n' + text):
        config.write_text(both)
        result = runner.upcycle(config)
        assert result.status == runner.CONFIG and "give one of them" in result.err, str(result)
    result, out = mix(scratch, plain[0][:2], "set", options=["--set", "source.path=x"])
    assert result.status == runner.USAGE and "cannot change" in result.err, str(result)
    config = runner.write_config(scratch / "c.yaml", "x", scratch / "out", mode="reshard", source__path=None, sources=["a", "b"])
    result = runner.upcycle(config)
    assert result.status == runner.CONFIG and "'sources' are for 'mode: upcycle'" in result.err, str(result)
