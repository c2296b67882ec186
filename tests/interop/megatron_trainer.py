"""Megatron-LM's own trainer on a CPU: its parser, its builders, its reader and writer of checkpoints.

    PYTHONPATH=.venv/megatron-core-0.19.2 python megatron_trainer.py

The wheel of megatron-core 0.19 holds megatron/training. One line of JSON in, one out:
{"world": ranks, "steps": [...]}, and {"results": [...]} of rank 0 once the ranks, forked for it, have
ended; or {"failed": text}. Every step has the options of pretrain_gpt.py, or of pretrain_hybrid.py, in "cli". What a
step does:

    {"do": "save", "to": F, "format": X, "logits": L}   a model whose values depend on the tensors' names;
                                                         "plain": without enums in its args; "without": these args,
                                                         or all ("args"), are not in the checkpoint
    {"do": "step", "to": F, "format": X}                 the same model, after two steps, with its optimizer;
                                                         "from": that of a checkpoint, saved as it is, and then
                                                         stepped
    {"do": "load", "from": F, "logits": L}               all parameters NaN first; whole and strict, or failed
    {"do": "parse"}                                      the args that the options amount to
    {"do": "names"}                                      the parser's destinations, and TransformerConfig's
    {"do": "probe", "changes": [{name: value}, ...], "weights": W, "to": T}   the model in the file W, with
         each change of its args in turn: "same", "differs", "names" or "refused"; the logits in T-N.pt

Only the standard library is imported at the top: torch_dist's writer starts processes by `spawn`.
"""

import argparse
import contextlib
import copy
import json
import multiprocessing
import multiprocessing.connection
import os
import pathlib
import queue
import sys
import tempfile
import traceback
import types
import typing
import unittest.mock
import zlib

import megatron_core_cpu as cpu

import each_expert

ITERATION, TOKENS = 7, 24
# What a CPU needs, and what no test is about. In front of each step's options.
ALWAYS = """
    --transformer-impl local --use-cpu-initialization --distributed-backend gloo --no-persist-layer-norm
    --no-gradient-accumulation-fusion --no-masked-softmax-fusion --no-rope-fusion --no-bias-swiglu-fusion
    --no-bias-gelu-fusion --no-bias-dropout-fusion --attention-dropout 0 --hidden-dropout 0
    --micro-batch-size 1 --train-iters 10 --lr 1e-5 --tokenizer-type NullTokenizer
    --exit-on-missing-checkpoint
""".split()


def import_trainer():
    os.environ.update(OMP_NUM_THREADS="1", TORCHDYNAMO_DISABLE="1", CUDA_DEVICE_MAX_CONNECTIONS="1")
    sys.dont_write_bytecode = True
    if not hasattr(typing, "override"):  # the wheel is for Python 3.12
        typing.override = lambda method: method
    cpu.import_megatron()
    import torch
    from megatron.core import tensor_parallel

    tensor_parallel.get_cuda_rng_tracker = tensor_parallel.random.get_cuda_rng_tracker
    torch.cuda.device_count = lambda: 1  # with none the parallel groups are not made
    for name in ("Event", "empty_cache"):
        setattr(torch.cuda, name, unittest.mock.MagicMock())
    for home in (torch.cuda, torch.cuda.random):
        home.get_rng_state = lambda *args, **kwargs: torch.zeros(16, dtype=torch.uint8)
        home.set_rng_state = lambda *args, **kwargs: None
    torch.cuda.get_device_properties = lambda *args: types.SimpleNamespace(major=9, minor=0)
    import megatron.training.initialize
    import megatron.training.training  # noqa: F401

    megatron.training.initialize._compile_dependencies = lambda: None  # of the data loader
    from megatron.core.dist_checkpointing.strategies import filesystem_async

    from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer as Distributed

    real = Distributed._set_main_param_and_optimizer_states
    # torch's Adam has a step beside its moments, which is loaded elsewhere; Transformer Engine's has none
    Distributed._set_main_param_and_optimizer_states = lambda self, parameter, tensors: real(
        self, parameter, {"step": None, **tensors}
    )
    results = queue.Queue()  # between threads; else a process is spawned for it, which takes seconds
    filesystem_async.get_write_results_queue = lambda *mode: results


def on_cpu():
    """While this is entered, tensors meant for CUDA are made on the CPU."""
    import torch

    class Mode(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function, kinds, args=(), kwargs=None):
            kwargs = dict(kwargs or {})
            if function is torch.Tensor.cuda:
                return args[0]
            if "cuda" in str(kwargs.get("device")):
                kwargs["device"] = "cpu"
            result = function(*args, **kwargs)
            named = function is torch.Tensor.type and isinstance(result, str)
            return result.replace("torch.", "torch.cuda.") if named else result  # what an optimizer asks for

    return Mode()


def hybrid_builder(args, config):
    """Of HybridModels without Transformer Engine: its stack of layers has no other spec, so this one is put
    together from those of a GPT's layers, with the keys that Transformer Engine's would have."""
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
    from megatron.core.models.hybrid import hybrid_block
    from megatron.core.ssm.mlp_layer import MLPLayer
    from megatron.core.transformer import transformer_layer as layers
    from megatron.core.transformer.spec_utils import ModuleSpec
    from megatron.core.transformer.torch_norm import WrappedTorchNorm
    from megatron.training import argument_utils
    from megatron.training.models.hybrid import HybridModelBuilder

    hybrid_block.TENorm = WrappedTorchNorm

    def half(module, fused, experts, *names):
        gpt = get_gpt_layer_local_spec(
            num_experts=experts, normalization=args.normalization, qk_layernorm=args.qk_layernorm
        ).submodules
        parts = {name: getattr(gpt, name) for name in names}
        return ModuleSpec(module, submodules=layers.TransformerLayerSubmodules(sharded_state_dict_keys_map=fused, **parts))

    attention = {"input_layernorm.": "self_attention.linear_qkv.layer_norm_"}
    dense, ffn = {"pre_mlp_layernorm.": "mlp.linear_fc1.layer_norm_"}, ("pre_mlp_layernorm", "mlp", "mlp_bda")
    made = argument_utils.hybrid_config_from_args(args, config)
    made.hybrid_stack_spec = ModuleSpec(hybrid_block.HybridStack, submodules=hybrid_block.HybridStackSubmodules(
        attention_layer=half(
            layers.TransformerLayer, attention, None, "input_layernorm", "self_attention", "self_attn_bda"
        ),
        mlp_layer=half(MLPLayer, dense, None, *ffn),
        moe_layer=half(layers.MoETransformerLayer, {}, args.num_experts, *ffn) if args.num_experts else None,
    ))
    return HybridModelBuilder(made)


# ---- one rank ------------------------------------------------------------------------------------


class Rank:
    """The trainer's global state, set up once for a grid of ranks, anew for each step."""

    def __init__(self):
        self.ready = False

    def parse(self, cli):
        from megatron.training import arguments, global_vars, initialize

        if self.ready:
            global_vars.unset_global_variables()
        sys.argv = ["pretrain_gpt.py", *ALWAYS, *cli]
        args = arguments.parse_and_validate_args()
        if not self.ready:
            initialize.initialize_megatron(allow_no_cuda=True)
        self.ready = True
        return args

    def model(self, args, wrapped=False):
        from megatron.core.utils import unwrap_model
        from megatron.training import argument_utils, training
        from megatron.training.models.gpt import GPTModelBuilder

        def provide(pre_process, post_process, vp_stage=None, config=None, pg_collection=None):
            if args.hybrid_layer_pattern:
                builder = hybrid_builder(args, config)
            else:
                builder = GPTModelBuilder(argument_utils.gpt_config_from_args(args, config))
            return builder.build_model(pg_collection, pre_process, post_process, vp_stage)

        model = training.get_model(provide, wrap_with_ddp=wrapped)
        return model, unwrap_model(model)

    def optimizer(self, args, model):
        from megatron.training import training

        config, overrides = training.get_megatron_optimizer_config(args)
        config.timers = training.get_timers()
        made = training.get_megatron_optimizer(config, model, config_overrides=overrides)
        return made, training.get_optimizer_param_scheduler(made)


def fill(chunks, vocab):
    """Each tensor's place in a whole one that is drawn from its name: the same model at any split."""
    import torch
    from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory

    def leaves(node):
        if isinstance(node, (dict, list)):
            for child in node.values() if isinstance(node, dict) else node:
                yield from leaves(child)
        elif isinstance(node, ShardedTensorFactory):
            yield from leaves(node.build())
        elif isinstance(node, ShardedTensor):
            yield node

    for leaf in leaves([chunk.sharded_state_dict() for chunk in chunks]):
        shape = list(leaf.global_shape)
        whole = torch.randn(shape, generator=torch.Generator().manual_seed(zlib.crc32(leaf.key.encode())))
        whole = whole * 0.08 + ("norm" in leaf.key and leaf.key.endswith("weight"))
        if leaf.allow_shape_mismatch:
            whole[vocab:] = 0
        sizes = [1] * leaf.prepend_axis_num + [*leaf.local_shape]
        place = tuple(slice(first, first + n) for first, n in zip(leaf.global_offset, sizes))
        leaf.data.detach().copy_(whole[place].reshape(leaf.data.shape))


def logits_of(chunks, ids):
    """All logits, on every rank: stage by stage, then the parts of the vocabulary side by side."""
    import torch
    from megatron.core import mpu

    group, hidden = mpu.get_pipeline_model_parallel_group(), None
    for chunk in chunks:
        for stage, rank in enumerate(torch.distributed.get_process_group_ranks(group)):
            box = [None]
            if stage == mpu.get_pipeline_model_parallel_rank():
                chunk.float().eval().set_input_tensor(hidden)
                with torch.no_grad():
                    box = [chunk(ids, torch.arange(ids.shape[1])[None], None)]
            torch.distributed.broadcast_object_list(box, rank, group)
            hidden = box[0]
    parts = [torch.empty_like(hidden) for _ in range(mpu.get_tensor_model_parallel_world_size())]
    torch.distributed.all_gather(parts, hidden.contiguous(), mpu.get_tensor_model_parallel_group())
    return torch.cat(parts, -1).float()


def keep_logits(step, args, chunks):
    import torch
    from megatron.core import mpu

    ids = (torch.arange(min(TOKENS, args.seq_length))[None] * 13 + 5) % step["vocab"]
    with each_expert.chosen_by_megatron(chunks) as mine:
        result = logits_of(chunks, ids)
    if step.get("logits") and args.num_experts:
        of_all = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(of_all, mine)  # of each stage
        chosen = set().union(*of_all)
        assert len(chosen) > 1, chosen
        rank = mpu.get_expert_model_parallel_rank(), mpu.get_expert_model_parallel_world_size()
        experts = each_expert.of_megatron(chunks, args.num_experts, *rank)
        each_expert.check(lambda: logits_of(chunks, ids), experts, chosen)
    if step.get("logits") and args.rank == 0:
        torch.save({"ids": ids, "logits": result[..., : step["vocab"]]}, step["logits"])


def make_plain(root):
    """Take enums out of the args of a file in the format torch, for readers without megatron."""
    import torch

    for path in root.rglob("model_optim_rng.pt"):
        content = torch.load(path, weights_only=False)
        kept = {k: v for k, v in vars(content["args"]).items() if not type(v).__module__.startswith("megatron")}
        torch.save({**content, "args": argparse.Namespace(**kept)}, path)


@contextlib.contextmanager
def args_left_out(names):
    """Of what is saved meanwhile, as by scripts that know of no such arg, or of none."""
    from megatron.training import checkpointing

    def without(args, *rest, real=checkpointing.generate_state_dict, **more):
        state = real(args, *rest, **more)
        state["args"] = argparse.Namespace(**{k: v for k, v in vars(args).items() if k not in names})
        if "args" in names:
            del state["args"]
        return state

    with unittest.mock.patch.object(checkpointing, "generate_state_dict", without):
        yield


def do_save(rank, step):
    from megatron.training.checkpointing import save_checkpoint

    cli = ["--save", step["to"], "--ckpt-format", step["format"], "--save-interval", "100"]
    args = rank.parse([*step["cli"], *cli, "--no-save-optim", "--no-save-rng"])
    model, chunks = rank.model(args)
    fill(chunks, step["vocab"])
    with args_left_out(step.get("without", ())):
        save_checkpoint(ITERATION, model, None, None, 0)
    if step.get("plain"):
        make_plain(pathlib.Path(step["to"]))
    keep_logits(step, args, chunks)
    return "saved"


def gradients(model, seed):
    """Of each parameter; ranks that share one have the same."""
    import torch

    for chunk in model:
        for name, parameter in chunk.named_parameters():
            generator = torch.Generator().manual_seed(zlib.crc32(f"{name} {seed}".encode()))
            parameter.main_grad.copy_(torch.randn(parameter.shape, generator=generator) * 1e-2)


def count_of(optimizer):
    """The steps that it has taken, for all parameters."""
    states = [state for one in optimizer.chained_optimizers for state in one.optimizer.state.values()]
    counts = {float(state["step"]) for state in states}
    assert len(counts) == 1, counts
    return counts.pop()


def do_step(rank, step):
    import torch
    from megatron.training.checkpointing import load_checkpoint, save_checkpoint

    cli = ["--save", step["to"], "--ckpt-format", step["format"], "--save-interval", "100", "--no-save-rng"]
    if "from" in step:
        cli += ["--load", step["from"]]
    args = rank.parse([*step["cli"], *cli])
    model, chunks = rank.model(args, wrapped=True)
    optimizer, schedule = rank.optimizer(args, model)
    if "from" in step:
        gradients(model, -1)  # without Transformer Engine a distributed one loads where it has a state already
        optimizer.step()
        iteration = load_checkpoint(model, optimizer, schedule)[0]
        count = count_of(optimizer)
        save_checkpoint(iteration, model, optimizer, schedule, 0)
    else:
        iteration = ITERATION
        fill(chunks, step["vocab"])
        optimizer.reload_model_params()
    before = [parameter.detach().clone() for chunk in model for parameter in chunk.parameters()]
    for k in range(2):
        gradients(model, iteration + k)
        good, *_ = optimizer.step()
        assert good, "the optimizer did not step"
        schedule.step(increment=args.global_batch_size)
    after = [parameter.detach() for chunk in model for parameter in chunk.parameters()]
    assert all(torch.isfinite(value).all() for value in after), "not finite"
    if "from" not in step:
        save_checkpoint(iteration + 2, model, optimizer, schedule, 0)
    torch.distributed.barrier()  # all files are there
    if step.get("plain") and args.rank == 0:
        make_plain(pathlib.Path(step["to"]))
    changed = sum(not torch.equal(a, b) for a, b in zip(before, after)) / len(after)
    return {"changed": changed, "step": count if "from" in step else count_of(optimizer)}


def do_load(rank, step):
    """Where load_state_dict is not content Megatron-LM goes on with what there is: that is a failure."""
    import torch
    from megatron.training.checkpointing import load_checkpoint

    args = rank.parse(step["cli"])
    model, chunks = rank.model(args)
    calls = []
    for chunk in model:
        for parameter in chunk.parameters():
            parameter.data.fill_(float("nan"))

        def load(state, strict=True, real=chunk.load_state_dict):
            calls.append(strict and not any(real(state, strict=strict) or ()))

        chunk.load_state_dict = load
    iteration = load_checkpoint(model, None, None)[0]
    left = [name for chunk in chunks for name, value in chunk.named_parameters() if torch.isnan(value).any()]
    assert calls and all(calls), "the load was not strict"
    assert not left, f"not loaded: {left}"
    keep_logits(step, args, chunks)
    sizes = [f"{kind}_model_parallel_size" for kind in ("tensor", "pipeline", "expert")]
    return {"iteration": iteration} | {name: getattr(args, name) for name in (*sizes, "padded_vocab_size")}


def plain(value):
    """What JSON can say of an arg; the name of its class for others."""
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value if value is None or isinstance(value, (bool, int, float, str)) else repr(value)


def do_parse(rank, step):
    return {name: plain(value) for name, value in vars(rank.parse(step["cli"])).items()}


def do_names(rank, step):
    import dataclasses

    from megatron.core.transformer.transformer_config import MLATransformerConfig
    from megatron.training.arguments import add_megatron_arguments

    parser = add_megatron_arguments(argparse.ArgumentParser(allow_abbrev=False))
    fields = [field.name for field in dataclasses.fields(MLATransformerConfig)]
    return {"parser": sorted({action.dest for action in parser._actions}), "config": fields}


def build_from(args):
    import torch
    from megatron.core.process_groups_config import ProcessGroupCollection
    from megatron.training import argument_utils, global_vars
    from megatron.training.models.gpt import GPTModelBuilder

    global_vars.set_args(args)
    torch.manual_seed(1)
    groups = ProcessGroupCollection.use_mpu_process_groups()
    return GPTModelBuilder(argument_utils.gpt_config_from_args(args)).build_model(groups, True, True, None)


def try_change(args, state, ids, wanted):
    """What the real model makes of these args, with the same weights."""
    import torch

    try:
        model = build_from(args)
        mine = {name: value.shape for name, value in model.state_dict().items() if value is not None}
        if mine != {name: value.shape for name, value in state.items()}:
            return "names", None
        model.load_state_dict(state)
        torch.manual_seed(1)
        result = logits_of([model], ids)
    except BaseException as error:
        return f"refused: {type(error).__name__}", None
    return ("same" if torch.equal(result, wanted) else "differs"), result


def changed_args(args, change):
    """A copy with {name: value}: lists stand for tuples where they are in {"tuple": ...}, text for
    dtypes. "@": a checkpoint whose args it takes, all of them."""
    import torch

    changed = copy.copy(args)
    for name, value in change.items():
        if name == "@":
            taken = torch.load(value, weights_only=False, map_location="meta")["args"]
            changed.__dict__.update(vars(taken))
            continue
        value = tuple(value["tuple"]) if isinstance(value, dict) else value
        setattr(changed, name, getattr(torch, value[6:]) if str(value).startswith("torch.") else value)
    return changed


def do_probe(rank, step):
    import torch
    from megatron.training import global_vars

    args = rank.parse(step["cli"])
    saved = torch.load(step["weights"], weights_only=False)["model"]
    state = {name: value for name, value in saved.items() if value is not None}
    ids = (torch.arange(TOKENS)[None] * 13 + 5) % step["vocab"]
    model = build_from(args)
    model.load_state_dict(state, strict=False)
    wanted, found = logits_of([model], ids), []
    for i, change in enumerate(step["changes"]):
        with open(os.devnull, "w") as nothing, contextlib.redirect_stdout(nothing):
            outcome, result = try_change(changed_args(args, change), state, ids, wanted)
        if result is not None:
            torch.save(result[..., : step["vocab"]], f"{step['to']}-{i}.pt")
        found.append(outcome)
        global_vars.set_args(args)
    return found


STEPS = {"save": do_save, "step": do_step, "load": do_load, "parse": do_parse, "names": do_names, "probe": do_probe}


def rank_main(number, world, steps, folder):
    import torch

    os.environ.update(RANK=str(number), WORLD_SIZE=str(world), LOCAL_RANK=str(number))
    log = os.open(f"{folder}/log-{number}", os.O_WRONLY | os.O_CREAT)
    os.dup2(log, 1)
    os.dup2(log, 2)
    results, rank, status = [], Rank(), 0
    try:
        torch.distributed.init_process_group(
            "gloo", f"file://{folder}/store", world_size=world, rank=number
        )
        with on_cpu():
            for step in steps:
                results.append(STEPS[step["do"]](rank, step))
                torch.distributed.barrier()
    except BaseException as error:  # sys.exit is how Megatron-LM ends without a checkpoint
        where = traceback.extract_tb(error.__traceback__)[-1]
        text = f"rank {number}, step {len(results)}: {type(error).__name__}: {error}"
        results, status = f"{text} (in {where.name}, line {where.lineno} of {where.filename})", 1
    pathlib.Path(f"{folder}/result-{number}").write_text(json.dumps(results))
    os._exit(status)


# ---- the process that forks them -----------------------------------------------------------------


def run_ranks(job):
    fork = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory() as folder:
        ranks = [
            fork.Process(target=rank_main, args=(n, job["world"], job["steps"], folder))
            for n in range(job["world"])
        ]
        for process in ranks:
            process.start()
        while any(process.exitcode is None for process in ranks):
            multiprocessing.connection.wait([p.sentinel for p in ranks if p.exitcode is None], timeout=5)
            if any(process.exitcode for process in ranks):  # the others would wait for it
                for process in ranks:
                    process.join(2)
                    process.kill()
        told = [pathlib.Path(f"{folder}/result-{n}") for n in range(job["world"])]
        texts = [json.loads(path.read_text()) for path in told if path.is_file()]
        failed = [text for text in texts if isinstance(text, str)]
        if failed or any(process.exitcode for process in ranks):
            logs = "\n".join(pathlib.Path(f"{folder}/log-{n}").read_text()[-2000:] for n in range(1))
            return {"failed": "\n".join(failed or ["a rank has died"]) + "\n" + logs}
        return {"results": texts[0]}


def main():
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    import_trainer()
    for line in sys.stdin:
        out.write(json.dumps(run_ranks(json.loads(line))) + "\n")


if __name__ == "__main__":
    main()
