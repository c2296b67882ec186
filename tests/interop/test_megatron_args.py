"""Each arg of Megatron, changed by itself: what we make of such a checkpoint computes what real
megatron-core computes with the changed args, or we refuse it by name, or megatron-core itself fails.
And no arg of a release is missing in our list (src/model/megatron_fields.c).

MGR_EVERY_ARG=1 changes every one, which takes minutes; else those that are known to matter, the
others all together."""

import argparse
import copy
import json
import os
import pathlib
import subprocess
import sys

import pytest
import torch

import harness
import runner
import trainer

LLAMA = trainer.DENSE
MIXTURE = [*LLAMA, *"--num-experts 4 --moe-router-topk 2 --moe-ffn-hidden-size 96".split()]
GPT = [
    *LLAMA[: LLAMA.index("--normalization")],
    *"--position-embedding-type learned_absolute --untie-embeddings-and-output-weights".split(),
]
KINDS = {"llama": (LLAMA, "huggingface"), "mixture": (MIXTURE, "moe-recipes"), "gpt": (GPT, None)}

# What each could be instead, where its type does not say so; alone these change something somewhere.
CHANGES = {
    "softmax_scale": [0.5],
    "softmax_type": ["off-by-one"],
    "window_size": [{"tuple": [4, 0]}],
    "window_attn_skip_freq": [2],
    "qk_l2_norm": [True],
    "no_rope_freq": [2, [1, 0, 0, 0], [0, 0, 0, 0]],
    "activation_func_clamp_value": [0.1],
    "glu_linear_offset": [1.0],
    "position_embedding_type": ["none", "yarn"],
    "rotary_percent": [0.5, 1.0],
    "rotary_base": [500000, 777.5],
    "rotary_interleaved": [True],
    "rotary_seq_len_interpolation_factor": [4.0, 1.0],
    "use_rope_scaling": [True],
    "rope_scaling_factor": [32.0],
    "layernorm_epsilon": [1e-2],
    "norm_epsilon": [1e-2],
    "use_mup": [True],
    "mup_embedding_mult": [3.0],
    "squared_relu": [True],
    "quick_geglu": [True],
    "swiglu": [False],
    "bias_gelu_fusion": [True],
    "apply_query_key_layer_scaling": [True],
    "apply_residual_connection_post_layernorm": [True],
    "layernorm_zero_centered_gamma": [True],
    "apply_layernorm_1p": [True],
    "moe_router_topk": [3, 1],
    "moe_router_pre_softmax": [True],
    "moe_router_score_function": ["sigmoid", "sqrtsoftplus"],
    "moe_router_topk_scaling_factor": [2.5],
    "moe_router_num_groups": [4],
    "moe_router_load_balancing_type": ["sinkhorn", "none", "seq_aux_loss", ["aux_loss"]],
    "moe_router_force_load_balancing": [True],
    "moe_router_force_biased": [1.0],
    "moe_router_dtype": ["fp32", "fp64"],
    "moe_expert_capacity_factor": [0.5],
    "moe_token_drop_policy": ["position"],
    "moe_input_jitter_eps": [0.1],
    "moe_apply_probs_on_input": [True],
    "moe_router_enable_expert_bias": [True],
    "multi_latent_attention": [True],
    "attention_output_gate": [True],
    "spec": [["nowhere", "x"]],
    "mrope_section": [[1, 1, 2]],
    "rotary_scaling_factor": [4.0],
    "mscale": [2.0],
    "untie_embeddings_and_output_weights": [False],
    "group_query_attention": [False],
    "num_query_groups": [8],
    "add_position_embedding": [False],
    "use_rotary_position_embeddings": [True],
    "fp32_residual_connection": [True],
    "attention_dropout": [0.3],
    "init_method_std": [0.5],
    "openai_gelu": [True],
    "moe_aux_loss_coeff": [0.3],
}
# They need the very values they have, or say how the run is split and started.
NOT_CHANGED = set("""load save rank world_size local_rank data_parallel_size num_layers ckpt_format no_save_optim
    no_save_rng consumed_train_samples skipped_train_samples consumed_valid_samples params_dtype bf16 fp16 iteration
    padded_vocab_size make_vocab_size_divisible_by vocab_size hidden_size ffn_hidden_size num_attention_heads kv_channels
    max_position_embeddings num_experts moe_ffn_hidden_size moe_layer_freq seq_length tensor_model_parallel_size
    pipeline_model_parallel_size expert_model_parallel_size expert_tensor_parallel_size normalization""".split())


@pytest.fixture(scope="module")
def judge(module_scratch):
    with trainer.started(module_scratch) as it:
        yield it


def rank_file(root):
    return next(pathlib.Path(root).rglob("model_optim_rng.pt"))


@pytest.fixture(scope="module")
def saved(judge, module_scratch):
    """saved(kind): the file that Megatron-LM wrote."""
    files = {}

    def get(kind):
        if kind not in files:
            root = module_scratch / kind
            step = {"do": "save", "to": root, "format": "torch", "cli": KINDS[kind][0], "plain": True}
            judge.run(1, step)
            files[kind] = rank_file(root)
        return files[kind]

    return get


def run(source, out, format, *options, **changes):
    """The program by itself: it is started hundreds of times."""
    config = runner.write_config(
        out.with_suffix(".yaml"),
        source,
        out,
        mode="reshard",
        upcycle=None,
        target__format=format,
        **{"model": {"vocab_size": trainer.VOCAB}, **changes},
    )
    names = ["--set", "target.names=local", "--set", "target.make_vocab_size_divisible_by=8"]
    command = [runner.program("mgr-upcycle"), *options, *(names if "megatron" in format else []), config]
    return runner.run(command, 60)


def with_args(file, scratch, values, name="source"):
    """A checkpoint like `file`'s whose args have these values."""
    content = torch.load(file, weights_only=False)
    content["args"] = copy.copy(content["args"])
    for key, value in values.items():
        setattr(content["args"], key, tuple(value["tuple"]) if isinstance(value, dict) else value)
    folder = scratch / name / "iter_0000007" / "mp_rank_00"
    folder.mkdir(parents=True)
    (scratch / name / "latest_checkpointed_iteration.txt").write_text("7")
    torch.save(content, folder / "model_optim_rng.pt")
    return scratch / name


def args_of(root):
    return vars(torch.load(rank_file(root), weights_only=False)["args"])


# ---- the list ------------------------------------------------------------------------------------

FIELDS = """
import dataclasses, json, megatron_core_cpu
megatron_core_cpu.import_megatron()
from megatron.core.transformer.transformer_config import MLATransformerConfig
print(json.dumps([field.name for field in dataclasses.fields(MLATransformerConfig)]))
"""


def config_fields(release):
    packages = runner.ROOT / ".venv" / f"megatron-core-{release}"
    env = {**os.environ, "PYTHONPATH": f"{packages}:{pathlib.Path(__file__).parent}"}
    told = subprocess.run([sys.executable, "-c", FIELDS], env=env, capture_output=True, text=True, timeout=120)
    assert told.returncode == 0, told.stderr
    return json.loads(told.stdout.splitlines()[-1])


def test_no_arg_of_a_release_is_missing(judge, saved, scratch, capsys):
    told = judge.run(1, {"do": "names"})[0]
    names = {"parser of 0.19.2": told["parser"], "TransformerConfig of 0.19.2": told["config"]}
    for release in ("0.13.1", "0.16.1"):
        names[f"TransformerConfig of {release}"] = config_fields(release)
    every = {name for listed in names.values() for name in listed} | set(args_of(saved("llama").parents[2]))
    source = with_args(saved("llama"), scratch, {name: None for name in every - NOT_CHANGED} | {"no_such_arg": None})
    result = run(source, scratch / "out", "megatron-torch", model={
        "vocab_size": trainer.VOCAB, "num_query_groups": 4, "num_attention_heads": 8}, source__unknown="refuse")
    assert result.status == 0, str(result)
    remarks = json.loads((scratch / "out/mgr-manifest.json").read_text())["remarks"]
    assert [remark["field"] for remark in remarks["unknown"]] == ["args.no_such_arg"]
    with capsys.disabled():
        print(f"\n{len(every)} names: " + ", ".join(f"{len(set(n))} of the {w}" for w, n in names.items()))


def test_an_unknown_arg_with_a_value_is_refused(saved, scratch):
    source = with_args(saved("llama"), scratch, {"no_such_arg": 3})
    result = run(source, scratch / "out", "megatron-torch")
    assert result.status == runner.DATA and "args.no_such_arg = 3" in result.err, str(result)
    result = run(source, scratch / "out", "megatron-torch", source__unknown="warn")
    assert result.status == 0 and "args.no_such_arg 3" in result.out, str(result)
    assert args_of(scratch / "out")["no_such_arg"] == 3


# ---- one change at a time ------------------------------------------------------------------------


def other_values(name, value):
    if name in CHANGES:
        return [other for other in CHANGES[name] if other != value]
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, (int, float)):
        return [value * 2 or 1]
    return []


def changes_of(args):
    every = set(CHANGES) | (set(args) if os.environ.get("MGR_EVERY_ARG") else set())
    return [
        {name: other}
        for name in sorted(every - NOT_CHANGED)
        for other in other_values(name, args.get(name))
    ]


def hugging_face_logits(out, ids):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32, attn_implementation="eager")
    with torch.no_grad():
        return model.eval()(ids).logits


def close(a, b):
    return (a - b).abs().max() < 2e-4 * b.abs().max()


@pytest.mark.parametrize("kind", KINDS)
def test_each_change_is_kept_or_refused(judge, saved, scratch, kind, capsys):
    file, (cli, other) = saved(kind), KINDS[kind]
    probe = {"do": "probe", "cli": cli, "weights": file}
    changes = changes_of(args_of(file.parents[2]))
    if kind == "gpt" and not os.environ.get("MGR_EVERY_ARG"):
        changes = changes[::2]  # what it shares with the others is seen there
    found = judge.run(1, {**probe, "changes": changes, "to": scratch / "was"}, seconds=1200)[0]
    taken, count = [], {"tried": 0, "equal": 0, "refused": 0, "fails in Megatron": 0}
    for i, (change, outcome) in enumerate(zip(changes, found)):
        ((name, value),) = change.items()
        count["tried"] += 1
        if outcome not in ("same", "differs"):
            count["fails in Megatron"] += 1
            continue
        source = with_args(file, scratch, change, f"source-{i}")
        out = scratch / f"out-{i}"
        result = run(source, out, "megatron-torch")
        if result.status == 0:
            taken.append((i, change, {"@": str(rank_file(out))}))
        else:
            assert result.status == runner.DATA and name in result.err, f"{change}: {result}"
            count["refused"] += 1
        if other:
            check_hugging_face(source, scratch / f"hf-{i}", other, change, outcome, scratch / f"was-{i}.pt")
    again = judge.run(1, {**probe, "changes": [args for _, _, args in taken], "to": scratch / "is"}, seconds=1200)[0]
    for k, ((i, change, _), outcome) in enumerate(zip(taken, again)):
        assert outcome == found[i], f"{change}: {outcome}, before {found[i]}"
        assert torch.equal(torch.load(scratch / f"is-{k}.pt"), torch.load(scratch / f"was-{i}.pt")), change
        count["equal"] += 1
    with capsys.disabled():
        print(f"\n{kind}: " + ", ".join(f"{n} {what}" for what, n in count.items()))
    assert count["equal"] > 20


def check_hugging_face(source, out, format, change, outcome, wanted):
    """The real class computes what Megatron computes with the change, or the program has refused."""
    result = run(source, out, format)
    if result.status != 0:
        assert result.status == runner.DATA, f"{change}: {result}"
        return
    ids = (torch.arange(24)[None] * 13 + 5) % trainer.VOCAB
    got = hugging_face_logits(out, ids)
    assert close(got, torch.load(wanted)), f"{change} ({outcome}) is lost on the way to {format}"


# ---- all that do not matter, together ------------------------------------------------------------


def test_what_does_not_matter_is_carried(judge, saved, scratch):
    """Every other arg has a value that it never has; nothing is lost but what belongs to the run."""
    file = saved("mixture")
    before = args_of(file.parents[2])
    changes = {
        name: f"a text for {name}" if isinstance(value, str) else value * 2 + 1
        for name, value in before.items()
        if name not in NOT_CHANGED and name not in CHANGES and type(value) in (str, int, float)
    }
    lists = {"data_path": ["0.3", "a", "0.7", "b"], "rampup_batch_size": [16, 16, 1000], "tokenizer_model": "tok.model"}
    source = with_args(file, scratch, {**changes, **lists})
    given, result = args_of(source), run(source, scratch / "out", "megatron-dist")
    for _ in range(40):  # those that are refused at such a value are the other tests' business
        if result.status == 0:
            break
        assert "args." in result.err, str(result)
        name = result.err.split("args.")[1].split()[0].rstrip(",)")
        given.pop(name)
        torch.save({**torch.load(rank_file(source), weights_only=False), "args": argparse.Namespace(**given)}, rank_file(source))
        result = run(source, scratch / "out", "megatron-dist")
    assert result.status == 0, str(result)
    content = torch.load(scratch / "out/release/common.pt", weights_only=False)
    after = vars(content["args"])
    remarks = json.loads((scratch / "out/mgr-manifest.json").read_text())["remarks"]
    gone = {remark["field"] for remark in remarks["dropped"]}
    other = {remark["field"] for remark in remarks["altered"]}
    for name, value in given.items():
        assert name in after or name in gone, name
        if name in after and name not in other:
            assert after[name] == value and type(after[name]) is type(value), name
    assert len(given) > 700 and len(gone) < 40 and len(other) < 15, (len(given), sorted(gone), sorted(other))
    assert set(after) >= set(lists)


def test_cases_that_leave_no_tensor(saved, scratch):
    """Refused by name where the target cannot say it."""
    for name, value in (("qk_l2_norm", True), ("softmax_type", "off-by-one"), ("glu_linear_offset", 1.0)):
        source = with_args(saved("llama"), scratch, {name: value}, name)
        for mode in ({}, {"mode": "upcycle", "upcycle": {"experts": 4, "seed": 1}}):
            config = runner.write_config(
                scratch / "c.yaml", source, scratch / "o", **{"mode": "reshard", "upcycle": None,
                "target__format": "huggingface" if not mode else "moe-recipes", **mode})
            result = runner.upcycle(config, np=1)
            assert result.status == runner.DATA and f"args.{name} is" in result.err, str(result)
            assert not (scratch / "o").exists()


assert harness.runner
