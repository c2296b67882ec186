"""Megatron's `torch_dist`: checkpoints that torch.distributed.checkpoint.save wrote are read with
every value right, whatever their chunks; what is incomplete or of another kind is refused."""

import dataclasses
import io
import json
import os
import pathlib
import pickle
import sys
import types

import pytest
import torch

import dist_like as dl
import harness
import megatron_like as ml
import runner

SHAPE = ml.Shape()
FC1, FC2 = "decoder.layers.mlp.linear_fc1.weight", "decoder.layers.mlp.linear_fc2.weight"
NAIVE = {"upcycle__method": "naive", "upcycle__ratio": None, "upcycle__experts": 2}


def check(scratch, source, model, shape, np=2, **changes):
    out = harness.convert(
        scratch, source, np=np, **{**NAIVE, "model__vocab_size": shape.vocab, **changes}
    )
    harness.check_naive(harness.read_output(out), model, shape, 2)


def folder_of(root):
    return next(pathlib.Path(root).glob("iter_*"))


# ---- what is read --------------------------------------------------------------------------------


@pytest.mark.parametrize("common", ["file", "object"])
@pytest.mark.parametrize("stacked", [True, False], ids=["stacked", "per-layer"])
def test_whole_tensors(scratch, stacked, common):
    model = ml.dense_model(SHAPE)
    source = dl.save_whole(model, SHAPE, scratch / "dense", stacked=stacked, common=common)
    check(scratch, source, model, SHAPE)


@pytest.mark.parametrize("stacked", [True, False], ids=["stacked", "per-layer"])
@pytest.mark.parametrize("tp", [1, 2, 4])
def test_chunks_as_megatron_cuts_them(scratch, tp, stacked):
    shape = ml.Shape(kv_heads=4, heads=8, head_dim=6, hidden=48)
    model = ml.dense_model(shape)
    source = dl.save_megatron(model, shape, scratch / "dense", tp=tp, stacked=stacked)
    check(scratch, source, model, shape, np=3)


@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parametrize("stacked", [True, False], ids=["stacked", "per-layer"])
def test_ranks_that_cut_along_any_axis(scratch, ranks, stacked):
    shape = ml.Shape(layers=2, hidden=36, head_dim=9)
    model = ml.dense_model(shape)
    source = dl.save_ranks(model, shape, scratch / "dense", ranks=ranks, stacked=stacked)
    assert len(list(folder_of(source).glob("*.distcp"))) == ranks
    check(scratch, source, model, shape)


@pytest.mark.parametrize("prefix", ["model.", "module.", "model.module."])
def test_prefixes_of_other_frameworks(scratch, prefix):
    model = ml.dense_model(SHAPE)
    check(scratch, dl.save_whole(model, SHAPE, scratch / "dense", prefix=prefix), model, SHAPE)


def test_gate_and_up_apart(scratch):
    model = ml.dense_model(SHAPE)
    source = dl.save_whole(model, SHAPE, scratch / "dense", stacked=False, singleton=True)
    check(scratch, source, model, SHAPE)


def test_norms_under_local_names(scratch):
    names = {
        "self_attention.linear_qkv.layer_norm_weight": "input_layernorm.weight",
        "mlp.linear_fc1.layer_norm_weight": "pre_mlp_layernorm.weight",
    }

    def edit(state):
        for old, new in names.items():
            state["decoder.layers." + new] = state.pop("decoder.layers." + old)

    model = ml.dense_model(SHAPE)
    check(scratch, dl.save_whole(model, SHAPE, scratch / "dense", edit=edit), model, SHAPE)


def test_tied_embeddings(scratch):
    shape = ml.Shape(tied=True)
    model = ml.dense_model(shape)
    check(scratch, dl.save_megatron(model, shape, scratch / "dense"), model, shape)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_other_types(scratch, dtype):
    model = ml.dense_model(SHAPE, dtype=dtype)
    check(scratch, dl.save_megatron(model, SHAPE, scratch / "dense"), model, SHAPE)


@pytest.mark.parametrize("heads,kv_heads", [(4, 4), (4, 1)])
def test_other_groups(scratch, heads, kv_heads):
    shape = ml.Shape(heads=heads, kv_heads=kv_heads)
    model = ml.dense_model(shape)
    check(scratch, dl.save_megatron(model, shape, scratch / "dense"), model, shape)


def test_a_file_for_each_item(scratch):
    model = ml.dense_model(SHAPE)
    writer = {"single_file_per_rank": False, "thread_count": 2}
    source = dl.save_whole(model, SHAPE, scratch / "dense", stacked=False, writer=writer)
    assert len(list(folder_of(source).glob("*.distcp"))) > 20
    check(scratch, source, model, SHAPE, np=4)


def test_without_args_when_the_config_has_the_sizes(scratch):
    model = ml.dense_model(SHAPE)
    source = dl.save_whole(model, SHAPE, scratch / "dense")
    (folder_of(source) / "common.pt").unlink()
    config = runner.write_config(scratch / "run.yaml", source, scratch / "Mixtral-x", **NAIVE)
    result = runner.upcycle(config)
    assert result.status == runner.CONFIG and "num_attention_heads" in result.err, str(result)
    sizes = {
        "model__num_attention_heads": SHAPE.heads,
        "model__num_query_groups": SHAPE.kv_heads,
        "model__kv_channels": SHAPE.head_dim,
    }
    check(scratch, source, model, SHAPE, **sizes)


def test_an_item_beyond_4_gib_and_gaps_between_items(scratch):
    model = ml.dense_model(SHAPE)
    source = dl.save_megatron(model, SHAPE, scratch / "dense")
    folder = folder_of(source)

    def edit(metadata):
        _, info = dl.place_of(metadata, FC2, (1, 0, 0))
        with open(folder / info.relative_path, "r+b") as file:
            file.seek(info.offset)
            item = file.read(info.length)
            file.seek(info.offset)
            file.write(b"\xee" * info.length)
            info.offset = (5 << 30) + 3
            file.seek(info.offset)
            file.write(item)

    dl.edit_metadata(source, edit)
    check(scratch, source, model, SHAPE)


def old_classes(metadata):
    """The same object as torch 2.0 and Megatron-Core 0.14 pickled it."""

    def define(module, name):
        parts = module.split(".")
        for k in range(len(parts)):
            path = ".".join(parts[: k + 1])
            sys.modules.setdefault(path, types.ModuleType(path))
        kind = type(name, (), {"__module__": module})
        setattr(sys.modules[module], name, kind)
        return kind

    strategies = "megatron.core.dist_checkpointing.strategies.torch"
    root, plan = define(strategies, "MCoreMetadata"), define(strategies, "MCoreSavePlan")
    posix = define("pathlib._local", "PosixPath")
    posix.__reduce__ = lambda self: (posix, ("/", "x"))
    new = root()
    vars(new).update(vars(metadata))
    from torch.distributed._shard.sharded_tensor.metadata import TensorProperties

    for entry in new.state_dict_metadata.values():
        if hasattr(entry, "properties"):
            entry.properties = TensorProperties(dtype=entry.properties.dtype)
    for info in new.storage_data.values():
        vars(info).pop("transform_descriptors", None)
    one = plan()
    one.items = list(new.storage_data.items())
    new.all_local_plans = [one, one]
    new.mcore_data = {"a": {"nd_reformulated_orig_global_shape": torch.Size([1, 2])}}
    new.storage_meta.checkpoint_id = posix()
    return new


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_metadata_of_every_protocol_and_of_old_classes(scratch, protocol):
    model = ml.dense_model(SHAPE)
    source = dl.save_megatron(model, SHAPE, scratch / "dense")
    path = folder_of(source) / ".metadata"
    metadata = pickle.loads(path.read_bytes())
    before = set(sys.modules)
    try:
        path.write_bytes(pickle.dumps(old_classes(metadata), protocol))
    finally:
        for name in set(sys.modules) - before:
            if name.startswith(("megatron", "pathlib.")):
                del sys.modules[name]
    check(scratch, source, model, SHAPE)


GIVEN = runner.ROOT.parent / "shared/data/megatron-core-0.16.1-dense-tp2-pp2"


def hashes(folder, source, name):
    out = harness.convert(
        folder, source, name="Mixtral-" + name, np=3, upcycle__shuffle=True, target__expert_parallel=2
    )
    return runner.hashes(out)


def test_the_same_bytes_as_from_the_torch_format(scratch):
    """By megatron-core itself on the machines that have such a pair; elsewhere made here."""
    if os.path.isdir(GIVEN):
        pair = GIVEN / "torch", GIVEN / "torch_dist"
    else:
        shape = ml.Shape(vocab=1024, divisible_by=128)
        model = ml.dense_model(shape)
        pair = (
            ml.save(model, shape, scratch / "torch", 2, 2),
            dl.save_megatron(model, shape, scratch / "dist", tp=2),
        )
    assert hashes(scratch, pair[0], "torch") == hashes(scratch, pair[1], "dist")


def test_the_choice_between_two_formats(scratch):
    """metadata.json wins over mp_rank folders, as in Megatron, unless the format is named."""
    new, old = ml.dense_model(SHAPE), ml.dense_model(SHAPE, seed=2)
    root = ml.save(old, SHAPE, scratch / "dense", 2, 2, iteration=6)
    dl.save_whole(new, SHAPE, root)
    check(scratch, root, new, SHAPE)
    check(scratch, root / "iter_0000007", new, SHAPE, name="Mixtral-b")
    check(
        scratch,
        root,
        old,
        SHAPE,
        name="Mixtral-c",
        source__format="megatron-torch",
        source__iteration=6,
    )
    result = runner.run([runner.program("mgr-inspect"), root])
    assert result.status == 0 and "megatron-dist" in result.out, str(result)
    assert FC1 + "@0,0,0" in result.out, str(result)


# ---- what is refused -----------------------------------------------------------------------------


def refused(scratch, source, *words, status=runner.DATA):
    (scratch / "out").mkdir()
    config = runner.write_config(
        scratch / "run.yaml", source, scratch / "out" / "Mixtral", **{**NAIVE, "model__vocab_size": SHAPE.vocab}
    )
    result = runner.upcycle(config, np=2, timeout=30)
    assert result.status == status and len(result.errors()) == 1, str(result)
    assert not list((scratch / "out").iterdir()), str(result)
    for word in words:
        assert word in result.err, str(result)


def refused_metadata(scratch, edit, *words, status=runner.DATA):
    source = dl.save_megatron(ml.dense_model(SHAPE), SHAPE, scratch / "dense")
    dl.edit_metadata(source, edit)
    refused(scratch, source, *words, status=status)


def test_a_chunk_is_missing(scratch):
    def edit(metadata):
        chunks = metadata.state_dict_metadata[FC1].chunks
        chunks.remove(next(c for c in chunks if tuple(c.offsets) == (2, 26, 0)))

    refused_metadata(scratch, edit, FC1, "[2, 26, 0]", "missing")


def test_a_chunk_of_the_padding_is_missing(scratch):
    def edit(metadata):
        entry = metadata.state_dict_metadata["output_layer.weight"]
        assert tuple(entry.size) == (64, 40)
        last = entry.chunks[-1]
        last.sizes = torch.Size([last.sizes[0] - 8, 40])  # rows 56 .. 63 are padding

    refused_metadata(scratch, edit, "output_layer.weight", "[56, 0]", "missing")


def test_a_chunk_without_a_place(scratch):
    def edit(metadata):
        index, _ = dl.place_of(metadata, FC2, (3, 0, 26))
        del metadata.storage_data[index]

    refused_metadata(scratch, edit, FC2, "[3, 0, 26]", "storage_data")


def test_a_chunk_twice(scratch):
    def edit(metadata):
        chunks = metadata.state_dict_metadata[FC1].chunks
        chunks.append(chunks[3])

    refused_metadata(scratch, edit, FC1, "twice")


def test_chunks_that_overlap(scratch):
    def edit(metadata):
        chunks = metadata.state_dict_metadata["embedding.word_embeddings.weight"].chunks
        chunks[0].sizes = torch.Size([33, 40])

    refused_metadata(scratch, edit, "embedding.word_embeddings.weight", "overlaps")


def test_a_chunk_outside_of_its_tensor(scratch):
    def edit(metadata):
        metadata.state_dict_metadata[FC2].size = torch.Size([4, 40, 51])

    refused_metadata(scratch, edit, FC2, "outside")


def test_a_whole_tensor_is_missing(scratch):
    def edit(metadata):
        del metadata.state_dict_metadata[FC1]

    refused_metadata(scratch, edit, "layer 0 gate")


def test_a_layer_is_missing(scratch):
    source = dl.save_whole(ml.dense_model(SHAPE), SHAPE, scratch / "dense", stacked=False)
    dl.edit_metadata(
        source, lambda m: m.state_dict_metadata.pop("decoder.layers.1.self_attention.linear_proj.weight")
    )
    refused(scratch, source, "layer 1 o")


def test_another_type_than_the_metadata_says(scratch):
    def edit(metadata):
        metadata.state_dict_metadata[FC1].properties.dtype = torch.float16

    refused_metadata(scratch, edit, FC1, "type")


def test_another_shape_than_the_metadata_says(scratch):
    def edit(metadata):
        entry = metadata.state_dict_metadata["decoder.final_layernorm.weight"]
        entry.size = entry.chunks[0].sizes = torch.Size([20])

    refused_metadata(scratch, edit, "decoder.final_layernorm.weight", "[40]", "[20]")


def test_a_place_outside_of_the_file(scratch):
    def edit(metadata):
        _, info = dl.place_of(metadata, FC1, (0, 0, 0))
        info.offset += 1 << 40

    refused_metadata(scratch, edit, FC1)


def test_a_place_that_is_wrong(scratch):
    def edit(metadata):
        _, info = dl.place_of(metadata, FC1, (0, 0, 0))
        info.offset += 1

    refused_metadata(scratch, edit, FC1)


@pytest.mark.parametrize("path", ["../x", "/etc/passwd", "a/b", "..", "", "x\0y"])
def test_paths_that_leave_the_folder(scratch, path):
    def edit(metadata):
        _, info = dl.place_of(metadata, FC1, (0, 0, 0))
        info.relative_path = path

    refused_metadata(scratch, edit, "relative_path")


def test_transformed_items(scratch):
    def edit(metadata):
        _, info = dl.place_of(metadata, FC1, (0, 0, 0))
        info.transform_descriptors = ["stream.zstd/1"]

    refused_metadata(scratch, edit, FC1, "transform_descriptors")


class Evil:
    def __reduce__(self):
        return (os.system, ("echo pickled code ran",))


def test_code_in_the_metadata(scratch):
    refused_metadata(scratch, lambda m: setattr(m, "x", Evil()), "system")


def test_a_truncated_file(scratch):
    source = dl.save_megatron(ml.dense_model(SHAPE), SHAPE, scratch / "dense")
    path = max(folder_of(source).glob("*.distcp"), key=lambda p: p.stat().st_size)
    os.truncate(path, path.stat().st_size // 2)
    refused(scratch, source, path.name)


def test_truncated_metadata(scratch):
    source = dl.save_megatron(ml.dense_model(SHAPE), SHAPE, scratch / "dense")
    path = folder_of(source) / ".metadata"
    os.truncate(path, path.stat().st_size // 2)
    refused(scratch, source, ".metadata")


@pytest.mark.parametrize("what", ["*.distcp", ".metadata"])
def test_a_missing_file(scratch, what):
    source = dl.save_megatron(ml.dense_model(SHAPE), SHAPE, scratch / "dense")
    next(folder_of(source).glob(what)).unlink()
    refused(scratch, source, what.strip("*"), status=runner.NO_INPUT)


def test_a_transposed_item(scratch):
    model = ml.dense_model(SHAPE)
    source = dl.save_whole(model, SHAPE, scratch / "dense")
    folder = folder_of(source)

    def edit(metadata):
        _, info = dl.place_of(metadata, "output_layer.weight", (0, 0))
        tensor = torch.zeros(40, 64, dtype=torch.bfloat16).t()
        out = io.BytesIO()
        torch.save(tensor, out)
        path = folder / info.relative_path
        info.offset, info.length = path.stat().st_size, len(out.getvalue())
        with open(path, "ab") as file:
            file.write(out.getvalue())

    dl.edit_metadata(source, edit)
    refused(scratch, source, "output_layer.weight", "contiguous")


@pytest.mark.parametrize(
    "manifest,word",
    [
        ({"sharded_backend": "zarr", "sharded_backend_version": 1}, "zarr"),
        ({"sharded_backend": "fsdp_dtensor", "sharded_backend_version": 1}, "fsdp_dtensor"),
        ({"sharded_backend": "torch_dist", "sharded_backend_version": 9}, "version"),
        ({}, "sharded_backend"),
        ([], "sharded_backend"),
    ],
)
def test_another_backend(scratch, manifest, word):
    source = dl.save_whole(ml.dense_model(SHAPE), SHAPE, scratch / "dense")
    (folder_of(source) / "metadata.json").write_text(json.dumps(manifest))
    refused(scratch, source, word)


def test_fsdp_has_no_metadata_json(scratch):
    source = dl.save_whole(ml.dense_model(SHAPE), SHAPE, scratch / "dense")
    (folder_of(source) / "metadata.json").unlink()
    refused(scratch, source, "fsdp_dtensor")


def refused_state(scratch, edit, *words, shape=SHAPE):
    source = dl.save_whole(ml.dense_model(shape), shape, scratch / "dense", edit=edit)
    refused(scratch, source, *words)


def test_experts_without_a_router(scratch):
    def edit(state):
        state["decoder.layers.mlp.experts.experts.linear_fc1.weight"] = torch.zeros(
            4, 2, 8, 40, dtype=torch.bfloat16
        )

    refused_state(scratch, edit, "experts.experts.linear_fc1.weight", "0 experts")


def test_fp8_parameters(scratch):
    def edit(state):
        state[FC1] = state[FC1].to(torch.float8_e4m3fn)

    refused_state(scratch, edit, FC1, "FP8")


def test_a_norm_of_q_alone(scratch):
    def edit(state):
        state["decoder.layers.self_attention.q_layernorm.weight"] = torch.ones(4, 10, dtype=torch.bfloat16)

    refused_state(scratch, edit, "k norm")


@pytest.mark.parametrize(
    "part",
    ["self_attention.linear_q_down_proj", "mlp.shared_experts.linear_fc1", "mixer.in_proj", "mlp.gate"],
)
def test_a_part_that_is_not_known(scratch, part):
    def edit(state):
        state[f"decoder.layers.{part}.weight"] = torch.ones(4, 10, 40, dtype=torch.bfloat16)

    refused_state(scratch, edit, part)


@pytest.mark.parametrize(
    "key",
    [
        "decoder.layers.mlp.router.expert_bias",
        "decoder.layers.mlp.fc1_latent_proj.weight",
        "decoder.layers.mlp.experts.experts.x.linear_fc1.weight",
        "decoder.layers.mlp.experts.experts.0.linear_fc1.weigh",
        "mtp.layers.0.transformer_layer.mlp.linear_fc1.weight",
    ],
)
def test_a_key_that_is_not_known(scratch, key):
    def edit(state):
        state[key] = torch.ones(4, 10, dtype=torch.bfloat16)

    refused_state(scratch, edit, key)


def test_an_output_layer_of_tied_embeddings(scratch):
    def edit(state):
        state["output_layer.weight"] = state["embedding.word_embeddings.weight"].clone()

    refused_state(scratch, edit, "output_layer.weight", shape=ml.Shape(tied=True))


def test_layers_that_are_stored_twice(scratch):
    def edit(state):
        state["decoder.layers.1.mlp.linear_fc2.weight"] = state[FC2][1].clone()

    refused_state(scratch, edit, "layer 1 down")


def test_sizes_that_contradict_the_args(scratch):
    shape = dataclasses.replace(SHAPE, ffn=48)
    source = dl.save_whole(ml.dense_model(shape), shape, scratch / "dense")
    content, _ = dl.common_state(SHAPE, torch.bfloat16)
    (folder_of(source) / "common.pt").write_bytes(content)
    refused(scratch, source, "ffn_hidden_size")
