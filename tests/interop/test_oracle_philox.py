"""The program against contract version 1 restated in numpy: every value of every tensor, random
draws included. What is kept is equal bit for bit, what is drawn to float32 rounding."""

import numpy as np
import pytest
import torch

import harness
import megatron_like as ml
import upcycle_oracle as oracle

SHAPE = ml.Shape(layers=3, hidden=46, ffn=98, heads=2, kv_heads=1, head_dim=22, vocab=40)
SEED = 0x1234_5678_9ABC_DEF0
EXPERTS = 4


@pytest.fixture(scope="module")
def sources(module_scratch):
    out = {}
    for dtype in (torch.float32, torch.bfloat16):
        model = ml.dense_model(SHAPE, seed=4, dtype=dtype)
        out[dtype] = model, ml.save(
            model, SHAPE, module_scratch / str(dtype), 2 if dtype is torch.float32 else 1, 3
        )
    return out


def run(scratch, sources, dtype, **changes):
    model, source = sources[dtype]
    out = harness.convert(
        scratch,
        source,
        np=3,
        upcycle__experts=EXPERTS,
        upcycle__seed=SEED,
        model__vocab_size=SHAPE.vocab,
        **changes,
    )
    tensors = harness.read_output(out)
    harness.check_copied(tensors, model, SHAPE, EXPERTS)
    return model, tensors


def bf16_steps(a, b):
    """Distance in units of the last place of bfloat16."""

    def ordered(x):
        i = (np.ascontiguousarray(x, dtype=np.float32).view(np.uint32) >> 16).astype(np.int64)
        return np.where(i & 0x8000, 0x8000 - i, i)

    return np.abs(ordered(a) - ordered(b))


def compare(model, tensors, dtype, **how):
    for i in range(SHAPE.layers):
        dense = harness.dense_ffn(model, i)
        for e in range(EXPERTS):
            want, done = oracle.contract_expert(dense, SEED, i, e, **how)
            got = harness.expert_ffn(tensors, i, e)
            for name in oracle.MATRICES:
                chosen, place = done["sets"][name], (i, e, name)
                mine, theirs = oracle.neurons(name, got[name]), oracle.neurons(name, want[name])
                kept = np.setdiff1d(np.arange(SHAPE.ffn), chosen)
                source = oracle.neurons(name, dense[name])[done["perm"]]
                assert (oracle.bits(mine[kept]) == oracle.bits(source[kept])).all(), place
                assert (oracle.bits(mine[chosen]) != oracle.bits(source[chosen])).any(axis=1).all(), place
                if dtype is torch.float32:
                    assert np.abs(mine[chosen] - theirs[chosen]).max() < 1e-5 * np.abs(theirs).max(), place
                else:
                    rounded = torch.from_numpy(theirs[chosen]).float().bfloat16().float().numpy()
                    off = (bf16_steps(mine[chosen], rounded) > 0) & (np.abs(mine[chosen] - rounded) > 1e-6)
                    assert (
                        off.mean() < 1e-3 and bf16_steps(mine[chosen], rounded)[off].max(initial=0) <= 1
                    ), place


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("index_sets", ["shared", "independent"])
@pytest.mark.parametrize("shuffle", [False, True], ids=["in-place", "shuffled"])
def test_drop(scratch, sources, dtype, index_sets, shuffle):
    model, tensors = run(
        scratch, sources, dtype, upcycle__ratio=0.3, upcycle__index_sets=index_sets, upcycle__shuffle=shuffle
    )
    compare(model, tensors, dtype, ratio=0.3, independent=index_sets == "independent", shuffle=shuffle)


@pytest.mark.parametrize("ratio", [0.011, 1.0])
def test_the_ends_of_the_ratio(scratch, sources, ratio):
    model, tensors = run(scratch, sources, torch.float32, upcycle__ratio=ratio)
    compare(model, tensors, torch.float32, ratio=ratio)  # 0.011 * 98: one neuron


@pytest.mark.parametrize("index_sets", ["shared", "independent"])
def test_noise(scratch, sources, index_sets):
    model, tensors = run(
        scratch,
        sources,
        torch.float32,
        upcycle__method="noise",
        upcycle__index_sets=index_sets,
        upcycle__noise_std=0.05,
    )
    compare(
        model,
        tensors,
        torch.float32,
        ratio=0.5,
        method="noise",
        independent=index_sets == "independent",
        noise_std=0.05,
    )


@pytest.mark.parametrize("kind", ["uniform", "uniform01", "uniform01-centred", "normal"])
def test_router(scratch, sources, kind):
    std = {"upcycle__router_std": 0.03} if kind == "normal" else {}  # no other router has that key
    _, tensors = run(scratch, sources, torch.float32, upcycle__router=kind, **std)
    for i in range(SHAPE.layers):
        want = oracle.contract_router(kind, SEED, i, EXPERTS, SHAPE.hidden, 0.03)
        got = tensors[harness.ROUTER % i].numpy()
        assert np.abs(got - want).max() < 1e-5 * np.abs(want).max(), i


def test_published_procedure_agrees_on_everything_not_drawn(scratch, sources):
    """With the index sets and permutations of our run put into the published procedure, the kept
    entries are the same bits and the redrawn ones have the same mean and std to sample from."""
    model, tensors = run(
        scratch, sources, torch.float32, upcycle__index_sets="independent", upcycle__shuffle=True
    )
    count = SHAPE.ffn // 2

    class Replay:
        """A generator that answers in the order in which the published code asks."""

        def __init__(self, done):
            self.answers = [done["perm"], np.zeros(SHAPE.ffn, dtype=int)] + [
                done["sets"][n] for n in ("gate", "down", "up")
            ]
            self.asked = []

        def permutation(self, n):
            return self.answers.pop(0)

        def normal(self, mean, std, size):
            self.asked.append((mean, std, size))
            return np.zeros(size)

    for i in range(SHAPE.layers):
        dense = harness.dense_ffn(model, i)
        for e in range(EXPERTS):
            _, done = oracle.contract_expert(dense, SEED, i, e, 0.5, independent=True, shuffle=True)
            replay = Replay(done)
            ((theirs, _),) = oracle.published_layer(dense, 0.5, 1, replay)
            got = harness.expert_ffn(tensors, i, e)
            for name, (mean, std, size) in zip(("gate", "down", "up"), replay.asked):
                kept = np.setdiff1d(np.arange(SHAPE.ffn), done["sets"][name])
                mine = oracle.neurons(name, got[name])
                assert (
                    oracle.bits(mine[kept]) == oracle.bits(oracle.neurons(name, theirs[name])[kept])
                ).all()
                new = mine[done["sets"][name]].astype(np.float64)
                assert new.shape == size == (count, SHAPE.hidden)
                assert abs(new.mean() - mean) < 5 * std / np.sqrt(new.size)
                assert abs(new.std() / std - 1) < 5 / np.sqrt(2 * new.size)
