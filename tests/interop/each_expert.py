"""Does each expert count? Equality of naive copies would pass on a class that evaluates only some of them,
so every judge of such copies changes one expert alone, for each expert, and must see the logits change."""

import contextlib
import re

import torch


def check(compute, experts, chosen=None):
    """`experts`: of each the matrices that lead out of it, of which a rank may have none. `chosen`: those that
    the router gives a token; the others must not count. By default all of them."""
    with torch.no_grad():
        before = compute()
        for e, matrices in enumerate(experts):
            for m in matrices:
                m.mul_(2)
            change = (compute() - before).abs().max()
            for m in matrices:
                m.div_(2)  # bit for bit what it was
            if chosen is None or e in chosen:
                assert change > 1e-5 * before.abs().max(), f"expert {e} does not count: {change}"
            else:
                assert change == 0, f"expert {e} counts and no token is given to it: {change}"


@contextlib.contextmanager
def chosen_by_megatron(chunks):
    """The experts that routers give a token to, in what is computed meanwhile."""
    chosen = set()

    def note(router, given, made):
        chosen.update(made[1].reshape(-1, made[1].shape[-1]).any(0).nonzero().flatten().tolist())

    routers = [m for chunk in chunks for m in chunk.modules() if type(m).__name__ == "TopKRouter"]
    hooks = [router.register_forward_hook(note) for router in routers]
    yield chosen
    for hook in hooks:
        hook.remove()


def of_transformers(lm):
    """Fused or one by one, under the names of any release."""
    found = {}
    for name, p in lm.named_parameters():
        alone = re.search(r"experts\.(\d+)\.(w2|down_proj)\.weight$", name)
        if alone:
            found.setdefault(int(alone[1]), []).append(p)
        elif p.ndim == 3 and re.search(r"(experts\.down_proj|output_linear\.weight)$", name):
            for e, matrix in enumerate(p):
                found.setdefault(e, []).append(matrix)
    assert len(found) > 1 and sorted(found) == list(range(len(found))), sorted(found)
    return [found[e] for e in range(len(found))]


def of_megatron(chunks, experts, rank, ranks):
    """Of an expert-parallel rank, which has its part of them one by one."""
    found = {e: [] for e in range(experts)}
    each = experts // ranks
    for chunk in chunks:
        for name, p in chunk.named_parameters():
            local = re.search(r"local_experts\.(\d+)\.linear_fc2\.weight$", name)
            if local:
                found[rank * each + int(local[1])].append(p)
    has = any(".experts." in name for chunk in chunks for name, _ in chunk.named_parameters())
    assert not has or all(found[rank * each + e] for e in range(each)), "experts that are not one by one"
    return [found[e] for e in range(experts)]


def counts(lm, ids):
    check(lambda: lm(ids).logits, of_transformers(lm))
