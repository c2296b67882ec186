"""Megatron checkpoints of other kinds and years: virtual pipeline chunks, uneven and empty stages, and
the names from before Megatron-Core. The same model gives the same bytes from all of them."""

import argparse
import collections

import pytest
import torch

import harness
import megatron_like as ml
import runner

SHAPE = ml.Shape(layers=8)
UPCYCLE = {"upcycle__experts": 4, "model__vocab_size": SHAPE.vocab}


def chunks_of(model, shape, t, tp, counts, names="te"):
    """State dicts of consecutive chunks that hold counts[k] layers, numbered from 0 in each."""
    whole = ml.rank_tensors(model, shape, t, 0, tp, 1, names)
    starts = [sum(counts[:k]) for k in range(len(counts))]
    assert sum(counts) == shape.layers
    chunks = [collections.OrderedDict() for _ in counts]
    for name, tensor in whole.items():
        if name.startswith("embedding."):
            chunks[0][name] = tensor
        elif not name.startswith("decoder.layers."):
            chunks[-1][name] = tensor
        else:
            _, _, layer, rest = name.split(".", 3)
            k = next(k for k in range(len(counts)) if starts[k] <= int(layer) < starts[k] + counts[k])
            chunks[k][f"decoder.layers.{int(layer) - starts[k]}.{rest}"] = tensor
    if shape.tied and len(counts) > 1:
        chunks[-1]["output_layer.weight"] = chunks[0]["embedding.word_embeddings.weight"].clone()
    return chunks


def save(root, shape, tp, pp, content_of, version=3.0, virtual=None):
    """content_of(t, p) gives the model entries of a file."""
    with ml.megatron_enums() as enums:
        for t in range(tp):
            for p in range(pp):
                folder = root / "iter_0000009" / (f"mp_rank_{t:02d}" + (f"_{p:03d}" if pp > 1 else ""))
                folder.mkdir(parents=True)
                args = ml.run_args(shape, tp, pp, torch.bfloat16, enums)
                args.virtual_pipeline_model_parallel_size = virtual
                content = {"args": args, "iteration": 9, **content_of(t, p)}
                if version is not None:
                    content["checkpoint_version"] = version
                torch.save(content, folder / "model_optim_rng.pt")
    (root / "latest_checkpointed_iteration.txt").write_text("9")
    return root


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """What the plain TP1 x PP1 checkpoint gives."""
    results = {}

    def get(shape):
        if shape not in results:
            scratch = tmp_path_factory.mktemp("plain")
            source = save(
                scratch / "dense", shape, 1, 1,
                lambda t, p: {"model": ml.rank_tensors(ml.dense_model(shape), shape, 0, 0, 1, 1, "te")},
            )
            results[shape] = runner.hashes(harness.convert(scratch, source, np=1, **UPCYCLE))
        return results[shape]

    return get


def check(scratch, source, expected, shape=SHAPE, **changes):
    out = harness.convert(scratch, source, np=2, **{**UPCYCLE, **changes})
    got = runner.hashes(out)
    want = expected(shape)
    assert sorted(got) == sorted(want)
    assert [name for name in want if got[name] != want[name]] == []


@pytest.mark.parametrize(
    "tp,pp,counts",
    [
        (1, 2, [2, 2, 2, 2]),  # interleaved, two chunks of two stages
        (2, 2, [1] * 8),
        (1, 4, [1] * 8),
        (2, 2, [1, 2, 3, 2]),  # as a pipeline layout string can ask for
        (1, 2, [0, 3, 4, 1]),  # a first chunk with the embedding alone
        (1, 1, [4, 4]),
    ],
)
def test_virtual_pipeline(scratch, expected, tp, pp, counts):
    model = ml.dense_model(SHAPE)

    def content(t, p):
        chunks = chunks_of(model, SHAPE, t, tp, counts, "local" if tp == 1 else "te")
        return {f"model{v}": chunks[v * pp + p] for v in range(len(counts) // pp)}

    check(scratch, save(scratch / "dense", SHAPE, tp, pp, content, virtual=len(counts) // pp), expected)


@pytest.mark.parametrize("counts", [[3, 5], [1, 3, 3, 1], [0, 4, 4, 0], [7, 1]])
@pytest.mark.parametrize("tied", [False, True])
def test_uneven_stages(scratch, expected, counts, tied):
    shape = ml.Shape(layers=8, tied=tied)
    model = ml.dense_model(shape)
    source = save(
        scratch / "dense", shape, 2, len(counts),
        lambda t, p: {"model": chunks_of(model, shape, t, 2, counts)[p]},
    )
    check(scratch, source, expected, shape)


def old_names(state, kind):
    """The nested dictionaries of megatron/legacy and of what came before it."""
    norm = "layernorm" if kind != "legacy" else "norm"
    stack = "transformer" if kind == "ancient" else "encoder"
    attention = "attention" if kind == "ancient" else "self_attention"
    table = {
        "self_attention.linear_qkv.layer_norm_weight": f"input_{norm}.weight",
        "self_attention.linear_qkv.weight": f"{attention}.query_key_value.weight",
        "self_attention.linear_proj.weight": f"{attention}.dense.weight",
        "mlp.linear_fc1.layer_norm_weight": f"post_attention_{norm}.weight",
        "mlp.linear_fc1.weight": "mlp.dense_h_to_4h.weight",
        "mlp.linear_fc2.weight": "mlp.dense_4h_to_h.weight",
    }
    model = {"language_model": {stack: collections.OrderedDict()}}
    language = model["language_model"]
    for name, tensor in state.items():
        if name == "embedding.word_embeddings.weight":
            language["embedding"] = {"word_embeddings": {"weight": tensor}}
        elif name == "output_layer.weight":
            language["output_layer"] = {"weight": tensor}
        elif name == "decoder.final_layernorm.weight":
            language[stack][f"final_{norm}.weight"] = tensor
        else:
            _, _, layer, rest = name.split(".", 3)
            language[stack][f"layers.{layer}.{table[rest]}"] = tensor
    return model


@pytest.mark.parametrize("kind", ["legacy", "older", "ancient"])
@pytest.mark.parametrize("tp,pp", [(1, 1), (2, 2)])
def test_names_from_before_megatron_core(scratch, expected, kind, tp, pp):
    model = ml.dense_model(SHAPE)
    source = save(
        scratch / "dense", SHAPE, tp, pp,
        lambda t, p: {"model": old_names(ml.rank_tensors(model, SHAPE, t, p, tp, pp, "te"), kind)},
    )
    check(scratch, source, expected)


def test_old_names_and_tied_embeddings(scratch, expected):
    shape = ml.Shape(layers=8, tied=True)
    model = ml.dense_model(shape)

    def content(t, p):
        nested = old_names(ml.rank_tensors(model, shape, t, p, 2, 2, "te"), "legacy")
        if p == 1:  # the copy is a sibling of language_model
            nested["word_embeddings_for_head"] = nested["language_model"].pop("output_layer")
        return {"model": nested}

    check(scratch, save(scratch / "dense", shape, 2, 2, content), expected, shape)


@pytest.mark.parametrize("version", [None, 0, 1.0])
def test_old_names_with_another_row_order_are_refused(scratch, version):
    model = ml.dense_model(SHAPE)
    source = save(
        scratch / "dense", SHAPE, 1, 1,
        lambda t, p: {"model": old_names(ml.rank_tensors(model, SHAPE, t, p, 1, 1, "te"), "legacy")},
        version=version,
    )
    with pytest.raises(AssertionError) as failure:
        harness.convert(scratch, source, np=1, **UPCYCLE)
    assert "checkpoint_version" in str(failure.value) and "65" in str(failure.value)


# ---- RoPE ------------------------------------------------------------------------------------------

# Megatron-LM's trainers do not hand the factor on: they compute with 8, whatever it says.
LLAMA3 = {"use_rope_scaling": True, "rope_scaling_factor": 32.0}
ROPES = [
    (LLAMA3, {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
              "original_max_position_embeddings": 8192}),
    ({"use_rope_scaling": True}, {"rope_type": "llama3", "factor": 8.0}),
    ({"rotary_seq_len_interpolation_factor": 4}, {"rope_type": "linear", "factor": 4.0}),
    ({"use_rope_scaling": False, "rotary_seq_len_interpolation_factor": None}, {"rope_type": "default"}),
]


@pytest.mark.parametrize("args,expected", ROPES)
def test_scaled_rope_reaches_transformers_and_comes_back(scratch, args, expected):
    from transformers import AutoConfig

    def edit(content, t, p):
        vars(content["args"]).update(args)

    source = ml.save(ml.dense_model(SHAPE), SHAPE, scratch / "dense", 2, 1, edit=edit)
    for target in ("moe-recipes", "huggingface"):
        out = scratch / ("Mixtral-" + target)
        changes = {"mode": "reshard", "upcycle": None} if target == "huggingface" else {}
        config = runner.write_config(scratch / "run.yaml", source, out, target__format=target, **changes)
        result = runner.upcycle(config, np=2)
        assert result.status == 0, str(result)
        rope = AutoConfig.from_pretrained(out).rope_parameters
        assert {key: rope[key] for key in expected} == expected
    back = scratch / "Mixtral-huggingface"
    for target in ("megatron-dist", "megatron-torch"):
        source, back = back, scratch / target
        config = runner.write_config(
            scratch / "run.yaml", source, back, mode="reshard", upcycle=None, target__format=target
        )
        assert runner.upcycle(config, np=1).status == 0
    read = vars(torch.load(next(back.rglob("*.pt")), weights_only=False)["args"])
    for name, value in {**args, "rope_scaling_factor": 8.0}.items():
        assert read.get(name) == value, name


def test_two_ways_to_stretch_rope(scratch):
    def edit(content, t, p):
        vars(content["args"]).update(LLAMA3, rotary_seq_len_interpolation_factor=2)

    source = ml.save(ml.dense_model(SHAPE), SHAPE, scratch / "dense", 1, 1, edit=edit)
    config = runner.write_config(scratch / "run.yaml", source, scratch / "out")
    result = runner.upcycle(config, np=2)
    assert result.status == runner.DATA and "interpolation" in result.err, str(result)
    assert not (scratch / "out").exists()


def reshard(scratch, source, target, **changes):
    config = runner.write_config(
        scratch / "run.yaml", source, scratch / "out", mode="reshard", upcycle=None, target__format=target, **changes
    )
    return runner.upcycle(config, np=1, options=["--force"])


def test_a_root_without_a_tracker(scratch):
    """Its iterations are named; source.iteration says which, of the root or of one that it fits."""
    source = ml.save(ml.dense_model(SHAPE), SHAPE, scratch / "dense", 1, 1)
    (source / "latest_checkpointed_iteration.txt").unlink()
    result = reshard(scratch, source, "huggingface")
    assert result.status == 66 and "iter_0000007" in result.err and "source.iteration" in result.err, str(result)
    for path, iteration in ((source, 7), (source / "iter_0000007", 7), (source / "iter_0000007", None)):
        result = reshard(scratch, path, "huggingface", source__iteration=iteration)
        assert result.status == 0, str(result)
    assert reshard(scratch, source / "iter_0000007", "huggingface", source__iteration=8).status == 66


@pytest.mark.parametrize("target", ["megatron-torch", "megatron-dist"])
def test_the_tokenizer_of_an_iteration_is_carried(scratch, target):
    """All of it, whatever the names of its files; from there to Hugging Face what is a tokenizer's."""
    source = ml.save(ml.dense_model(SHAPE), SHAPE, scratch / "dense", 1, 1)
    folder = source / "iter_0000007" / "tokenizer"
    folder.mkdir()
    files = {"tokenizer.json": "{}", "tokenizer_config.json": '{"eos_token": "x"}', "my.vocabulary": "a b"}
    for name, text in files.items():
        (folder / name).write_text(text)
    result = reshard(scratch, source, target)
    assert result.status == 0, str(result)
    there = scratch / "out/release/tokenizer"
    assert {path.name: path.read_text() for path in there.iterdir()} == files
    (scratch / "out").rename(scratch / "megatron")
    assert reshard(scratch, scratch / "megatron", "huggingface").status == 0
    assert (scratch / "out/tokenizer.json").read_text() == "{}"
