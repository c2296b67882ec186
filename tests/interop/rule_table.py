"""The constructions that test_rules.py makes: for each the kind of its source, the keys of `upcycle` and of the
target that the program gets, and the rule of rule_oracle.py that says what has to come of it."""

import functools

import numpy as np

import rule_oracle as rule
from rule_oracle import at

LAYERS, HIDDEN, FFN, HEADS, VOCAB, SEED = 3, 48, 72, 4, 64, 1234
EVERY = range(LAYERS)
NOISE = rule.Law(True, 0.0, 0.02)


def router_rows(layer, experts=4):
    """What a router's file has."""
    return 0.1 * np.random.default_rng(layer).standard_normal((experts, HIDDEN)).astype(np.float32)


def uniform(layer, experts=4):
    return rule.uniform_router(SEED, layer, experts, HIDDEN, "uniform")


def drop_at(i, e, ratio=0.5, width=FFN, origin=None, law=rule.COPY, factors=rule.ALIKE, **more):
    sets = rule.drop(SEED, i, e, width, ratio, **more)
    return rule.Expert(np.arange(width) if origin is None else origin, 0, sets, law, dict(factors))


def copy_at(i, e, width=FFN, origin=None, factors=rule.ALIKE):
    return rule.Expert(np.arange(width) if origin is None else origin, factors=dict(factors))


def moving(expert_at, width, origin_at, **more):
    """The same of neurons from elsewhere."""
    return lambda i, e: expert_at(i, e, width=width, origin=origin_at(i, e), **more)


def cut_to(width, first=0, of=FFN):
    return lambda i, e: first + rule.cut(e, width, of)


def add(table, name, kind, how, predict, **target):
    assert name not in table
    table[name] = kind, {"experts": 4, "seed": SEED, **how}, target, predict


def dense(table, name, how, expert_at, router=None, kind="llama", order=EVERY, moe=lambda i: True, **target):
    """A mixture of a dense model."""
    experts = how.get("experts", 4)
    router = router or (lambda i: uniform(i, experts))
    predict = lambda model: rule.mixture(model, list(order), experts, expert_at, router, moe)
    add(table, name, kind, how, predict, **target)


def shared(table, name, how, expert_at, origin, factor, gate, router=None):
    """With a shared expert that has a gate (Qwen2-MoE), or none (GLM-4.5, whose selection bias starts at zeros)."""
    experts = how.get("experts", 4)

    def predict(model):
        router_at = router or (lambda i: uniform(i, experts))
        out = rule.mixture(model, list(EVERY), experts, expert_at, router_at)
        rule.add_shared(out, model, LAYERS, origin, factor, HIDDEN, gate)
        for i in EVERY if not gate else ():
            out[at(i, "gate.e_score_correction_bias")] = rule.Tensor(np.zeros(experts, np.float32))
        return out

    add(table, name, "llama", how, predict, target__class="qwen2_moe" if gate else "glm4_moe")


def mixture(table, name, how, chosen_at, copies_by=None, router_by=None, kind="mixtral"):
    """Of a mixture, one of other experts."""
    copies_by = copies_by or (lambda i, j, ffn: rule.whole(ffn))
    add(table, name, kind, how, lambda model: rule.regrown(model, LAYERS, chosen_at, copies_by, router_by))


# ---- Drop-Upcycling: sets, ratios, statistics; noise; naive; shuffle ------------------------------


def strengths(table):
    dense(table, "drop", {"ratio": 0.5}, drop_at)
    dense(table, "drop, all", {"ratio": 1}, lambda i, e: drop_at(i, e, 1.0))
    dense(table, "drop, none", {"ratio": 0}, copy_at)
    listed = lambda i, e: drop_at(i, e, (0.25, 0.4, 0.75)[i])
    dense(table, "drop, a list of ratios", {"layer_ratio": "0.25,0.4,0.75"}, listed)
    linear = lambda i, e: drop_at(i, e, rule.linear_ratio(0.2, 0.8, i, LAYERS))
    dense(table, "drop, linear ratios", {"layer_ratio": "0.2 to 0.8"}, linear)
    apart = {"index_sets": "independent"}
    dense(table, "drop, independent", apart, lambda i, e: drop_at(i, e, independent=True))
    by_matrix = lambda i, e: drop_at(i, e, independent=True, matrix_ratio=(1, 0.5, 0))
    dense(table, "drop, ratio by matrix", {**apart, "matrix_ratio": "1,0.5,0"}, by_matrix)
    for mean, std in (("own", 0.02), ("zero", 0), ("zero", 0.02)):
        law = rule.Law(mean=0.0 if mean == "zero" else None, std=std or None)
        how = {"redraw_mean": mean, "redraw_std": std}
        dense(table, f"drop, mean {mean}, std {std or 'own'}", how, functools.partial(drop_at, law=law))
    dense(table, "naive", {"method": "naive"}, copy_at)
    dense(table, "noise", {"method": "noise"}, functools.partial(drop_at, law=NOISE))
    louder = functools.partial(drop_at, ratio=0.25, law=rule.Law(True, 0.0, 0.05))
    dense(table, "noise, louder", {"method": "noise", "ratio": 0.25, "noise_std": 0.05}, louder)
    shuffled = lambda i, e: rule.shuffled(SEED, i, e, np.arange(FFN))
    dense(table, "drop, shuffled", {"shuffle": True}, moving(drop_at, FFN, shuffled))
    dense(table, "naive, shuffled", {"method": "naive", "shuffle": True}, moving(copy_at, FFN, shuffled))


def rounding(table):
    """Numbers of neurons that another order of operations would round to another."""
    # 0.58 * 50 is 28.999999999999996 in double.
    expert_at = lambda i, e: drop_at(i, e, 0.58, 50, rule.cut(e, 50, FFN))
    dense(table, "drop, ratio 0.58 of 50", {"ratio": 0.58, "expert_width": 50}, expert_at)
    # (0.2 * 0.7) * 50 is below 7, 0.2 * (0.7 * 50) is not.
    how = {"ratio": 0.2, "matrix_ratio": "0.7,1,0.5", "index_sets": "independent", "expert_width": 50}
    more = {"independent": True, "matrix_ratio": (0.7, 1, 0.5)}
    expert_at = lambda i, e: drop_at(i, e, 0.2, 50, rule.cut(e, 50, FFN), **more)
    dense(table, "drop, ratio by matrix of 50", how, expert_at)


# ---- widths: 24 divides 72, 20 does not and is cut across copies, 160 is wider --------------------


def widths(table):
    for width, experts in ((24, 6), (20, 5), (160, 2)):
        how = {"expert_width": width} if width != 24 else {"slices": 3}
        how["experts"] = experts
        plain = cut_to(width)
        mixed = lambda i, e, width=width: rule.cut_shuffled(SEED, i, e, width, FFN)
        own = lambda i, e, width=width: rule.shuffled(SEED, i, e, rule.cut(e, width, FFN))
        name = f"width {width}"
        dense(table, f"naive, {name}", {**how, "method": "naive"}, moving(copy_at, width, plain))
        dense(table, f"drop, {name}", how, moving(drop_at, width, plain))
        dense(table, f"drop, {name}, cut shuffled", {**how, "cut": "shuffled"}, moving(drop_at, width, mixed))
        dense(table, f"drop, {name}, shuffled", {**how, "shuffle": True}, moving(drop_at, width, own))


def scales(table):
    sizes = ((24, 6, 3, False), (24, 6, 3, True), (20, 5, 2, False), (160, 2, 2, False))
    for rule_name in ("published", "exact"):
        for width, experts, top_k, pre in sizes:
            by = rule.factors(rule_name, rule.scale_factor(FFN, width, experts, top_k, pre))
            how = {"expert_width": width, "scale": rule_name, "top_k": top_k, "router_pre_softmax": pre}
            how["experts"] = experts
            name = f"width {width}, {rule_name}{', pre-softmax' if pre else ''}"
            # Mixtral normalises: pre-softmax goes to a class that need not.
            kind = "qwen3" if pre else "llama"
            dense(table, f"drop, {name}", how, moving(drop_at, width, cut_to(width), factors=by), kind=kind)
            expert_at = moving(copy_at, width, cut_to(width), factors=by)
            dense(table, f"naive, {name}", {**how, "method": "naive"}, expert_at, kind=kind)
    how = {"method": "noise", "slices": 3, "cut": "shuffled", "scale": "exact", "top_k": 3, "experts": 6}
    mixed = lambda i, e: rule.cut_shuffled(SEED, i, e, 24, FFN)
    expert_at = moving(drop_at, 24, mixed, law=NOISE, factors=rule.factors("exact", 3.0))
    dense(table, "noise, width 24, cut shuffled, exact", how, expert_at)


# ---- routers; which layers, and how often; lists of neurons ---------------------------------------


def routers(table):
    for kind in ("uniform01", "uniform01-centred"):
        router = lambda i, kind=kind: rule.uniform_router(SEED, i, 4, HIDDEN, kind)
        dense(table, f"router {kind}", {"method": "naive", "router": kind}, copy_at, router)
    how = {"method": "naive", "router": "normal", "router_std": 0.05, "experts": 16}
    dense(table, "router normal", how, copy_at, lambda i: rule.normal_router(16, HIDDEN, 0.05))
    zeros = lambda i: rule.Tensor(np.zeros((4, HIDDEN), np.float32))
    dense(table, "router zeros", {"method": "naive", "router": "zeros"}, copy_at, zeros)
    file = lambda i: rule.Tensor(router_rows(i))
    dense(table, "router file", {"method": "naive", "router": "file"}, copy_at, file)
    how = {"method": "naive", "slices": 3, "router": "virtual-groups", "scale": "exact", "top_k": 3}
    expert_at = moving(copy_at, 24, cut_to(24), factors=rule.factors("exact", 3.0))
    groups = lambda i: rule.normal_router(24, HIDDEN, group=3)
    dense(table, "virtual groups", {**how, "experts": 24}, expert_at, groups)


def layers(table):
    ways = {"2": (1, 0, 1), "[0]*1+[1]*2": (0, 1, 1), "every-second": (0, 1, 0), "last-half": (0, 0, 1)}
    for text, moe in ways.items():
        dense(table, f"layers {text}", {"moe_layer_freq": text}, drop_at, kind="qwen3", moe=moe.__getitem__)
    # Ratios are counted over all layers.
    of_some = {"moe_layer_freq": "[0]*1+[1]*2", "layer_ratio": "0.2 to 0.8"}
    linear = lambda i, e: drop_at(i, e, rule.linear_ratio(0.2, 0.8, i, LAYERS))
    dense(table, "linear ratios of some layers", of_some, linear, kind="qwen3", moe=bool)
    of_some = {**of_some, "layer_ratio": "0.9,0.4,0.75"}
    listed = lambda i, e: drop_at(i, e, (0.9, 0.4, 0.75)[i])
    dense(table, "a list of ratios of some layers", of_some, listed, kind="qwen3", moe=bool)
    for text, order in (("times 2", (0, 0, 1, 1, 2, 2)), ("0-1,0-2", (0, 1, 0, 1, 2))):
        dense(table, f"layers from {text}", {"layers_from": text}, drop_at, order=order)


def lists(table):
    neurons = [[[(7 * i + 5 * e + 3 * k) % FFN for k in range(18)] for e in range(4)] for i in EVERY]
    how = {"method": "naive", "neurons_file": {"neurons": neurons}}
    dense(table, "lists of neurons", how, moving(copy_at, 18, lambda i, e: np.array(neurons[i][e])))
    one = moving(drop_at, 18, lambda i, e: np.array(neurons[0][e]))
    dense(table, "drop of one list of neurons", {"neurons_file": {"neurons": neurons[:1]}}, one)


# ---- shared experts -------------------------------------------------------------------------------


def shared_experts(table):
    exact, halved = rule.factors("exact", 3.0), rule.factors("exact", 3.0, 0.5)
    cut = {"scale": "exact", "top_k": 3, "method": "naive", "experts": 6}
    for gate in (True, False):
        word = "gate" if gate else "no gate"
        half = functools.partial(drop_at, factors=rule.factors("none", 1, 0.5))
        shared(table, f"shared whole, {word}", {"shared_expert": "whole"}, drop_at, np.arange(FFN), 1, gate)
        shared(table, f"shared half, {word}", {"shared_expert": "half"}, half, np.arange(FFN), 0.5, gate)
        how = {"shared_expert": "slices", "slices": 4, **cut}
        routed = moving(copy_at, 18, cut_to(18, 18, 54), factors=exact)
        shared(table, f"shared slice, {word}", how, routed, np.arange(18), 1, gate)
        how = {"shared_expert": "half", "slices": 3, **cut}
        routed = moving(copy_at, 24, cut_to(24), factors=halved)
        shared(table, f"shared half, slices, {word}", how, routed, np.arange(FFN), 0.5, gate)


def shared_with_more(table):
    mixed = lambda i, e: 36 + rule.cut_shuffled(SEED, i, e, 18, 36)
    how = {"shared_expert": "slices", "shared_slices": 2, "slices": 4, "cut": "shuffled"}
    shared(table, "shared slices, the rest shuffled", how, moving(drop_at, 18, mixed), np.arange(36), 1, True)
    how = {"shared_expert": "half", "slices": 3, "scale": "published", "top_k": 3, "experts": 6}
    routed = moving(copy_at, 24, cut_to(24), factors=rule.factors("published", 3.0, 0.5))
    how["method"] = "naive"
    shared(table, "shared half, slices, published", how, routed, np.arange(FFN), 0.5, True)
    how = {"shared_expert": "slices", "slices": 4, "scale": "exact", "top_k": 3, "method": "naive"}
    how.update({"router": "virtual-groups", "experts": 12})
    routed = moving(copy_at, 18, cut_to(18, 18, 54), factors=rule.factors("exact", 3.0))
    groups = lambda i: rule.normal_router(12, HIDDEN, group=3)
    shared(table, "shared slice, virtual groups", how, routed, np.arange(18), 1, True, groups)


# ---- several models; from scratch -----------------------------------------------------------------


def several(table):
    for others, chosen in (("average", None), ("base", [2, 0, 0, 1]), ("average", [1, 1, 2, 0])):
        how = {"method": "branch-train-mix", "others": others}
        how.update({"experts_from": ",".join(map(str, chosen))} if chosen else {"experts": 6})
        more = (how.get("experts", 4), others, chosen)

        def predict(*models, more=more):
            n, others, chosen = more
            return rule.branch_train_mix(models, LAYERS, n, lambda i: uniform(i, n), others, chosen)

        name = f"several models, {others}{', map' if chosen else ''}"
        add(table, name, ("llama", "llama-b", "llama-c"), how, predict)
    how = {"method": "branch-train-mix", "others": "equal"}
    predict = lambda *models: rule.branch_train_mix(models, LAYERS, 4, uniform, "base")
    add(table, "several models, equal", ("llama", "llama-ffn"), how, predict)


def scratch(table):
    for init in ("huggingface", "megatron"):
        how = {"method": "from-scratch", "init": init, "init_std": 0.03}
        predict = lambda model, m=init == "megatron": rule.from_scratch(model, LAYERS, 4, 0.03, m)
        add(table, f"from scratch, {init}", "llama", how, predict)


# ---- mixtures that grow, that shrink, and that become dense ----------------------------------------


def grown(times):
    return lambda i: [j % 4 for j in range(4 * times)]


def growth(table):
    for kind in ("mixtral", "glm4_moe"):
        mixture(table, f"growth of {kind}", {"method": "naive", "experts": 8}, grown(2), kind=kind)
    drawn = lambda i, j, ffn: drop_at(i, j)
    mixture(table, "growth, copies drawn anew", {"method": "drop", "experts": 12}, grown(3), drawn)
    added = lambda i, j, ffn: drop_at(i, j, law=NOISE)
    mixture(table, "growth, copies with noise", {"method": "noise", "experts": 8}, grown(2), added)
    how = {"method": "naive", "experts": 64, "router": "source", "router_noise": 0.1}
    noisy = lambda i, rows: rule.noisy(rows, 0.1)
    mixture(table, "growth, router noise", how, grown(16), router_by=noisy)
    how = {"method": "naive", "experts": 8, "router": "uniform"}
    anew = lambda i, rows: uniform(i, 8)
    mixture(table, "growth, a router anew", how, grown(2), router_by=anew)
    how = {"method": "drop", "experts_from": "3,0-1,3", "top_k": 2}
    mixture(table, "growth by a list", how, lambda i: [3, 0, 1, 3], drawn)


def selection(table):
    for kind in ("mixtral", "glm4_moe"):
        how = {"method": "naive", "experts_from": "0,2-3", "experts": 3}
        mixture(table, f"selection of {kind}", how, lambda i: [0, 2, 3], kind=kind)
    kept = [[0, 3], [1, 2], [2, 0]]
    how = {"method": "naive", "experts_file": {"experts": kept}, "experts": 2}
    mixture(table, "selection by a file", how, lambda i: kept[i])


def side_by_side(table):
    for name, how, chosen, weight in (
        ("all", {}, [0, 1, 2, 3], None),
        ("some", {"experts_from": "3,1"}, [3, 1], None),
        ("three", {"experts_from": "0-2"}, [0, 1, 2], None),
        ("weight", {"expert_weight": 0.7}, [0, 1, 2, 3], 0.7),
    ):
        predict = lambda model, more=(chosen, weight): rule.concatenated(model, LAYERS, *more)
        how = {"method": "concatenate", "experts": None, **how}
        add(table, f"side by side, {name}", "mixtral", how, predict)
    predict = lambda model: rule.concatenated(model, LAYERS, [0, 1, 2, 3], shared=True)
    add(table, "side by side, shared", "dots1", {"method": "concatenate", "experts": None}, predict)


@functools.cache
def constructions():
    """{name: (kind of source, or several; keys of `upcycle`; of the target; model -> {tensor: what it has to be})}"""
    table = {}
    for part in (strengths, rounding, widths, scales, routers, layers, lists):
        part(table)
    for part in (shared_experts, shared_with_more, several, scratch, growth, selection, side_by_side):
        part(table)
    return table


# Of each kind one; the others with MGR_RULES=all.
QUICK = (
    ["drop", "drop, linear ratios", "drop, independent", "drop, ratio by matrix", "drop, mean zero, std 0.02"]
    + ["drop, shuffled", "naive", "noise", "drop, ratio 0.58 of 50", "naive, width 24", "drop, width 160"]
    + ["drop, width 20, cut shuffled", "drop, width 24, published", "naive, width 24, exact, pre-softmax"]
    + ["router uniform01", "router normal", "router zeros", "router file", "virtual groups"]
    + ["layers every-second", "layers from times 2", "lists of neurons", "shared half, gate"]
    + ["shared slice, no gate", "several models, average", "several models, base, map"]
    + ["from scratch, megatron", "growth of glm4_moe", "growth, copies drawn anew", "growth, router noise"]
    + ["selection of glm4_moe", "side by side, three", "side by side, shared"]
)
