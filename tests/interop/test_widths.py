"""`upcycle.expert_width`: expert e is made of slice e mod N of the dense FFN's neurons."""

import pytest
import torch
from safetensors.torch import load_file

import harness
import runner

WIDTH, SLICES, EXPERTS = 24, 4, 8  # of 96 neurons
DENSE = "model.layers.%d.mlp.%s_proj.weight"


@pytest.fixture(scope="module")
def source(module_scratch):
    return runner.synth_folder(module_scratch / "dense")


def convert(scratch, source, name="Mixtral-out", np=2, **changes):
    changes = {"upcycle__experts": EXPERTS, "upcycle__expert_width": WIDTH, **changes}
    return harness.convert(scratch, source, np=np, name=name, **changes)


def neurons(tensors, layer, expert):
    """[w, 3 H]: row i is neuron i's gate, up and column of down."""
    gate, up, down = (tensors[harness.EXPERT % (layer, expert, w)] for w in ("w1", "w3", "w2"))
    return torch.cat([gate, up, down.T], 1)


def slice_of(dense, layer, expert):
    first = expert % SLICES * WIDTH
    gate, up, down = (dense[DENSE % (layer, kind)] for kind in ("gate", "up", "down"))
    return torch.cat([gate, up, down.T], 1)[first : first + WIDTH]


@pytest.mark.parametrize("shuffle", [False, True], ids=["in-order", "shuffled"])
@pytest.mark.parametrize("method,kept", [("naive", WIDTH), ("drop", WIDTH // 2), ("noise", WIDTH // 2)])
def test_each_expert_is_its_slice(scratch, source, method, kept, shuffle):
    dense = load_file(source / "model.safetensors")
    found = harness.read_output(
        convert(scratch, source, upcycle__method=method, upcycle__shuffle=shuffle)
    )
    for layer in range(2):
        for expert in range(EXPERTS):
            mine, theirs = neurons(found, layer, expert), slice_of(dense, layer, expert)
            assert mine.shape == (WIDTH, 3 * 64)
            same = (mine[:, None] == theirs[None]).all(-1)  # [mine, theirs]
            assert int(same.sum()) == kept and int(same.any(1).sum()) == kept
            if not shuffle:
                assert torch.equal(same.nonzero()[:, 0], same.nonzero()[:, 1])
            if method == "drop":  # the statistics are those of the neurons that were replaced
                drawn, lost = mine[~same.any(1)].float(), theirs[~same.any(0)].float()
                for part in range(3):
                    a, b = drawn[:, part * 64 : part * 64 + 64], lost[:, part * 64 : part * 64 + 64]
                    assert abs(a.mean() - b.mean()) < 4 * b.std() / a.numel() ** 0.5
                    assert abs(a.std() / b.std() - 1) < 0.15


def test_the_same_bytes_from_any_split_and_number_of_ranks(scratch, source):
    want = runner.hashes(convert(scratch, source, upcycle__shuffle=True), skip=("config.json", runner.MANIFEST, runner.LEDGER))
    for i, (tp, np) in enumerate([(1, 1), (2, 3), (4, 2)]):
        config = runner.write_config(
            scratch / f"to{i}.yaml", source, scratch / f"split{i}", mode="reshard", upcycle=None,
            target__format="megatron-torch", target__tensor_parallel=tp,
        )  # fmt: skip
        assert runner.upcycle(config).status == 0
        out = convert(
            scratch, scratch / f"split{i}", f"Mixtral-{i}", np, upcycle__shuffle=True, model__vocab_size=128
        )
        got = runner.hashes(out, skip=("config.json", runner.MANIFEST, runner.LEDGER))
        weights = {k: v for k, v in want.items() if k.endswith(".safetensors")}
        assert {k: v for k, v in got.items() if k.endswith(".safetensors")} == weights


def test_formats_agree(scratch, source):
    """To Megatron and to HDF5 and back: the Mixtral's own tensors."""
    want = harness.read_output(convert(scratch, source))
    for name in ("megatron-torch", "megatron-dist", "hdf5"):
        config = runner.write_config(
            scratch / "first.yaml", source, scratch / name, upcycle__experts=EXPERTS,
            upcycle__expert_width=WIDTH, target__format=name,
        )  # fmt: skip
        assert runner.upcycle(config).status == 0
        config = runner.write_config(
            scratch / "back.yaml", scratch / name, scratch / f"Mixtral-{name}", mode="reshard", upcycle=None
        )
        result = runner.upcycle(config)
        assert result.status == 0, str(result)
        found = harness.read_output(scratch / f"Mixtral-{name}")
        assert all(harness.same_bits(found[n], t.to(found[n].dtype)) for n, t in want.items() if "mlp" in n or "moe" in n)


def test_transformers_loads_it(scratch, source):
    from transformers import MixtralForCausalLM

    out = convert(scratch, source)
    model, info = MixtralForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert model.config.intermediate_size == WIDTH
