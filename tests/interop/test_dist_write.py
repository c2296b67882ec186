"""Target `megatron-dist`: torch.distributed.checkpoint.load finds each tensor as the format `torch`
holds it, and source `megatron-dist` finds the same in whatever chunks and keys. What real
megatron-core makes of it is in test_megatron_core_dist.py."""

import io
import json
import pickle
import pickletools
import zipfile

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import FileSystemReader

import dist_like as dl
import harness
import runner

LAYERS, EXPERTS = 4, 4
SIZES = ["--layers", LAYERS, "--hidden", 48, "--ffn", 80, "--heads", 6, "--kv-heads", 2]
SIZES += ["--vocab", 500, "--max-positions", 40, "-q"]
BIASES = ["--norm", "layernorm", "--bias", "--qkv-bias", "--qk-norm", "--positions", "learned", "--tied"]
MOE = ["--experts", EXPERTS, "--expert-ffn", 24]
MODELS = {
    "llama": [],
    "fp32": ["--dtype", "fp32"],
    "geglu": ["--activation", "geglu", *BIASES],
    "gelu": ["--activation", "gelu", "--bias", "--norm", "layernorm"],
    "moe": MOE,
    "moe-gelu": ["--activation", "gelu", *BIASES, *MOE],
    "moe-geglu": ["--activation", "geglu", *BIASES, *MOE],
}


def synth(out, options):
    result = runner.run([runner.program("mgr-synth"), out, *SIZES, *options, "--names", "te"])
    assert result.status == 0, str(result)
    return out


def convert(scratch, source, name, np=2, **changes):
    config = runner.write_config(
        scratch / (name + ".yaml"), source, scratch / name, target__dtype="source", **changes
    )
    result = runner.upcycle(config, np=np)
    assert result.status == 0, str(result)
    return scratch / name


def reshard(scratch, source, name, **changes):
    return convert(scratch, source, name, **{"mode": "reshard", "upcycle": None, **changes})


def to_dist(scratch, source, name="dist", **changes):
    return reshard(
        scratch, source, name, target__format="megatron-dist",
        **{"target__make_vocab_size_divisible_by": 1, **changes},
    )


def folder_of(root):
    return next(path.parent for path in root.rglob(".metadata"))


def load(root):
    """({key: tensor}, {key: object}) by torch, through everything that .metadata lists."""
    folder = folder_of(root)
    entries = FileSystemReader(folder).read_metadata().state_dict_metadata
    state = {
        key: torch.full(entry.size, 77, dtype=entry.properties.dtype) if hasattr(entry, "size") else io.BytesIO()
        for key, entry in entries.items()
    }
    dcp.load(state, storage_reader=FileSystemReader(folder), no_dist=True)
    tensors = {key: value for key, value in state.items() if isinstance(value, torch.Tensor)}
    return tensors, {key: value for key, value in state.items() if key not in tensors}


def check_equal(got, wanted):
    assert set(got) == set(wanted), set(got) ^ set(wanted)
    for key, tensor in wanted.items():
        assert harness.same_bits(got[key], tensor), key


# ---- what torch reads ----------------------------------------------------------------------------


@pytest.mark.parametrize("names", ["te", "local"])
@pytest.mark.parametrize("keys", ["auto", "per-layer"])
@pytest.mark.parametrize("model", MODELS)
def test_torch_reads_every_tensor(scratch, model, keys, names):
    source = synth(scratch / "torch", MODELS[model])
    out = to_dist(scratch, source, target__dist_keys=keys, target__names=names)
    tensors, objects = load(out)
    state = dl.of_one_rank(source)
    check_equal(tensors, dl.keys_of_dist(state, stacked=keys == "auto", local=names == "local"))
    assert objects and all(value == [None] for value in objects.values())
    assert all("._extra_state/shard_" in key for key in objects)


def test_padding_of_the_vocabulary_is_zero(scratch):
    source = synth(scratch / "torch", [])
    out = to_dist(scratch, source, target__make_vocab_size_divisible_by=64, target__tensor_parallel=4)
    tensors, _ = load(out)
    state = dl.of_one_rank(source)
    for key in ("embedding.word_embeddings.weight", "output_layer.weight"):
        assert tensors[key].shape[0] == 512
        assert harness.same_bits(tensors[key][:500], state[key]) and not tensors[key][500:].any()
    metadata = pickle.loads((folder_of(out) / ".metadata").read_bytes())
    chunks = metadata.state_dict_metadata["output_layer.weight"].chunks
    assert [tuple(c.sizes) for c in chunks] == [(128, 48)] * 4  # a tensor-parallel rank reads one
    assert torch.load(folder_of(out) / "common.pt", weights_only=False)["args"].padded_vocab_size == 512


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_experts_have_files_of_their_own(scratch, ranks):
    source = synth(scratch / "torch", [*MOE, "--ffn", 8192, "--expert-ffn", 4096])
    out = to_dist(scratch, source, target__expert_parallel=ranks, target__max_shard_size="1MiB")
    tensors, _ = load(out)
    check_equal(tensors, dl.keys_of_dist(dl.of_one_rank(source)))
    metadata = pickle.loads((folder_of(out) / ".metadata").read_bytes())
    owners = {}
    for index, info in metadata.storage_data.items():
        expert = index.offset[1] if ".experts." in index.fqn and index.offset else None
        owners.setdefault(info.relative_path, set()).add(None if expert is None else expert * ranks // EXPERTS)
    assert len(owners) > ranks
    assert all(len(kinds) == 1 for kinds in owners.values()) == (ranks > 1)
    sizes = [path.stat().st_size for path in folder_of(out).glob("*.distcp")]
    assert len(sizes) == len(owners) and max(sizes) < 1.1 * 2**20
    listed = json.loads((out / runner.MANIFEST).read_text())["target"]["files"]
    of_ranks = {file["expert_parallel_rank"] for file in listed}
    assert of_ranks == ({None} | set(range(ranks)) if ranks > 1 else {None})
    assert len(listed) == len(sizes)


def test_items_fill_their_files_and_have_checksums(scratch):
    """Each is an archive that zipfile and unzip would take, too."""
    out = to_dist(scratch, synth(scratch / "torch", MODELS["moe-geglu"]), target__max_shard_size="1MiB")
    metadata = pickle.loads((folder_of(out) / ".metadata").read_bytes())
    places = {(i.relative_path, i.offset, i.length) for i in metadata.storage_data.values()}
    end = {}
    for path, offset, length in sorted(places):
        assert offset == end.get(path, 0)
        end[path] = offset + length
        with open(folder_of(out) / path, "rb") as file:
            file.seek(offset)
            archive = zipfile.ZipFile(io.BytesIO(file.read(length)))
        assert archive.testzip() is None and "archive/data.pkl" in archive.namelist()
    assert end == {path.name: path.stat().st_size for path in folder_of(out).glob("*.distcp")}
    objects = {i.offset for key, i in metadata.storage_data.items() if key.offset is None}
    assert objects == {0} and len(metadata.storage_data) > 100  # they share one place


# Of torch 2.1 (torch/distributed/checkpoint/{metadata,filesystem}.py, its sharded_tensor/metadata.py
# and torch/serialization.py), and of every release since.
OLD_NAMES = {
    "torch.distributed.checkpoint.metadata Metadata",
    "torch.distributed.checkpoint.metadata TensorStorageMetadata",
    "torch.distributed.checkpoint.metadata BytesStorageMetadata",
    "torch.distributed.checkpoint.metadata ChunkStorageMetadata",
    "torch.distributed.checkpoint.metadata MetadataIndex",
    "torch.distributed.checkpoint.filesystem _StorageInfo",
    "torch.distributed._shard.sharded_tensor.metadata TensorProperties",
    "torch.distributed._shard.sharded_tensor.metadata MEM_FORMAT_ENCODING",
    "torch.serialization _get_layout",
    "torch Size",
    "torch bfloat16",
}


def test_metadata_names_nothing_that_old_torch_lacks(scratch):
    out = to_dist(scratch, synth(scratch / "torch", MOE))
    data = (folder_of(out) / ".metadata").read_bytes()
    opcodes = list(pickletools.genops(data))
    assert {arg for op, arg, _ in opcodes if op.name == "GLOBAL"} == OLD_NAMES
    assert max(op.proto for op, _, _ in opcodes) == 2
    metadata = pickle.loads(data)
    assert set(vars(metadata)) == {"state_dict_metadata", "planner_data", "storage_data"}
    for info in metadata.storage_data.values():
        assert set(vars(info)) == {"relative_path", "offset", "length"}
    entry = metadata.state_dict_metadata["decoder.final_layernorm.weight"]
    assert entry.properties.memory_format == torch.contiguous_format
    assert entry.properties.layout == torch.strided and not entry.properties.requires_grad


@pytest.mark.parametrize("keys", ["auto", "stacked", "per-layer"])
def test_common_state(scratch, keys):
    out = to_dist(scratch, synth(scratch / "torch", MOE), target__dist_keys=keys, target__iteration=12)
    assert (out / "latest_checkpointed_iteration.txt").read_text() == "12"
    folder = out / "iter_0000012"
    assert json.loads((folder / "metadata.json").read_text()) == dl.MANIFEST
    with torch.serialization.safe_globals([type(torch.load(folder / "common.pt", weights_only=False)["args"])]):
        common = torch.load(folder / "common.pt", weights_only=True)
    args = common["args"]
    assert (common["checkpoint_version"], common["iteration"]) == (3.0, 12)
    assert common["num_floating_point_operations_so_far"] == 0
    assert common["content_metadata"]["singleton_local_shards"] is False
    assert common["content_metadata"].get("non_homogeneous_layers", False) == (keys == "per-layer")
    assert args.moe_layer_freq == ([1] * LAYERS if keys == "per-layer" else 1)
    assert (args.tensor_model_parallel_size, args.pipeline_model_parallel_size) == (1, 1)
    assert args.ckpt_format == "torch_dist" and args.no_save_optim and args.no_save_rng
    assert not hasattr(args, "moe_grouped_gemm")


def test_a_release(scratch):
    out = to_dist(scratch, synth(scratch / "torch", []))
    assert (out / "latest_checkpointed_iteration.txt").read_text() == "release"
    assert folder_of(out).name == "release"


# ---- there and back ------------------------------------------------------------------------------


@pytest.mark.parametrize("keys", ["auto", "per-layer"])
@pytest.mark.parametrize("model", MODELS)
def test_there_and_back_is_the_identity(scratch, model, keys):
    split = {
        "target__format": "megatron-torch", "target__tensor_parallel": 2, "target__pipeline_parallel": 2,
        "target__make_vocab_size_divisible_by": 4, "target__expert_parallel": 2 if "moe" in model else 1,
        "target__expert_tensor_parallel": 1,
    }
    first = reshard(scratch, synth(scratch / "torch", MODELS[model]), "first", **split)
    dist = to_dist(scratch, first, target__dist_keys=keys, target__expert_parallel=split["target__expert_parallel"])
    assert runner.hashes(first) == runner.hashes(reshard(scratch, dist, "second", **split))


@pytest.mark.parametrize("freq", ["1", "[0,1,1,0]"])
def test_upcycled_at_once_or_by_way_of_the_other_format(scratch, freq):
    source = synth(scratch / "torch", [])
    upcycle = {"upcycle__moe_layer_freq": freq, "target__make_vocab_size_divisible_by": 4}
    dist = convert(scratch, source, "a", np=3, target__format="megatron-dist", **upcycle)
    ranks = convert(scratch, source, "b", target__format="megatron-torch", **upcycle)
    again = to_dist(scratch, ranks, "c", target__make_vocab_size_divisible_by=4)
    assert runner.hashes(dist) == runner.hashes(again)
    tensors, _ = load(dist)
    check_equal(tensors, dl.keys_of_dist(dl.of_one_rank(ranks), stacked=freq == "1"))


# ---- what others write ---------------------------------------------------------------------------

KEYS = {
    "stacked": {},
    "per-layer": {"stacked": False},
    "local": {"local": True},
    "singleton": {"singleton": True},
}


@pytest.mark.parametrize(
    "model,keys",
    [(model, keys) for model in ("geglu", "moe", "moe-geglu") for keys in KEYS]
    + [("moe-gelu", keys) for keys in KEYS if keys != "singleton"],  # without a gate nothing is apart
)
def test_whole_tensors_under_any_keys_are_read(scratch, model, keys):
    source = synth(scratch / "torch", MODELS[model])
    state = dl.keys_of_dist(dl.of_one_rank(source), **KEYS[keys])
    other = dl.save_like(state, source, scratch / "other")
    result = runner.run([runner.program("mgr-inspect"), source, other])
    assert result.status == 0 and " 0 differ" in result.out, str(result)


def test_a_router_is_missing(scratch):
    source = synth(scratch / "torch", MOE)
    state = dl.keys_of_dist(dl.of_one_rank(source))
    del state["decoder.layers.mlp.router.weight"]
    other = dl.save_like(state, source, scratch / "other")
    config = runner.write_config(
        scratch / "x.yaml", other, scratch / "x", mode="reshard", upcycle=None, target__format="megatron-dist"
    )
    result = runner.upcycle(config)
    assert result.status == runner.DATA and "router" in result.err, str(result)


# ---- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "key,value",
    [
        ("pipeline_parallel", 2),
        ("virtual_pipeline", 2),
        ("expert_tensor_parallel", 2),
        ("first_stage_layers", 1),
        ("last_stage_layers", 1),
        ("names", "fused"),
    ],
)
def test_settings_that_mean_nothing_here(scratch, key, value):
    config = runner.write_config(
        scratch / "x.yaml", synth(scratch / "torch", MOE), scratch / "x", mode="reshard", upcycle=None,
        target__format="megatron-dist", **{"target__" + key: value},
    )
    result = runner.upcycle(config)
    assert result.status == runner.CONFIG and "target." + key in result.err, str(result)
    assert not (scratch / "x").exists()


@pytest.mark.parametrize("model", [[], MOE], ids=["dense", "moe"])
def test_ranks_among_which_experts_do_not_divide(scratch, model):
    config = runner.write_config(
        scratch / "x.yaml", synth(scratch / "torch", model), scratch / "x", mode="reshard", upcycle=None,
        target__format="megatron-dist", target__expert_parallel=3,
    )
    result = runner.upcycle(config)
    assert result.status == runner.CONFIG and "3 expert-parallel ranks" in result.err, str(result)


def test_layers_of_two_kinds_are_not_stacked(scratch):
    config = runner.write_config(
        scratch / "x.yaml", synth(scratch / "torch", []), scratch / "x", upcycle__moe_layer_freq="[0,1,1,0]",
        target__format="megatron-dist", target__dist_keys="stacked",
    )
    result = runner.upcycle(config)
    assert result.status == runner.CONFIG and "target.dist_keys" in result.err, str(result)
