"""The real DeepSpeed on a CPU reads what the program wrote: `deepspeed_load_judge.py JOBS.json` trains
the model of JOBS["hf"] for two steps under ZeRO-3, lets ds_to_universal convert that, gathers each of
JOBS["gathers"] by zero_to_fp32, and loads each of JOBS["loads"] into an engine, which then trains.

    JOBS["trained"]                 what the engine saved, and global_step2_universal beside it
    FOLDER.safetensors              what zero_to_fp32's functions gather from a folder
    FOLDER.NAME.safetensors         the masters of the engine that loaded it; where the job has "step", the
                                    moments, too, "exp_avg.PARAMETER", and the optimizer has taken as many
"""

import argparse
import json
import pathlib
import sys

import deepspeed_judge as judge  # sets DeepSpeed's environment
import deepspeed
import torch
import torch.multiprocessing as mp
import transformers
from deepspeed.checkpoint import ds_to_universal
from deepspeed.utils import safe_get_full_fp32_param, zero_to_fp32
from safetensors.torch import save_file


def groups_of(model, n):
    """One group of parameters, or two that decay and do not."""
    if n == 1:
        return model.parameters()
    decays = [p for p in model.parameters() if p.ndim > 1]
    return [{"params": decays}, {"params": [p for p in model.parameters() if p.ndim == 1], "weight_decay": 0.0}]


def start(model, stage, size, universal, groups=1):
    config = {
        "train_micro_batch_size_per_gpu": 1,
        "bf16": {"enabled": True},
        "zero_optimization": {"stage": stage, "sub_group_size": size},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "checkpoint": {"load_universal": universal},
    }
    optimizer = torch.optim.AdamW(groups_of(model, groups), lr=1e-3)
    return deepspeed.initialize(model=model, optimizer=optimizer, config=config)[0]


def step(engine):
    ids = torch.randint(0, engine.module.config.vocab_size, (1, 8))
    loss = engine(input_ids=ids, labels=ids).loss
    engine.backward(loss)
    engine.step()
    assert torch.isfinite(loss), loss


def masters(engine):
    return {name: safe_get_full_fp32_param(p).clone() for name, p in engine.module.named_parameters()}


def train(jobs):
    torch.manual_seed(7)
    engine = start(transformers.AutoModelForCausalLM.from_pretrained(jobs["hf"]), 3, jobs["size"], False)
    for _ in range(2):
        step(engine)
    engine.save_checkpoint(jobs["trained"], tag="global_step2")


def load(job):
    """The model begins with other weights; what is loaded is computed with, and can be trained."""
    torch.manual_seed(11)
    config = transformers.AutoConfig.from_pretrained(job["folder"])
    model = transformers.AutoModelForCausalLM.from_config(config)
    engine = start(model, job["stage"], job["size"], job["universal"], job.get("groups", 1))
    path, _ = engine.load_checkpoint(job["folder"], load_optimizer_states=True)
    assert path, job
    loaded, moments = masters(engine), {}
    if job["step"]:
        moments = judge.moments(engine.module)
        counts = {float(state["step"]) for state in engine.optimizer.optimizer.state.values()}
        assert counts == {job["step"]}, counts
        assert all(group["lr"] == job["lr"] for group in engine.optimizer.optimizer.param_groups)
    with deepspeed.zero.GatheredParameters(list(engine.module.parameters())):
        for name, p in engine.module.named_parameters():
            assert torch.equal(p.cpu(), loaded[name].bfloat16()), name
    step(engine)
    trained = masters(engine)
    assert any(not torch.equal(loaded[name], trained[name]) for name in loaded)
    if torch.distributed.get_rank() == 0:
        save_file({**loaded, **moments}, f"{job['folder']}.{job['name']}.safetensors")


def work(rank, world, jobs, port):
    judge.join(rank, world, port)
    if world == 2:
        train(jobs)
    for job in jobs["loads"]:
        if job["world"] == world:
            load(job)
    torch.distributed.destroy_process_group()


def main():
    jobs = json.loads(pathlib.Path(sys.argv[1]).read_text())
    for world in (2, 1):
        mp.start_processes(work, (world, jobs, 29621 + world), nprocs=world, start_method="fork")
    options = dict(num_extract_workers=1, num_merge_workers=1, keep_temp_folder=False, strict=True)
    trained = jobs["trained"] + "/global_step2"
    ds_to_universal.main(
        argparse.Namespace(
            input_folder=trained, output_folder=trained + "_universal", inject_missing_state=False, **options
        )
    )
    for folder in (*jobs["gathers"], jobs["trained"]):
        weights = zero_to_fp32.get_fp32_state_dict_from_zero_checkpoint(folder, tag=None)
        save_file({k: v.float().clone().contiguous() for k, v in weights.items()}, folder + ".safetensors")


if __name__ == "__main__":
    main()
