"""DeepSpeed's ZeRO checkpoints: those of the real engine hold what its own functions gather
(deepspeed_judge.py), those of every split give the same bytes (deepspeed_like.py), and what is not
whole is refused by name."""

import os
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

import deepspeed_like as like
import harness
import real_models
import runner

RELEASE = "0.19.8"  # of tools/requirements-deepspeed.txt
NAMES = ("one", "two", "groups", "stage2", "stage1")  # of deepspeed_judge.py
SIZES = dict(
    vocab_size=61,
    hidden_size=24,
    intermediate_size=20,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    num_local_experts=3,
    num_experts_per_tok=2,
    max_position_embeddings=64,
)


def run(scratch, source, name="out", np=2, config=None, **changes):
    changes = {"mode": "reshard", "target__format": "huggingface", "target__dtype": "source", **changes}
    if config:
        changes["source__config"] = config
    path = runner.write_config(scratch / (name + ".yaml"), source, scratch / name, **changes)
    return runner.upcycle(path, np=np)


def read(scratch, source, name="out", **changes):
    result = run(scratch, source, name, **changes)
    assert result.status == 0, str(result)
    return harness.read_output(scratch / name)


def refused(result, status, *words):
    assert result.status == status and all(word in result.err for word in words), str(result)
    assert result.err.count("error") == 1, str(result)


def per_expert(weights):
    """The names that save_pretrained gives to what transformers 5 has in memory."""
    out = {}
    for name, tensor in weights.items():
        name = name.replace(".mlp.gate.", ".block_sparse_moe.gate.")
        if ".experts." not in name:
            out[name] = tensor
            continue
        prefix, kind = name.replace(".mlp.", ".block_sparse_moe.").rsplit(".", 1)
        for e, expert in enumerate(tensor):
            halves = expert.chunk(2) if kind == "gate_up_proj" else (expert,)
            for word, part in zip(("w1", "w3") if len(halves) == 2 else ("w2",), halves):
                out[f"{prefix}.{e}.{word}.weight"] = part
    return out


def equal(read, wanted):
    assert set(read) == set(wanted)
    for name, tensor in wanted.items():
        assert torch.equal(read[name].float(), tensor), name


# ---- the real engine ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real(module_scratch):
    """Checkpoints of the real engine after two steps."""
    out = module_scratch / "real"
    out.mkdir()
    packages = runner.ROOT / ".venv" / f"deepspeed-{RELEASE}"
    done = subprocess.run(
        [sys.executable, str(runner.ROOT / "tests/interop/deepspeed_judge.py"), str(out)],
        env={**os.environ, "PYTHONPATH": str(packages), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr.decode()[-3000:]
    return out


def universal(out):
    """{"fp32.NAME", "exp_avg.NAME", ...} of a universal checkpoint, and the steps that it says."""
    folder = next(out.glob("global_step*_universal")) / "zero"
    planes = {}
    for path in folder.glob("*/*.pt"):
        value = torch.load(path, weights_only=True)
        planes[f"{path.stem}.{path.parent.name}"] = value["param"] if path.stem != "step" else float(value)
    settings = torch.load(folder / "optimizer_state.pt", weights_only=True)
    steps = {planes.pop(key) for key in [*planes] if key.startswith("step.")}
    return planes, steps | {float(settings["optimizer_state_dict"]["state"][0]["step"])}, settings["param_groups"]


KEEP = {"target__format": "deepspeed", "target__optimizer": "keep", "target__dtype": "float32"}


@pytest.mark.parametrize("name", NAMES)
def test_moments_and_steps_are_what_the_engine_has(scratch, real, name):
    result = run(scratch, real / name, config=real / "hf", **KEEP)
    if name in ("groups", "stage1"):  # layers are frozen there
        refused(result, runner.DATA, "no exp_avg of parameter 'model.layers.0.self_attn", "target.optimizer")
        return
    assert result.status == 0, str(result)
    planes, steps, groups = universal(scratch / "out")
    wanted = load_file(real / f"{name}.moments.safetensors")
    wanted |= {f"fp32.{key}": value for key, value in load_file(real / f"{name}.safetensors").items()}
    equal(planes, wanted)
    assert steps == {2.0} and groups[0]["lr"] == 1e-3 and groups[0]["weight_decay"] == 0.01
    assert any(value.any() for key, value in planes.items() if key.startswith("exp_avg_sq"))
    listed = runner.run([runner.program("mgr-inspect"), "--optimizer", scratch / "out"])
    assert listed.status == 0 and "exp_avg_sq" in listed.out, str(listed)


def module_of(real, name):
    path = real / name / "global_step2" / "mp_rank_00_model_states.pt"
    return {key: t.float() for key, t in torch.load(path, weights_only=False)["module"].items()}


@pytest.mark.parametrize("name", NAMES)
def test_what_the_engine_saved_is_what_it_gathers(scratch, real, name):
    wanted = load_file(real / f"{name}.safetensors")
    if name == "stage1":  # zero_to_fp32 leaves out what is frozen there; the module has it
        assert len(wanted) < len(module_of(real, name))
        wanted = {**module_of(real, name), **wanted}
    equal(read(scratch, real / name, config=real / "hf"), per_expert(wanted))


def test_moe_recipes_folder_and_its_iteration(scratch, real):
    root = scratch / "run"
    shutil.copytree(real / "two" / "global_step2", root / "iter_0000020" / "model_optimizer")
    (root / "iter_0000020" / "latest").write_text("model_optimizer")
    (root / "latest_iteration.txt").write_text("20")
    wanted = per_expert(load_file(real / "two.safetensors"))
    equal(read(scratch, root, config=real / "hf" / "config.json"), wanted)
    shutil.copy(real / "hf" / "config.json", root)
    equal(read(scratch, root, "beside", source__iteration=20), wanted)
    equal(read(scratch, root / "iter_0000020", "step", config=real / "hf"), wanted)
    refused(run(scratch, root, "none", source__iteration=30), runner.NO_INPUT, "iter_0000030")


def test_into_a_megatron_mixture_and_back(scratch, real):
    wanted = per_expert(load_file(real / "groups.safetensors"))
    split = dict(
        target__format="megatron-torch", target__tensor_parallel=2, target__expert_parallel=3
    )
    assert run(scratch, real / "groups", "megatron", config=real / "hf", **split).status == 0
    equal(read(scratch, scratch / "megatron", "back", model__vocab_size=97), wanted)


def test_copies_are_the_bfloat16_that_the_engine_computes_with(scratch, real):
    out = read(scratch, real / "stage2", config=real / "hf", source__weights="copies")
    equal(out, per_expert(module_of(real, "stage2")))
    assert out["model.norm.weight"].dtype == torch.bfloat16
    result = run(scratch, real / "two", "three", config=real / "hf", source__weights="copies")
    refused(result, runner.DATA, "no copies", "source.weights: masters")


def test_inspect_shows_it(real):
    result = runner.run([runner.program("mgr-inspect"), "--summary", real / "groups"])
    assert result.status == 0 and "deepspeed" in result.out and "source.config" in result.out, str(result)
    shutil.copy(real / "hf" / "config.json", real / "groups")
    result = runner.run([runner.program("mgr-inspect"), "--summary", real / "groups"])
    (real / "groups" / "config.json").unlink()
    assert result.status == 0 and "ZeRO-3, 2 ranks" in result.out, str(result)


# ---- every split --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(module_scratch):
    lm = real_models.born("Mixtral", SIZES)
    lm.config.save_pretrained(module_scratch / "hf")
    params = {name: p.detach() for name, p in lm.named_parameters()}
    return params, module_scratch / "hf"


SPLITS = {
    "1 rank": lambda to, p: like.zero3(to, p, ranks=1),
    "2 ranks": lambda to, p: like.zero3(to, p, ranks=2, size=900),
    "7 ranks": lambda to, p: like.zero3(to, p, ranks=7, size=1, prefix=""),
    "more ranks than a row has": lambda to, p: like.zero3(to, p, ranks=37, size=400),
    "stage 2": lambda to, p: like.zero2(to, p, ranks=3, groups=2),
    "stage 1 with paddings": lambda to, p: like.zero2(
        to, p, ranks=5, groups=1, paddings=[[i % 3 for i in range(len(p))]]
    ),
}


@pytest.mark.parametrize("split", SPLITS)
def test_every_split_gives_the_same_bytes(scratch, model, split):
    params, hf = model
    SPLITS[split](scratch / "run" / "global_step2", params)
    (scratch / "run" / "latest").write_text("global_step2\n")
    equal(read(scratch, scratch / "run", config=hf, np=1), per_expert(params))
    first = runner.hashes(scratch / "out")
    for np in (2, 3):
        read(scratch, scratch / "run", f"out{np}", config=hf, np=np)
        assert runner.hashes(scratch / f"out{np}") == first


def test_frozen_parameters_keep_their_type(scratch, model):
    params, hf = model
    frozen = {name: t.bfloat16() for name, t in params.items() if "self_attn" in name}
    trained = {name: t for name, t in params.items() if name not in frozen}
    like.zero3(scratch / "step", trained, ranks=3, size=700, frozen=frozen)
    out = read(scratch, scratch / "step", config=hf)
    equal(out, per_expert({**trained, **{name: t.float() for name, t in frozen.items()}}))
    assert out["model.layers.0.self_attn.q_proj.weight"].dtype == torch.bfloat16


def test_tied_embeddings_have_one_parameter(scratch):
    dense = {key: value for key, value in SIZES.items() if "experts" not in key}
    lm = real_models.born("Qwen3", {**dense, "tie_word_embeddings": True, "head_dim": 6})
    lm.config.save_pretrained(scratch / "hf")
    params = {name: p.detach() for name, p in lm.named_parameters()}
    shared = {"lm_head.weight": "model.embed_tokens.weight"}
    like.zero3(scratch / "three", params, ranks=2, size=500, shared=shared)
    like.zero2(scratch / "two", params, ranks=2, shared=shared)
    for name in ("three", "two"):
        equal(read(scratch, scratch / name, name + "-out", config=scratch / "hf"), params)


# ---- what is not whole --------------------------------------------------------------------------

OPTIM = "bf16_zero_pp_rank_%d_mp_rank_00_optim_states.pt"
MODEL = "zero_pp_rank_%d_mp_rank_00_model_states.pt"


def change(path, do):
    content = torch.load(path, weights_only=False)
    do(content)
    torch.save(content, path)


def swap_groups(content):
    content["param_shapes"].reverse()


def swap_flat(content):
    content["optimizer_state_dict"]["fp32_flat_groups"].reverse()


def truncate(path):
    os.truncate(path, path.stat().st_size - 400)


def drop(*names):
    return lambda d: [(d / name).unlink() for name in names]


def copy(name, to):
    return lambda d: shutil.copy(d / name, d / to)


def says(name, **entries):
    """The file has these entries instead."""
    return lambda d: change(d / name, lambda content: content.update(entries))


def optimizer_says(name, **entries):
    return lambda d: change(d / name, lambda content: content["optimizer_state_dict"].update(entries))


def all_models(do):
    return lambda d: [change(d / (MODEL % rank), do) for rank in range(3)]


def lie(content):
    content["param_shapes"][0]["model.embed_tokens.weight"] = torch.Size([1 << 40, 1 << 40])


def halve(content):
    state = content["optimizer_state_dict"]
    state["fp32_flat_groups"] = [t.half() for t in state["fp32_flat_groups"]]


DATA, NO_INPUT = runner.DATA, runner.NO_INPUT
DAMAGES = {
    "no optimizer of a rank": (drop(OPTIM % 1), NO_INPUT, "zero_pp_rank_1_mp_rank_00_optim"),
    "no model of a rank": (drop(MODEL % 0), NO_INPUT, MODEL % 0),
    "no last rank": (drop(OPTIM % 2, MODEL % 2), DATA, "partition_count 3", "2 ranks"),
    "two runs": (copy(OPTIM % 0, (OPTIM % 0)[5:]), DATA, "of two runs"),
    "two stages": (copy(MODEL % 0, "mp_rank_00_model_states.pt"), DATA, "of two runs"),
    "tensor parallel": (copy(OPTIM % 0, (OPTIM % 0).replace("mp_rank_00", "mp_rank_01")), DATA, "mp_rank_01"),
    "a pipeline": (copy(MODEL % 0, "layer_01-model_00-model_states.pt"), DATA, "pipeline"),
    "DeepSpeed-MoE": (copy(MODEL % 0, "layer_0_expert_3_mp_rank_00_model_states.pt"), DATA, "experts"),
    "AutoEP": (says(MODEL % 1, ds_autoep_layers=[{"a": 1}]), DATA, "AutoEP"),
    "another data parallel size": (says(MODEL % 0, dp_world_size=4), DATA, "dp_world_size"),
    "another version": (says(OPTIM % 2, ds_version="0.9.0"), DATA, "0.9.0"),
    "model parallel": (says(MODEL % 0, mp_world_size=2), DATA, "mp_world_size"),
    "no shapes": (says(MODEL % 0, param_shapes=None), DATA, "param_shapes"),
    "no number": (optimizer_says(OPTIM % 0, partition_count="x"), DATA, "partition_count"),
    "other sub-groups": (lambda d: change(d / (MODEL % 1), swap_groups), DATA, "another order"),
    "other masters": (lambda d: change(d / (OPTIM % 1), swap_flat), DATA, "elements"),
    "a lie about a shape": (all_models(lie), DATA, "no shape"),
    "halves": (lambda d: change(d / (OPTIM % 0), halve), DATA, "no flat float32"),
    "a missing parameter": (all_models(lambda c: c["param_shapes"][-1].popitem()), DATA, "elements"),
    "a truncated file": (lambda d: truncate(d / (OPTIM % 1)), DATA, OPTIM % 1),
    "an empty file": (lambda d: (d / (MODEL % 1)).write_bytes(b""), DATA, "is empty"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_not_whole_is_refused_by_name(scratch, model, damage):
    params, hf = model
    do, status, *words = DAMAGES[damage]
    like.zero3(scratch / "step", params, ranks=3, size=900)
    do(scratch / "step")
    refused(run(scratch, scratch / "step", config=hf), status, *words)


def test_latest_leads_nowhere_else(scratch, model):
    params, hf = model
    like.zero3(scratch / "away" / "step", params, ranks=1)
    (scratch / "run").mkdir()
    for tag, word in (("../away/step", "name of a folder"), ("", "name of a folder"), ("gone", "no folder")):
        (scratch / "run" / "latest").write_text(tag)
        result = run(scratch, scratch / "run", config=hf, source__format="deepspeed")
        assert result.status in (runner.DATA, runner.NO_INPUT) and word in result.err, str(result)


def test_without_a_config_it_says_so(scratch, model):
    like.zero3(scratch / "step", model[0], ranks=1)
    result = run(scratch, scratch / "step")
    assert result.status not in (0, 70) and "source.config" in result.err, str(result)
