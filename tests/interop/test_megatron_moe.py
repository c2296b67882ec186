"""Mixtures of experts, and models that are not like Llama, in Megatron's format torch, judged by real
megatron-core on a CPU (megatron_core_server.py): what we write it loads strictly, as the values that
we meant, and computes with; what it saves we read."""

import argparse
import collections
import contextlib
import itertools
import json
import os
import pathlib
import re
import select
import shutil
import signal
import subprocess
import sys
import zipfile

import pytest
import torch

import harness
import megatron_core_server as server
import megatron_gather
import runner

NEWEST = "0.19.2"
RELEASES = (NEWEST, "0.16.1", "0.13.1")
EXPERTS = 4

LLAMA = {}
GPT = {"norm": "LayerNorm", "activation": "gelu", "bias": True, "learned": True, "tied": True}
KINDS = {
    "llama": LLAMA,
    "gpt": GPT,
    "qwen": {"qkv_bias": True, "qk_norm": True},
    "nemotron": {"norm": "LayerNorm", "activation": "squared_relu"},
    "gemma": {"activation": "geglu", "tied": True, "kv_heads": 8, "qk_norm": True},
    "gpt with norms of q and k": {**GPT, "qk_norm": True},
}


class Core:
    """A megatron_core_server.py in a session of its own, of which nothing is left behind."""

    def __init__(self, release, log, program=server.__file__):
        packages = runner.ROOT / ".venv" / f"megatron-core-{release}"
        assert packages.is_dir(), f"no {packages}: run tools/venv.sh"
        self.log = log
        with open(log, "w") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, program],
                env={**os.environ, "PYTHONPATH": str(packages), "OMP_NUM_THREADS": "1"},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                start_new_session=True,
            )

    def ask(self, model, split, *steps):
        """Returns the ranks that failed and what the job logged."""
        steps = [{key: str(value) for key, value in step.items()} for step in steps]
        return self.send({"model": model, "split": split, "steps": steps})

    def send(self, job):
        begin = self.log.stat().st_size
        print(json.dumps(job), file=self.process.stdin, flush=True)
        ready, _, _ = select.select([self.process.stdout], [], [], 120)
        assert ready, f"no answer within 120 s\n{self.log.read_text()[begin:]}"
        answer = self.process.stdout.readline()
        logged = self.log.read_bytes()[begin:].decode(errors="replace")
        assert answer, f"the server ended\n{logged}"
        return json.loads(answer)["failed"], logged

    def run(self, model, split, *steps):
        failed, logged = self.ask(model, split, *steps)
        assert not failed, f"ranks {failed} of {split} failed\n{logged[-6000:]}"

    def stop(self):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()


@pytest.fixture(scope="module")
def core(module_scratch):
    """core(release): that release's server."""
    servers = {}

    def get(release=NEWEST):
        if release not in servers:
            servers[release] = Core(release, module_scratch / f"{release}.log")
        return servers[release]

    yield get
    for each in servers.values():
        each.stop()


class Saved:
    """What megatron-core saved: `root` in the format torch, and the tensors of the live model."""

    def __init__(self, folder, model, split):
        self.root, self.model, self.split = folder / "torch", model, split
        self.folder = folder
        full = server.with_defaults({"model": model, "split": split})
        self.tensors = megatron_gather.live(folder / "live", *full)

    def logits(self):
        return logits(self.folder / "logits")


def logits(folder):
    """Of tensor-parallel ranks each has a part of the vocabulary."""
    parts = {}
    for path in folder.glob("*.pt"):
        rank = torch.load(path)
        parts.setdefault(rank["place"]["tp"], rank["logits"])
    return torch.cat([parts[tp] for tp in sorted(parts)], dim=-1)


@pytest.fixture(scope="module")
def saved(core, module_scratch):
    """saved(model, split, release=...): by megatron-core, once for all tests."""
    done, numbers = {}, itertools.count()

    def get(model, split, release=NEWEST):
        key = json.dumps([model, split, release])
        if key not in done:
            folder = module_scratch / f"saved-{next(numbers)}"
            steps = [{"do": "save", "to": folder}]
            if split.get("pp", 1) == 1:
                steps.append({"do": "logits", "to": folder / "logits"})
            core(release).run(model, split, *steps)
            done[key] = Saved(folder, model, split)
        return done[key]

    return get


def convert(scratch, source, split, name="out", np=2, status=0, **changes):
    """Into the format torch at `split`, with the names of the local spec."""
    options = {
        "target__format": "megatron-torch",
        "target__tensor_parallel": split.get("tp"),
        "target__pipeline_parallel": split.get("pp"),
        "target__expert_parallel": split.get("ep"),
        "target__expert_tensor_parallel": split.get("etp"),
        "target__virtual_pipeline": split.get("vpp"),
        "target__first_stage_layers": split.get("first"),
        "target__last_stage_layers": split.get("last"),
        "target__make_vocab_size_divisible_by": 8,
        "target__names": "local",
        "target__dtype": "source",
        **changes,
    }
    target = scratch / name
    config = runner.write_config(scratch / (name + ".yaml"), source, target, **options)
    result = runner.upcycle(config, np=np)
    assert result.status == status, str(result)
    if status == 0:
        assert not list(scratch.glob("*.partial-*")), str(result)
        return target
    assert len(result.errors()) == 1, str(result)
    assert not target.exists() and not list(scratch.glob(name + ".partial-*")), str(result)
    return result


def upcycle(scratch, source, split, name="out", method="naive", **changes):
    ratio = {} if method == "drop" else {"upcycle__ratio": None}
    changes = {"upcycle__method": method, "upcycle__experts": EXPERTS, **ratio, **changes}
    return convert(scratch, source, split, name, **changes)


def reshard(scratch, source, split, name="out", **changes):
    return convert(scratch, source, split, name, mode="reshard", upcycle=None, **changes)


def loaded(core, scratch, root, model, split, release=NEWEST, more=()):
    """Load strictly into megatron-core; the tensors of the live model."""
    folder = scratch / f"loaded-{root.name}-{release}"
    core(release).run(model, split, {"do": "load", "from": root}, {"do": "live", "to": folder}, *more)
    return megatron_gather.live(folder, *server.with_defaults({"model": model, "split": split}))


def from_files(root, model, split):
    return megatron_gather.files(root, *server.with_defaults({"model": model, "split": split}))


def assert_same(found, expected):
    assert found.keys() == expected.keys(), sorted(found.keys() ^ expected.keys())
    wrong = [name for name in expected if not harness.same_bits(found[name], expected[name])]
    assert not wrong, wrong


def is_ffn(name):
    return re.search(r"\.mlp\.(gate|up|down)_proj\.", name)


def assert_naive(found, dense, moe_layers=range(server.MODEL["layers"]), router_bias=False):
    """Every tensor is that of the dense model; those of an FFN with experts once for each expert. The
    router is new, and no two of its rows are the same; its bias is zero."""
    found, expected = dict(found), {}
    for layer in moe_layers:
        router = found.pop(f"model.layers.{layer}.mlp.router.weight")
        assert router.shape == (EXPERTS, server.MODEL["hidden"])
        assert len({tuple(row) for row in router.tolist()}) == EXPERTS
        assert router.dtype == dense["model.norm.weight"].dtype
        if router_bias:
            bias = found.pop(f"model.layers.{layer}.mlp.router.bias")
            assert bias.shape == (EXPERTS,) and not bias.any() and bias.dtype == router.dtype
    for name, tensor in dense.items():
        if is_ffn(name) and int(name.split(".")[2]) in moe_layers:
            for expert in range(EXPERTS):
                expected[name.replace(".mlp.", f".mlp.experts.{expert}.")] = tensor
        else:
            expected[name] = tensor
    assert_same(found, expected)


def of_recipes(tensors):
    """The output of the target moe-recipes under the names of megatron_gather."""
    kinds = {w: kind for kind, w in harness.W.items()}

    def rename(name):
        name = name.replace("block_sparse_moe.gate", "mlp.router").replace("block_sparse_moe", "mlp")
        return re.sub(r"\.(w[123])\.", lambda w: f".{kinds[w[1]]}_proj.", name)

    return {rename(name): tensor for name, tensor in tensors.items()}


def recipes(scratch, source, name="recipes", **changes):
    return of_recipes(harness.read_output(harness.convert(scratch, source, name=name, **changes)))


# ---- upcycled, and loaded by megatron-core ---------------------------------------------------------

SPLITS = [
    {"tp": 1},
    {"tp": 2},
    {"pp": 2},
    {"ep": 2},
    {"tp": 2, "ep": 2},
    {"tp": 2, "ep": 2, "etp": 1},
    {"pp": 2, "vpp": 2},
    {"pp": 2, "first": 1, "last": 3, "tp": 2},
]
CASES = [(NEWEST, split) for split in SPLITS]
CASES += [("0.16.1", {"tp": 2, "ep": 2}), ("0.16.1", {"pp": 2, "vpp": 2}), ("0.13.1", {"tp": 2, "pp": 2})]


def split_name(split):
    return "-".join(f"{key}{value}" for key, value in split.items()) if isinstance(split, dict) else split


@pytest.mark.parametrize("release,split", CASES, ids=split_name)
def test_upcycled_models_load_strictly(core, saved, scratch, release, split):
    dense = saved(LLAMA, {"tp": 2, "pp": 2})
    model = {**LLAMA, "experts": EXPERTS}
    naive = upcycle(scratch, dense.root, split, "naive")
    assert_naive(loaded(core, scratch, naive, model, split, release), dense.tensors)
    drop = upcycle(scratch, dense.root, split, "drop", "drop")
    assert_same(
        loaded(core, scratch, drop, model, split, release),
        recipes(scratch, dense.root, upcycle__experts=EXPERTS),
    )


@pytest.mark.parametrize("release", RELEASES)
def test_naive_upcycling_keeps_the_logits(core, saved, scratch, release):
    source = {**LLAMA, "dtype": "float32"}
    dense = saved(source, {"tp": 2}, release)
    model = {**source, "experts": EXPERTS}
    splits = [{"tp": 1}, {"tp": 2}]
    splits += [{"ep": 2}, {"tp": 2, "ep": 2, "etp": 1}] if release == NEWEST else []
    for split in splits:
        name = split_name(split)
        out = upcycle(scratch, dense.root, split, name)
        folder = scratch / f"logits-{name}"
        loaded(core, scratch, out, model, split, release, [{"do": "logits", "to": folder}])
        found, expected = logits(folder), dense.logits()
        assert found.shape == expected.shape and expected.std() > 0.1
        assert harness.relative_difference(found, expected) < 1e-5, name


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("tp", [1, 2])
def test_naive_is_megatron_cores_own_upcycling(core, saved, scratch, release, tp):
    """megatron-core makes its experts of the dense model in `dense`; the files hold the same."""
    source = saved(LLAMA, {"tp": 2, "pp": 2})
    dense = reshard(scratch, source.root, {"tp": tp}, "dense")
    naive = upcycle(scratch, source.root, {"tp": tp}, "naive")
    steps = {"do": "upcycle", "dense": dense, "from": naive}
    core(release).run({**LLAMA, "experts": EXPERTS}, {"tp": tp}, steps)


CUTS = [(1, 1, True), (1, 2, False), (1, 4, False), (1, 4, True), (2, 4, False)]


@pytest.mark.parametrize("tp,slices,pre", CUTS)
def test_published_scale_is_megatron_cores_own_upcycling(core, saved, scratch, tp, slices, pre):
    """At granularity 1, 2 and 4, and with softmax before top-k. At TP 2 each rank of megatron-core cuts
    the neurons that it happens to hold, so that its slices are others than at TP 1; ours never are."""
    source = saved({**LLAMA, "dtype": "float32"}, {"tp": 2})
    dense = reshard(scratch, source.root, {"tp": tp}, "dense")
    made = upcycle(
        scratch, source.root, {"tp": tp}, "made", upcycle__slices=slices, upcycle__experts=8, upcycle__top_k=4,
        upcycle__scale="published", upcycle__router_pre_softmax=pre,
        upcycle__router="virtual-groups" if slices > 1 else "normal",
    )  # fmt: skip
    model = {**LLAMA, "dtype": "float32", "experts": 8, "top_k": 4, "pre_softmax": pre}
    steps = {"do": "upcycle", "dense": dense, "from": made, "sets": "own" if tp > 1 else "same"}
    core().run({**model, "expert_ffn": server.MODEL["ffn"] // slices}, {"tp": tp}, steps)


MIXED = [
    (NEWEST, "[0]*1+[1]*2+[0]", [0, 1, 1, 0], {"pp": 2}),
    (NEWEST, "2", [1, 0, 1, 0], {"ep": 2}),
    ("0.16.1", "[0,1]*2", [0, 1, 0, 1], {"tp": 2}),
]


@pytest.mark.parametrize("release,freq,moe,split", MIXED, ids=[freq for _, freq, _, _ in MIXED])
def test_some_layers_stay_dense(core, saved, scratch, release, freq, moe, split):
    dense = saved(LLAMA, {"tp": 2, "pp": 2})
    model = {**LLAMA, "experts": EXPERTS, "layer_freq": 2 if freq == "2" else moe}
    out = upcycle(scratch, dense.root, split, upcycle__moe_layer_freq=freq)
    layers = [layer for layer in range(4) if moe[layer]]
    assert_naive(loaded(core, scratch, out, model, split, release), dense.tensors, layers)
    (first, *_) = sorted(out.rglob("*.pt"))
    assert megatron_gather.load_rank(first)["args"].moe_layer_freq == moe
    again = reshard(scratch, out, {"tp": 2, "pp": 2, "vpp": 2}, "again")
    assert_naive(
        loaded(core, scratch, again, model, {"tp": 2, "pp": 2, "vpp": 2}, release), dense.tensors, layers
    )


# ---- saved by megatron-core, and read ----------------------------------------------------------------

RESHARDS = [
    (NEWEST, {"ep": 2}, {"tp": 2}),
    (NEWEST, {"tp": 2}, {"pp": 2, "ep": 2}),
    (NEWEST, {"pp": 2}, {"tp": 2, "ep": 2, "etp": 1}),
    (NEWEST, {"tp": 2, "ep": 2}, {"pp": 2, "vpp": 2}),
    (NEWEST, {"tp": 2, "ep": 2, "etp": 1}, {"ep": 4}),
    (NEWEST, {"pp": 2, "vpp": 2, "ep": 2}, {"tp": 1}),
    (NEWEST, {"pp": 2, "first": 1, "last": 3}, {"pp": 2}),
    ("0.16.1", {"pp": 2, "ep": 2}, {"tp": 2}),
    ("0.13.1", {"ep": 2}, {"pp": 2}),
]


@pytest.mark.parametrize("release,split,other", RESHARDS, ids=split_name)
def test_experts_that_megatron_core_saved(core, saved, scratch, release, split, other):
    model = {**LLAMA, "experts": EXPERTS, "expert_ffn": 56}
    source = saved(model, split, release)
    out = reshard(scratch, source.root, other)
    assert_same(from_files(out, model, other), source.tensors)
    assert_same(loaded(core, scratch, out, model, other), source.tensors)
    changes = {"mode": "reshard", "upcycle": None}
    assert_same(recipes(scratch, source.root, **changes), source.tensors)


def edit_files(root, to, edit):
    """A copy of a checkpoint; edit(content, key) changes the state dict content[key]."""
    shutil.copytree(root, to)
    for path in to.rglob("*.pt"):
        content = torch.load(path, weights_only=False)
        for key in [key for key in content if key.startswith("model")]:
            edit(content, key)
        torch.save(content, path)
    return to


def grouped(content, key):
    """TEGroupedMLP (extensions/transformer_engine.py): "weight<expert>" of one module for all experts,
    with one _extra_state; and Transformer Engine's names of the norms."""
    state = collections.OrderedDict()
    for name, value in content[key].items():
        expert = re.fullmatch(r"(.*experts\.)local_experts\.(\d+)\.(linear_fc[12]\.)(.*)", name)
        if expert:
            at, number, linear, rest = expert.groups()
            name = at + linear + (rest if rest == "_extra_state" else rest + number)
        name = re.sub(r"input_layernorm\.(weight|bias)", r"self_attention.linear_qkv.layer_norm_\1", name)
        state[name] = value
    content[key] = state
    content["args"].moe_grouped_gemm = True


@pytest.mark.parametrize("kind", ["llama", "gpt"])
def test_grouped_experts(core, saved, scratch, kind):
    model, split = {**KINDS[kind], "experts": EXPERTS}, {"ep": 2}
    source = saved(model, split)
    renamed = edit_files(source.root, scratch / "grouped", grouped)
    assert_same(from_files(renamed, model, split), source.tensors)
    sequential = reshard(scratch, renamed, {"pp": 2}, "sequential")
    assert_same(loaded(core, scratch, sequential, model, {"pp": 2}), source.tensors)
    again = reshard(scratch, sequential, split, "again", target__names="te", target__expert_names="grouped")
    assert_same(from_files(again, model, split), source.tensors)
    for path in sorted(renamed.rglob("*.pt")):
        theirs = megatron_gather.load_rank(path)
        ours = megatron_gather.load_rank(again / "release" / path.parent.name / path.name)
        assert ours["args"].moe_grouped_gemm is True
        extra = ours["model"].keys() - theirs["model"].keys()
        assert theirs["model"].keys() <= ours["model"].keys()
        assert all(re.search(r"(core_attention|layernorm)\._extra_state$", name) for name in extra), extra
        assert all(ours["model"][name] is None for name in extra)


@pytest.mark.parametrize(
    "release,kind,split",
    [
        ("0.16.1", "llama", {"tp": 2, "ep": 2}),
        ("0.16.1", "llama", {"tp": 2, "ep": 2, "etp": 1}),
        ("0.16.1", "nemotron", {"tp": 2}),
        ("0.13.1", "llama", {"ep": 2}),
    ],
    ids=split_name,
)
def test_experts_of_grouped_mlp(core, saved, scratch, release, kind, split):
    """GroupedMLP, which core has up to 0.16, both ways; the logits are those of the dense model, as far as
    bfloat16 goes, which is all that GroupedMLP computes in."""
    model = {**KINDS[kind], "experts": EXPERTS, "expert_ffn": 56, "grouped": True}
    source = saved(model, split, release)
    sequential = reshard(scratch, source.root, {"pp": 2}, "sequential")
    plain = {**model, "grouped": False}
    assert_same(loaded(core, scratch, sequential, plain, {"pp": 2}), source.tensors)
    again = reshard(scratch, sequential, split, "again", target__expert_names="grouped-old")
    assert_same(loaded(core, scratch, again, model, split, release), source.tensors)

    dense, model = saved(KINDS[kind], {"tp": 2}, release), {**model, "expert_ffn": 0}
    out = upcycle(scratch, dense.root, split, target__expert_names="grouped-old")
    folder = scratch / "logits"
    found = loaded(core, scratch, out, model, split, release, [{"do": "logits", "to": folder}])
    assert_naive(found, dense.tensors)
    assert harness.relative_difference(logits(folder), dense.logits()) < 0.02


# ---- models that are not like Llama ------------------------------------------------------------------

OTHERS = [
    (NEWEST, "gpt", {"tp": 2}, {"pp": 2}),
    (NEWEST, "gpt", {"pp": 2}, {"tp": 2}),
    (NEWEST, "qwen", {"tp": 2}, {"pp": 2, "vpp": 2}),
    (NEWEST, "nemotron", {"pp": 2}, {"tp": 2}),
    (NEWEST, "gemma", {"tp": 2}, {"pp": 2}),
    (NEWEST, "gpt with norms of q and k", {"tp": 2}, {"tp": 1}),
    ("0.16.1", "gpt", {"tp": 2}, {"pp": 2}),
    ("0.13.1", "qwen", {"pp": 2}, {"tp": 2}),
]


@pytest.mark.parametrize("release,kind,split,other", OTHERS, ids=split_name)
def test_dense_models_of_other_kinds(core, saved, scratch, release, kind, split, other):
    model = KINDS[kind]
    source = saved(model, split, release)
    out = reshard(scratch, source.root, other)
    assert_same(from_files(out, model, other), source.tensors)
    assert_same(loaded(core, scratch, out, model, other, release), source.tensors)
    te = reshard(scratch, out, split, "te", target__names="te")
    assert_same(from_files(te, model, split), source.tensors)


@pytest.mark.parametrize("release", [NEWEST, "0.16.1"])
@pytest.mark.parametrize("split", [{"tp": 1}, {"tp": 2, "etp": 1}, {"pp": 2, "ep": 2}], ids=split_name)
def test_a_gpt_becomes_a_mixture_of_experts(core, saved, scratch, release, split):
    """With the biases of its experts and of its router, and its logits: the probabilities of the top-k
    add up to 1, so that the shares of fc2's bias do."""
    source = {**GPT, "dtype": "float32"}
    dense = saved(source, {"tp": 2}, release)
    model = {**source, "experts": EXPERTS}
    out = upcycle(scratch, dense.root, split)
    folder = scratch / "logits"
    judge = [{"do": "logits", "to": folder}] if split.get("pp", 1) == 1 else []
    found = loaded(core, scratch, out, model, split, release, judge)
    assert_naive(found, dense.tensors, router_bias=True)
    if judge:
        assert harness.relative_difference(logits(folder), dense.logits()) < 1e-5
    again = reshard(scratch, out, {"ep": 4}, "again")
    assert_naive(from_files(again, model, {"ep": 4}), dense.tensors, router_bias=True)


def test_biases_of_experts_are_not_split(core, saved, scratch):
    """megatron-core refuses such a model, and so do we."""
    dense = saved({**GPT, "dtype": "float32"}, {"tp": 2})
    result = upcycle(scratch, dense.root, {"tp": 2}, status=runner.CONFIG)
    assert "expert_tensor_parallel: 1" in result.err, str(result)
    failed, logged = core().ask({**GPT, "experts": EXPERTS}, {"tp": 2})
    assert failed and "Bias in Moe is only supported when ETP==1" in logged


# ---- the files -------------------------------------------------------------------------------------


def test_files_are_what_torch_and_zip_expect(saved, scratch):
    dense = saved(LLAMA, {"tp": 2, "pp": 2})
    out = upcycle(scratch, dense.root, {"tp": 2, "pp": 2, "ep": 2, "vpp": 2}, method="drop")
    paths = sorted(out.rglob("*.pt"))
    assert len(paths) == 8
    for path in paths:
        assert zipfile.ZipFile(path).testzip() is None
        assert subprocess.run(["unzip", "-tqq", path]).returncode == 0
        needed = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        assert set(needed) == {"argparse.Namespace"}
        with torch.serialization.safe_globals([argparse.Namespace]):
            safe = torch.load(path, weights_only=True)
        trusting = torch.load(path, weights_only=False)
        assert vars(safe["args"]) == vars(trusting["args"])
        for key in ("model0", "model1"):
            assert safe[key].keys() == trusting[key].keys()
            for name, value in safe[key].items():
                other = trusting[key][name]
                assert other is None if value is None else torch.equal(value, other), name
    args = vars(safe["args"])
    expected = {
        "num_experts": EXPERTS,
        "moe_ffn_hidden_size": server.MODEL["ffn"],
        "moe_router_topk": 2,
        "moe_layer_freq": 1,
        "moe_grouped_gemm": False,
        "moe_router_pre_softmax": False,
        "moe_router_score_function": "softmax",
        "tensor_model_parallel_size": 2,
        "pipeline_model_parallel_size": 2,
        "virtual_pipeline_model_parallel_size": 2,
        "expert_model_parallel_size": 2,
        "expert_tensor_parallel_size": 2,
    }
    assert {name: args.get(name) for name in expected} == expected


def test_a_misspelt_tensor_is_not_published(saved, scratch):
    """Megatron falls back to loading what names it finds, so that no one would notice."""
    dense = saved(LLAMA, {"tp": 2, "pp": 2})
    good = upcycle(scratch, dense.root, {"ep": 2}, "good")
    names = {name for path in good.rglob("*.pt") for name in megatron_gather.load_rank(path)["model"]}
    config, target = scratch / "good.yaml", scratch / "bad"
    for k in (1, 17, 40):
        before = sorted(scratch.iterdir())
        result = runner.upcycle(
            config, options=["--set", f"target.path={target}"], env={"MGR_FAULT": f"name:{k}"}
        )
        assert result.status == runner.INTERNAL, str(result)
        (error,) = result.errors()
        (named,) = re.findall(r"self-check.*'model\.(.*?)'", error)
        assert named in names or named[:-1] in {name[:-1] for name in names}, error
        assert sorted(scratch.iterdir()) == before


# ---- refusals ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "split,changes,word",
    [
        ({"tp": 4, "etp": 3}, {}, "expert_tensor_parallel"),
        ({"tp": 2, "etp": 4}, {}, "expert_tensor_parallel"),
        ({"ep": 3}, {}, "expert-parallel"),
        ({"pp": 3}, {}, "4 layers"),
        ({"pp": 2, "vpp": 3}, {}, "4 layers"),
        ({"vpp": 2}, {}, "virtual_pipeline"),
        ({"pp": 2, "first": 4}, {}, "4 layers"),
        ({"pp": 2, "vpp": 2, "first": 2, "last": 2}, {}, "4 layers"),
        ({"pp": 2, "first": 1, "last": 2}, {}, "4 layers"),
        ({}, {"target__expert_names": "grouped"}, "expert_names"),
        ({}, {"target__names": "fused"}, "names"),
        ({}, {"upcycle__moe_layer_freq": "[0,1]"}, "moe_layer_freq"),
        ({}, {"upcycle__moe_layer_freq": "[0]*4"}, "moe_layer_freq"),
        ({}, {"upcycle__moe_layer_freq": "[0,1,2,1]"}, "moe_layer_freq"),
        ({}, {"upcycle__moe_layer_freq": "all"}, "moe_layer_freq"),
        ({}, {"upcycle__top_k": 5}, "top_k"),
    ],
)
def test_targets_that_cannot_be(saved, scratch, split, changes, word):
    dense = saved(LLAMA, {"tp": 2, "pp": 2})
    result = upcycle(scratch, dense.root, split, status=runner.CONFIG, **changes)
    assert word in result.errors()[0], str(result)


def set_args(**values):
    return lambda content, key: vars(content["args"]).update(values)


def add_tensor(name, like):
    return lambda content, key: content[key].update({name: content[key][like].clone()})


def remove_tensor(name):
    return lambda content, key: content[key].pop(name)


@pytest.mark.parametrize(
    "edit,word",
    [
        (set_args(moe_shared_expert_intermediate_size=80), "no shared expert"),
        (set_args(moe_router_enable_expert_bias=True), "moe_router_enable_expert_bias"),
        (set_args(moe_router_score_function="sqrtsoftplus"), "sqrtsoftplus"),
        (set_args(moe_router_topk_scaling_factor=-2.5), "scaling_factor"),
        (set_args(moe_router_num_groups=3, moe_router_group_topk=2), "groups"),
        (set_args(num_experts=8), "num_experts"),
        (set_args(moe_ffn_hidden_size=40), "moe_ffn_hidden_size"),
        (set_args(expert_tensor_parallel_size=4), "expert tensor parallel"),
        (
            add_tensor(
                "decoder.layers.1.mlp.shared_experts.linear_fc1.weight",
                "decoder.layers.1.mlp.experts.local_experts.0.linear_fc1.weight",
            ),
            "shared_experts",
        ),
        (
            add_tensor("decoder.layers.0.mlp.router.expert_bias", "decoder.layers.0.input_layernorm.weight"),
            "expert_bias",
        ),
        (
            add_tensor(
                "decoder.layers.3.mlp.experts.local_experts.2.linear_fc1.weight",
                "decoder.layers.3.mlp.experts.local_experts.1.linear_fc1.weight",
            ),
            "local_experts.2",
        ),
        (remove_tensor("decoder.layers.2.mlp.router.weight"), "layers.2"),
        (
            remove_tensor("decoder.layers.2.mlp.experts.local_experts.1.linear_fc2.weight"),
            "local_experts.1.linear_fc2",
        ),
    ],
)
def test_sources_that_are_refused(saved, scratch, edit, word):
    source = saved({**LLAMA, "experts": EXPERTS}, {"ep": 2})
    broken = edit_files(source.root, scratch / "broken", edit)
    result = reshard(scratch, broken, {"tp": 2}, status=runner.DATA)
    assert word in result.errors()[0], str(result)


def test_a_router_that_differs_between_expert_ranks(saved, scratch):
    source = saved({**LLAMA, "experts": EXPERTS}, {"ep": 2})
    broken = shutil.copytree(source.root, scratch / "broken")
    (path,) = broken.rglob("mp_rank_00_001/*.pt")
    content = torch.load(path, weights_only=False)
    content["model"]["decoder.layers.1.mlp.router.weight"][3, 5] += 1
    torch.save(content, path)
    result = reshard(scratch, broken, {"tp": 2}, status=runner.DATA)
    assert "router" in result.errors()[0], str(result)


def test_an_expert_rank_too_few(saved, scratch):
    source = saved({**LLAMA, "experts": EXPERTS}, {"ep": 2})
    broken = edit_files(source.root, scratch / "broken", set_args(expert_model_parallel_size=3))
    result = reshard(scratch, broken, {"tp": 2}, status=runner.NO_INPUT)
    assert "mp_rank_00_002" in result.errors()[0], str(result)


def test_a_missing_expert_rank(saved, scratch):
    source = saved({**LLAMA, "experts": EXPERTS}, {"ep": 2})
    broken = shutil.copytree(source.root, scratch / "broken")
    (folder,) = broken.rglob("mp_rank_00_001")
    shutil.rmtree(folder)
    result = reshard(scratch, broken, {"tp": 2}, status=runner.NO_INPUT)
    assert "mp_rank_00_001" in result.errors()[0], str(result)


def test_a_mixture_of_as_many_experts_is_not_upcycled(saved, scratch):
    source = saved({**LLAMA, "experts": EXPERTS}, {"ep": 2})
    result = upcycle(scratch, source.root, {"tp": 1}, status=runner.CONFIG)
    assert "already" in result.errors()[0] and "reshard" in result.err, str(result)
