"""Every kind of dense Megatron checkpoint is read with every value right: files of torch.save go
in, `method: naive` brings the dense values out again, and nothing may differ in one bit."""

import json
import os

import pytest
import torch

import harness
import megatron_like as ml
import runner

EXPERTS = 2


def naive(scratch, model, shape, tp, pp, np=2, out_dtype=None, changes=None, **how):
    source = ml.save(model, shape, scratch / "dense", tp, pp, **how)
    config = {
        "upcycle__method": "naive",
        "upcycle__ratio": None,
        "upcycle__experts": EXPERTS,
        "model__vocab_size": shape.vocab,
    }
    if out_dtype:
        config["target__dtype"] = out_dtype
    config.update(changes or {})
    out = harness.convert(scratch, source, np=np, **config)
    harness.check_naive(harness.read_output(out), model, shape, EXPERTS)
    return out


@pytest.mark.parametrize("pp", [1, 2, 4])
@pytest.mark.parametrize("tp", [1, 2, 4])
def test_any_split_grouped_queries(scratch, tp, pp):
    shape = ml.Shape(kv_heads=4, heads=8, head_dim=6, hidden=48)
    naive(scratch, ml.dense_model(shape), shape, tp, pp, names="te" if (tp + pp) % 2 else "local")


@pytest.mark.parametrize("names", ["te", "local"])
def test_names_of_both_specs(scratch, names):
    shape = ml.Shape()
    naive(scratch, ml.dense_model(shape), shape, 2, 2, names=names)


def test_as_many_key_heads_as_query_heads(scratch):
    shape = ml.Shape(kv_heads=4)  # args.num_query_groups is then 1, Megatron's default
    naive(scratch, ml.dense_model(shape), shape, 2, 2)


def test_one_key_head(scratch):
    shape = ml.Shape(kv_heads=1)
    naive(scratch, ml.dense_model(shape), shape, 1, 2)


def test_tp_shards_that_cut_through_a_query_group(scratch):
    shape = ml.Shape(kv_heads=2, heads=8, head_dim=6, hidden=48)
    naive(scratch, ml.dense_model(shape), shape, 4, 1)


def test_heads_wider_than_hidden_over_heads(scratch):
    shape = ml.Shape(head_dim=16)
    naive(scratch, ml.dense_model(shape), shape, 2, 1)


@pytest.mark.parametrize("tp,pp", [(1, 1), (2, 1), (1, 2), (2, 4)])
def test_tied_embeddings(scratch, tp, pp):
    shape = ml.Shape(tied=True)
    out = naive(scratch, ml.dense_model(shape), shape, tp, pp)
    assert json.loads((out / "config.json").read_text())["tie_word_embeddings"] is True


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_other_types(scratch, dtype):
    shape = ml.Shape()
    out = naive(scratch, ml.dense_model(shape, dtype=dtype), shape, 2, 2)
    assert harness.read_output(out)["model.norm.weight"].dtype == dtype


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_a_cast_rounds_once_to_nearest_even(scratch, dtype):
    shape = ml.Shape()
    out = naive(
        scratch, ml.dense_model(shape, dtype=torch.float32), shape, 2, 1, out_dtype=harness.DTYPE_NAMES[dtype]
    )
    assert harness.read_output(out)["model.norm.weight"].dtype == dtype


def test_a_storage_for_each_tensor(scratch):
    shape = ml.Shape()
    naive(scratch, ml.dense_model(shape), shape, 2, 2, shared_buffer=False, with_optimizer=False)


def test_release_and_the_choice_of_an_iteration(scratch):
    shape = ml.Shape()
    model, other = ml.dense_model(shape), ml.dense_model(shape, seed=2)
    source = ml.save(other, shape, scratch / "dense", 2, 1, iteration=12345678)
    ml.save(model, shape, source, 2, 1, iteration="release")
    common = {
        "upcycle__method": "naive",
        "upcycle__ratio": None,
        "upcycle__experts": EXPERTS,
        "model__vocab_size": shape.vocab,
    }
    for name, choice, want in (
        ("Mixtral-a", None, model),
        ("Mixtral-b", "release", model),
        ("Mixtral-c", 12345678, other),
    ):
        out = harness.convert(scratch, source, name=name, source__iteration=choice, **common)
        harness.check_naive(harness.read_output(out), want, shape, EXPERTS)


def test_without_args_when_the_config_has_the_sizes(scratch):
    shape = ml.Shape()
    naive(
        scratch,
        ml.dense_model(shape),
        shape,
        2,
        2,
        with_args=False,
        changes={
            "model__num_layers": shape.layers,
            "model__hidden_size": shape.hidden,
            "model__ffn_hidden_size": shape.ffn,
            "model__num_attention_heads": shape.heads,
            "model__num_query_groups": shape.kv_heads,
            "model__kv_channels": shape.head_dim,
            "model__tensor_parallel": 2,
            "model__pipeline_parallel": 2,
            "model__norm_epsilon": 1e-6,
            "model__rotary_base": 500000,
            "model__max_position_embeddings": 64,
        },
    )


def test_vocabulary_padding_stays_without_vocab_size(scratch):
    shape = ml.Shape()
    model = ml.dense_model(shape)
    source = ml.save(model, shape, scratch / "dense", 2, 2)
    out = harness.convert(scratch, source, upcycle__method="naive", upcycle__ratio=None)
    embedding = harness.read_output(out)["model.embed_tokens.weight"]
    assert embedding.shape[0] == shape.padded_vocab(2) == 64
    assert harness.same_bits(embedding[: shape.vocab], model["model.embed_tokens.weight"])
    assert (embedding[shape.vocab :] == ml.PAD_VALUE).all()
    assert json.loads((out / "config.json").read_text())["vocab_size"] == 64


TOKENIZER = {
    "tokenizer.json": b'{"version": "1.0"}\n',
    "tokenizer.model": bytes(range(256)),
    "tokenizer_config.json": b"{}",
    "special_tokens_map.json": b"{}",
}


@pytest.mark.parametrize("where", ["named", "beside"])
def test_tokenizer_files_are_carried(scratch, where):
    shape = ml.Shape()
    source = ml.save(ml.dense_model(shape), shape, scratch / "dense")
    folder = source if where == "beside" else scratch / "tokenizer"
    folder.mkdir(exist_ok=True)
    for name, content in TOKENIZER.items():
        (folder / name).write_bytes(content)
    changes = {"source__tokenizer": str(folder)} if where == "named" else {}
    out = harness.convert(scratch, source, upcycle__method="naive", upcycle__ratio=None, **changes)
    for name, content in TOKENIZER.items():
        assert (out / name).read_bytes() == content, name


def test_config_json_says_what_args_say(scratch):
    shape = ml.Shape(head_dim=16)
    source = ml.save(ml.dense_model(shape), shape, scratch / "dense", 2, 2)
    out = harness.convert(
        scratch,
        source,
        upcycle__experts=4,
        upcycle__top_k=3,
        model__vocab_size=shape.vocab,
        model__bos_token_id=1,
        model__eos_token_id=7,
    )
    config = json.loads((out / "config.json").read_text())
    want = {
        "architectures": ["MixtralForCausalLM"],
        "model_type": "mixtral",
        "hidden_size": 40,
        "intermediate_size": 52,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "vocab_size": 50,
        "rms_norm_eps": 1e-6,
        "rope_theta": 500000.0,
        "max_position_embeddings": 64,
        "num_local_experts": 4,
        "num_experts_per_tok": 3,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "bos_token_id": 1,
        "eos_token_id": 7,
        "hidden_act": "silu",
    }
    assert {key: config.get(key) for key in want} == want
    assert config.get("sliding_window", 0) is None
    assert config["rope_parameters"]["rope_theta"] == 500000.0
    for key in ("rms_norm_eps", "rope_theta", "initializer_range", "router_aux_loss_coef"):
        assert isinstance(config[key], float), key  # transformers 5 refuses an int here
    generation = json.loads((out / "generation_config.json").read_text())
    assert generation.get("bos_token_id") == 1 and generation.get("eos_token_id") == 7


def test_a_checkpoint_that_megatron_core_wrote(scratch):
    """One stands beside the checkout on the machines that have it; elsewhere the same kind is
    made: the local spec, no padding, args of a few entries, no optimizer."""
    given = runner.ROOT.parent / "shared/data/megatron-core-0.16.1-dense-tp2-pp2/torch"
    if os.path.isdir(given):
        source = given
        model, shape = ml.load(given)
        assert (shape.layers, shape.hidden, shape.ffn, shape.heads, shape.kv_heads) == (4, 96, 208, 12, 4)
    else:
        shape = ml.Shape(
            hidden=96,
            ffn=208,
            heads=12,
            kv_heads=4,
            head_dim=8,
            vocab=1024,
            divisible_by=128,
            norm_epsilon=1e-5,
            rotary_base=10000,
        )
        model = ml.dense_model(shape)
        source = ml.save(
            model, shape, scratch / "dense", 2, 2, "local", shared_buffer=False, with_optimizer=False
        )
    out = harness.convert(
        scratch, source, upcycle__method="naive", upcycle__ratio=None, upcycle__experts=EXPERTS
    )
    harness.check_naive(harness.read_output(out), model, shape, EXPERTS)
