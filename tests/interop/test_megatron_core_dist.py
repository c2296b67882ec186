"""Real megatron-core loads what target `megatron-dist` writes, on ranks that it was not written for,
and finds each weight where the format `torch` has it; what it saves again is read as the same."""

import json
import shutil

import pytest

import runner
import test_megatron_core as real

LAYERS = 4
SIZES = ["--layers", LAYERS, "--hidden", 96, "--ffn", 208, "--heads", 12, "--kv-heads", 4]
SIZES += ["--vocab", 1000, "--max-positions", 64, "--make-vocab-size-divisible-by", 128, "-q"]
CONFIG = {
    "num_layers": LAYERS,
    "hidden_size": 96,
    "ffn_hidden_size": 208,
    "num_attention_heads": 12,
    "num_query_groups": 4,
    "normalization": "RMSNorm",
    "gated_linear_unit": True,
    "activation": "silu",
    "add_bias_linear": False,
}
MODEL = {
    "vocab_size": 1024,
    "max_sequence_length": 64,
    "position_embedding_type": "rope",
    "share_embeddings_and_output_weights": False,
}
MOE = {"num_moe_experts": 4, "moe_ffn_hidden_size": 64, "moe_router_topk": 2}
EXPERTS = ["--experts", 4, "--expert-ffn", 64]
BIASES = ["--norm", "layernorm", "--bias", "--qkv-bias", "--qk-norm", "--positions", "learned", "--tied"]
BIASED = {"normalization": "LayerNorm", "add_bias_linear": True, "add_qkv_bias": True, "qk_layernorm": True}
LEARNED = {"position_embedding_type": "learned_absolute", "share_embeddings_and_output_weights": True}
GELU = {"gated_linear_unit": False, "activation": "gelu"}


AGAIN = ("geglu-bias-tp2", "moe-te-ep2", "mixed-ep2", "moe-bias-ep2")  # saving takes its time


def case(options=(), tp=1, pp=1, ep=1, norms="local", config=None, model=None):
    return {
        "options": list(options),
        "tp": tp,
        "pp": pp,
        "ep": ep,
        "norms": norms,
        "config": {**CONFIG, **(config or {})},
        "model": {**MODEL, **(model or {})},
    }


CASES = {
    "dense-tp2": case(tp=2),
    "dense-pp2": case(pp=2),
    "geglu-bias-tp2": case(
        ["--activation", "geglu", *BIASES], tp=2, config={**BIASED, "activation": "gelu"}, model=LEARNED
    ),
    "gelu-bias-pp2": case(["--activation", "gelu", *BIASES], pp=2, config={**BIASED, **GELU}, model=LEARNED),
    "moe-ep2": case(EXPERTS, ep=2, config=MOE),
    "moe-te-ep2": case(EXPERTS, ep=2, norms="te", config=MOE),
    "moe-tp2": case(EXPERTS, tp=2, config=MOE),
    "moe-pp2": case(EXPERTS, pp=2, config=MOE),
}


def synth(out, options, *more):
    result = runner.run([runner.program("mgr-synth"), out, *SIZES, *options, *more])
    assert result.status == 0, str(result)
    return out


def convert(folder, name, source, **changes):
    config = runner.write_config(folder / (name + ".yaml"), source, folder / name, target__dtype="source", **changes)
    result = runner.upcycle(config, np=2)
    assert result.status == 0, str(result)
    return folder / name


def split_of(job):
    return ["--tp", job["tp"], "--pp", job["pp"], "--ep", job["ep"]]


def from_synth(folder, name, job):
    """The checkpoint comes by way of mode: reshard from another split of the format torch."""
    options = job.pop("options")
    # the same padded vocabulary for any tp
    ranks = synth(folder / f"{name}-ranks", options, *split_of(job), "--names", "local")
    source = synth(folder / f"{name}-source", options, "--tp", 1, "--names", "te")
    dist = convert(
        folder, f"{name}-dist", source, mode="reshard", upcycle=None,
        target__format="megatron-dist", target__iteration=1, target__names=job["norms"],
        target__make_vocab_size_divisible_by=1024, target__sha256="true",
    )
    return {**job, "name": name, "ranks": ranks, "checkpoint": dist}


def upcycled(folder, name, job, freq, **changes):
    source = synth(folder / f"{name}-source", job.pop("options"))
    upcycle = {
        "upcycle__experts": 4, "upcycle__moe_layer_freq": freq, "target__iteration": 1,
        "target__names": "local", "target__make_vocab_size_divisible_by": 1024,
    }
    ranks = convert(
        folder, f"{name}-ranks", source, target__format="megatron-torch",
        target__tensor_parallel=job["tp"], target__expert_parallel=job["ep"], **upcycle,
    )
    dist = convert(folder, f"{name}-dist", source, target__format="megatron-dist", target__sha256="true", **upcycle, **changes)
    return {**job, "name": name, "ranks": ranks, "checkpoint": dist}


@pytest.fixture(scope="module")
def jobs(module_scratch):
    folder = module_scratch
    out = [from_synth(folder, name, dict(job)) for name, job in CASES.items()]
    of_some = case(ep=2, config={**MOE, "moe_ffn_hidden_size": 208, "moe_layer_freq": [0, 1, 1, 0]})
    out.append(upcycled(folder, "mixed-ep2", of_some, "[0,1,1,0]"))
    of_all = case(ep=2, config={**MOE, "moe_ffn_hidden_size": 208, "moe_layer_freq": [1] * LAYERS})
    out.append(upcycled(folder, "per-layer", of_all, "1", target__dist_keys="per-layer"))
    biased = case(
        ["--activation", "gelu", *BIASES], ep=2, model=LEARNED,
        config={**MOE, **BIASED, **GELU, "moe_ffn_hidden_size": 208},
    )
    out.append(upcycled(folder, "moe-bias-ep2", biased, "1"))
    return out


def of_release(jobs, release):
    """Core 0.13 has no biases of experts."""
    return [job for job in jobs if (release, job["name"]) != ("0.13.1", "moe-bias-ep2")]


def run(release, folder, jobs):
    packages = runner.ROOT / ".venv" / f"megatron-core-{release}"
    assert packages.is_dir(), f"no {packages}: run tools/venv.sh"
    folder.mkdir()
    for job in jobs:
        job["again"] = folder / job["name"] if job["name"] in AGAIN else None
        for key in ("ranks", "checkpoint"):
            job[key] = job[key] / "iter_0000001"
    path = folder / "jobs.json"
    path.write_text(json.dumps(jobs, default=str))
    real.run_core(packages, path, (), program="megatron_core_load.py")


@pytest.mark.parametrize("release", real.RELEASES)
def test_megatron_core_loads_every_weight_and_saves_it_again(module_scratch, jobs, release):
    jobs = of_release(jobs, release)
    run(release, module_scratch / release, [dict(job) for job in jobs])
    for job in [job for job in jobs if job["name"] in AGAIN]:
        again = module_scratch / release / job["name"] / "iter_0000001"
        result = runner.run([runner.program("mgr-inspect"), job["checkpoint"], again])
        assert result.status == 0 and " 0 differ" in result.out, str(result)


def test_a_byte_that_changed_is_noticed(module_scratch, jobs):
    """integrity.json, which core 0.19 compares with the files."""
    job = dict(next(job for job in jobs if job["name"] == "dense-tp2"))
    copy = module_scratch / "damaged"
    shutil.copytree(job["checkpoint"], copy)
    file = max(copy.rglob("*.distcp"), key=lambda path: path.stat().st_size)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(AssertionError, match="integrity verification failed"):
        run("0.19.2", module_scratch / "damage", [{**job, "checkpoint": copy}])


def test_a_wrong_name_is_noticed(module_scratch, jobs):
    """The test above can fail: the norm of experts under the name of the other spec."""
    job = dict(next(job for job in jobs if job["name"] == "moe-ep2"), norms="te")
    with pytest.raises(AssertionError, match="pre_mlp_layernorm"):
        run("0.16.1", module_scratch / "wrong", [job])
