"""A rank of two that saves a folder's tensors as torch.distributed.checkpoint does, cut like FSDP's: PORT RANK
FOLDER OUT. Each has the same seed-free tensors; axis 0 is cut for most, axis 1 for some, unevenly where it is odd."""

import os
import pathlib
import sys

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

port, rank, folder, out = sys.argv[1], int(sys.argv[2]), pathlib.Path(sys.argv[3]), pathlib.Path(sys.argv[4])
os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=port, RANK=str(rank), WORLD_SIZE="2")
torch.set_num_threads(1)
dist.init_process_group("gloo", rank=rank, world_size=2)
mesh = init_device_mesh("cpu", (2,))
state = {}
for i, (name, tensor) in enumerate(sorted(load_file(folder / "model.safetensors").items())):
    axis = 1 if tensor.ndim > 1 and i % 3 == 0 else 0
    state[name] = distribute_tensor(tensor, mesh, [Replicate() if i % 7 == 6 or tensor.ndim == 0 else Shard(axis)])
held = {"model": state, "optimizer": {"state": {"exp_avg": torch.ones(3)}}, "step": 3}
dcp.save(state, checkpoint_id=out / "plain")
dcp.save(held, checkpoint_id=out / "held")
writer = dcp.HuggingFaceStorageWriter
dcp.save(state, storage_writer=writer(path=out / "shards", save_distributed=True))
where = dict(path=out / "whole", save_distributed=True, fqn_to_index_mapping={n: 1 for n in state})
dcp.save(state, storage_writer=writer(**where, enable_consolidation=True))
dist.barrier()
dist.destroy_process_group()
