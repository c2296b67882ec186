"""Dense Llama-like models, and checkpoints of them in Megatron's `torch` format by torch.save.

A model is a dictionary of logical tensors under Hugging Face Llama names, made from a seed. `save`
splits it as Megatron does (TP x PP, fused QKV per query group, [gate; up] per rank, padded
vocabulary) and writes what a training run leaves behind: a Namespace of args with enums and paths,
an OrderedDict with _metadata, views into one shared buffer, _extra_state, optimizer and RNG.
"""

import argparse
import collections
import contextlib
import dataclasses
import enum
import io
import pathlib
import pickle
import random
import signal
import sys
import types
import zlib

import numpy as np
import torch


@dataclasses.dataclass(frozen=True)
class Shape:
    layers: int = 4
    hidden: int = 40
    ffn: int = 52
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 10
    vocab: int = 50  # the true one; the file's is padded
    divisible_by: int = 8  # make_vocab_size_divisible_by
    tied: bool = False
    norm_epsilon: float = 1e-6
    rotary_base: int = 500000
    positions: int = 64

    def padded_vocab(self, tp):
        unit = self.divisible_by * tp
        return -(-self.vocab // unit) * unit


PAD_VALUE = 77.0  # of the rows that pad the vocabulary: no weight of a model comes near


def dense_model(shape, seed=1, dtype=torch.bfloat16):
    """{logical name: tensor}. Neurons differ in mean and spread, so that statistics over some of
    them are not those over all."""

    def draw(name, *size):
        generator = torch.Generator().manual_seed(zlib.crc32(name.encode()) + seed * 1000003)
        return torch.randn(*size, generator=generator, dtype=torch.float64)

    h, f, d = shape.hidden, shape.ffn, shape.head_dim
    model = {"model.embed_tokens.weight": draw("embed", shape.vocab, h) * 0.2}
    for i in range(shape.layers):
        at = f"model.layers.{i}."
        spread = 0.05 * (0.5 + draw(at + "spread", 3, f, 1).abs())
        centre = 0.1 * draw(at + "centre", 3, f, 1) + torch.tensor([0.01, -0.02, 0.03])[:, None, None]
        ffn = [draw(at + name, f, h) * spread[k] + centre[k] for k, name in enumerate(("gate", "up", "down"))]
        model.update(
            {
                at + "input_layernorm.weight": 1 + 0.1 * draw(at + "norm1", h),
                at + "self_attn.q_proj.weight": 0.1 * draw(at + "q", shape.heads * d, h),
                at + "self_attn.k_proj.weight": 0.1 * draw(at + "k", shape.kv_heads * d, h),
                at + "self_attn.v_proj.weight": 0.1 * draw(at + "v", shape.kv_heads * d, h),
                at + "self_attn.o_proj.weight": 0.1 * draw(at + "o", h, shape.heads * d),
                at + "post_attention_layernorm.weight": 1 + 0.1 * draw(at + "norm2", h),
                at + "mlp.gate_proj.weight": ffn[0],
                at + "mlp.up_proj.weight": ffn[1],
                at + "mlp.down_proj.weight": ffn[2].T,
            }
        )
    model["model.norm.weight"] = 1 + 0.1 * draw("norm", h)
    if not shape.tied:
        model["lm_head.weight"] = draw("head", shape.vocab, h) * 0.2
    return {name: tensor.to(dtype).contiguous() for name, tensor in model.items()}


# ---- splitting -----------------------------------------------------------------------------------


def fused_qkv(q, k, v, shape):
    """Rows: for each query group its query heads, its K, its V."""
    g, h = shape.kv_heads, q.shape[1]
    parts = [t.reshape(g, -1, h) for t in (q, k, v)]
    return torch.cat(parts, dim=1).reshape(-1, h)


def padded(tensor, rows):
    pad = torch.full((rows - tensor.shape[0], tensor.shape[1]), PAD_VALUE, dtype=tensor.dtype)
    return torch.cat([tensor, pad])


def rank_tensors(model, shape, t, p, tp, pp, names):
    """The tensors of one model-parallel rank under Megatron-Core names (`te` or `local` spec)."""

    def rows(tensor):
        return tensor.chunk(tp)[t].clone()

    def columns(tensor):
        return tensor.chunk(tp, dim=1)[t].clone()

    vocab = shape.padded_vocab(tp)
    state = collections.OrderedDict()
    if p == 0:
        state["embedding.word_embeddings.weight"] = rows(padded(model["model.embed_tokens.weight"], vocab))
    per_stage = shape.layers // pp
    assert per_stage * pp == shape.layers
    for local in range(per_stage):
        source, to = f"model.layers.{p * per_stage + local}.", f"decoder.layers.{local}."
        get = lambda name: model[source + name + ".weight"]
        qkv = fused_qkv(*(get(f"self_attn.{x}_proj") for x in "qkv"), shape)
        norms = {
            "te": ("self_attention.linear_qkv.layer_norm_weight", "mlp.linear_fc1.layer_norm_weight"),
            "local": ("input_layernorm.weight", "pre_mlp_layernorm.weight"),
        }[names]
        state[to + norms[0]] = get("input_layernorm").clone()
        state[to + "self_attention.linear_proj.weight"] = columns(get("self_attn.o_proj"))
        state[to + "self_attention.linear_qkv.weight"] = rows(qkv)
        state[to + norms[1]] = get("post_attention_layernorm").clone()
        state[to + "mlp.linear_fc1.weight"] = torch.cat(
            [rows(get("mlp.gate_proj")), rows(get("mlp.up_proj"))]
        )
        state[to + "mlp.linear_fc2.weight"] = columns(get("mlp.down_proj"))
    if p == pp - 1:
        state["decoder.final_layernorm.weight"] = model["model.norm.weight"].clone()
        if not shape.tied:
            state["output_layer.weight"] = rows(padded(model["lm_head.weight"], vocab))
        elif pp > 1:  # the last stage keeps its own copy of the tied embedding
            state["output_layer.weight"] = rows(padded(model["model.embed_tokens.weight"], vocab))
    return state


def in_shared_buffer(tensors):
    """The same tensors as views into one buffer, as Megatron's DDP lays them out: in reverse order,
    each at a multiple of 64 elements, with padding around."""
    end, offsets = 192, {}
    for name in reversed(tensors):
        offsets[name] = end
        end += -(-tensors[name].numel() // 64) * 64
    buffer = torch.full((end + 320,), -PAD_VALUE, dtype=next(iter(tensors.values())).dtype)
    views = collections.OrderedDict()
    for name, tensor in tensors.items():
        views[name] = buffer[offsets[name] : offsets[name] + tensor.numel()].view(tensor.shape)
        views[name].copy_(tensor)
    return views


# ---- what else a training run saves --------------------------------------------------------------


def extra_states(tensors, names):
    """_extra_state in all the forms that Transformer Engine and Megatron-Core have used."""

    def stream():
        out = io.BytesIO()
        torch.save({"scale_fwd": torch.ones(3), "recipe": None}, out)
        return out

    kinds = [
        lambda: None,
        lambda: torch.empty(0, dtype=torch.uint8),
        lambda: torch.frombuffer(bytearray(pickle.dumps({})), dtype=torch.uint8),
        stream,
    ]
    linears = ["self_attention.linear_proj", "self_attention.linear_qkv", "mlp.linear_fc1", "mlp.linear_fc2"]
    if names == "te":
        linears.append("self_attention.core_attention")
    layers = sorted({name.split(".")[2] for name in tensors if name.startswith("decoder.layers.")})
    count = 0
    for layer in layers:
        for linear in linears:
            kind = kinds[count % len(kinds)] if names == "te" else kinds[0]
            yield f"decoder.layers.{layer}.{linear}._extra_state", kind()
            count += 1
    if "decoder.final_layernorm.weight" in tensors:
        if names == "te":
            yield "decoder.final_layernorm._extra_state", torch.empty(0, dtype=torch.uint8)
        yield "output_layer._extra_state", None


@contextlib.contextmanager
def megatron_enums():
    """Classes that pickle under Megatron's names, without Megatron."""

    def define(module, name, **members):
        parts = module.split(".")
        for k in range(1, len(parts) + 1):
            path = ".".join(parts[:k])
            if path not in sys.modules:
                sys.modules[path] = types.ModuleType(path)
                made.append(path)
        kind = enum.Enum(name, members, module=module)
        setattr(sys.modules[module], name, kind)
        return kind

    made = []
    try:
        yield (
            define("megatron.core.enums", "ModelType", encoder_or_decoder=1, retro_encoder=2),
            define("megatron.core.transformer.enums", "AttnBackend", flash=1, fused=2, auto=5),
        )
    finally:
        for path in made:
            del sys.modules[path]


def run_args(shape, tp, pp, dtype, enums):
    """The Namespace of a run: what matters to a converter among what does not."""
    model_type, attention = enums
    return argparse.Namespace(
        num_layers=shape.layers,
        hidden_size=shape.hidden,
        ffn_hidden_size=shape.ffn,
        num_attention_heads=shape.heads,
        kv_channels=shape.head_dim,
        group_query_attention=shape.kv_heads != shape.heads,
        num_query_groups=1 if shape.kv_heads == shape.heads else shape.kv_heads,  # 1: the default
        padded_vocab_size=shape.padded_vocab(tp),
        make_vocab_size_divisible_by=shape.divisible_by,
        vocab_size=None,
        seq_length=shape.positions,
        max_position_embeddings=shape.positions,
        position_embedding_type="rope",
        add_position_embedding=False,
        rotary_base=shape.rotary_base,
        rotary_percent=1.0,
        rotary_interleaved=False,
        use_rotary_position_embeddings=True,
        swiglu=True,
        squared_relu=False,
        add_bias_linear=False,
        add_qkv_bias=False,
        normalization="RMSNorm",
        norm_epsilon=shape.norm_epsilon,
        apply_layernorm_1p=False,
        untie_embeddings_and_output_weights=not shape.tied,
        num_experts=None,
        moe_layer_freq=1,
        tensor_model_parallel_size=tp,
        pipeline_model_parallel_size=pp,
        context_parallel_size=1,
        virtual_pipeline_model_parallel_size=None,
        expert_model_parallel_size=1,
        num_layers_per_virtual_pipeline_stage=None,
        sequence_parallel=tp > 1,
        world_size=tp * pp * 2,
        bf16=dtype is torch.bfloat16,
        fp16=dtype is torch.float16,
        params_dtype=dtype,
        model_type=model_type.encoder_or_decoder,
        attention_backend=attention.auto,
        exit_signal=signal.SIGTERM,
        save=pathlib.PurePosixPath("/somewhere/checkpoints"),
        tokenizer_type="SentencePieceTokenizer",
        lr=3.0e-4,
        min_lr=3.0e-5,
        clip_grad=1.0,
        seed=1234,
        data_path=["0.7", "corpus_ja_テキスト", "0.3", "corpus_en"],
        data_args_path=None,
        train_samples=122071040,
        consumed_train_samples=7168,
        consumed_train_bins=2**41,
        weight_decay=0.1,
        iterations_to_skip=(3, 5),
        rank=0,
        local_rank=0,
        timers=types.SimpleNamespace(level=0),
        wandb_exp_name="",
        empty_list=[],
        empty_dict={},
        exit_interval=-(2**70),
        start_eval_at_iter=-3,
    )


def everything_else(tensors):
    """Optimizer, scheduler and RNG entries: large, and nothing a converter wants."""
    generator = torch.Generator().manual_seed(5)
    masters = [torch.randn(t.shape, generator=generator) for t in tensors.values()]
    return {
        "optimizer": {
            "optimizer": {
                "state": {
                    i: {"step": 7, "exp_avg": m * 0.1, "exp_avg_sq": m * m} for i, m in enumerate(masters)
                },
                "param_groups": [
                    {
                        "lr": 1e-4,
                        "wd_mult": 1.0,
                        "is_expert_parallel": False,
                        "params": list(range(len(masters))),
                    }
                ],
            },
            "fp32_from_fp16_params": [masters],
            "grad_scaler": {},
        },
        "opt_param_scheduler": {"max_lr": 3e-4, "num_steps": 7168, "lr_decay_style": "cosine"},
        "rng_state": [
            {
                "random_rng_state": random.getstate(),
                "np_rng_state": np.random.get_state(),
                "torch_rng_state": torch.get_rng_state(),
                "cuda_rng_state": torch.get_rng_state(),
                "rng_tracker_states": {"model-parallel-rng": torch.get_rng_state()},
            }
        ],
        "num_floating_point_operations_so_far": 1.5e18,
        "rerun_state_machine": {"mode": "disabled", "sharded": None},
    }


def save(
    model,
    shape,
    root,
    tp=1,
    pp=1,
    names="te",
    iteration=7,
    shared_buffer=True,
    with_args=True,
    with_optimizer=True,
    edit=lambda content, t, p: None,
    **torch_save_options,
):
    """Write the checkpoint below `root` and return it. `iteration`: a number or "release";
    edit(content, t, p) may change what a rank is about to save."""
    root = pathlib.Path(root)
    folder = root / (iteration if iteration == "release" else f"iter_{iteration:07d}")
    dtype = model["model.norm.weight"].dtype
    for p in range(pp):
        for t in range(tp):
            tensors = rank_tensors(model, shape, t, p, tp, pp, names)
            state = in_shared_buffer(tensors) if shared_buffer else collections.OrderedDict(tensors)
            for name, value in extra_states(tensors, names):
                state[name] = value
            state._metadata = collections.OrderedDict(
                (path, {"version": 1}) for path in ("", "decoder", "decoder.layers.0")
            )
            file = folder / (f"mp_rank_{t:02d}" + (f"_{p:03d}" if pp > 1 else ""))
            file.mkdir(parents=True)
            with megatron_enums() as enums:
                content = {"args": run_args(shape, tp, pp, dtype, enums)} if with_args else {}
                content.update(
                    checkpoint_version=3.0,
                    iteration=0 if iteration == "release" else iteration,
                    tokens=123,
                    model=state,
                )
                if with_optimizer:
                    content.update(everything_else(tensors))
                edit(content, t, p)
                torch.save(content, file / "model_optim_rng.pt", **torch_save_options)
    (root / "latest_checkpointed_iteration.txt").write_text(
        f"{iteration}\n" if iteration != "release" else "release"
    )
    return root


# ---- the way back, for checkpoints that others wrote ---------------------------------------------


def load(root, vocab=None):
    """Read a Megatron `torch` checkpoint with torch.load and reassemble the logical tensors, rank
    by rank (written apart from the code above: it starts from the files)."""
    root = pathlib.Path(root)
    tracker = (root / "latest_checkpointed_iteration.txt").read_text().strip()
    folder = root / (tracker if tracker == "release" else "iter_%07d" % int(tracker))
    files = {}
    for path in folder.glob("mp_rank_*/model_optim_rng.pt"):
        numbers = [int(x) for x in path.parent.name.split("_")[2:]]
        with megatron_enums():
            files[(numbers + [0])[1], numbers[0]] = torch.load(path, map_location="cpu", weights_only=False)
    stages, ranks = max(p for p, _ in files) + 1, max(t for _, t in files) + 1
    args = files[0, 0]["args"]
    q_rows = args.num_attention_heads * args.kv_channels
    kv_heads = args.num_query_groups if args.group_query_attention else args.num_attention_heads
    model, layer = {}, 0
    for p in range(stages):
        shards = [files[p, t]["model"] for t in range(ranks)]
        joined = lambda name, dim: torch.cat([s[name] for s in shards], dim=dim)
        if "embedding.word_embeddings.weight" in shards[0]:
            model["model.embed_tokens.weight"] = joined("embedding.word_embeddings.weight", 0)[:vocab]
        local = 0
        while f"decoder.layers.{local}.mlp.linear_fc2.weight" in shards[0]:
            at, to = f"decoder.layers.{local}.", f"model.layers.{layer}."

            def norm(*candidates):
                return next(shards[0][at + c] for c in candidates if at + c in shards[0])

            model[to + "input_layernorm.weight"] = norm(
                "input_layernorm.weight", "self_attention.linear_qkv.layer_norm_weight"
            )
            model[to + "post_attention_layernorm.weight"] = norm(
                "pre_mlp_layernorm.weight", "mlp.linear_fc1.layer_norm_weight"
            )
            groups = joined(at + "self_attention.linear_qkv.weight", 0).chunk(kv_heads)
            per_group = q_rows // kv_heads
            model[to + "self_attn.q_proj.weight"] = torch.cat([g[:per_group] for g in groups])
            model[to + "self_attn.k_proj.weight"] = torch.cat(
                [g[per_group : per_group + args.kv_channels] for g in groups]
            )
            model[to + "self_attn.v_proj.weight"] = torch.cat(
                [g[per_group + args.kv_channels :] for g in groups]
            )
            model[to + "self_attn.o_proj.weight"] = joined(at + "self_attention.linear_proj.weight", 1)
            halves = [s[at + "mlp.linear_fc1.weight"].chunk(2) for s in shards]
            model[to + "mlp.gate_proj.weight"] = torch.cat([gate for gate, _ in halves])
            model[to + "mlp.up_proj.weight"] = torch.cat([up for _, up in halves])
            model[to + "mlp.down_proj.weight"] = joined(at + "mlp.linear_fc2.weight", 1)
            local, layer = local + 1, layer + 1
        if "decoder.final_layernorm.weight" in shards[0]:
            model["model.norm.weight"] = shards[0]["decoder.final_layernorm.weight"]
        if "output_layer.weight" in shards[0] and args.untie_embeddings_and_output_weights:
            model["lm_head.weight"] = joined("output_layer.weight", 0)[:vocab]
    shape = Shape(
        layers=layer,
        hidden=args.hidden_size,
        ffn=args.ffn_hidden_size,
        heads=args.num_attention_heads,
        kv_heads=kv_heads,
        head_dim=args.kv_channels,
        vocab=vocab or args.padded_vocab_size,
        tied=not args.untie_embeddings_and_output_weights,
        norm_epsilon=args.norm_epsilon,
        rotary_base=args.rotary_base,
        positions=args.max_position_embeddings,
    )
    return {name: t.contiguous() for name, t in model.items()}, shape
