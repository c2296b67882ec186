"""From scratch: every weight by its number in its stream, against the rule; its law beside what transformers' own class
starts with; the same bytes by any ranks, splits and targets; resumed, verified, refused."""

import json
import re

import numpy as np
import pytest
import torch
import transformers

import harness
import philox
import runner
import upcycle_oracle as oracle

SEED, LAYERS, HIDDEN, EXPERTS, INIT, STD = 77, 3, 64, 4, 14, 0.03
SYNTH = ["--layers", LAYERS, "--hidden", HIDDEN, "--ffn", 96, "--heads", 4, "--kv-heads", 2, "--vocab", 120]
TOP = {"model.embed_tokens": 0, "lm_head": 12}
OF_LAYER = {f"self_attn.{p}_proj": 2 + i for i, p in enumerate("qkvo")}
OF_EXPERT = {"w1": 8, "w3": 9, "w2": 10}


@pytest.fixture(scope="module")
def source(module_scratch):
    folder = runner.synth_folder(module_scratch / "dense", *SYNTH)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "initializer_range": STD}))
    return folder


def begin(scratch, source, name="out", np=2, options=(), env=None, **how):
    changes = {"upcycle__" + k if "__" not in k else k: v for k, v in how.items()}
    changes = {"upcycle__experts": EXPERTS, "upcycle__seed": SEED, "target__dtype": "float32", **changes}
    config = runner.write_config(
        scratch / f"{name}.yaml", source, scratch / name, upcycle__method="from-scratch", upcycle__ratio=None, **changes
    )
    return runner.upcycle(config, np=np, options=options, env=env), scratch / name


def made(*args, **how):
    result, out = begin(*args, **how)
    assert result.status == 0, str(result)
    return out


def stream_of(name):
    """(layer, expert word, is an output of attention or FFN), or None of a norm."""
    name = name.removesuffix(".weight")
    if name in TOP:
        return 2**32 - 1, TOP[name], False
    found = re.fullmatch(r"model\.layers\.(\d+)\.(?:block_sparse_moe\.experts\.(\d+)\.)?(.*)", name)
    if not found or found[3].endswith("norm"):
        return None
    layer, expert, what = int(found[1]), found[2], found[3]
    word = OF_LAYER[what] if expert is None else (int(expert) + 1) << 8 | OF_EXPERT[what]
    return layer, word, what in ("self_attn.o_proj", "w2")


@pytest.mark.parametrize("init", ["huggingface", "megatron"])
def test_every_weight_is_its_number(scratch, source, init):
    out = made(scratch, source, init=init)
    drawn = []
    for name, tensor in harness.read_output(out).items():
        values = tensor.numpy().astype(np.float64)
        if name.endswith("block_sparse_moe.gate.weight"):
            layer = int(name.split(".")[2])
            want = oracle.contract_router("normal", SEED, layer, EXPERTS, HIDDEN, STD)
            assert np.abs(values - want).max() < 1e-6, name
            continue
        stream = stream_of(name)
        if stream is None:
            assert (values == 1).all(), name
            continue
        layer, word, is_output = stream
        std = STD / np.sqrt(2 * LAYERS) if is_output and init == "megatron" else STD
        want = philox.normals(SEED, INIT, layer, word, 0, values.size).reshape(values.shape) * std
        assert np.abs(values - want).max() < 1e-6, name
        drawn.append(values.ravel() / std)
    drawn = np.concatenate(drawn)
    assert oracle.ks_statistic(drawn) < oracle.ks_limit() and abs(drawn.mean()) < 5 / np.sqrt(drawn.size)


def test_the_law_is_that_of_the_real_class(scratch, source):
    out = made(scratch, source)
    config = transformers.AutoConfig.from_pretrained(out)
    assert config.initializer_range == STD and config.model_type == "mixtral"
    torch.manual_seed(1)
    born = transformers.MixtralForCausalLM(config).state_dict()
    lm, info = transformers.MixtralForCausalLM.from_pretrained(out, dtype=torch.float32, output_loading_info=True)
    assert not any(info.values()), info
    ours = lm.state_dict()
    assert ours.keys() == born.keys()
    for name, theirs in born.items():
        if theirs.std() == 0:
            assert torch.equal(ours[name], theirs.float()), name
        elif theirs.numel() > 2000:
            assert abs(float(ours[name].std() / theirs.std()) - 1) < 0.1, name
    step = json.loads((out / runner.MANIFEST).read_text())["step_zero"]
    assert step == {"identical": False, "text": "not identical to the source: every weight is drawn anew"}


def test_the_same_bytes_by_any_ranks_splits_and_targets(scratch, source):
    first = made(scratch, source, np=1)
    seen = [runner.tensor_sums(first), runner.tensor_sums(made(scratch, source, "r3", np=3, options=["--unit-bytes", "4096"]))]
    split = runner.write_config(
        scratch / "s.yaml", source, scratch / "split", mode="reshard", target__format="megatron-torch",
        target__tensor_parallel=2, target__pipeline_parallel=3,
    )  # fmt: skip
    assert runner.upcycle(split).status == 0
    seen.append(runner.tensor_sums(made(scratch, scratch / "split", "from-split")))
    cut = made(scratch, source, "cut", target__format="megatron-dist", target__tensor_parallel=2, target__expert_parallel=2)
    assert runner.run([runner.program("mgr-verify"), cut]).status == 0
    back = runner.write_config(scratch / "b.yaml", cut, scratch / "back", mode="reshard")
    assert runner.upcycle(back).status == 0
    seen.append(runner.tensor_sums(scratch / "back"))
    sums = [{n: v for (_, n), v in s.items()} for s in seen]
    assert all(s == sums[0] for s in sums)
    other = made(scratch, source, "seed", seed=SEED + 1)
    assert runner.tensor_sums(other) != seen[0]


def test_resume_and_verify(scratch, source):
    whole = made(scratch, source, "whole")
    stop = {"MGR_FAULT": "rank:1,pwrite:12:ENOSPC"}
    result, target = begin(scratch, source, "part", options=["--journal", "0", "--unit-bytes", "4096"], env=stop)
    assert result.status and "--resume" in result.err, str(result)
    assert runner.upcycle(scratch / "part.yaml", options=["--resume"], np=3).status == 0
    assert runner.tensor_sums(target) == runner.tensor_sums(whole)
    assert runner.upcycle(scratch / "part.yaml", options=["--verify"], np=1).status == 0
    file = sorted(target.glob("*.safetensors"))[-1]
    data = bytearray(file.read_bytes())
    data[-9] ^= 4
    file.write_bytes(data)
    assert runner.upcycle(scratch / "part.yaml", options=["--verify"], np=2).status == 1


def test_what_makes_no_sense_is_refused(scratch, source):
    mixture = runner.synth_folder(scratch / "mixture", *SYNTH, "--experts", 4)
    cases = [
        (source, dict(scale="exact"), "takes none"),
        (source, dict(shuffle=True), "takes none"),
        (source, dict(experts_from="0"), "takes none"),
        (source, dict(ratio=0.5), "'upcycle.ratio' is for method"),
        (mixture, {}, "is a mixture of 4 experts already"),
    ]
    for of, how, why in cases:
        changes = {"upcycle__ratio": None, **{"upcycle__" + k: v for k, v in how.items()}}
        config = runner.write_config(
            scratch / "c.yaml", of, scratch / "out", upcycle__method="from-scratch", upcycle__experts=8, **changes
        )
        result = runner.upcycle(config)
        assert result.status and len(result.errors()) == 1 and why in result.err, (why, str(result))
        assert not (scratch / "out").exists()
