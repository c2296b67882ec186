"""Every class of transformers that people hold models of, tiny, as save_pretrained writes it: what the
program makes of it. Prints a table (pytest -s, or ctest -V), and the shorter one of tools/docs/carried.md; a result
that is wrong is a failure.

`kept` says that the folder came back from HDF5 bit for bit, `passes` that all but its FFNs was moved unread;
a class behind it, that naive experts are that mixture's and compute the dense logits, each of them counting.
A refusal is quoted. It takes minutes: label slow."""

import pathlib
import re
import tempfile

import pytest

import torch
import transformers

import each_expert
import harness
import real_models
import runner
import test_families as families

DENSE = """Llama Mistral Qwen2 Qwen3 Phi3 SmolLM3 Ernie4_5 SeedOss Granite Olmo Olmo2 Olmo3 Gemma Gemma2
Gemma3 Glm Glm4 Cohere StableLm Starcoder2 Nemotron Arcee Exaone4 Apertus HunYuanDenseV1 Ministral
Ministral3 GraniteMoeHybrid GraniteSWA Cohere2 Lfm2""".split()
MIXTURES = """Mixtral Qwen2Moe Qwen3Moe Olmoe FlexOlmo GraniteMoe GraniteMoeShared Ernie4_5_Moe Glm4Moe Dots1
GptOss Phimoe MiniMaxM2""".split()
OF_EXPERTS = dict(num_experts=4, num_local_experts=4, num_experts_per_tok=2)
OWN = {
    "SmolLM3": dict(no_rope_layer_interval=2),
    "Dots1": dict(n_routed_experts=4, n_shared_experts=1, moe_intermediate_size=20),
    # Granite 4 without Mamba, and with both kinds of positions that it is published with
    "GraniteMoeHybrid": dict(
        layer_types=["attention"] * 2, num_local_experts=0, shared_intermediate_size=48, mamba_n_heads=8,
        mamba_d_head=8, position_embedding_type="rope", **families.GRANITE,
    ),
    "GraniteSWA": dict(layer_types=["full_attention", "sliding_attention"], sliding_window=4),
    "Lfm2": dict(layer_types=["conv", "full_attention"], block_auto_adjust_ff_dim=False),
}  # fmt: skip
NO_HEAD_DIM = ("GraniteMoeHybrid", "GraniteSWA", "Lfm2")
ROWS = {
    "works": "dense: back from HDF5 bit for bit, and a mixture of naive experts computes its logits",
    "alone": "dense: back bit for bit, and no mixture computes with its attention",
    "mixture": "mixtures: back bit for bit",
    "passes to": "passes through, back bit for bit, and a mixture of naive experts computes its logits",
    "passes": "passes through, back bit for bit, experts refused by name",
    "refused": "refused by name",
}
found = {row: [] for row in ROWS}  # of this run: (model_type, mixture's or "")


def make(kind, folder):
    """The model, or the reason why this release has no such tiny one."""
    names = {"Gemma3": ("Gemma3TextConfig", "Gemma3ForCausalLM")}
    config, model = names.get(kind, (kind + "Config", kind + "ForCausalLM"))
    options = {**families.SIZES, "head_dim": 8, **(OF_EXPERTS if kind in MIXTURES else {})}
    options.update(OWN.get(kind, {}))
    if kind in NO_HEAD_DIM:
        del options["head_dim"]
    torch.manual_seed(4)
    lm = getattr(transformers, model)(getattr(transformers, config)(**options)).to(torch.float32).eval()
    with torch.no_grad():
        for p in lm.parameters():
            p.add_(torch.randn_like(p) * 0.1)
    lm.save_pretrained(folder)
    return lm


def said(result):
    assert result.status in (runner.DATA, runner.CONFIG), str(result)
    error = result.errors()[0].split("error: ", 1)[1]
    return "refused: " + re.sub(r"'/\S*' ", "", error)[:110]


def kept(scratch, source):
    """There and back; returns what is told, and whether it passed through unread."""
    result = families.run(scratch, source, "h5", mode="reshard", upcycle=None, target__format="hdf5")
    if result.status:
        return said(result), False
    families.same_tensors(source, families.reshard(scratch, scratch / "h5", "back"))
    passes = "passed through unread" in " ".join(result.out.split())
    return "passes" if passes else "kept", passes


def mixture(scratch, source, lm):
    """The mixture's type, or None and the refusal."""
    result = families.run(scratch, source, "moe", upcycle__method="naive", upcycle__ratio=None)
    if result.status:
        return None, said(result)
    moe = real_models.load(scratch / "moe")
    difference = harness.relative_difference(families.logits(moe), families.logits(lm))
    assert difference < 1e-5, difference
    each_expert.counts(moe, families.IDS)
    return moe.config.model_type, f"{moe.config.model_type} {difference:.0e}"


def try_class(kind):
    with tempfile.TemporaryDirectory() as folder:
        scratch = pathlib.Path(folder)
        lm = make(kind, scratch / "a")
        first, passes = kept(scratch, scratch / "a")
        own = lm.config.model_type
        if first.startswith("refused"):
            return "refused", (own, ""), first
        if kind in MIXTURES:
            return "passes" if passes else "mixture", (own, ""), first
        sibling, then = mixture(scratch, scratch / "a", lm)
        row = ("passes to" if sibling else "passes") if passes else ("works" if sibling else "alone")
        return row, (own, sibling or ""), f"{first}; {then}"


@pytest.mark.parametrize("kind", DENSE + MIXTURES)
def test_what_becomes_of(kind):
    row, types, text = try_class(kind)
    found[row].append(types)
    print(f"\n{'mixture' if kind in MIXTURES else 'dense  '} {kind:18} {text}")


def short_table():
    lines = ["| | classes |", "|---|---|"]
    for row, text in ROWS.items():
        siblings = dict.fromkeys(s for _, s in found[row])
        parts = [", ".join(t for t, s in found[row] if s == sibling) + f" ({sibling})" * bool(sibling) for sibling in siblings]
        lines.append(f"| {text} | {'; '.join(parts)} |")
    return "\n".join(lines)


def test_the_documents_have_the_table():
    if sum(map(len, found.values())) < len(DENSE + MIXTURES):
        pytest.skip("of all classes alone")
    table = short_table()
    print("\n" + table)
    assert table in (runner.ROOT / "tools" / "docs" / "carried.md").read_text()
