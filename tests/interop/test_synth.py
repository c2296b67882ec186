"""What mgr-synth writes is a Megatron checkpoint to real torch, and the same model at any split."""

import zipfile

import pytest
import torch

import harness
import megatron_like as ml
import runner

SHAPE = dict(layers=4, hidden=64, ffn=96, heads=8, kv_heads=4, vocab=128, seed=11)
SPLITS = [(1, 1, "te"), (2, 1, "local"), (1, 2, "te"), (2, 2, "te"), (4, 2, "local"), (4, 4, "te")]


@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"])
def test_torch_loads_it_and_every_split_is_one_model(scratch, dtype):
    models = []
    for tp, pp, names in SPLITS:
        root = runner.synth(scratch / f"{tp}-{pp}", tp=tp, pp=pp, names=names, dtype=dtype, **SHAPE)
        files = sorted(root.rglob("model_optim_rng.pt"))
        assert len(files) == tp * pp
        assert all(zipfile.ZipFile(file).testzip() is None for file in files)
        model, shape = ml.load(root)
        assert (shape.layers, shape.hidden, shape.ffn, shape.heads, shape.kv_heads) == (4, 64, 96, 8, 4)
        models.append(model)
    want = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[dtype]
    assert {t.dtype for t in models[0].values()} == {want}
    assert all(t.float().std() > 0 or "norm" in name for name, t in models[0].items())
    for model in models[1:]:
        assert model.keys() == models[0].keys()
        assert all(harness.same_bits(model[name], models[0][name]) for name in model)


def test_the_names_are_megatrons(scratch):
    """The tensors of a rank, by name and shape, are those that the module of this spec has."""
    for names in ("te", "local"):
        root = runner.synth(scratch / names, tp=2, pp=2, names=names, **SHAPE)
        shape = ml.load(root)[1]
        model = ml.dense_model(shape)
        for t in range(2):
            for p in range(2):
                (file,) = root.glob(f"iter_*/mp_rank_{t:02d}_{p:03d}/model_optim_rng.pt")
                state = torch.load(file, weights_only=False)["model"]
                real = {n: v for n, v in state.items() if not n.endswith("_extra_state")}
                want = ml.rank_tensors(model, shape, t, p, 2, 2, names)
                assert {n: v.shape for n, v in real.items()} == {n: v.shape for n, v in want.items()}


def test_safe_loading_needs_the_namespace_only(scratch):
    import argparse

    root = runner.synth(scratch / "dense", **SHAPE)
    (file,) = root.glob("iter_*/mp_rank_00/model_optim_rng.pt")
    assert set(torch.serialization.get_unsafe_globals_in_checkpoint(file)) <= {"argparse.Namespace"}
    with torch.serialization.safe_globals([argparse.Namespace]):
        assert "args" in torch.load(file, weights_only=True)


def test_every_format_is_one_model(scratch):
    """The same seed gives the same values, and they the same upcycled bytes."""
    outputs = []
    for name, words in (
        ("torch", ["--tp", "2", "--pp", "2"]),
        ("hf", ["--format", "huggingface"]),
    ):
        result = runner.run(
            [runner.program("mgr-synth"), scratch / name, "--layers", 2, "--hidden", 64, "--ffn", 96,
             "--heads", 8, "--kv-heads", 4, "--vocab", 128, "--seed", 11, *words]
        )
        assert result.status == 0, str(result)
        outputs.append(runner.hashes(harness.convert(scratch, scratch / name, name="Mixtral-" + name)))
    assert outputs[0] == outputs[1]
