"""Every construction of mgr-upcycle(1), written in numpy from the rule alone: the papers, the manual's pages
(tools/man, tools/docs/methods.md) and the public contract of random numbers (include/mgr/rng.h, upcycle.h).
It knows nothing of how the program is made, and is to be kept so: where a document does not suffice to say
what the output is, mend the document.

An FFN is {"gate", "up", "down"} of matrices with a neuron in each row: down is turned on its side. A rule says
of each expert which FFN it is of, where each of its neurons comes from, which are drawn anew, and by what each
matrix is multiplied in the end. What of a tensor is drawn has a mean and a spread here, and no values."""

import dataclasses
import math

import numpy as np

import philox

MATRICES = ("gate", "up", "down")
ALIKE = {"gate": 1.0, "up": 1.0, "down": 1.0}


# ---- random numbers that are integers: include/mgr/rng.h ------------------------------------------


def smallest_keys(seed, purpose, layer, number, population, n):
    """mgr_sample: the n smallest of 64-bit keys, words 2i (low) and 2i+1 (high), ties to the smaller index."""
    words = philox.words(seed, purpose, layer, number, 0, 2 * population).astype(np.uint64)
    keys = words[0::2] + words[1::2] * np.uint64(2**32)
    return np.argsort(keys, kind="stable")[:n]


def sample(seed, purpose, layer, expert, population, n):
    return np.sort(smallest_keys(seed, purpose, layer, expert, population, n))


def permutation(seed, purpose, layer, number, n):
    """mgr_permutation: the indices sorted by such keys."""
    return smallest_keys(seed, purpose, layer, number, n, n)


def selected_count(ratio, width):
    """mgr_selected_count: floor(ratio * n), in double."""
    return math.floor(ratio * width)


# ---- an expert as a map ---------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Law:
    """What is drawn: N(mean, std^2), None being that of the entries it replaces; or added to them."""

    adds: bool = False
    mean: float | None = None
    std: float | None = None


COPY = Law()


@dataclasses.dataclass
class Expert:
    origin: np.ndarray
    source: int = 0
    sets: dict = dataclasses.field(default_factory=dict)
    law: Law = COPY
    factors: dict = dataclasses.field(default_factory=lambda: dict(ALIKE))


@dataclasses.dataclass
class Tensor:
    """What a tensor of the output has to be: values times factor, rounded once, but where it is drawn."""

    values: np.ndarray
    factor: float = 1.0
    drawn: np.ndarray | None = None  # of the same shape
    adds: bool = False
    mean: float = 0.0
    std: np.ndarray | float = 1.0  # of each element, or of all
    same_as: np.ndarray | None = None  # row i equals row same_as[i]
    turned: bool = False  # neurons are columns


def times(values, factor):
    return values.astype(np.float32) * np.float32(factor)


def rounded(values, factor, bf16):
    """The bits of what is stored: a value is rounded once, to nearest even. One that is scaled is multiplied in
    float32, as torch does it, and then cast (include/mgr/upcycle.h)."""
    exact = values.astype(np.float64) if factor == 1 else times(values, factor).astype(np.float64)
    if not bf16:
        return exact.astype(np.float32).view(np.uint32)
    bits = exact.view(np.uint64)  # 52 bits of mantissa, of which bfloat16 has 7
    bits = bits + np.uint64((1 << 44) - 1) + ((bits >> np.uint64(45)) & np.uint64(1))
    kept = (bits & ~np.uint64((1 << 45) - 1)).view(np.float64).astype(np.float32)
    return (kept.view(np.uint32) >> np.uint32(16)).astype(np.uint16)


def statistics(values, neurons):
    replaced = values[neurons].astype(np.float64)
    return replaced.mean(), replaced.std(ddof=1)


def made(ffn, expert, matrix):
    """One matrix of one expert, as it is stored. Take, redraw with the statistics of the unscaled entries (N-1
    in the divisor, over exactly those that S selects), scale last: methods.md."""
    values = ffn[matrix][expert.origin]
    neurons = np.zeros(len(values), bool)
    neurons[expert.sets.get(matrix, [])] = True
    law, mean, std = expert.law, 0.0, 1.0
    if neurons.any():
        own_mean, own_std = statistics(values, neurons)
        mean, std = own_mean if law.mean is None else law.mean, own_std if law.std is None else law.std
    turn = np.transpose if matrix == "down" else lambda x: x
    return Tensor(
        np.ascontiguousarray(turn(values)),
        expert.factors[matrix],
        turn(np.broadcast_to(neurons[:, None], values.shape)) if neurons.any() else None,
        law.adds,
        mean,
        std,
        turned=matrix == "down",
    )


# ---- which neurons are drawn: 2502.19261 section 3, mgr-upcycle(1) upcycle.ratio, index_sets ------


def drop(seed, layer, e, width, ratio, independent=False, matrix_ratio=(1, 1, 1)):
    """S of each matrix: one for all three (purpose 0), or one for each (1, 2, 3)."""
    sets = {}
    for k, matrix in enumerate(MATRICES):
        purpose = philox.SAMPLE_GATE + k if independent else philox.SAMPLE
        sets[matrix] = sample(seed, purpose, layer, e, width, selected_count(ratio * matrix_ratio[k], width))
    return sets


def linear_ratio(first, last, layer, layers):
    """upcycle.layer_ratio `A to B`: from the first to the last in equal steps."""
    return first + (last - first) * layer / (layers - 1)


# ---- which neurons an expert has ------------------------------------------------------------------


def cut(e, width, of):
    """upcycle.expert_width: copies of the FFN laid end to end, experts cut off one after another."""
    return (e * width + np.arange(width)) % of


def cut_shuffled(seed, layer, e, width, of):
    """upcycle.cut shuffled (Qwen2-57B-A14B, arXiv 2407.10671 2.2.2): each copy by a permutation of its own."""
    place = e * width + np.arange(width)
    orders = {c: permutation(seed, philox.REPLICA, layer, c, of) for c in np.unique(place // of)}
    return np.array([orders[c][i] for c, i in zip(place // of, place % of)])


def shuffled(seed, layer, e, origin):
    """upcycle.shuffle: the expert's neurons by a permutation of its own; neuron i is the one that was at
    place permutation[i], as W[perm] of the published code."""
    return origin[permutation(seed, philox.SHUFFLE, layer, e, len(origin))]


# ---- scales: arXiv 2410.07524 eq. 2 and upcycling_utils.py; methods.md ----------------------------


def scale_factor(of, width, experts, top_k, pre_softmax=False):
    """F/w with normalised weights, else F/w x experts/top_k."""
    return of / width * (experts / top_k if pre_softmax else 1.0)


def factors(rule, factor, part=1.0):
    """The rule's, for a gated FFN; `part` of the dense output (a half beside a shared expert) is taken on down."""
    if rule == "published":
        root = factor ** (1 / 3)
        return {"gate": root, "up": root, "down": root * part}
    return {**ALIKE, "down": (factor if rule == "exact" else 1.0) * part}


# ---- routers: upcycle.router, include/mgr/upcycle.h ------------------------------------------------


def uniform_router(seed, layer, experts, hidden, kind):
    """Words are public, so these are known: u = word * 2^-32, (u - mean of the layer's) * 0.02 * sqrt(12)."""
    rows = [philox.words(seed, philox.ROUTER, layer, e, 0, hidden) for e in range(experts)]
    u = np.stack(rows).astype(np.float64) * 2.0**-32
    if kind == "uniform01":
        return Tensor(u)
    u = u - u.mean()
    return Tensor(u * (0.02 * math.sqrt(12)) if kind == "uniform" else u)


def normal_router(experts, hidden, std=0.02, group=1):
    """N(0, std^2); of virtual groups (2410.07524) experts of one group have the first one's row."""
    same = np.arange(experts) // group * group
    drawn = np.broadcast_to((same == np.arange(experts))[:, None], (experts, hidden))
    return Tensor(np.zeros((experts, hidden), np.float32), drawn=drawn, std=std, same_as=same)


def noisy(router, share):
    """upcycle.router_noise: on rows that are there before, as a share of their standard deviation."""
    first = {}
    for i, row in enumerate(router):
        first.setdefault(row.tobytes(), i)
    copies = np.array([first[row.tobytes()] != i for i, row in enumerate(router)])
    std = share * router.astype(np.float64).std(axis=1, ddof=1)
    shape = router.shape
    return Tensor(
        router,
        drawn=np.broadcast_to(copies[:, None], shape),
        adds=True,
        std=np.broadcast_to(std[:, None], shape),
    )


# ---- whole models ---------------------------------------------------------------------------------


def at(layer, name):
    return f"model.layers.{layer}.mlp.{name}"


def ffn_of(model, layer, part=""):
    """A dense FFN ("") or that of "experts.3." or "shared."."""
    names = [at(layer, f"{part}{m}_proj.weight") for m in MATRICES]
    return {m: model[n].T if m == "down" else model[n] for m, n in zip(MATRICES, names)}


def put_ffn(out, layer, part, ffn, expert):
    for m in MATRICES:
        out[at(layer, f"{part}{m}_proj.weight")] = made(ffn, expert, m)


def whole(ffn, **more):
    return Expert(np.arange(len(ffn["gate"])), **more)


def others(model, order, keep=lambda name: ".mlp." not in name):
    """All that is no FFN, with layer i of the output from layer order[i]."""
    out = {n: Tensor(t) for n, t in model.items() if "layers." not in n}
    for i, k in enumerate(order):
        prefix = f"model.layers.{k}."
        for n, t in model.items():
            if n.startswith(prefix) and keep(n):
                out[f"model.layers.{i}.{n[len(prefix) :]}"] = Tensor(t)
    return out


def mixture(model, order, experts, expert_at, router_at, with_experts=lambda layer: True):
    """A dense model's FFNs as experts: expert_at(layer, e) and router_at(layer) are the rules. A layer without
    keeps its FFN (upcycle.moe_layer_freq). Layers, and their draws, are counted in the output."""
    out = others(model, order)
    for i, k in enumerate(order):
        ffn = ffn_of(model, k)
        if not with_experts(i):
            put_ffn(out, i, "", ffn, whole(ffn))
            continue
        out[at(i, "gate.weight")] = router_at(i)
        for e in range(experts):
            put_ffn(out, i, f"experts.{e}.", ffn, expert_at(i, e))
    return out


def add_shared(out, model, layers, origin, factor, hidden, gate):
    """upcycle.shared_expert: neurons of the dense FFN, down times `factor`; a gate of zeros is 1/2, and down is
    doubled for it."""
    for i in range(layers):
        expert = Expert(origin, factors={**ALIKE, "down": factor * (2 if gate else 1)})
        put_ffn(out, i, "shared.", ffn_of(model, i), expert)
        if gate:
            out[at(i, "shared_gate.weight")] = Tensor(np.zeros((1, hidden), np.float32))


def mean_of(tensors):
    """In float64; it is rounded once."""
    return np.mean([t.astype(np.float64) for t in tensors], axis=0)


def branch_train_mix(models, layers, experts, router_at, others_by, chosen=None):
    """arXiv 2403.07816: expert e is the FFN of model floor(e n / E), or of chosen[e]; all else the mean in
    float64, rounded once, or the first one's."""
    n = len(models)
    base = {
        name: mean_of([m[name] for m in models]) if others_by == "average" else t
        for name, t in models[0].items()
        if ".mlp." not in name
    }
    out = others(base, range(layers))
    for i in range(layers):
        out[at(i, "gate.weight")] = router_at(i)
        for e in range(experts):
            ffn = ffn_of(models[chosen[e] if chosen else e * n // experts], i)
            put_ffn(out, i, f"experts.{e}.", ffn, whole(ffn))
    return out


def regrown(model, layers, chosen_at, copies_by, router_by=None):
    """Of a mixture: target expert j of layer i is the source's chosen_at(i)[j] (growth, arXiv 2604.19835, and
    selection, 2510.13999), with its row of the router and its selection bias. The first of each stays bit for
    bit; copies_by(i, j, ffn) makes the others."""
    out = others(model, range(layers), lambda n: ".mlp." not in n or ".mlp.shared" in n)
    bias = at(0, "gate.e_score_correction_bias") in model
    for i in range(layers):
        chosen = list(chosen_at(i))
        rows = model[at(i, "gate.weight")][chosen]
        out[at(i, "gate.weight")] = router_by(i, rows) if router_by else Tensor(rows)
        if bias:
            name = at(i, "gate.e_score_correction_bias")
            out[name] = Tensor(model[name][chosen])
        for j, k in enumerate(chosen):
            ffn = ffn_of(model, i, f"experts.{k}.")
            put_ffn(out, i, f"experts.{j}.", ffn, copies_by(i, j, ffn) if k in chosen[:j] else whole(ffn))
    return out


def scores(model, layer, experts, by):
    """What needs no data: the sum, or the norm, of the router's row; the Frobenius norm of fc1, gate and up
    (2604.19835's, and methods.md)."""
    rows = model[at(layer, "gate.weight")].astype(np.float64)
    if by == "router-sum":
        return rows.sum(axis=1)
    if by == "router-norm":
        return np.sqrt((rows**2).sum(axis=1))
    ffns = [ffn_of(model, layer, f"experts.{e}.") for e in range(experts)]
    return np.array([np.sqrt(sum((f[m].astype(np.float64) ** 2).sum() for m in MATRICES[:2])) for f in ffns])


def concatenated(model, layers, chosen, weight=None, shared=False):
    """Of a mixture a dense model (2605.28207): experts side by side, down times 1/k; a shared expert behind
    them as it is."""
    out = others(model, range(layers))
    for i in range(layers):
        ffns = [ffn_of(model, i, f"experts.{e}.") for e in chosen]
        by = [weight or 1 / len(chosen)] * len(ffns)
        if shared:
            ffns, by = ffns + [ffn_of(model, i, "shared.")], by + [1]
        for m in MATRICES:
            rows = np.concatenate([times(f[m], b if m == "down" else 1) for f, b in zip(ffns, by)])
            out[at(i, f"{m}_proj.weight")] = Tensor(np.ascontiguousarray(rows.T if m == "down" else rows))
    return out


def from_scratch(model, layers, experts, std, megatron=False):
    """Every weight N(0, std^2), norms 1; `init: megatron` divides the outputs' of attention and FFN by
    sqrt(2 x layers). The source gives the shape."""
    drawn = lambda t, s: Tensor(np.zeros_like(t), drawn=np.ones(t.shape, bool), std=s)
    output_std = std / math.sqrt(2 * layers) if megatron else std
    out = {}
    for name, t in model.items():
        if ".mlp." not in name:
            is_output = name.endswith("o_proj.weight")
            out[name] = Tensor(np.ones_like(t)) if "norm" in name else drawn(t, output_std if is_output else std)
    for i in range(layers):
        ffn = ffn_of(model, i)
        out[at(i, "gate.weight")] = drawn(np.zeros((experts, ffn["gate"].shape[1]), np.float32), std)
        for e in range(experts):
            for m in MATRICES:
                t = ffn[m].T if m == "down" else ffn[m]
                out[at(i, f"experts.{e}.{m}_proj.weight")] = drawn(t, output_std if m == "down" else std)
    return out


# ---- judging --------------------------------------------------------------------------------------


def fits_normal(cells):
    """Are these the draws of one law, each cell by itself and all together, without likeness between cells?
    Returns what is wrong, or "". `cells` are standardised. Bounds are six or so sigma: seeds are fixed."""
    n = np.array([z.size for z in cells])
    means = np.array([z.mean() for z in cells])
    spread = np.array([z.std(ddof=1) - 1 for z in cells])
    limit = len(cells) + 6 * math.sqrt(2 * len(cells)) + 6
    if (n * means**2).sum() > limit:
        return f"means: {(n * means**2).sum():.1f} > {limit:.1f}"
    if (2 * n * spread**2).sum() > limit:
        return f"standard deviations: {(2 * n * spread**2).sum():.1f} > {limit:.1f}"
    x = np.sort(np.concatenate([z.reshape(-1) for z in cells]))
    cdf = 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))
    ks = np.abs(cdf - (np.arange(len(x)) + 0.5) / len(x)).max() * math.sqrt(len(x))
    if ks > 2.3:  # of right ones 1 in 20,000
        return f"Kolmogorov-Smirnov: {ks:.2f}"
    return alike(cells)


def alike(cells):
    """Two cells that move together, or "": a draw belongs to one element of one expert alone."""
    by_size = {}
    for z in cells:
        by_size.setdefault(z.size, []).append(z.reshape(-1))
    for size, same in by_size.items():
        z = np.stack(same)
        worst = np.abs(np.triu(z @ z.T, 1)).max() / math.sqrt(size)
        if worst > 6:
            return f"correlated: {worst:.1f} sigma"
    return ""


def standardised(want, values):
    """What was drawn as draws of N(0, 1), a neuron's side by side as its elements are counted: down turned."""
    z = values.astype(np.float64) / np.float32(want.factor) - want.mean
    z = (z - want.values if want.adds else z) / want.std
    return z.T[want.drawn.T] if want.turned else z[want.drawn]


def faults(predicted, output, bf16=False):
    """What of `output`, {name: (values, bits)}, is not as predicted, as a list of texts."""
    found = [f"names: {sorted(set(predicted) ^ set(output))[:4]}"] if set(predicted) != set(output) else []
    cells = []
    for name in sorted(set(predicted) & set(output)):
        want, (values, bits) = predicted[name], output[name]
        if values.shape != want.values.shape:
            found.append(f"{name}: shape {values.shape}, not {want.values.shape}")
            continue
        drawn = np.zeros(values.shape, bool) if want.drawn is None else want.drawn
        kept = ~drawn
        if want.same_as is not None:
            kept = drawn & False
            if not np.array_equal(bits, bits[want.same_as]):
                found.append(f"{name}: rows that are not the same")
        # Selection biases are float32 whatever the other weights are (include/mgr/model.h).
        narrow = bf16 and not name.endswith("correction_bias")
        expect = rounded(want.values, want.factor, narrow)
        if bits.dtype != expect.dtype:
            found.append(f"{name}: of another type")
            continue
        wrong = kept & (expect != bits)
        if wrong.any():
            where = np.argwhere(wrong)[0]
            found.append(f"{name}: {wrong.sum()} of {kept.sum()} that are not drawn differ, first {where}")
        if drawn.any():
            cells.append(standardised(want, values))
            if (bits == expect)[drawn].mean() > 0.1:
                found.append(f"{name}: neurons of S are what they were")
    if cells and (why := fits_normal(cells)):
        found.append("draws: " + why)
    return found
