"""T5 to Switch Transformers, and Switch itself: two stacks, judged by the real classes of transformers.

Both are read from what save_pretrained writes. What is not an FFN is opaque to the program, and must arrive
bit for bit; the random numbers of the encoder are those of stack 1 (include/mgr/rng.h)."""

import json
import shutil

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import each_expert
import harness
import philox
import runner
import transformers_judge as judge
import upcycle_oracle as oracle

torch.set_num_threads(1)  # tiny models: a second thread only waits
transformers.utils.logging.disable_progress_bar()
transformers.utils.logging.set_verbosity_error()
E, SEED = 4, 77
SIZES = dict(
    vocab_size=96, d_model=64, d_kv=24, d_ff=80, num_layers=4, num_decoder_layers=3, num_heads=4,
    decoder_start_token_id=0, dropout_rate=0.1, relative_attention_num_buckets=16,
)  # fmt: skip
NAMES = {"encoder": "encoder.block.%d.layer.1.", "decoder": "decoder.block.%d.layer.2."}
STACK = {"decoder": 0, "encoder": 1}
SPARSE = {"encoder": (1, 3), "decoder": (1,)}
IDS = torch.randint(2, 96, (6, 20), generator=torch.Generator().manual_seed(1))
ANSWER = torch.randint(2, 96, (6, 14), generator=torch.Generator().manual_seed(2))
SWITCH = dict(
    mode="upcycle", upcycle__method="naive", upcycle__ratio=None, upcycle__experts=E, upcycle__top_k=1,
    upcycle__router="zeros", upcycle__router_pre_softmax=True, upcycle__scale="exact", upcycle__seed=SEED,
    upcycle__moe_layer_freq="every-second", target__format="huggingface",
)  # fmt: skip


def save(model, folder, **changes):
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.05)
    model.save_pretrained(folder)
    edit(folder, **changes)
    return folder


def edit(folder, **changes):
    path = folder / "config.json"
    config = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({k: v for k, v in config.items() if v is not ...}))


@pytest.fixture(scope="module")
def t5(tmp_path_factory):
    torch.manual_seed(3)
    folder = tmp_path_factory.mktemp("t5") / "t5"
    return save(transformers.T5ForConditionalGeneration(transformers.T5Config(**SIZES)), folder)


def load(kind, folder):
    model, info = getattr(transformers, kind + "ForConditionalGeneration").from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    assert not any(info.values()), info
    return model.eval()


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS, decoder_input_ids=ANSWER).logits


def upcycle(folder, source, name="out", **changes):
    return harness.convert(folder, source, name=name, **{**SWITCH, **changes})


def refused(folder, source, *words, **changes):
    changes = {"target__dtype": "source", **SWITCH, **changes}
    config = runner.write_config(folder / "no.yaml", source, folder / "no", **changes)
    result = runner.upcycle(config, np=2)
    assert result.status in (runner.DATA, runner.CONFIG) and len(result.errors()) == 1, str(result)
    for word in words:
        assert word in result.err, (word, str(result))


def expected(source, made):
    """{name: where it comes from}: of the tensors of `made` those that are no expert's and no router's."""
    rename = lambda name: name.replace("mlp.", "DenseReluDense.")
    return {name: source[rename(name)] for name in made if ".experts." not in name and ".router." not in name}


def experts(made, stack, layer, matrix):
    name = NAMES[stack] % layer + "mlp.experts.expert_%d." + matrix + ".weight"
    return [made[name % e] for e in range(E)]


def test_zero_router_is_the_dense_model_bit_for_bit(t5, tmp_path):
    """And every tensor arrives: all but the FFNs of the sparse layers as it was, down times E."""
    out = upcycle(tmp_path, t5)
    dense, made = load_file(t5 / "model.safetensors"), harness.read_output(out)
    kept = expected(dense, made)
    assert len(made) == len(dense) + 3 * (2 * E + 1 - 2)
    for name, tensor in kept.items():
        assert harness.same_bits(made[name], tensor), name
    for stack, layers in SPARSE.items():
        for layer in layers:
            ffn = NAMES[stack] % layer + "DenseReluDense.%s.weight"
            assert all(harness.same_bits(w, dense[ffn % "wi"]) for w in experts(made, stack, layer, "wi"))
            assert all(harness.same_bits(w, dense[ffn % "wo"] * E) for w in experts(made, stack, layer, "wo"))
            assert not made[NAMES[stack] % layer + "mlp.router.classifier.weight"].any()
    a, b = load("T5", t5), load("SwitchTransformers", out)
    assert torch.equal(logits(a), logits(b))
    assert torch.equal(a.generate(IDS, max_new_tokens=8), b.generate(IDS, max_new_tokens=8))
    assert b.config.router_jitter_noise == 0 and b.config.expert_capacity == 512


def test_tiny_router_starts_as_the_dense_model_and_reaches_each_expert(t5, tmp_path):
    """The recipe of configs/t5-to-switch.yaml. Each expert changed alone changes the logits."""
    recipe = dict(upcycle__router="normal", upcycle__router_std=1e-5)
    out = upcycle(tmp_path, t5, **recipe)
    a, b = load("T5", t5), load("SwitchTransformers", out)
    before = logits(b)
    assert 0 < (logits(a) - before).abs().max() < 1e-3 and before.std() > 0.5
    assert torch.equal(a.generate(IDS, max_new_tokens=8), b.generate(IDS, max_new_tokens=8))
    for stack, layers in SPARSE.items():
        for layer in range(SIZES["num_layers" if stack == "encoder" else "num_decoder_layers"]):
            mlp = getattr(b, stack).block[layer].layer[-1].mlp
            assert hasattr(mlp, "experts") == (layer in layers)
            for e in range(E) if layer in layers else ():
                weight = mlp.experts[f"expert_{e}"].wo.weight
                kept = weight.detach().clone()
                with torch.no_grad():
                    weight.mul_(3)
                assert (logits(b) - before).abs().max() > 1e-2, (stack, layer, e)
                with torch.no_grad():
                    weight.copy_(kept)
    assert torch.equal(logits(b), before)
    with judge.Releases() as releases:  # 4.57 does the same, as the lines for people say
        assert "AutoModelForSeq2SeqLM" in (out / runner.MANIFEST).read_text()
        release = judge.pinned()[-1]
        got = releases.ask(release, do="seq2seq", folder=out, ids=IDS.tolist(), answer=ANSWER.tolist())
        assert (torch.tensor(got["logits"]) - before).abs().max() < 1e-5


def test_drop_is_the_contract_with_the_stack_in_the_key(t5, tmp_path):
    """Exactly the planned neurons of exactly these layers are drawn anew, from the stream of their stack, and
    the same bytes come from 1, 2 and 3 ranks, with little memory too."""
    drop = dict(upcycle__method="drop", upcycle__ratio=0.5, upcycle__router="uniform", upcycle__scale="none")
    out = upcycle(tmp_path, t5, **drop)
    dense, made = load_file(t5 / "model.safetensors"), harness.read_output(out)
    routers = set()
    for stack, layers in SPARSE.items():
        for layer in layers:
            key = STACK[stack] << 16 | layer
            ffn = {m: dense[NAMES[stack] % layer + f"DenseReluDense.{m}.weight"].numpy() for m in ("wi", "wo")}
            router = made[NAMES[stack] % layer + "mlp.router.classifier.weight"]
            routers.add(router.numpy().tobytes())
            for e in range(E):
                planned = {"gate": ffn["wi"], "up": ffn["wi"], "down": ffn["wo"]}
                want, done = oracle.contract_expert(planned, SEED, key, e, 0.5)
                chosen = philox.sample(SEED, philox.SAMPLE, key, e, SIZES["d_ff"], SIZES["d_ff"] // 2)
                for name, matrix in (("up", "wi"), ("down", "wo")):
                    got = experts(made, stack, layer, matrix)[e].numpy()
                    rows, old = (got, ffn[matrix]) if name == "up" else (got.T, ffn[matrix].T)
                    changed = np.flatnonzero((rows != old).any(axis=1))
                    assert np.array_equal(changed, chosen), (stack, layer, e, name)
                    assert np.abs(got - want[name]).max() < 1e-5, (stack, layer, e, name)
    assert len(routers) == 3
    files = {p.name: p.read_bytes() for p in out.glob("*.safetensors")}
    for name, np_, memory, unit in (("one", 1, "2GiB", None), ("three", 3, "64MiB", "2KiB")):
        other = upcycle(
            tmp_path, t5, name, np=np_, memory_per_rank=memory, env=unit and {"MGR_UNIT_BYTES": unit}, **drop
        )
        assert {p.name: p.read_bytes() for p in other.glob("*.safetensors")} == files


def test_switch_itself_there_and_back(t5, tmp_path):
    """Real SwitchTransformers: resharded it is the same model, by HDF5 too; the steps that its config
    derives from a number of layers are what the class reads."""
    torch.manual_seed(5)
    config = transformers.SwitchTransformersConfig(
        **{**SIZES, "num_layers": 5}, num_experts=E, num_sparse_encoder_layers=2, num_sparse_decoder_layers=3,
        router_bias=True, expert_capacity=30,
    )  # fmt: skip
    model = transformers.SwitchTransformersForConditionalGeneration(config)
    source = save(model, tmp_path / "switch", encoder_sparse_step=..., decoder_sparse_step=...)
    reshard = dict(mode="reshard", target__format="huggingface", target__expert_parallel=2)
    out = harness.convert(tmp_path, source, name="hf", **reshard)
    h5 = harness.convert(tmp_path, source, name="h5", **{**reshard, "target__format": "hdf5"})
    back = harness.convert(tmp_path, h5, name="back", **reshard)
    before, wanted = load_file(source / "model.safetensors"), logits(load("SwitchTransformers", source))
    for folder in (out, back):
        made = harness.read_output(folder)
        assert made.keys() == before.keys()
        assert all(harness.same_bits(made[name], before[name]) for name in made)
        assert torch.equal(logits(load("SwitchTransformers", folder)), wanted)


def test_t5_there_and_back(t5, tmp_path):
    out = harness.convert(tmp_path, t5, name="hf", mode="reshard", target__format="huggingface")
    h5 = harness.convert(tmp_path, t5, name="h5", mode="reshard", target__format="hdf5")
    back = harness.convert(tmp_path, h5, name="back", mode="reshard", target__format="huggingface")
    wanted = logits(load("T5", t5))
    assert torch.equal(logits(load("T5", out)), wanted) and torch.equal(logits(load("T5", back)), wanted)
    by_h5 = upcycle(tmp_path, h5, "by-h5")
    assert (by_h5 / "model-00002-of-00002.safetensors").read_bytes() == (
        upcycle(tmp_path, t5) / "model-00002-of-00002.safetensors"
    ).read_bytes()
    found = runner.run([runner.program("mgr-verify"), by_h5])
    assert found.status == 0, str(found)


def test_a_head_of_its_own(t5, tmp_path):
    """Neither the file alone nor its config says it: scale_decoder_outputs (5), tie_word_embeddings (4)."""
    tensors = load_file(t5 / "model.safetensors")
    own = {**tensors, "lm_head.weight": torch.randn(SIZES["vocab_size"], SIZES["d_model"]) * 0.1}
    again = {**tensors, "lm_head.weight": tensors["shared.weight"].clone()}
    for held, said, words in (
        (own, {}, ["its own head", "is scaled"]),
        (tensors, dict(scale_decoder_outputs=False), ["a tied head", "not scaled"]),
    ):
        source = shutil.copytree(t5, tmp_path / "own", dirs_exist_ok=True)
        save_file(held, source / "model.safetensors", {"format": "pt"})
        edit(source, **said)
        refused(tmp_path, source, *words)
    source = shutil.copytree(t5, tmp_path / "again")
    save_file(again, source / "model.safetensors", {"format": "pt"})
    assert torch.equal(logits(load("SwitchTransformers", upcycle(tmp_path, source))), logits(load("T5", t5)))


def test_untied_and_not_scaled(t5, tmp_path):
    """Switch says both by one word, which is of the embeddings of its stacks, too: they are written for each."""
    own = torch.randn(SIZES["vocab_size"], SIZES["d_model"], generator=torch.Generator().manual_seed(8)) * 0.1
    source = shutil.copytree(t5, tmp_path / "own")
    save_file(
        {**load_file(t5 / "model.safetensors"), "lm_head.weight": own}, source / "model.safetensors", {"format": "pt"}
    )
    edit(source, scale_decoder_outputs=..., tie_word_embeddings=False)
    out = upcycle(tmp_path, source)
    a, b = load("T5", source), load("SwitchTransformers", out)
    wanted = logits(a)
    assert torch.equal(wanted, logits(b)) and (wanted - logits(load("T5", t5))).abs().max() > 1
    assert torch.equal(a.generate(IDS, max_new_tokens=8), b.generate(IDS, max_new_tokens=8))
    tiny = upcycle(tmp_path, source, "tiny", upcycle__router="normal", upcycle__router_std=1e-5)
    tiny = load("SwitchTransformers", tiny)
    assert 0 < (logits(tiny) - wanted).abs().max() < 1e-3 * wanted.std()
    for mlp in (m for m in tiny.modules() if hasattr(m, "experts")):
        each_expert.check(lambda: logits(tiny), [[mlp.experts[f"expert_{e}"].wo.weight] for e in range(E)])
    made = harness.read_output(out)
    for name in ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight"):
        assert harness.same_bits(made[name], made["shared.weight"])
    by_h5 = harness.convert(tmp_path, source, name="h5", mode="reshard", target__format="hdf5")
    again = harness.read_output(upcycle(tmp_path, by_h5, "by-h5"))
    assert again.keys() == made.keys() and all(harness.same_bits(again[k], made[k]) for k in made)
    b.encoder.embed_tokens.weight.data[3] += 1  # trained apart, it is one of its own
    b.save_pretrained(tmp_path / "apart")
    moved = harness.convert(tmp_path, tmp_path / "apart", name="moved", mode="reshard", target__format="huggingface")
    assert torch.equal(logits(load("SwitchTransformers", moved)), logits(b))


def test_a_bin_with_second_names(t5, tmp_path):
    """torch.save keeps each alias of a shared tensor; it is one tensor, and no head of its own."""
    source = tmp_path / "bin"
    shutil.copytree(t5, source)
    (source / "model.safetensors").unlink()
    model = load("T5", t5)
    torch.save(model.state_dict(), source / "pytorch_model.bin")
    out = upcycle(tmp_path, source)
    assert {"lm_head.weight", "encoder.embed_tokens.weight"} <= model.state_dict().keys()
    assert torch.equal(logits(load("SwitchTransformers", out)), logits(model))


def test_all_layers_of_one_stack(t5, tmp_path):
    out = upcycle(tmp_path, t5, upcycle__moe_layer_freq="1", upcycle__encoder_moe_layer_freq="none")
    a, b = load("T5", t5), load("SwitchTransformers", out)
    assert torch.equal(logits(a), logits(b))
    assert all(hasattr(block.layer[-1].mlp, "experts") for block in b.decoder.block)
    assert not any(hasattr(block.layer[-1].mlp, "experts") for block in b.encoder.block)
    notes = (out / runner.MANIFEST).read_text()
    assert "no balancing loss" in notes and "expert_capacity 512 tokens" in notes


def test_what_switch_cannot_be(t5, tmp_path):
    for changes, words in (
        (dict(upcycle__top_k=2), ["one expert for each token, not 2"]),
        (dict(upcycle__router_pre_softmax=False), ["never normalises", "router_pre_softmax"]),
        (dict(upcycle__moe_layer_freq="last-half"), ["decoder", "every-second"]),
        (dict(upcycle__moe_layer_freq="2"), ["decoder", "every-second"]),
        (dict(upcycle__expert_width=40), ["as wide as its dense FFNs"]),
        (dict(target__format="megatron-torch"), ["cannot hold a T5 of transformers"]),
        (dict(target__format="mixtral"), ["an encoder beside the decoder"]),
        (dict(upcycle__moe_layer_freq="none"), ["none of the 7 layers"]),
        (dict(upcycle__encoder_moe_layer_freq="[1]*3"), ["encoder_moe_layer_freq", "4 layers"]),
    ):
        refused(tmp_path, t5, *words, **changes)


def test_megatron_computes_another_t5(t5, tmp_path):
    """The hint works. Megatron-core's own: test_megatron_kin.py."""
    switch = upcycle(tmp_path, t5, "switch")
    words = "cannot hold a T5 of transformers", "root of kv_channels", "scales", "formats that hold this model: huggingface, hdf5"
    for source in (t5, switch):
        for fmt in ("megatron-torch", "megatron-dist"):
            changes = dict.fromkeys([key for key in SWITCH if key.startswith("upcycle__")])
            refused(tmp_path, source, *words, **changes, mode="reshard", upcycle=None, target__format=fmt)
    harness.convert(tmp_path, switch, name="h5", mode="reshard", target__format="hdf5")


def test_other_kinds_of_t5(t5, tmp_path):
    torch.manual_seed(4)
    gated = save(
        transformers.T5ForConditionalGeneration(transformers.T5Config(**SIZES, feed_forward_proj="gated-gelu")),
        tmp_path / "gated",
    )
    refused(tmp_path, gated, "gated FFNs", "FLAN-T5", "gated-gelu")
    half = save(transformers.T5EncoderModel(transformers.T5Config(**SIZES)), tmp_path / "half")
    refused(tmp_path, half, "T5EncoderModel")
    edit(half, architectures=["T5ForConditionalGeneration"], is_encoder_decoder=True)
    refused(tmp_path, half, "half a T5", "no decoder beside it")
    for changes, word in (
        (dict(model_type="mt5", architectures=["MT5ForConditionalGeneration"]), "gated FFNs in two stacks"),
        (dict(model_type="vit", architectures=["ViTModel"]), "a vision transformer"),
        (dict(dense_act_fn="gelu"), "an activation other than ReLU"),
        (dict(num_layers=5), "num_layers is 5"),
        (dict(d_model=32), "d_model is 32"),
        (dict(is_encoder_decoder=False), "half of a model of two stacks"),
        (dict(something_new=1), "something_new"),
    ):
        source = shutil.copytree(t5, tmp_path / "changed", dirs_exist_ok=True)
        edit(source, **changes)
        refused(tmp_path, source, word)
