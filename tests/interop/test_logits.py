"""transformers loads what the program wrote, and the MoE computes what the dense model computed."""

import json

import pytest
import torch

import harness
import megatron_like as ml


def close_to_dense(out, model, shape):
    ids = harness.token_ids(shape)
    dense = harness.llama_logits(model, shape, ids)
    difference = harness.relative_difference(harness.mixtral_logits(out, ids), dense)
    assert difference < 2e-5, difference


@pytest.mark.parametrize("method,ratio", [("naive", None), ("drop", 0.0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logits_equal_the_dense_models(scratch, method, ratio, dtype):
    shape = ml.Shape(head_dim=16 if method == "naive" else 10, tied=dtype is torch.bfloat16)
    model = ml.dense_model(shape, dtype=dtype)
    source = ml.save(model, shape, scratch / "dense", 2, 2)
    out = harness.convert(
        scratch,
        source,
        upcycle__method=method,
        upcycle__ratio=ratio,
        upcycle__experts=8,
        target__expert_parallel=2,
        model__vocab_size=shape.vocab,
    )
    harness.check_naive(harness.read_output(out), model, shape, 8)
    close_to_dense(out, model, shape)


def test_a_shuffle_does_not_change_the_function(scratch):
    shape = ml.Shape()
    model = ml.dense_model(shape, dtype=torch.float32)
    source = ml.save(model, shape, scratch / "dense", 2, 1)
    out = harness.convert(
        scratch, source, upcycle__ratio=0.0, upcycle__shuffle=True, model__vocab_size=shape.vocab
    )
    experts = harness.read_output(out)
    moved = experts[harness.EXPERT % (0, 1, "w1")]
    assert not torch.equal(moved, model["model.layers.0.mlp.gate_proj.weight"])
    close_to_dense(out, model, shape)


def test_dropping_does_change_it(scratch):
    shape = ml.Shape()
    model = ml.dense_model(shape, dtype=torch.float32)
    out = harness.convert(scratch, ml.save(model, shape, scratch / "dense"), model__vocab_size=shape.vocab)
    ids = harness.token_ids(shape)
    logits = harness.mixtral_logits(out, ids)
    assert torch.isfinite(logits).all()
    assert harness.relative_difference(logits, harness.llama_logits(model, shape, ids)) > 1e-3


def test_configs_and_tokenizer_load(scratch):
    from tokenizers import Tokenizer, models
    from transformers import (
        AutoConfig,
        AutoModelForCausalLM,
        AutoTokenizer,
        GenerationConfig,
        PreTrainedTokenizerFast,
    )

    shape = ml.Shape(ffn=56)  # transformers' bfloat16 expert kernel wants rows of whole 16 bytes
    words = {f"w{i}": i for i in range(shape.vocab)}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="w0")),
        bos_token="w1",
        eos_token="w2",
        unk_token="w0",
    )
    tokenizer.save_pretrained(scratch / "tokenizer")
    source = ml.save(ml.dense_model(shape), shape, scratch / "dense", 2, 2)
    out = harness.convert(
        scratch,
        source,
        source__tokenizer=str(scratch / "tokenizer"),
        upcycle__experts=4,
        upcycle__top_k=1,
        model__vocab_size=shape.vocab,
        model__bos_token_id=1,
        model__eos_token_id=2,
    )
    config = AutoConfig.from_pretrained(out)
    assert type(config).__name__ == "MixtralConfig"
    assert (config.num_local_experts, config.num_experts_per_tok) == (4, 1)
    assert config.rope_parameters["rope_theta"] == shape.rotary_base and config.sliding_window is None
    generation = GenerationConfig.from_pretrained(out)
    assert (generation.bos_token_id, generation.eos_token_id) == (1, 2)
    again = AutoTokenizer.from_pretrained(out)
    assert again.convert_tokens_to_ids("w7") == 7 and again.eos_token == "w2"
    model = AutoModelForCausalLM.from_pretrained(out, dtype="auto")
    assert model.dtype == torch.bfloat16 and model.generation_config.eos_token_id == 2
    text = model.generate(torch.tensor([[1, 7]]), max_new_tokens=3, do_sample=False, pad_token_id=2)
    assert text.shape[1] > 2
    model.save_pretrained(scratch / "again")  # and what transformers saves has the same names
    names = json.loads(json.dumps(sorted(harness.read_output(scratch / "again"))))
    assert names == sorted(harness.read_output(out))
