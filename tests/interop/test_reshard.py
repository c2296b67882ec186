"""`mode: reshard`: any split in, any other out, nothing changed."""

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
