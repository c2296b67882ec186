"""What the interop tests share: scratch folders, running the program, reading its output."""

import json
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "cli"))

import torch  # noqa: E402
from safetensors import safe_open  # noqa: E402

import each_expert  # noqa: E402
import runner  # noqa: E402

torch.set_num_threads(2)

DTYPE_NAMES = {torch.bfloat16: "bfloat16", torch.float16: "float16", torch.float32: "float32"}


def convert(
    folder, source, np=2, name="Mixtral-out", options=(), env=None, timeout=120, wrapper=(), **changes
):
    """Run the program on `source` with the config `changes`; return the output directory. The
    element type is kept, unless `changes` say otherwise."""
    changes = {"target__dtype": "source", **changes}
    target = pathlib.Path(folder) / name
    config = runner.write_config(pathlib.Path(folder) / (name + ".yaml"), source, target, **changes)
    result = runner.upcycle(config, np=np, options=options, env=env, timeout=timeout, wrapper=wrapper)
    assert result.status == 0, str(result)
    assert (target / "config.json").is_file(), str(result)
    leftovers = [p.name for p in pathlib.Path(folder).iterdir() if ".partial" in p.name]
    assert not leftovers, leftovers
    return target


def construct(scratch, source, how, name="out", np=2, status=0, options=(), **more):
    """Run the program with these keys of its section upcycle; return the output's folder, and how the run ended."""
    out = scratch / f"Mixtral-{name}"
    more = {"target__dtype": "source", **more, **{f"upcycle__{key}": value for key, value in how.items()}}
    config = runner.write_config(scratch / f"{name}.yaml", source, out, **more)
    result = runner.upcycle(config, np=np, options=options)
    assert result.status == status, str(result)
    return out, result


def read_index(out):
    """{tensor: file} of an output, from its index or its only file."""
    index = out / "model.safetensors.index.json"
    if index.is_file():
        return json.loads(index.read_text())["weight_map"]
    with safe_open(out / "model.safetensors", "pt") as file:
        return {name: "model.safetensors" for name in file.keys()}


def read_output(out):
    """{name: tensor}; every file holds exactly what the index says."""
    weight_map, tensors = read_index(out), {}
    for file_name in sorted(set(weight_map.values())):
        with safe_open(out / file_name, "pt") as file:
            assert (file.metadata() or {}).get("format") == "pt"
            here = set(file.keys())
            assert here == {n for n, f in weight_map.items() if f == file_name}, file_name
            tensors.update({name: file.get_tensor(name) for name in here})
    on_disk = {p.name for p in out.glob("*.safetensors")}
    assert on_disk == set(weight_map.values())
    return tensors


def same_bits(a, b):
    return (
        a.dtype == b.dtype
        and a.shape == b.shape
        and torch.equal(a.reshape(-1).view(torch.uint8), b.reshape(-1).view(torch.uint8))
    )


EXPERT = "model.layers.%d.block_sparse_moe.experts.%d.%s.weight"
ROUTER = "model.layers.%d.block_sparse_moe.gate.weight"
W = {"gate": "w1", "up": "w3", "down": "w2"}


def expected_names(shape, experts):
    names = {"model.embed_tokens.weight", "model.norm.weight"} | (set() if shape.tied else {"lm_head.weight"})
    for i in range(shape.layers):
        names |= {
            f"model.layers.{i}.{x}.weight"
            for x in ["input_layernorm", "post_attention_layernorm"] + [f"self_attn.{p}_proj" for p in "qkvo"]
        }
        names |= {ROUTER % i} | {EXPERT % (i, e, w) for e in range(experts) for w in W.values()}
    return names


def check_copied(tensors, model, shape, experts):
    """The names are exactly those of a Mixtral of this shape, and every tensor that is not an FFN
    is the dense model's, bit for bit (after one cast, if the output has another dtype)."""
    assert set(tensors) == expected_names(shape, experts)
    for name, dense in model.items():
        if ".mlp." not in name:
            assert same_bits(tensors[name], dense.to(tensors[name].dtype)), name
    for i in range(shape.layers):
        assert tensors[ROUTER % i].shape == (experts, shape.hidden)
        for e in range(experts):
            for kind, w in W.items():
                assert (
                    tensors[EXPERT % (i, e, w)].shape
                    == model[f"model.layers.{i}.mlp.{kind}_proj.weight"].shape
                )


def check_naive(tensors, model, shape, experts):
    check_copied(tensors, model, shape, experts)
    for i in range(shape.layers):
        for e in range(experts):
            for kind, w in W.items():
                dense = model[f"model.layers.{i}.mlp.{kind}_proj.weight"]
                out = tensors[EXPERT % (i, e, w)]
                assert same_bits(out, dense.to(out.dtype)), (i, e, kind)


def as_numpy(tensor):
    """numpy has no bfloat16: its bits, moved up, are the float32 of the same value."""
    return tensor.float().numpy() if tensor.dtype == torch.bfloat16 else tensor.numpy()


def dense_ffn(model, layer):
    return {kind: as_numpy(model[f"model.layers.{layer}.mlp.{kind}_proj.weight"]) for kind in W}


def expert_ffn(tensors, layer, expert):
    return {kind: as_numpy(tensors[EXPERT % (layer, expert, w)]) for kind, w in W.items()}


# ---- a Mixtral directory without the program, to prove the tests themselves ------------------------


def mixtral_config(shape, experts, top_k, dtype):
    return {
        "architectures": ["MixtralForCausalLM"],
        "model_type": "mixtral",
        "hidden_act": "silu",
        "vocab_size": shape.vocab,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.ffn,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "head_dim": shape.head_dim,
        "num_key_value_heads": shape.kv_heads,
        "rms_norm_eps": shape.norm_epsilon,
        "max_position_embeddings": shape.positions,
        "rope_theta": float(shape.rotary_base),
        "sliding_window": None,
        "num_local_experts": experts,
        "num_experts_per_tok": top_k,
        "tie_word_embeddings": shape.tied,
        "torch_dtype": DTYPE_NAMES[dtype],
        "initializer_range": 0.02,
        "router_aux_loss_coef": 0.02,
        "output_router_logits": False,
        "router_jitter_noise": 0.0,
        "attention_dropout": 0.0,
        "use_cache": True,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": None,
    }


def write_mixtral(out, model, shape, experts, ffn_of, router_of, top_k=2):
    """Write a Mixtral directory from dense tensors; ffn_of(layer, expert) -> {kind: tensor}."""
    from safetensors.torch import save_file

    out.mkdir(parents=True)
    tensors = {name: t.clone() for name, t in model.items() if ".mlp." not in name}
    for i in range(shape.layers):
        tensors[ROUTER % i] = router_of(i)
        for e in range(experts):
            for kind, w in W.items():
                tensors[EXPERT % (i, e, w)] = ffn_of(i, e)[kind].clone().contiguous()
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    dtype = model["model.norm.weight"].dtype
    (out / "config.json").write_text(json.dumps(mixtral_config(shape, experts, top_k, dtype), indent=2))
    (out / "generation_config.json").write_text(json.dumps({"bos_token_id": 1, "eos_token_id": 2}))
    return out


# ---- transformers --------------------------------------------------------------------------------


def llama_logits(model, shape, ids):
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=shape.vocab,
        hidden_size=shape.hidden,
        intermediate_size=shape.ffn,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        rms_norm_eps=shape.norm_epsilon,
        max_position_embeddings=shape.positions,
        rope_parameters={"rope_type": "default", "rope_theta": float(shape.rotary_base)},
        tie_word_embeddings=shape.tied,
        attn_implementation="eager",
    )
    llama = LlamaForCausalLM(config).to(torch.float32)
    state = {name: tensor.float() for name, tensor in model.items()}
    if shape.tied:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    llama.load_state_dict(state, strict=True)
    with torch.no_grad():
        return llama.eval()(ids).logits


def mixtral_logits(out, ids):
    """Load strictly and run in float32; each expert counts."""
    from transformers import MixtralForCausalLM

    moe, info = MixtralForCausalLM.from_pretrained(
        out, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        assert not info.get(kind), (kind, info[kind])
    moe.eval()
    each_expert.counts(moe, ids)
    with torch.no_grad():
        return moe(ids).logits


def token_ids(shape, length=32):
    return (torch.arange(length).reshape(1, length) * 13 + 5) % shape.vocab


def relative_difference(a, b):
    return ((a - b).abs().max() / b.abs().max()).item()
