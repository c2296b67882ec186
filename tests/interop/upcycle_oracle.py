"""Drop-Upcycling three times over, to hold the program against.

published_layer: the procedure of conversions/drop_upcycling.py of Taishi-N324/Drop-Upcycling
                 (arXiv 2502.19261), restated in numpy with a generator of its own.
paper_layer:     the paper's: one index set for the three matrices, no shuffle.
contract_expert: contract version 1 of mgr-upcycle, random numbers included.
recover_*:       from an expert and the dense matrices back to what was done.

Matrices are gate, up [F, H] and down [H, F]. A neuron is a row of gate and up, a column of down.
"""

import numpy as np

import philox

MATRICES = ("gate", "up", "down")


def neurons(name, matrix):
    """The matrix with one neuron per row."""
    return matrix.T if name == "down" else matrix


def statistics(rows):
    """Mean and standard deviation (N-1) over all entries, in float64."""
    rows = np.asarray(rows, dtype=np.float64)
    return rows.mean(), rows.std(ddof=1)


# ---- the published code and the paper ------------------------------------------------------------


def published_layer(dense, ratio, experts, rng, shuffle=True, independent=True):
    """Experts of one layer, and for each what was done: {"perm", "sets", "moments"}. A permutation
    per expert; then for gate, down, up in this order a new index set, the mean and std of the
    permuted matrix over it, and a redraw."""
    n = dense["gate"].shape[0]
    count = int(n * ratio)
    out = []
    for _ in range(experts):
        perm = rng.permutation(n) if shuffle else np.arange(n)
        done = {"perm": perm, "sets": {}, "moments": {}}
        expert = {}
        shared = rng.permutation(n)[:count]
        for name in ("gate", "down", "up"):
            rows = neurons(name, dense[name])[perm].copy()
            chosen = np.sort(rng.permutation(n)[:count] if independent else shared)
            done["sets"][name] = chosen
            if count:
                mean, std = done["moments"][name] = statistics(rows[chosen])
                rows[chosen] = rng.normal(mean, std, rows[chosen].shape).astype(rows.dtype)
            expert[name] = neurons(name, rows)
        out.append((expert, done))
    return out


def paper_layer(dense, ratio, experts, rng):
    return published_layer(dense, ratio, experts, rng, shuffle=False, independent=False)


# ---- the contract --------------------------------------------------------------------------------

_SAMPLE = {"gate": philox.SAMPLE_GATE, "up": philox.SAMPLE_UP, "down": philox.SAMPLE_DOWN}
_VALUES = {"gate": philox.GATE, "up": philox.UP, "down": philox.DOWN}
_NOISE = {"gate": philox.NOISE_GATE, "up": philox.NOISE_UP, "down": philox.NOISE_DOWN}


def contract_sets(seed, layer, expert, n, count, independent):
    if not independent:
        one = philox.sample(seed, philox.SAMPLE, layer, expert, n, count)
        return {name: one for name in MATRICES}
    return {name: philox.sample(seed, _SAMPLE[name], layer, expert, n, count) for name in MATRICES}


def contract_expert(
    dense, seed, layer, expert, ratio, method="drop", independent=False, shuffle=False, noise_std=0.02
):
    """({name: matrix}, {"perm", "sets", "moments"}); float64 where drawn, the dense values elsewhere."""
    n, hidden = dense["gate"].shape
    count = int(ratio * n)
    perm = philox.permutation(seed, layer, expert, n) if shuffle else np.arange(n)
    sets = contract_sets(seed, layer, expert, n, count, independent)
    done = {"perm": perm, "sets": sets, "moments": {}}
    out = {}
    for name in MATRICES:
        rows = neurons(name, dense[name])[perm].astype(np.float64)
        chosen = sets[name]
        if count:
            # Element k*H + h of the stream: the k-th selected neuron, coordinate h along H.
            purpose = (_NOISE if method == "noise" else _VALUES)[name]
            z = philox.normals(seed, purpose, layer, expert, 0, count * hidden).reshape(count, hidden)
            if method == "noise":
                rows[chosen] += noise_std * z
            else:
                mean, std = done["moments"][name] = statistics(rows[chosen])
                rows[chosen] = mean + std * z
        out[name] = neurons(name, rows)
    return out, done


def cut_neurons(seed, layer, expert, n, width, cut="slices", shuffle=False, aside=0):
    """Of an expert of `width` neurons the dense neuron of each: copies of the n neurons lie end to end,
    each copy in an order of its own with `cut: shuffled`, and experts are cut off one after another.
    The first `aside` of the n are a shared expert's, and no copy has them."""
    if aside:
        return aside + cut_neurons(seed, layer, expert, n - aside, width, cut, shuffle)
    inside = philox.permutation(seed, layer, expert, width) if shuffle else np.arange(width)
    copy, place = np.divmod(expert * width + inside, n)
    if cut == "slices":
        return place
    orders = {c: philox.permutation(seed, layer, c, n, philox.REPLICA) for c in set(copy.tolist())}
    return np.array([orders[c][p] for c, p in zip(copy.tolist(), place.tolist())])


def scale_factors(rule, n, width, experts, top_k, pre_softmax=False):
    """Of gate, up and down. The factor is how much smaller the layer's output is than the dense FFN's:
    each expert has width/n of it, and without normalisation top_k of `experts` weights are added up."""
    factor = n / width * (experts / top_k if pre_softmax else 1)
    root = factor ** (1 / 3)
    factors = {"none": (1, 1, 1), "published": (root, root, root), "exact": (1, 1, factor)}[rule]
    return dict(zip(MATRICES, factors))


def built_expert(dense, seed, layer, expert, width, ratio, factors, cut="slices", shuffle=False, aside=0):
    """contract_expert of any width: cut, drawn from statistics of what is not scaled, scaled last.
    ({name: matrix}, {"origin", "chosen"}); what is kept is exact in float32."""
    n, hidden = dense["gate"].shape
    origin = cut_neurons(seed, layer, expert, n, width, cut, shuffle, aside)
    count = int(ratio * width)
    chosen = philox.sample(seed, philox.SAMPLE, layer, expert, width, count) if count else np.arange(0)
    out = {}
    for name in MATRICES:
        rows = neurons(name, dense[name])[origin].astype(np.float32)
        drawn = rows[chosen]
        if count:
            mean, std = statistics(drawn)
            z = philox.normals(seed, _VALUES[name], layer, expert, 0, count * hidden)
            drawn = mean + std * z.reshape(count, hidden)
        rows = rows * np.float32(factors[name])
        rows[chosen] = drawn * factors[name]
        out[name] = neurons(name, rows)
    return out, {"origin": origin, "chosen": chosen}


def contract_router(kind, seed, layer, experts, hidden, std=0.02):
    if kind == "normal":
        return (
            np.stack([philox.normals(seed, philox.ROUTER, layer, e, 0, hidden) for e in range(experts)]) * std
        )
    u = np.stack([philox.words(seed, philox.ROUTER, layer, e, 0, hidden) for e in range(experts)]) * 2.0**-32
    if kind == "uniform01":
        return u
    return (u - u.mean()) * (0.02 * np.sqrt(12) if kind == "uniform" else 1.0)


# ---- back from an output -------------------------------------------------------------------------


def bits(array):
    return np.ascontiguousarray(array).view({2: np.uint16, 4: np.uint32, 8: np.uint64}[array.dtype.itemsize])


def changed_neurons(name, expert, dense):
    """Neurons of which any bit differs from the dense matrix at the same place."""
    return np.flatnonzero((bits(neurons(name, expert)) != bits(neurons(name, dense))).any(axis=1))


def recover_permutation(name, expert, dense):
    """For every expert neuron the dense neuron that it equals bit for bit, or -1."""
    place = {bits(row).tobytes(): i for i, row in enumerate(neurons(name, dense))}
    assert len(place) == neurons(name, dense).shape[0], "the test's dense neurons must be distinct"
    return np.array([place.get(bits(row).tobytes(), -1) for row in neurons(name, expert)])


def ks_statistic(sample):
    """Kolmogorov-Smirnov distance of a sample from the standard normal, times sqrt(n)."""
    from math import erf, sqrt

    x = np.sort(np.asarray(sample, dtype=np.float64).ravel())
    cdf = 0.5 * (1 + np.vectorize(erf)(x / sqrt(2)))
    n = len(x)
    steps = np.arange(n + 1) / n
    return max(np.abs(cdf - steps[1:]).max(), np.abs(cdf - steps[:-1]).max()) * sqrt(n)


def ks_limit(p=1e-4):
    """Above this, ks_statistic happens with probability below p (asymptotic, n of 1000 and more)."""
    return float(np.sqrt(-0.5 * np.log(p / 2)))
