"""`mode: reshard`: any split in, any other out, nothing changed."""

import subprocess
import zipfile

import pytest
import torch

import harness
import megatron_like as ml
import runner


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize(
    "source,target", [((2, 2), (1, 1)), ((1, 1), (4, 2)), ((4, 1), (2, 4)), ((2, 4), (2, 4))]
)
def test_a_dense_model_at_another_split(scratch, source, target, tied):
    shape = ml.Shape(kv_heads=4, heads=8, head_dim=6, hidden=48, tied=tied)
    model = ml.dense_model(shape)
    root = ml.save(model, shape, scratch / "dense", *source, names="local" if tied else "te")
    config = runner.write_config(
        scratch / "run.yaml",
        root,
        scratch / "out",
        mode="reshard",
        upcycle=None,
        model__vocab_size=shape.vocab,
        target__format="megatron-torch",
        target__tensor_parallel=target[0],
        target__pipeline_parallel=target[1],
        target__make_vocab_size_divisible_by=8,
        target__dtype="source",
    )
    result = runner.upcycle(config, np=3)
    assert result.status == 0, str(result)
    again, read = ml.load(scratch / "out", shape.vocab)
    assert again.keys() == model.keys()
    assert all(harness.same_bits(again[name], model[name]) for name in model)
    assert len(list((scratch / "out").rglob("model_optim_rng.pt"))) == target[0] * target[1]
    assert (read.tied, read.norm_epsilon, read.rotary_base) == (tied, shape.norm_epsilon, shape.rotary_base)
    rank = torch.load(next((scratch / "out").rglob("model_optim_rng.pt")), weights_only=False)
    assert rank["args"].padded_vocab_size == shape.padded_vocab(target[0])


def reshard(scratch, source, name, **changes):
    config = runner.write_config(
        scratch / (name + ".yaml"), source, scratch / name, mode="reshard", upcycle=None,
        target__dtype="source", **changes
    )
    result = runner.upcycle(config, np=2)
    assert result.status == 0, str(result)
    return scratch / name


@pytest.mark.parametrize("shards", ["5GB", "1MiB"])
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_megatron_to_a_hugging_face_llama(scratch, tied, shards):
    from transformers import LlamaForCausalLM

    shape = ml.Shape(kv_heads=2, heads=4, head_dim=32, hidden=128, ffn=512, vocab=500, tied=tied)
    model = ml.dense_model(shape)
    root = ml.save(model, shape, scratch / "dense", 2, 2)
    out = reshard(
        scratch, root, "hf", model__vocab_size=shape.vocab, target__format="huggingface",
        target__max_shard_size=shards,
    )
    assert (out / "model.safetensors").exists() == (shards == "5GB")
    loaded, info = LlamaForCausalLM.from_pretrained(
        out, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"], info
    ids = harness.token_ids(shape)
    with torch.no_grad():
        got = loaded.eval()(ids).logits
    want = harness.llama_logits(model, shape, ids)
    assert harness.relative_difference(got, want) < 1e-6


def test_there_and_back_is_the_identity(scratch):
    shape = ml.Shape(kv_heads=4, heads=8, head_dim=6, hidden=48)
    root = ml.save(ml.dense_model(shape), shape, scratch / "dense", 2, 2)
    first = reshard(
        scratch, root, "hf1", model__vocab_size=shape.vocab, target__format="huggingface"
    )
    megatron = reshard(
        scratch, first, "megatron", target__format="megatron-torch", target__tensor_parallel=4,
        target__pipeline_parallel=2,
    )
    second = reshard(
        scratch, megatron, "hf2", model__vocab_size=shape.vocab, target__format="huggingface"
    )
    assert runner.hashes(first) == runner.hashes(second)
    again = reshard(
        scratch, second, "megatron2", target__format="megatron-torch", target__tensor_parallel=4,
        target__pipeline_parallel=2,
    )
    assert runner.hashes(megatron) == runner.hashes(again)


def test_records_beyond_4_gib(scratch):
    """What the zip writer makes of a member of more than 4 GiB (sparse here, by a unit test's program) and
    of those behind it is read by unzip, by Python and by torch."""
    path = scratch / "large.pt"
    result = runner.run([runner.program("test_zip"), path])
    assert result.status == 0, str(result)
    assert path.stat().st_size > 1 << 32 and path.stat().st_blocks < 1 << 12
    archive = zipfile.ZipFile(path)
    assert [(m.filename, m.file_size) for m in archive.infolist()] == [
        ("large/data/0", (1 << 32) + 5), ("large/data/1", 6), ("large/version", 2)
    ]
    assert archive.infolist()[1].header_offset > 1 << 32 and archive.read("large/data/1") == b"behind"
    reader = torch._C.PyTorchFileReader(str(path))
    assert reader.get_record("data/1") == b"behind"
    assert [reader.get_record_offset(f"data/{k}") % 64 for k in range(2)] == [0, 0]
    with archive.open("large/data/0") as member:  # its CRC-32 is checked at the end
        assert sum(len(chunk) for chunk in iter(lambda: member.read(1 << 24), b"")) == (1 << 32) + 5
    # all would take unzip half a minute
    assert subprocess.run(["unzip", "-tqq", path, "large/data/1", "large/version"]).returncode == 0
