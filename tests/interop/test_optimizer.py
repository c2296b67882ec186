"""What an optimizer keeps, of checkpoints that Megatron-LM's own trainer stepped: float32 masters as the
weights, masters and Adam's moments through resharding and upcycling, held against the rules in numpy,
loaded again by the trainer, which saves the same and steps on."""

import json
import shutil

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file

import runner
import trainer
import upcycle_oracle as oracle

FFN, HIDDEN, LAYERS, SEED = 96, 64, 2, 7
OWN = """
    --global-batch-size 8 --bf16 --lr 1e-3 --lr-decay-style constant --attention-softmax-in-fp32
    --dist-ckpt-optim-fully-reshardable
""".split()
DENSE = [*trainer.DENSE, *OWN]
DENSE[DENSE.index("--num-layers") + 1] = str(LAYERS)
DISTRIBUTED, TP2 = ["--use-distributed-optimizer"], ["--tensor-model-parallel-size", "2"]
STYLES = {"plain": ("fp32_param", []), "distributed": ("param", DISTRIBUTED)}
MOMENTS = ("exp_avg", "exp_avg_sq")


@pytest.fixture(scope="module")
def judge(module_scratch):
    with trainer.started(module_scratch) as it:
        yield it


@pytest.fixture(scope="module")
def sources(judge, module_scratch):
    """Two steps of the same model: by an optimizer that is not distributed, by one that is, at TP 2, and by
    one that is saved in buckets and not by parameters."""
    step = lambda name, cli: {"do": "step", "to": module_scratch / name, "format": "torch_dist", "cli": cli}
    buckets = [*[word for word in DENSE if "reshardable" not in word], *DISTRIBUTED]
    changed = judge.run(1, step("plain", DENSE), step("buckets", buckets))
    changed += judge.run(2, step("distributed", [*DENSE, *DISTRIBUTED, *TP2]))
    assert changed == 3 * [{"changed": 1, "step": 2}], "a parameter was not stepped"
    return module_scratch


EXPERTS = """
    --num-experts 4 --moe-router-topk 2 --expert-model-parallel-size 2 --moe-ffn-hidden-size 96
    --moe-token-dispatcher-type allgather --moe-router-load-balancing-type none
""".split()
SPLITS = {"tensors": (2, TP2), "experts": (2, EXPERTS)}


@pytest.fixture(scope="module")
def torches(judge, module_scratch):
    """The same two steps of each split, saved in both of Megatron's formats."""
    for name, (world, cli) in SPLITS.items():
        steps = [
            {
                "do": "step", "to": module_scratch / f"{name}-{form}", "format": form, "cli": [*DENSE, *cli],
                "plain": form == "torch" and name == "tensors",
            }
            for form in ("torch", "torch_dist")
        ]  # fmt: skip
        assert judge.run(world, *steps) == 2 * [{"changed": 1, "step": 2}]
    return module_scratch


def read(root):
    """{key: whole tensor} of a torch_dist checkpoint with one iteration."""
    folder = next(root.glob("iter_*"))
    reader = dcp.FileSystemReader(folder)
    entries = reader.read_metadata().state_dict_metadata
    found = {key: torch.empty(e.size, dtype=e.properties.dtype) for key, e in entries.items() if hasattr(e, "size")}
    dcp.load(found, storage_reader=reader, no_dist=True)
    return found


def planes(state, style):
    """{plane: {key of the weight: tensor}}."""
    prefixes = {"weight": "", "master": f"optimizer.state.{STYLES[style][0]}."}
    prefixes |= {name: f"optimizer.state.{name}." for name in MOMENTS}
    return {
        plane: {key.removeprefix(prefix): value for key, value in state.items() if
                (key.startswith(prefix) if prefix else not key.startswith("optimizer."))}
        for plane, prefix in prefixes.items()
    }


def write(scratch, name, source, **changes):
    settings = {
        "mode": "reshard",
        "model": {"vocab_size": trainer.VOCAB},
        "source__weights": "masters",
        "target__format": "megatron-dist",
        "target__dtype": "source",
        "target__names": "local",
        "target__iteration": 9,
        "target__optimizer": "keep",
    }
    if changes.get("mode") == "upcycle":
        settings["target__dtype"] = "bfloat16"
    if "target" in changes:
        settings = {key: value for key, value in settings.items() if not key.startswith("target__")}
        settings |= {f"target__{key}": value for key, value in changes.pop("target").items()}
    return runner.write_config(scratch / f"{name}.yaml", source, scratch / name, **{**settings, **changes})


def run(config, np=2, **how):
    result = runner.upcycle(config, np=np, **how)
    assert result.status == 0, str(result)
    return result


def goes_on(judge, out, style, world=1, more=()):
    """The trainer loads it by the options that the output tells, saves at once what it has, and steps."""
    told = trainer.way_on(out)[False]
    assert ("--use-distributed-optimizer" in told) == (style == "distributed")
    again = out.with_name(out.name + "-again")
    cli = ["--vocab-size", str(trainer.VOCAB), *OWN, *told, *more]
    step = {"do": "step", "from": out, "to": again, "format": "torch_dist", "cli": cli}
    assert judge.run(world, step) == [{"changed": 1, "step": 2}]
    ours, theirs = read(out), read(again)
    assert {k for k in ours if "_extra_state" not in k} == set(theirs)
    for key, value in theirs.items():
        assert torch.equal(ours[key], value), key


def same(a, b):
    """Padding of the vocabulary, which the trainer steps and TP makes longer, becomes zeros."""
    assert a.keys() == b.keys()
    for key, value in a.items():
        rows = trainer.VOCAB if "word_embeddings" in key or "output_layer" in key else len(value)
        assert value.dtype == b[key].dtype and torch.equal(value[:rows], b[key][:rows]), key
        assert not b[key][rows:].any(), key


@pytest.mark.parametrize("style", STYLES)
def test_masters_are_the_weights(sources, scratch, style):
    """Of all types: float32 as they are, and rounded the weights that the trainer itself rounded of them."""
    state = planes(read(sources / style), style)
    for dtype in ("float32", "source"):
        config = write(scratch, dtype, sources / style, target={"format": "huggingface", "dtype": dtype})
        run(config, np=2)
        got = load_file(scratch / dtype / "model.safetensors")
        wanted = state["master" if dtype == "float32" else "weight"]
        assert torch.equal(got["lm_head.weight"], wanted["output_layer.weight"][: trainer.VOCAB])
        for layer in range(LAYERS):
            fc1 = wanted["decoder.layers.mlp.linear_fc1.weight"][layer]
            assert torch.equal(got[f"model.layers.{layer}.mlp.gate_proj.weight"], fc1[:FFN])
            assert torch.equal(got[f"model.layers.{layer}.mlp.up_proj.weight"], fc1[FFN:])
    assert not torch.equal(state["master"]["output_layer.weight"], state["weight"]["output_layer.weight"].float())


@pytest.mark.parametrize("style", STYLES)
def test_resharding_keeps_all_planes(judge, sources, scratch, style):
    out = scratch / style
    run(write(scratch, style, sources / style), np=3)
    same(read(sources / style), read(out))
    if style == "plain":
        goes_on(judge, out, style)
    assert runner.run([runner.program("mgr-verify"), out]).status == 0
    listed = runner.run([runner.program("mgr-inspect"), "--optimizer", out])
    assert all(f"optimizer.state.{name}.output_layer.weight" in listed.out for name in MOMENTS), str(listed)


DROP = {"experts": 4, "top_k": 2, "method": "drop", "ratio": 0.5, "seed": SEED}
NARROW = {**DROP, "experts": 6, "slices": 2, "scale": "published", "shuffle": True}


def matrices(plane, layer, expert=None):
    """Gate, up and down of a stacked torch_dist plane, one neuron per row."""
    place = "mlp.experts.experts" if expert is not None else "mlp"
    at = (layer, expert) if expert is not None else (layer,)
    fc1, fc2 = (plane[f"decoder.layers.{place}.linear_fc{n}.weight"][at].float().numpy() for n in (1, 2))
    gate, up = np.split(fc1, 2)
    return {"gate": gate, "up": up, "down": fc2.T}


def check_experts(before, after, layer, expert, width, factors, shuffle):
    origin = oracle.cut_neurons(SEED, layer, expert, FFN, width, shuffle=shuffle)
    drawn = oracle.philox.sample(SEED, oracle.philox.SAMPLE, layer, expert, width, width // 2)
    kept = np.setdiff1d(np.arange(width), drawn)
    for plane, power in (("master", 1), ("exp_avg", -1), ("exp_avg_sq", -2)):
        old, new = matrices(before[plane], layer), matrices(after[plane], layer, expert)
        for name in oracle.MATRICES:
            factor = np.float32(np.float64(np.float32(factors[name])) ** power)
            wanted = old[name][origin[kept]] * factor
            assert np.array_equal(new[name][kept], wanted), (plane, layer, expert, name)
            if plane != "master":
                assert not new[name][drawn].any(), (plane, layer, expert, name)
            else:
                assert new[name][drawn].any(axis=1).all()


@pytest.mark.parametrize("style, recipe, world", [("plain", DROP, 1), ("distributed", NARROW, 2)])
def test_experts_get_what_their_neurons_had(judge, sources, scratch, style, recipe, world):
    source, out = sources / style, scratch / "out"
    run(write(scratch, "out", source, mode="upcycle", upcycle=recipe, target__expert_parallel=world), np=2)
    before, after = planes(read(source), style), planes(read(out), style)
    width = FFN // recipe.get("slices", 1)
    rule = recipe.get("scale", "none")
    factors = oracle.scale_factors(rule, FFN, width, recipe["experts"], recipe["top_k"])
    for layer in range(LAYERS):
        for expert in range(recipe["experts"]):
            check_experts(before, after, layer, expert, width, factors, recipe.get("shuffle", False))
    router = "decoder.layers.mlp.router.weight"
    for name in MOMENTS:
        assert not after[name][router].any()
        others = {k: v for k, v in before[name].items() if not (".linear_fc" in k and k.endswith(".weight"))}
        same(others, {key: after[name][key] for key in others})
    for key, weight in after["weight"].items():
        assert torch.equal(after["master"][key].bfloat16(), weight), key
    if world > 1:  # experts have an optimizer of their own
        goes_on(judge, out, style, world, ["--expert-model-parallel-size", str(world)])


def files(root):
    return runner.hashes(root, skip=(runner.MANIFEST, runner.LEDGER))


def test_same_bytes_by_any_ranks_memory_and_stop(sources, scratch):
    """Ranks, units, a stop and --verify; and without the planes the weights' files are the same."""
    make = lambda name, **more: write(scratch, name, sources / "distributed", mode="upcycle", upcycle=NARROW, **more)
    run(make("one"), np=1)
    wanted = files(scratch / "one")
    run(make("three", memory_per_rank="80MiB"), np=3, options=["--quiet"])
    assert files(scratch / "three") == wanted
    stop = {"MGR_FAULT": "rank:1,pwrite:12:ENOSPC"}
    result = runner.upcycle(make("part"), np=2, options=["--journal", "0"], env=stop)
    assert result.status and "--resume" in result.err, str(result)
    run(scratch / "part.yaml", np=3, options=["--resume"])
    assert files(scratch / "part") == wanted
    run(scratch / "part.yaml", np=2, options=["--verify"])
    run(make("bare", target__optimizer="none"), np=2)
    bare = files(scratch / "bare")
    chunks = [name for name in bare if name.endswith(".distcp")]
    assert chunks and all(bare[name] == wanted[name] for name in chunks)
    moment = scratch / "one" / next(name for name in wanted if name.endswith(".distcp") and name not in bare)
    with open(moment, "r+b") as file:
        file.seek(2000)
        byte = file.read(1)
        file.seek(2000)
        file.write(bytes([byte[0] ^ 1]))
    assert runner.upcycle(scratch / "one.yaml", np=2, options=["--verify"]).status
    assert runner.run([runner.program("mgr-verify"), scratch / "one"]).status


@pytest.mark.parametrize("split", SPLITS)
def test_the_format_torch_has_the_same_planes(judge, torches, scratch, split):
    """By the order of the model's tensors in each rank's file: what the trainer's torch_dist names."""
    ranks, cli = SPLITS[split]
    ep = {"target__expert_parallel": 2} if split == "experts" else {}
    run(write(scratch, split, torches / f"{split}-torch", **ep), np=2)
    got, wanted = read(scratch / split), read(torches / f"{split}-torch_dist")
    same(wanted, {key: value for key, value in got.items() if "_extra_state" not in key})
    if split == "experts":
        goes_on(judge, scratch / split, "plain", ranks, cli)


def first_file(folder):
    return min(folder.rglob("model_optim_rng.pt"))


def swap_states(content):
    state = content["optimizer"]["optimizer"]["state"]
    state[0], state[1] = state[1], state[0]


def swap_masters(content):
    masters = content["optimizer"]["fp32_from_fp16_params"][0]
    masters[2], masters[6] = masters[6], masters[2]


def lose_one(content):
    content["optimizer"]["optimizer"]["param_groups"][0]["params"].pop()


def three_groups(content):
    content["optimizer"]["optimizer"]["param_groups"].append({"params": [0]})


def distributed(content):
    del content["optimizer"]["fp32_from_fp16_params"]


DISORDER = {
    "states": (swap_states, "of other shapes"),
    "masters": (swap_masters, "another order"),
    "parameters": (lose_one, "has no state of"),
    "groups": (three_groups, "more than two groups"),
    "distributed": (distributed, "--ckpt-convert-format torch_dist"),
    "none": (lambda content: content.pop("optimizer"), "no float32 master of"),
}


@pytest.mark.parametrize("case", DISORDER)
def test_an_order_that_is_not_certain_is_refused(torches, scratch, case):
    source = scratch / "source"
    shutil.copytree(torches / "tensors-torch", source)
    path = first_file(source)
    content = torch.load(path, weights_only=False)
    do, words = DISORDER[case]
    do(content)
    torch.save(content, path)
    result = runner.upcycle(write(scratch, "out", source), np=1)
    assert result.status and words in result.err, str(result)
    assert not (scratch / "out").exists()


def of_deepspeed(out):
    """{plane: {parameter: tensor}} of a universal checkpoint."""
    files = next(out.glob("global_step*_universal")) / "zero"
    return {
        plane: {path.parent.name: torch.load(path, weights_only=True)["param"] for path in files.glob(f"*/{name}.pt")}
        for plane, name in {"master": "fp32", **{name: name for name in MOMENTS}}.items()
    }


def test_moments_go_to_deepspeed_and_come_back(judge, sources, scratch):
    """A row each way; and the trainer goes on with what came back, by the options that the output tells."""
    there, back = scratch / "there", scratch / "back"
    run(write(scratch, "there", sources / "plain", target={"format": "deepspeed", "optimizer": "keep"}), np=2)
    before, between = planes(read(sources / "plain"), "plain"), of_deepspeed(there)
    for plane, got in between.items():
        for layer in range(LAYERS):
            for name, part in matrices(before[plane], layer).items():
                mine = got[f"model.layers.{layer}.mlp.{name}_proj.weight"].numpy()
                assert np.array_equal(mine.T if name == "down" else mine, part), (plane, layer, name)
        assert torch.equal(got["lm_head.weight"], before[plane]["output_layer.weight"][: trainer.VOCAB])
    target = {"format": "megatron-dist", "dtype": "bfloat16", "names": "local", "iteration": 9, "optimizer": "keep"}
    run(write(scratch, "back", there, source__weights="auto", target={**target, "make_vocab_size_divisible_by": 8}))
    same(read(sources / "plain"), {k: v for k, v in read(back).items() if "_extra_state" not in k})
    goes_on(judge, back, "plain")


SCRATCH = {key: value for key, value in DROP.items() if key != "ratio"} | {"method": "from-scratch"}
REFUSED = {
    "release": ({"target__iteration": 0}, "release checkpoint"),
    "copies": ({"source__weights": "copies"}, "source.weights: masters"),
    "hdf5": ({"target": {"format": "hdf5", "optimizer": "keep"}}, "target.optimizer"),
    "huggingface": ({"target": {"format": "huggingface", "optimizer": "keep"}}, "target.optimizer"),
    "scratch": ({"mode": "upcycle", "upcycle": SCRATCH}, "nothing is taken"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_by_name(sources, scratch, case):
    changes, words = REFUSED[case]
    result = runner.upcycle(write(scratch, case, sources / "plain", **changes), np=2)
    assert result.status and words in result.err, str(result)
    assert not (scratch / case).exists()


def test_buckets_are_refused(sources, scratch):
    for name, changes in (("keep", {}), ("masters", {"target": {"format": "huggingface", "dtype": "float32"}})):
        result = runner.upcycle(write(scratch, name, sources / "buckets", **changes), np=2)
        assert result.status and "fully-reshardable" in result.err, str(result)


def test_the_manifest_names_the_planes(sources, scratch):
    run(write(scratch, "out", sources / "plain"))
    manifest = json.loads((scratch / "out" / runner.MANIFEST).read_text())
    assert manifest["target"]["planes"] == ["master", *MOMENTS]
