"""Every class of transformers that people hold models of, tiny, as save_pretrained writes it: what the
program makes of it. Prints a table (pytest -s, or ctest -V); a result that is wrong is a failure.

`kept` says that the folder came back from HDF5 bit for bit; a class behind it, that naive experts are that
mixture's and compute the dense logits. A refusal is quoted. It takes minutes: label slow."""

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
Gemma3 Glm Glm4 Cohere StableLm Starcoder2 Nemotron Arcee Exaone4 Apertus HunYuanDenseV1 Ministral""".split()
MIXTURES = """Mixtral Qwen2Moe Qwen3Moe Olmoe FlexOlmo GraniteMoe GraniteMoeShared Ernie4_5_Moe Glm4Moe Dots1
GptOss Phimoe MiniMaxM2""".split()
OF_EXPERTS = dict(num_experts=4, num_local_experts=4, num_experts_per_tok=2)
OWN = {
    "SmolLM3": dict(no_rope_layer_interval=2),
    "Dots1": dict(n_routed_experts=4, n_shared_experts=1, moe_intermediate_size=20),
}


def make(kind, folder):
    """The model, or the reason why this release has no such tiny one."""
    names = {"Gemma3": ("Gemma3TextConfig", "Gemma3ForCausalLM")}
    config, model = names.get(kind, (kind + "Config", kind + "ForCausalLM"))
    options = {**families.SIZES, "head_dim": 8, **(OF_EXPERTS if kind in MIXTURES else {})}
    options.update(OWN.get(kind, {}))
    torch.manual_seed(4)
    try:
        lm = getattr(transformers, model)(getattr(transformers, config)(**options)).to(torch.float32).eval()
        with torch.no_grad():
            for p in lm.parameters():
                p.add_(torch.randn_like(p) * 0.1)
        lm.save_pretrained(folder)
        return lm, None
    except Exception as error:  # whatever it is, it is no fault of ours
        return None, f"{type(error).__name__}: {error}".splitlines()[0][:90]


def said(result):
    assert result.status in (runner.DATA, runner.CONFIG), str(result)
    error = result.errors()[0].split("error: ", 1)[1]
    return "refused: " + re.sub(r"'/\S*' ", "", error)[:110]


def kept(scratch, source):
    result = families.run(scratch, source, "h5", mode="reshard", upcycle=None, target__format="hdf5")
    if result.status:
        return said(result)
    families.same_tensors(source, families.reshard(scratch, scratch / "h5", "back"))
    return "kept"


def mixture(scratch, source, lm):
    result = families.run(scratch, source, "moe", upcycle__method="naive", upcycle__ratio=None)
    if result.status:
        return said(result)
    moe = real_models.load(scratch / "moe")
    difference = harness.relative_difference(families.logits(moe), families.logits(lm))
    assert difference < 1e-5, difference
    each_expert.counts(moe, families.IDS)
    return f"{moe.config.model_type} {difference:.0e}"


def try_class(kind):
    with tempfile.TemporaryDirectory() as folder:
        scratch = pathlib.Path(folder)
        lm, why = make(kind, scratch / "a")
        if why:
            return "not made: " + why
        first = kept(scratch, scratch / "a")
        if first != "kept" or kind in MIXTURES:
            return first
        return f"{first}; {mixture(scratch, scratch / 'a', lm)}"


@pytest.mark.parametrize("kind", DENSE + MIXTURES)
def test_what_becomes_of(kind):
    print(f"\n{'mixture' if kind in MIXTURES else 'dense  '} {kind:18} {try_class(kind)}")
