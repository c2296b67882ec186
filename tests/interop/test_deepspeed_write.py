"""Target `deepspeed`: the real engine loads what is written, at 1 and 2 processes, and trains on with
it; zero_to_fp32 and ds_to_universal agree with us (deepspeed_load_judge.py); and there and back."""

import json
import os
import random
import shutil
import subprocess
import sys

import numpy
import pytest
import torch
import transformers
from safetensors.torch import load_file

import deepspeed_like as like
import harness
import megatron_core_server as server
import real_models
import runner
import test_megatron_moe
from test_deepspeed import KEEP, RELEASE, equal, per_expert, read, refused, run, universal

SIZE = 3000  # of sub-groups, where a run states one
# folder: (ranks, sub-group size); 0 ranks are a universal checkpoint
TARGETS = {"universal": (0, 0), "one": (1, SIZE), "two": (2, 10**9), "four": (4, 700), "small": (2, 1)}
# With the moments of a source that was stepped.
KEPT = {f"kept-{name}": TARGETS[name] for name in ("universal", "two")}
LOADS = [  # folder, processes, stage, groups of parameters
    ("universal", 2, 3, 1),
    ("universal", 2, 2, 2),
    ("one", 1, 3, 1),
    ("small", 2, 3, 1),
    ("kept-universal", 1, 3, 1),
    ("kept-universal", 2, 2, 1),
    ("kept-two", 2, 3, 1),
]


def to_deepspeed(scratch, source, name, ranks, size, **changes):
    words = {"target__data_parallel": ranks, "target__sub_group_size": size} if ranks else {}
    result = run(scratch, source, name, target__format="deepspeed", **words, **changes)
    assert result.status == 0, str(result)
    return scratch / name


@pytest.fixture(scope="module")
def mixture(module_scratch):
    """What moe-recipes begins with: a Mixtral made of a dense Megatron checkpoint."""
    dense = runner.synth(module_scratch / "dense", hidden=32, ffn=48, vocab=97)
    return harness.convert(module_scratch, dense, name="mixtral", model__vocab_size=97)


def drawn(params, seed, scale=1e-2):
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(p.shape, generator=generator) * scale for name, p in params.items()}


@pytest.fixture(scope="module")
def stepped(module_scratch, mixture):
    """Masters and moments of the mixture, as {"exp_avg.NAME": tensor} too; in a checkpoint of 3 ranks."""
    params = {name: p.detach() for name, p in real_models.load(mixture).named_parameters()}
    masters = {name: p.float() + noise for (name, p), noise in zip(params.items(), drawn(params, 1).values())}
    moments = drawn(params, 2), {name: p.square() for name, p in drawn(params, 3).items()}
    like.zero3(module_scratch / "stepped", masters, ranks=3, size=2000, moments=moments)
    planes = {f"{kind}.{name}": p for kind, of in zip(("exp_avg", "exp_avg_sq"), moments) for name, p in of.items()}
    return module_scratch / "stepped", masters, planes


@pytest.fixture(scope="module")
def judged(module_scratch, mixture, stepped):
    for name, (ranks, size) in TARGETS.items():
        to_deepspeed(module_scratch, mixture, name, ranks, size)
    for name, (ranks, size) in KEPT.items():
        to_deepspeed(module_scratch, stepped[0], name, ranks, size, config=mixture, target__optimizer="keep")
    jobs = {
        "hf": str(mixture),
        "trained": str(module_scratch / "trained"),
        "size": SIZE,
        "gathers": [str(module_scratch / name) for name, (ranks, _) in TARGETS.items() if ranks],
        "loads": [
            {
                "folder": str(module_scratch / folder),
                "name": f"{world}-{stage}",
                "world": world,
                "stage": stage,
                "groups": groups,
                "size": {**TARGETS, **KEPT}[folder][1] or SIZE,
                "universal": folder.endswith("universal"),
                "step": like.STEP if folder in KEPT else 0,
                "lr": like.SETTINGS["lr"],
            }
            for folder, world, stage, groups in LOADS
        ],
    }
    (module_scratch / "jobs.json").write_text(json.dumps(jobs))
    packages = runner.ROOT / ".venv" / f"deepspeed-{RELEASE}"
    done = subprocess.run(
        [sys.executable, str(runner.ROOT / "tests/interop/deepspeed_load_judge.py"), str(module_scratch / "jobs.json")],
        env={**os.environ, "PYTHONPATH": str(packages), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr.decode()[-5000:]
    return module_scratch


@pytest.fixture(scope="module")
def weights(mixture):
    return {name: t.float() for name, t in harness.read_output(mixture).items()}


@pytest.mark.parametrize("folder, world, stage, groups", LOADS)
def test_the_engine_loads_it_and_trains_on(judged, weights, stepped, folder, world, stage, groups):
    loaded = load_file(judged / f"{folder}.{world}-{stage}.safetensors")
    if folder in KEPT:
        _, masters, planes = stepped
        equal(loaded, {**masters, **planes})
    else:
        equal(weights, per_expert(loaded))


@pytest.mark.parametrize("folder", [name for name in TARGETS if TARGETS[name][0]])
def test_zero_to_fp32_gathers_the_same(judged, weights, folder):
    equal(weights, per_expert(load_file(judged / f"{folder}.safetensors")))


def test_ds_to_universal_and_ours_agree(scratch, judged, mixture):
    """Of what the engine saved after two steps; and its converted form is a source."""
    trained = judged / "trained"
    theirs = trained / "global_step2_universal"
    (ours,) = to_deepspeed(scratch, trained, "ours", 0, 0, config=mixture, target__optimizer="keep").glob("global_step*")
    names = {p.name for p in (theirs / "zero").iterdir() if p.is_dir()}
    assert names == {p.name for p in (ours / "zero").iterdir() if p.is_dir()} and names
    for name in names:
        for plane in ("fp32", "exp_avg", "exp_avg_sq"):
            a, b = (torch.load(d / "zero" / name / f"{plane}.pt", weights_only=True) for d in (theirs, ours))
            assert torch.equal(a, b["param"].flatten()), (name, plane)
    shutil.copytree(theirs, scratch / "run" / theirs.name)
    (scratch / "run" / "latest_universal").write_text(theirs.name)
    wanted = read(scratch, trained, "trained-out", config=mixture)
    equal(read(scratch, scratch / "run", "theirs-out", config=mixture), wanted)
    equal(read(scratch, ours.parent, "ours-out"), wanted)


def core_logits(scratch, folder):
    """Of the real megatron-core at TP2 x EP2, and the ids that it takes."""
    config = transformers.AutoConfig.from_pretrained(scratch / "hf")
    model = dict(
        layers=config.num_hidden_layers, hidden=config.hidden_size, ffn=config.intermediate_size,
        heads=config.num_attention_heads, kv_heads=config.num_key_value_heads, head_dim=8, vocab=98,
        experts=config.num_local_experts, top_k=config.num_experts_per_tok, dtype="float32",
    )  # fmt: skip
    core = test_megatron_moe.Core(test_megatron_moe.NEWEST, scratch / "core.log")
    try:
        steps = {"do": "load", "from": folder}, {"do": "logits", "to": scratch / "logits"}
        core.run(model, {"tp": 2, "ep": 2}, *steps)
    finally:
        core.stop()
    length = server.MODEL["positions"] // 2
    return test_megatron_moe.logits(scratch / "logits")[..., :97], (torch.arange(length)[None] * 13 + 5) % 98


def test_the_flow_of_moe_recipes(scratch, judged, mixture):
    """Dense Megatron -> Mixtral -> two steps under ZeRO-3 -> Hugging Face, and Megatron TP2 x EP2: in both and in
    the module that was trained the same logits."""
    trained = judged / "trained"
    direct = read(scratch, trained, "hf", config=mixture)
    equal(direct, per_expert(load_file(judged / "trained.safetensors")))
    split = dict(
        target__format="megatron-torch", target__tensor_parallel=2, target__expert_parallel=2, target__names="local",
        target__make_vocab_size_divisible_by=1,
    )  # fmt: skip
    assert run(scratch, trained, "megatron", config=mixture, **split).status == 0
    equal(read(scratch, scratch / "megatron", "back", model__vocab_size=97), direct)
    megatron, ids = core_logits(scratch, scratch / "megatron")
    logits = []
    for folder in (scratch / "hf", scratch / "back"):
        with torch.no_grad():
            logits.append(real_models.load(folder)(ids).logits)
    config = transformers.AutoConfig.from_pretrained(mixture)
    lm = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").float().eval()
    lm.load_state_dict(load_file(judged / "trained.safetensors"))
    with torch.no_grad():
        logits.append(lm(ids).logits)
    assert torch.equal(logits[0], logits[1]) and torch.equal(logits[0], logits[2])
    assert harness.relative_difference(megatron, logits[0]) < 1e-5


# ---- there and back, without the engine ---------------------------------------------------------


@pytest.mark.parametrize(
    "names, name", [("fused", "universal"), ("per-expert", "universal"), ("fused", "four"), ("per-expert", "small")]
)
def test_there_and_back_and_the_same_bytes(scratch, mixture, weights, names, name):
    ranks, size = TARGETS[name]
    out = to_deepspeed(scratch, mixture, "there", ranks, size, target__names=names)
    equal(read(scratch, out, "back"), weights)
    other = to_deepspeed(scratch, mixture, "other", ranks, size, target__names=names, np=3)
    assert runner.hashes(other) == runner.hashes(out)
    result = runner.run([runner.program("mgr-verify"), out])
    assert result.status == 0, str(result)


SPLITS = {
    "ZeRO-3": lambda to, p, m: like.zero3(to, p, ranks=5, size=900, moments=m),
    "ZeRO-2": lambda to, p, m: like.zero2(to, p, ranks=3, groups=2, moments=m),
    "elastic": lambda to, p, m: like.zero2(to, p, ranks=3, moments=m, elastic=True),
    "paddings": lambda to, p, m: like.zero2(
        to, p, ranks=5, moments=m, paddings=[[i % 3 for i in range(len(p))]]
    ),
}  # fmt: skip


def planes_of(masters, planes):
    return {**{f"fp32.{name}": p for name, p in masters.items()}, **planes}


def split_moments(planes):
    return [
        {name.removeprefix(kind): p for name, p in planes.items() if name.startswith(kind)}
        for kind in ("exp_avg.", "exp_avg_sq.")
    ]


@pytest.mark.parametrize("split", SPLITS)
def test_moments_of_every_split_there_and_back(scratch, mixture, stepped, split):
    """Any split -> universal, what was there; -> ZeRO-3's files -> universal: the same bytes."""
    _, masters, planes = stepped
    SPLITS[split](scratch / "source", masters, split_moments(planes))
    keep = {"target__optimizer": "keep"}
    first = to_deepspeed(scratch, scratch / "source", "first", 0, 0, config=mixture, **keep)
    got, steps, groups = universal(first)
    equal(got, planes_of(masters, planes))
    # an elastic one has no settings: those of the run stay
    assert steps == {like.STEP} and groups[0] == {**(like.SETTINGS if split != "elastic" else {}), "params": []}
    if split != "ZeRO-3":
        return
    second = to_deepspeed(scratch, first, "second", 4, 700, np=3, **keep)
    third = to_deepspeed(scratch, second, "third", 0, 0, np=1, **keep)
    skip = (runner.MANIFEST, runner.LEDGER)
    there, back = (runner.hashes(out, skip=skip) for out in (first, third))
    of_steps = [name for name in there if name.endswith(("/step.pt", "optimizer_state.pt"))]
    assert {k: v for k, v in there.items() if k not in of_steps} == {k: v for k, v in back.items() if k not in of_steps}
    assert universal(third)[1:] == (steps, groups)
    for out in (second, third):
        assert runner.run([runner.program("mgr-verify"), out]).status == 0
        assert runner.upcycle(scratch / f"{out.name}.yaml", options=["--verify"]).status == 0


def test_upcycling_takes_the_moments_along(scratch, mixture):
    """Of a dense model: experts that are copies have the moments of what they are copies of."""
    sizes = {key: value for key, value in SIZES.items() if key != "pad_token_id"}
    lm = real_models.born("Llama", sizes)
    lm.config.save_pretrained(scratch / "hf")
    params = {name: p.detach() for name, p in lm.named_parameters()}
    moments = drawn(params, 4), drawn(params, 5)
    like.zero3(scratch / "dense", params, ranks=2, size=3000, moments=moments)
    changes = {**KEEP, "mode": "upcycle", "upcycle": {"experts": 3, "top_k": 2, "method": "drop", "ratio": 0.5, "seed": 3}}
    result = run(scratch, scratch / "dense", config=scratch / "hf", **changes)
    assert result.status == 0, str(result)
    got, steps, _ = universal(scratch / "out")
    assert steps == {like.STEP}
    for kind, before in zip(("exp_avg", "exp_avg_sq"), moments):
        after = {name.removeprefix(kind + "."): p for name, p in got.items() if name.startswith(kind + ".")}
        for name, p in after.items():
            if ".mlp." not in name:
                assert torch.equal(p, before[name]), name
        for layer in range(2):
            mlp = f"model.layers.{layer}.mlp."
            assert not after[mlp + "gate.weight"].any()
            for expert in range(3):
                gate, up = after[mlp + "experts.gate_up_proj"][expert].chunk(2)
                down = after[mlp + "experts.down_proj"][expert]
                kept = up.any(dim=1)
                assert kept.sum() == 10
                for name, p in (("gate", gate), ("up", up), ("down", down.T)):
                    whole = before[mlp + name + "_proj.weight"]
                    whole = whole.T if name == "down" else whole
                    assert torch.equal(p, whole * kept[:, None]), (kind, layer, expert, name)


TWO = [like.SETTINGS, {**like.SETTINGS, "weight_decay": 0.0}]
UNFIT = {
    "no moments": (dict(moments=None), {}, "no exp_avg"),
    "other groups": (dict(settings=TWO), {"target__data_parallel": 2}, "'weight_decay' of their own"),
    "no value": (dict(settings=[{**like.SETTINGS, "lr": torch.zeros(2)}]), {}, "param_groups.0.lr"),
}


@pytest.mark.parametrize("case", UNFIT)
def test_an_optimizer_that_cannot_be_carried_is_refused(scratch, mixture, stepped, case):
    _, masters, planes = stepped
    how, changes, word = UNFIT[case]
    like.zero3(scratch / "source", masters, **{"moments": split_moments(planes), **how})
    result = run(scratch, scratch / "source", config=mixture, **KEEP, **changes)
    refused(result, runner.DATA, word, "hint")


def uneven(content):
    content["optimizer_state_dict"]["optimizer_state_dict"]["state"][0]["step"] += 1


def short(content):
    state = content["optimizer_state_dict"]["optimizer_state_dict"]["state"][0]
    state["exp_avg_sq"] = state["exp_avg_sq"][:-1].clone()


@pytest.mark.parametrize("do, word", [(uneven, "stepped more often"), (short, "exp_avg_sq of group 0")])
def test_moments_that_are_not_whole_are_refused(scratch, mixture, stepped, do, word):
    _, masters, planes = stepped
    like.zero3(scratch / "source", masters, moments=split_moments(planes))
    path = scratch / "source" / "bf16_zero_pp_rank_1_mp_rank_00_optim_states.pt"
    content = torch.load(path, weights_only=False)
    do(content)
    torch.save(content, path)
    refused(run(scratch, scratch / "source", config=mixture, **KEEP), runner.DATA, word)


def parameters(out):
    """Names and shapes in the order of what the engine would walk."""
    state = torch.load(
        next(out.glob("global_step*/zero_pp_rank_0_mp_rank_00_model_states.pt")), weights_only=False
    )
    return [(name, tuple(shape)) for group in state["param_shapes"] for name, shape in group.items()]


SIZES = dict(
    vocab_size=61, hidden_size=24, intermediate_size=20, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=64, pad_token_id=0,
)  # fmt: skip
ORDERS = {
    "Llama": dict(attention_bias=True),
    "Mistral": {},
    "Qwen2": {},
    "Qwen3": dict(head_dim=6, tie_word_embeddings=True),
    "Olmo2": {},
    "Granite": {},
    "SmolLM3": {},
    "SeedOss": dict(head_dim=6),
    "Phi3": {},
    "Ernie4_5": dict(head_dim=6),
    "Ministral": dict(head_dim=6),
    "Mixtral": dict(num_local_experts=3, num_experts_per_tok=2),
    "Qwen3Moe": dict(head_dim=6, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=12),
    "Qwen2Moe": dict(
        num_experts=4, num_experts_per_tok=2, moe_intermediate_size=12, shared_expert_intermediate_size=16
    ),
    "Olmoe": dict(num_experts=4, num_experts_per_tok=2),
    "FlexOlmo": dict(num_experts=4, num_experts_per_tok=2),
}


@pytest.mark.parametrize("kind", ORDERS)
def test_parameters_stand_as_the_class_has_them(scratch, kind):
    """ZeRO-3's files have no names: the order is that of named_parameters()."""
    lm = real_models.born(kind, {**SIZES, **ORDERS[kind]})
    lm.save_pretrained(scratch / "hf")
    out = to_deepspeed(scratch, scratch / "hf", "out", 2, 10**9, np=1)
    assert parameters(out) == [(name, tuple(p.shape)) for name, p in lm.named_parameters()]


# ---- what is refused ----------------------------------------------------------------------------


def test_what_it_cannot_hold_is_refused(scratch, mixture):
    sizes = dict(num_local_experts=4, num_experts_per_tok=2, head_dim=6, rotary_dim=6)
    real_models.born("MiniMaxM2", {**SIZES, **sizes}).save_pretrained(scratch / "buffer")
    result = run(scratch, scratch / "buffer", target__format="deepspeed")
    refused(result, runner.DATA, "selection bias", "hint")
    sizes = dict(num_local_experts=4, num_experts_per_tok=2)
    real_models.born("GraniteMoe", {**SIZES, **sizes}).save_pretrained(scratch / "granite")
    result = run(scratch, scratch / "granite", target__format="deepspeed", target__data_parallel=2)
    assert result.status != 0 and "order" in result.err and "universal" in result.err, str(result)
    read(scratch, to_deepspeed(scratch, scratch / "granite", "u", 0, 0), "back")


def test_moe_recipes_goes_on_from_its_own_folder(scratch, mixture, stepped):
    """All that its loader asks for, by what torch, numpy and Python take; and a source that it is."""
    changes = {"target__run_folder": "moe-recipes", "target__iteration": 20, "target__optimizer": "keep"}
    out = to_deepspeed(scratch, stepped[0], "run", 2, 700, config=mixture, **changes)
    step = out / "iter_0000020"
    assert (out / "latest_iteration.txt").read_text() == "20" and (step / "latest").read_text() == "model_optimizer"
    assert len(list((step / "model_optimizer").glob("*zero_pp_rank_*"))) == 4
    state = torch.load(step / "rng.pt", weights_only=True)
    before = torch.get_rng_state()
    torch.set_rng_state(state["torch_cpu_rng_state"])
    seed = torch.initial_seed()
    assert torch.equal(torch.rand(9), torch.rand(9, generator=torch.Generator().manual_seed(seed)))
    torch.set_rng_state(before)
    assert state["torch_gpu_rng_state"].view(torch.int64).tolist() == [seed, 0]
    numbers, words = numpy.random.RandomState(), random.Random()
    numbers.set_state(state["np_rng_state"])
    words.setstate(state["py_rng_state"])
    assert 0 < numbers.rand(9).std() and 0 < words.random() < 1
    weight = torch.nn.Parameter(torch.ones(1))
    for make in (
        lambda adam: torch.optim.lr_scheduler.LambdaLR(adam, lambda k: 1 / (1 + k)),
        lambda adam: torch.optim.lr_scheduler.CosineAnnealingLR(adam, 100),
    ):
        schedule = make(torch.optim.AdamW([weight], lr=0.1))
        schedule.load_state_dict(torch.load(step / "scheduler.pt", weights_only=True))
        schedule.optimizer.step()
        schedule.step()
        assert schedule.last_epoch == 21
    equal(read(scratch, out, "back"), per_expert(stepped[1]))
    result = run(scratch, stepped[0], "none", config=mixture, target__format="deepspeed", target__run_folder="moe-recipes")
    assert result.status == runner.CONFIG and "target.data_parallel" in result.err, str(result)


def test_a_size_without_ranks_is_refused(scratch, mixture):
    result = run(scratch, mixture, target__format="deepspeed", target__sub_group_size=5)
    assert result.status == runner.CONFIG and "target.data_parallel" in result.err, str(result)


def test_what_is_there_is_made_again_and_compared(scratch, mixture):
    for name in ("universal", "four"):
        ranks, size = TARGETS[name]
        out = to_deepspeed(scratch, mixture, name, ranks, size)
        config = scratch / f"{name}.yaml"
        result = runner.upcycle(config, options=["--verify"])
        assert result.status == 0, str(result)
        file = max(out.glob("global_step*/**/*.pt"), key=lambda p: p.stat().st_size)
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 16
        file.write_bytes(content)
        result = runner.upcycle(config, options=["--verify"])
        assert result.status == 1 and file.name in result.out + result.err, str(result)


DAMAGES = {
    "no weights of a parameter": (lambda u: (u / "zero/lm_head.weight/fp32.pt").unlink(), runner.NO_INPUT, "lm_head"),
    "no folder of a parameter": (lambda u: drop(u / "zero/lm_head.weight"), runner.NO_INPUT, "lm_head"),
    "no model": (lambda u: [p.unlink() for p in u.glob("*_model_states.pt")], runner.NO_INPUT, "model"),
    "another shape": (lambda u: save(u, torch.zeros(5)), runner.DATA, "elements"),
    "AutoEP": (
        lambda u: save(u, {"param": torch.zeros(97, 32), "is_expert_param": True}), runner.DATA, "AutoEP",
    ),
    "a later affine map": (lambda u: says_map(u, 2), runner.DATA, "affine_map of version 2"),
    "no param": (lambda u: save(u, {"other": torch.zeros(97, 32)}), runner.DATA, "param"),
}  # fmt: skip


def says_map(universal, version):
    path = universal / "mp_rank_00_model_states.pt"
    content = torch.load(path, weights_only=False)
    content["universal_checkpoint_info"] = {"affine_map": {"version": version, "params": {}}}
    torch.save(content, path)


def drop(folder):
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()


def save(universal, content):
    torch.save(content, universal / "zero/lm_head.weight/fp32.pt")


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_universal_checkpoint_that_is_not_whole(scratch, mixture, damage):
    do, status, word = DAMAGES[damage]
    out = to_deepspeed(scratch, mixture, "there", 0, 0, np=1)
    (out / "mgr-manifest.json").unlink()
    do(out / "global_step0_universal")
    result = run(scratch, out, "back", np=1, source__format="deepspeed")
    refused(result, status, word)
