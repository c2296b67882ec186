"""Well-formed checkpoints of models or versions that this program must not guess about: refused in
one message with no output. And odd ones that are fine, to be read right."""

import collections

import numpy as np
import pytest
import torch

import harness
import megatron_like as ml
import runner

SHAPE = ml.Shape()
NAIVE = {"upcycle__method": "naive", "upcycle__ratio": None, "model__vocab_size": SHAPE.vocab}
FC1, FC2 = "decoder.layers.0.mlp.linear_fc1.weight", "decoder.layers.1.mlp.linear_fc2.weight"


def refused(scratch, edit, *words, tp=2, pp=2, status=runner.DATA, shape=SHAPE, changes=NAIVE, **how):
    source = ml.save(ml.dense_model(shape), shape, scratch / "dense", tp, pp, edit=edit, **how)
    (scratch / "out").mkdir()
    config = runner.write_config(scratch / "run.yaml", source, scratch / "out" / "Mixtral", **changes)
    result = runner.upcycle(config, np=2, timeout=30)
    assert result.status == status and len(result.errors()) == 1, str(result)
    assert not list((scratch / "out").iterdir()), str(result)
    for word in words:
        assert word in result.err, str(result)


def read(scratch, edit, model=None, dtype=torch.bfloat16, out_dtype="source", **how):
    model = model or ml.dense_model(SHAPE, dtype=dtype)
    source = ml.save(model, SHAPE, scratch / "dense", 2, 2, edit=edit, **how)
    changes = {**NAIVE, "source__allow_nonfinite": "true", "target__dtype": out_dtype}
    out = harness.convert(scratch, source, upcycle__experts=2, **changes)
    tensors = harness.read_output(out)
    harness.check_naive(tensors, model, SHAPE, 2)
    return tensors


def set_args(**values):
    return lambda content, t, p: vars(content["args"]).update(values)


def nothing(content, t, p):
    pass


@pytest.mark.parametrize(
    "name,value",
    [
        ("num_experts", 8),
        ("swiglu", False),
        ("normalization", "LayerNorm"),
        ("add_bias_linear", True),
        ("add_qkv_bias", True),
        ("position_embedding_type", "learned_absolute"),
        ("multi_latent_attention", True),
        ("moe_mlp_glu_interleave_size", 32),
        ("apply_layernorm_1p", True),
        ("heterogeneous_layers_config_path", "layers.json"),
        ("hybrid_override_pattern", "M-M*"),
        ("mtp_num_layers", 1),
        ("quick_geglu", True),
        ("window_size", (1024, 3)),
    ],
)
def test_another_architecture_by_its_args(scratch, name, value):
    refused(scratch, set_args(**{name: value}), name)


@pytest.mark.parametrize(
    "name,word",
    [
        ("decoder.layers.0.mixer.in_proj.weight", "Mamba"),
        ("decoder.layers.0.self_attention.linear_q_down_proj.weight", "multi-latent"),
        ("decoder.layers.0.mlp.shared_experts.linear_fc1.weight", "mlp.shared_experts"),
        ("decoder.layers.0.mlp.router.expert_bias", "mlp.router.expert_bias"),
        ("decoder.layers.0.cross_attention.linear_kv.weight", "is of a T5"),
        ("class_token", "is of a vision transformer"),
        ("vision_model.conv1.weight", "is of a vision-language model"),
    ],
)
def test_another_architecture_by_its_tensors(scratch, name, word):
    def edit(content, t, p):
        content["model"][name] = torch.ones(4, SHAPE.hidden)

    refused(scratch, edit, word)


def test_rope_on_a_part_of_the_head_is_not_mixtral(scratch):
    refused(scratch, set_args(rotary_percent=0.5), "RoPE on a part of the head")


def test_virtual_pipeline_chunks_that_repeat_layers(scratch):
    def edit(content, t, p):
        content["model0"] = content.pop("model")
        content["model1"] = content["model0"]

    refused(scratch, edit)


def test_new_names_in_old_nesting(scratch):
    def edit(content, t, p):
        content["model"] = {"language_model": {"encoder": content["model"]}}

    refused(scratch, edit)


def test_a_version_with_another_row_order(scratch):
    """Below 2.0 the rows of QKV were in another order; no such file has these names."""
    refused(scratch, lambda content, t, p: content.update(checkpoint_version=1.0), "checkpoint_version")


def test_files_from_before_the_zip_format(scratch):
    refused(scratch, nothing, "mp_rank_0", _use_new_zipfile_serialization=False)


def test_query_norms(scratch):
    def edit(content, t, p):
        content["model"]["decoder.layers.0.self_attention.q_layernorm.weight"] = torch.ones(SHAPE.head_dim)

    refused(scratch, edit, "k_layernorm")


def test_a_last_stage_whose_tied_embedding_differs(scratch):
    def edit(content, t, p):
        if p == 1 and t == 1:
            content["model"]["output_layer.weight"][3, 5] += 1

    refused(scratch, edit, shape=ml.Shape(tied=True))


def test_an_output_layer_in_a_model_said_to_be_tied(scratch):
    refused(scratch, set_args(untie_embeddings_and_output_weights=False))


def test_a_model_said_to_be_untied_without_output_layer(scratch):
    def edit(content, t, p):
        content["model"].pop("output_layer.weight", None)

    refused(scratch, edit, "output_layer")


def test_shards_of_two_runs(scratch):
    refused(
        scratch, lambda content, t, p: set_args(hidden_size=48)(content, t, p) if (t, p) == (1, 1) else None
    )


def test_a_rank_too_many(scratch):
    refused(scratch, set_args(tensor_model_parallel_size=2), tp=4, pp=1)


def test_shapes_that_differ_between_tp_ranks(scratch):
    def edit(content, t, p):
        if t == 1 and p == 0:
            content["model"][FC1] = content["model"][FC1][:-2].clone()

    refused(scratch, edit, FC1)


def test_types_that_are_no_weights(scratch):
    def edit(content, t, p):
        content["model"][FC1] = content["model"][FC1].to(torch.float8_e4m3fn)

    refused(scratch, edit)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_statistics_over_what_is_no_number(scratch, value):
    def edit(content, t, p):
        if (t, p) == (0, 1):
            content["model"][FC2][1, 2] = value

    refused(scratch, edit, changes={"model__vocab_size": SHAPE.vocab})


# ---- odd, and fine


def test_parameters_instead_of_tensors(scratch):
    def edit(content, t, p):
        state = content["model"]
        for name in list(state):
            if isinstance(state[name], torch.Tensor) and state[name].is_floating_point():
                state[name] = torch.nn.Parameter(state[name], requires_grad=True)

    read(scratch, edit)


def test_no_version_at_all(scratch):
    read(scratch, lambda content, t, p: content.pop("checkpoint_version"))


def test_a_plain_dict_without_metadata(scratch):
    read(scratch, lambda content, t, p: content.update(model=dict(content["model"])))


def test_optimizer_before_model(scratch):
    def edit(content, t, p):
        for key in ("model", "args"):  # to the end
            content[key] = content.pop(key)

    read(scratch, edit)


def test_unknown_entries_beside_the_model(scratch):
    def edit(content, t, p):
        content["modelopt_state"] = {"list": [collections.OrderedDict(a=(1, 2.5, None, True, "x" * 300))]}
        content["numbers"] = [0, 255, 65535, 2**31, -(2**31), 2**63, -(2**100), 1e-300, float("inf")]

    read(scratch, edit)


def test_transposed_views_are_read_right(scratch):
    """Every matrix; one whose columns have gaps, and one that repeats itself, are something else."""

    def edit(content, t, p):
        for name, tensor in content["model"].items():
            if isinstance(tensor, torch.Tensor) and tensor.dim() == 2:
                content["model"][name] = tensor.t().contiguous().t()

    read(scratch, edit)


def test_a_transposed_part_of_a_larger_matrix(scratch):
    def edit(content, t, p):
        for name, tensor in content["model"].items():
            if name.endswith("linear_fc2.weight"):
                larger = torch.zeros(tensor.shape[1], tensor.shape[0] + 3, dtype=tensor.dtype)
                larger[:, : tensor.shape[0]] = tensor.t()
                content["model"][name] = larger[:, : tensor.shape[0]].t()

    read(scratch, edit)


def test_a_view_that_repeats_itself(scratch):
    def edit(content, t, p):
        state = content["model"]
        if FC1 in state:
            state[FC1] = state[FC1].flatten().as_strided(state[FC1].shape, (1, 2))

    refused(scratch, edit, FC1, "transposed")


def odd_values(model):
    """Zeros of both signs, subnormals, ties of rounding, infinities and NaN in places that no
    statistic enters."""
    bits = [0x80000000, 0x00000001, 0x3F808000, 0x3F818000, 0x3F80FFFF, 0x00008000, 0x33000001, 0x387FE000]
    bits += [0x7F800000, 0xFF800000, 0x3F801000, 0x3F803000, 0xBF808000]
    values = torch.from_numpy(np.array(bits, dtype=np.uint32).view(np.float32).copy())
    norm = model["model.norm.weight"]
    norm[: len(values)] = values.to(norm.dtype)
    model["model.layers.2.mlp.up_proj.weight"][5, : len(values)] = values.to(norm.dtype)
    return model


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_a_copy_keeps_every_bit(scratch, dtype):
    model = odd_values(ml.dense_model(SHAPE, dtype=dtype))
    model["model.norm.weight"][-1] = float("nan")
    read(scratch, nothing, model)


@pytest.mark.parametrize("source", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("target", [torch.bfloat16, torch.float16, torch.float32])
def test_every_cast(scratch, source, target):
    model = odd_values(ml.dense_model(SHAPE, dtype=source))
    read(scratch, nothing, model, out_dtype=harness.DTYPE_NAMES[target])


def test_nan_survives_a_cast(scratch):
    model = ml.dense_model(SHAPE, dtype=torch.float32)
    bits = np.array([0x7FC00000, 0xFFC00001, 0x7F800001, 0x7FFFFFFF], dtype=np.uint32)
    model["model.norm.weight"][:4] = torch.from_numpy(bits.view(np.float32).copy())
    for name in ("bfloat16", "float16"):
        out = harness.convert(
            scratch,
            ml.save(model, SHAPE, scratch / ("dense-" + name)),
            name="Mixtral-" + name,
            **{**NAIVE, "source__allow_nonfinite": "true", "target__dtype": name},
        )
        norm = harness.read_output(out)["model.norm.weight"]
        assert norm[:4].isnan().all() and norm[4:].isfinite().all()


def test_bfloat16_by_default(scratch):
    model = ml.dense_model(SHAPE, dtype=torch.float32)
    out = harness.convert(
        scratch, ml.save(model, SHAPE, scratch / "dense"), **{**NAIVE, "target__dtype": None}
    )
    tensors = harness.read_output(out)
    assert {t.dtype for t in tensors.values()} == {torch.bfloat16}
    harness.check_naive(tensors, model, SHAPE, 4)


def test_a_value_that_float16_cannot_hold(scratch):
    def edit(content, t, p):
        if p == 0:
            content["model"]["embedding.word_embeddings.weight"][3, 5] = 1e6

    refused(
        scratch, edit, "embedding", "float16", changes={**NAIVE, "target__dtype": "float16"}
    )
