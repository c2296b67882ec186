"""Drop-Upcycling as the paper describes it, seen from the output alone: which neurons were
replaced, by what, and that nothing else was touched."""

import itertools
import json

import numpy as np
import pytest
import torch

import harness
import megatron_like as ml
import upcycle_oracle as oracle

SHAPE = ml.Shape(layers=2, hidden=64, ffn=256, heads=4, kv_heads=2, head_dim=16, vocab=64)
EXPERTS = 8


class Case:
    """One output and the dense model it came from, both as numpy."""

    def __init__(self, folder, source, model, name, **changes):
        changes = {
            "upcycle__experts": EXPERTS,
            "upcycle__ratio": 0.5,
            "upcycle__seed": 1234,
            "model__vocab_size": SHAPE.vocab,
            **changes,
        }
        self.out = harness.convert(folder, source, name=name, **changes)
        self.tensors = harness.read_output(self.out)
        harness.check_copied(self.tensors, model, SHAPE, EXPERTS)
        self.dense = [harness.dense_ffn(model, i) for i in range(SHAPE.layers)]
        self.experts = {
            (i, e): harness.expert_ffn(self.tensors, i, e)
            for i in range(SHAPE.layers)
            for e in range(EXPERTS)
        }

    def changed(self, layer, expert, name):
        return oracle.changed_neurons(name, self.experts[layer, expert][name], self.dense[layer][name])

    def __iter__(self):
        """(layer, expert, matrix, changed neurons, new values, the dense values they replace)"""
        for (i, e), ffn in self.experts.items():
            for name in oracle.MATRICES:
                chosen = self.changed(i, e, name)
                yield (
                    i,
                    e,
                    name,
                    chosen,
                    oracle.neurons(name, ffn[name])[chosen].astype(np.float64),
                    oracle.neurons(name, self.dense[i][name])[chosen].astype(np.float64),
                )


@pytest.fixture(scope="module")
def world(module_scratch):
    models = {dtype: ml.dense_model(SHAPE, dtype=dtype) for dtype in (torch.float32, torch.bfloat16)}
    sources = {
        dtype: ml.save(model, SHAPE, module_scratch / str(dtype), 2, 2) for dtype, model in models.items()
    }
    made = {}

    def case(name, dtype=torch.float32, **changes):
        if name not in made:
            made[name] = Case(module_scratch, sources[dtype], models[dtype], "Mixtral-" + name, **changes)
        return made[name]

    return case


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def half(request, world):
    return world("half-" + request.param, getattr(torch, request.param))


def check_moments(case):
    for i, e, name, chosen, new, old in case:
        mean, std = oracle.statistics(old)
        new_mean, new_std = oracle.statistics(new)
        n = new.size
        assert abs(new_mean - mean) < 5 * std / np.sqrt(n), (i, e, name)
        assert abs(new_std / std - 1) < 5 / np.sqrt(2 * n), (i, e, name)


def test_exactly_the_ratio_differs_in_the_same_places(half):
    for i, e in half.experts:
        sets = [half.changed(i, e, name) for name in oracle.MATRICES]
        assert len(sets[0]) == 128
        assert (sets[0] == sets[1]).all() and (sets[0] == sets[2]).all()


def test_kept_neurons_are_bit_identical_and_replaced_ones_wholly_new(half):
    for i, e, name, chosen, new, old in half:
        # By the definition of `changed` all others are equal in every bit. A redrawn entry hits the
        # old one by chance only where the type is coarse.
        assert (new == old).mean() < 0.02, (i, e, name)


def test_mean_and_std_are_those_of_the_replaced_entries(half):
    check_moments(half)


def test_the_statistics_of_all_neurons_would_not_pass(half):
    """The data can tell statistics over S from statistics over everything."""
    off = 0
    for i, e, name, chosen, new, old in half:
        mean, std = oracle.statistics(half.dense[i][name])
        off += abs(new.mean() - mean) > 5 * std / np.sqrt(new.size) or abs(new.std() / std - 1) > 5 / np.sqrt(
            2 * new.size
        )
    assert off > 10


def test_redrawn_values_are_normal(world):
    pooled = []
    for i, e, name, chosen, new, old in world("half-float32"):
        mean, std = oracle.statistics(old)
        pooled.append((new - mean) / std)
        assert oracle.ks_statistic(pooled[-1]) < oracle.ks_limit(1e-6), (i, e, name)
    assert oracle.ks_statistic(np.concatenate(pooled)) < oracle.ks_limit()


def test_draws_do_not_repeat(world):
    """Not between matrices, experts or layers: all correlations are those of independent draws."""
    z = np.stack([((new - old.mean()) / old.std()).ravel() for *_, new, old in world("half-float32")])
    correlation = np.corrcoef(z) - np.eye(len(z))
    assert np.abs(correlation).max() < 6 / np.sqrt(z.shape[1])


def test_experts_and_layers_differ_pairwise(half):
    for i in range(SHAPE.layers):
        for a, b in itertools.combinations(range(EXPERTS), 2):
            for name in oracle.MATRICES:
                assert (half.experts[i, a][name] != half.experts[i, b][name]).mean() > 0.4, (i, a, b, name)
            assert (half.changed(i, a, "gate") != half.changed(i, b, "gate")).any()
    for e in range(EXPERTS):
        assert (half.changed(0, e, "gate") != half.changed(1, e, "gate")).any()


@pytest.mark.parametrize("ratio", [0.5, 0.3])
def test_experts_share_the_square_of_the_kept_part(world, ratio):
    case = world("half-float32") if ratio == 0.5 else world("third", upcycle__ratio=0.3)
    kept = {key: set(range(SHAPE.ffn)) - set(case.changed(*key, "gate")) for key in case.experts}
    shares = [
        len(kept[i, a] & kept[i, b]) / SHAPE.ffn
        for i in range(SHAPE.layers)
        for a, b in itertools.combinations(range(EXPERTS), 2)
    ]
    assert abs(np.mean(shares) - (1 - ratio) ** 2) < 0.02
    assert max(shares) < (1 - ratio) ** 2 + 0.12


def test_every_neuron_is_dropped_about_as_often(world):
    counts = np.zeros(SHAPE.ffn)
    for i, e in world("half-float32").experts:
        counts[world("half-float32").changed(i, e, "gate")] += 1
    n = SHAPE.layers * EXPERTS
    assert abs(counts.mean() - n / 2) < 1e-9 and abs(counts.var() / (n / 4) - 1) < 0.5


def test_a_ratio_that_is_no_power_of_two(world):
    case = world("third", upcycle__ratio=0.3)
    assert {len(chosen) for *_, chosen, _, _ in case} == {76}  # floor(0.3 * 256)
    check_moments(case)


def test_ratio_one_replaces_everything(world):
    case = world("all", upcycle__ratio=1.0)
    assert {len(chosen) for *_, chosen, _, _ in case} == {SHAPE.ffn}
    check_moments(case)


def test_ratio_zero_is_a_copy(world):
    assert {len(chosen) for *_, chosen, _, _ in world("none", upcycle__ratio=0.0)} == {0}


def test_independent_sets(world):
    case = world("independent", upcycle__index_sets="independent")
    overlaps = []
    for i, e in case.experts:
        sets = {name: case.changed(i, e, name) for name in oracle.MATRICES}
        assert {len(s) for s in sets.values()} == {128}
        overlaps += [
            len(np.intersect1d(sets[a], sets[b])) / 128 for a, b in itertools.combinations(oracle.MATRICES, 2)
        ]
    assert max(overlaps) < 0.75 and abs(np.mean(overlaps) - 0.5) < 0.03
    check_moments(case)


@pytest.mark.parametrize("index_sets", ["shared", "independent"])
def test_shuffle_is_one_permutation_for_the_three_matrices(world, index_sets):
    case = world("shuffled-" + index_sets, upcycle__shuffle=True, upcycle__index_sets=index_sets)
    perms = []
    for (i, e), ffn in case.experts.items():
        place = {
            name: oracle.recover_permutation(name, ffn[name], case.dense[i][name]) for name in oracle.MATRICES
        }
        for name in oracle.MATRICES:
            kept = place[name][place[name] >= 0]
            assert len(kept) == len(set(kept)) == 128
            for other in oracle.MATRICES:
                both = (place[name] >= 0) & (place[other] >= 0)
                assert (place[name][both] == place[other][both]).all()
                assert both.sum() == 128 if index_sets == "shared" else both.sum() < 128 or name == other
            rows = oracle.neurons(name, ffn[name])
            new = rows[place[name] < 0].astype(np.float64)
            if index_sets == "shared" or (place["gate"] < 0).all():
                gone = np.setdiff1d(np.arange(SHAPE.ffn), kept)
                mean, std = oracle.statistics(oracle.neurons(name, case.dense[i][name])[gone])
                assert abs(new.mean() - mean) < 5 * std / np.sqrt(new.size)
                assert abs(new.std() / std - 1) < 5 / np.sqrt(2 * new.size)
        assert (place["gate"] == np.arange(SHAPE.ffn)).sum() < 10
        perms.append(place["gate"])
    assert all((a != b).mean() > 0.5 for a, b in itertools.combinations(perms, 2))


def test_noise_is_added_to_the_selected_neurons_only(world):
    case = world("noise", upcycle__method="noise")
    for i, e, name, chosen, new, old in case:
        assert len(chosen) == 128
        assert (chosen == case.changed(i, e, "gate")).all()
        added = new - old
        assert abs(added.std() / 0.02 - 1) < 5 / np.sqrt(2 * added.size), (i, e, name)
        assert abs(added.mean()) < 5 * 0.02 / np.sqrt(added.size)
        assert oracle.ks_statistic(added / 0.02) < oracle.ks_limit(1e-6)


def test_noise_of_another_width(world):
    case = world("noise-wide", upcycle__method="noise", upcycle__noise_std=0.1, upcycle__ratio=0.25)
    for *_, chosen, new, old in case:
        assert len(chosen) == 64 and abs((new - old).std() / 0.1 - 1) < 0.1


def routers(case):
    return [
        harness.as_numpy(case.tensors[harness.ROUTER % i]).astype(np.float64) for i in range(SHAPE.layers)
    ]


@pytest.mark.parametrize(
    "kind,low,high,mean,std",
    [
        ("uniform", -0.0346411 * 1.1, 0.0346411 * 1.1, 0, 0.02),
        ("uniform01", 0, 1, 0.5, 12**-0.5),
        ("uniform01-centred", -0.6, 0.6, 0, 12**-0.5),
        ("normal", -0.028 * 5, 0.028 * 5, 0, 0.028),
    ],
)
def test_router_inits(world, kind, low, high, mean, std):
    own = {"upcycle__router_std": 0.028} if kind == "normal" else {}
    case = world("router-" + kind, upcycle__router=kind, **own)
    first, second = routers(case)
    assert not np.array_equal(first, second)
    for router in (first, second):
        n = router.size
        assert low <= router.min() < router.max() < high
        assert router.max() - router.min() > 0.95 * 0.0692 * (std / 0.02)
        exact = kind in ("uniform", "uniform01-centred")
        assert abs(router.mean() - mean) < (1e-6 if exact else 5 * std / np.sqrt(n))
        assert abs(router.std() / std - 1) < 5 / np.sqrt(2 * n)
        assert len(np.unique(router)) > n - 5


def test_router_is_uniform_by_default(world):
    a, b = world("half-float32"), world("router-uniform", upcycle__router="uniform")
    assert all((x == y).all() for x, y in zip(routers(a), routers(b)))


def test_the_seed_matters_and_nothing_else(world):
    one = world("half-float32")
    again = world("again", target__expert_parallel=4)
    other = world("seed", upcycle__seed=2**64 - 1)
    for key in one.experts:
        for name in oracle.MATRICES:
            assert (oracle.bits(one.experts[key][name]) == oracle.bits(again.experts[key][name])).all()
        assert (one.changed(*key, "gate") != other.changed(*key, "gate")).any()
    assert not (routers(one)[0] == routers(other)[0]).any()


def test_manifest_says_how(half):
    manifest = json.loads((half.out / "mgr-manifest.json").read_text())
    text = json.dumps(manifest)
    assert "1234" in text and "contract" in text
