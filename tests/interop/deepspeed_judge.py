"""The real DeepSpeed on a CPU, in a process of its own: `deepspeed_judge.py OUT` trains a small
Mixtral for two steps under each of SPECS and saves what the engine and zero_to_fp32 make of it.

    OUT/hf                  its config.json
    OUT/NAME                the engine's checkpoint
    OUT/NAME.safetensors    what zero_to_fp32's functions gather from it
    OUT/NAME.moments.safetensors   Adam's moments, as the engine gathers them: "exp_avg.PARAMETER"
"""

import os
import pathlib
import sys

os.environ["DS_ACCELERATOR"] = "cpu"

import deepspeed  # noqa: E402
import deepspeed.comm  # noqa: E402
import torch  # noqa: E402
import torch.multiprocessing as mp  # noqa: E402
import transformers  # noqa: E402
from deepspeed.utils import safe_get_full_optimizer_state, zero_to_fp32  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

SIZES = dict(
    vocab_size=97,
    hidden_size=24,
    intermediate_size=40,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    num_local_experts=3,
    num_experts_per_tok=2,
    max_position_embeddings=64,
)
# name: (processes, stage, sub-group size, precision, frozen layers)
SPECS = {
    "one": (1, 3, 3000, "bf16", 0),
    "two": (2, 3, 10**9, "bf16", 0),
    "groups": (2, 3, 1500, "bf16", 1),
    "stage2": (2, 2, 10**9, "bf16", 0),
    "stage1": (2, 1, 10**9, "fp32", 1),
}


def join(rank, world, port):
    """This process is one of `world`."""
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(world),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )
    torch.set_num_threads(1)
    # an operator that would be compiled for messages in shared memory
    sys.modules["deepspeed.comm.torch"].build_shm_op = lambda: None
    deepspeed.init_distributed("gloo", verbose=False)


def moments(model):
    """Of all that is trained, on each rank."""
    return {
        f"{kind}.{name}": safe_get_full_optimizer_state(p, kind).clone()
        for kind in ("exp_avg", "exp_avg_sq")
        for name, p in model.named_parameters()
        if p.requires_grad
    }


def train(rank, world, out, port):
    join(rank, world, port)
    for name, spec in SPECS.items():
        if spec[0] == world:
            one_run(out / name, *spec[1:])
    torch.distributed.destroy_process_group()


def one_run(folder, stage, size, precision, frozen):
    torch.manual_seed(1)
    model = transformers.MixtralForCausalLM(transformers.MixtralConfig(**SIZES))
    for layer in model.model.layers[:frozen]:
        layer.self_attn.requires_grad_(False)
    trained = [p for p in model.parameters() if p.requires_grad]
    config = {
        "train_micro_batch_size_per_gpu": 1,
        "bf16": {"enabled": precision == "bf16"},
        "zero_optimization": {"stage": stage, "sub_group_size": size},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }
    optimizer = torch.optim.AdamW(trained, lr=1e-3)
    engine = deepspeed.initialize(model=model, optimizer=optimizer, config=config)[0]
    for _ in range(2):
        ids = torch.randint(0, SIZES["vocab_size"], (1, 8))
        engine.backward(engine(input_ids=ids, labels=ids).loss)
        engine.step()
    engine.save_checkpoint(folder, tag="global_step2")
    gathered = moments(engine.module)
    if torch.distributed.get_rank() == 0:
        save_file(gathered, f"{folder}.moments.safetensors")


def gather(out):
    for name in SPECS:
        weights = zero_to_fp32.get_fp32_state_dict_from_zero_checkpoint(str(out / name))
        save_file({k: v.float().contiguous() for k, v in weights.items()}, out / f"{name}.safetensors")


def main():
    out = pathlib.Path(sys.argv[1])
    transformers.MixtralConfig(**SIZES).save_pretrained(out / "hf")
    for world in sorted({spec[0] for spec in SPECS.values()}):
        mp.start_processes(train, (world, out, 29611 + world), nprocs=world, start_method="fork")
    gather(out)


if __name__ == "__main__":
    main()
