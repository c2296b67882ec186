#!/usr/bin/env python3
"""Write the corpus of `.metadata` pickles: usage: dcp_corpus.py tests/data/corpus (needs torch).

Committed output; run it only to add cases. Classes of Megatron and of old Pythons are stand-ins
under the right names."""
import contextlib
import pathlib
import pickle
import sys
import types

import torch
from torch.distributed._shard.sharded_tensor.metadata import TensorProperties as OldProperties
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)

FILE = "__0_0.distcp"


@contextlib.contextmanager
def stand_in(module, name):
    """A class that pickles as module.name."""
    parts = module.split(".")
    paths = [".".join(parts[: k + 1]) for k in range(len(parts))]
    made = [path for path in paths if path not in sys.modules]
    sys.modules.update({path: types.ModuleType(path) for path in made})
    kind = type(name, (), {"__module__": module})
    setattr(sys.modules[module], name, kind)
    try:
        yield kind
    finally:
        for path in made:
            del sys.modules[path]


def tensor(size, chunks, dtype=torch.bfloat16, properties=TensorProperties):
    return TensorStorageMetadata(
        properties(dtype=dtype),
        torch.Size(size),
        [ChunkStorageMetadata(torch.Size(o), torch.Size(s)) for o, s in chunks],
    )


def info(offset, path=FILE, **more):
    out = _StorageInfo(path, offset, 100, **more)
    if not more:
        del out.transform_descriptors
    return out


def metadata(tensors, objects=(), drop=(), path=FILE, **more):
    """All chunks and objects, one behind the other in one file, less those in `drop`."""
    places, at = {}, 0
    for key, entry in tensors.items():
        for chunk in entry.chunks:
            index = MetadataIndex(key, chunk.offsets)
            if (key, tuple(chunk.offsets)) not in drop:
                places[index] = info(at, path, **more)
            at += 100
    for key in objects:
        places[MetadataIndex(key)] = info(at, path)
    entries = {**tensors, **{key: BytesStorageMetadata() for key in objects}}
    return Metadata(entries, planner_data=None, storage_data=places)


def plain(**how):
    grid = [((i, r, c), (1, 4, 3)) for i in range(2) for r in (0, 4) for c in (0, 3)]
    return {
        "decoder.layers.mlp.linear_fc1.weight": tensor((2, 8, 6), grid, **how),
        "decoder.final_layernorm.weight": tensor((6,), [((0,), (6,))], **how),
        "embedding.word_embeddings.weight": tensor((8, 6), [((0, 0), (5, 6)), ((5, 0), (3, 6))], **how),
        "optimizer.state.exp_avg.x": tensor((4,), [((0,), (2,))], torch.float32, **how),
    }


OBJECTS = ("common_state/shard_0_1", "rng_state/shard_0.0_1.1", "x._extra_state/shard_0_2")


def one(chunks, size=(4, 4), **how):
    return metadata({"a": tensor(size, chunks, **how)})


def old():
    out = metadata(plain(properties=OldProperties), OBJECTS)
    out.all_local_plans = [{"items": list(out.storage_data.items())}]
    out.mcore_data = {"a": {"nd_reformulated_orig_global_shape": torch.Size([1, 2])}}
    return out


def cases():
    whole = metadata(plain(), OBJECTS)
    for protocol in (2, 3, 4, 5):
        yield f"whole{protocol}", whole, protocol
        yield f"old{protocol}", old(), protocol
    yield "scalar", one([((), ())], ()), 4
    yield "empty", one([], (0, 4)), 4
    yield "empty_chunks", one([((0, 0), (4, 4)), ((4, 0), (0, 4)), ((4, 0), (0, 4))]), 4
    yield "pinwheel", one([((0, 0), (1, 2)), ((0, 2), (2, 1)), ((1, 0), (2, 1)), ((2, 1), (1, 2)),
                           ((1, 1), (1, 1))], (3, 3)), 4
    yield "hole", one([((0, 0), (2, 4)), ((2, 0), (2, 3))]), 4
    yield "no_chunks", one([]), 4
    yield "twice", one([((0, 0), (4, 4)), ((0, 0), (4, 4))]), 4
    yield "overlap", one([((0, 0), (3, 4)), ((2, 0), (2, 4))]), 4
    yield "outside", one([((0, 0), (4, 5))]), 4
    yield "axes", one([((0,), (4,))]), 4
    yield "nine_axes", one([((0,) * 9, (1,) * 9)], (1,) * 9), 4
    yield "huge", one([((0, 0), (2**62, 2**62))], (2**62, 2**62)), 4
    yield "negative", one([((-1, 0), (5, 4))]), 4
    yield "float8", one([((0, 0), (4, 4))], dtype=torch.float8_e4m3fn), 4
    yield "no_place", metadata(plain(), drop={("decoder.final_layernorm.weight", (0,))}), 4
    for name, path in (("up", "../x"), ("absolute", "/x"), ("nul", "a\0b"), ("dots", ".."), ("none", "")):
        yield "path_" + name, metadata(plain(), path=path), 4
    yield "transformed", metadata(plain(), transform_descriptors=["stream.zstd/1"]), 4
    yield "not_transformed", metadata(plain(), transform_descriptors=[]), 4
    yield "no_metadata", {"a": 1}, 4


def main():
    folder = pathlib.Path(sys.argv[1]) / "dcp"
    folder.mkdir(parents=True, exist_ok=True)
    for previous in folder.glob("*.metadata"):
        previous.unlink()
    for name, value, protocol in cases():
        (folder / f"{name}.metadata").write_bytes(pickle.dumps(value, protocol))
    strategies = "megatron.core.dist_checkpointing.strategies.torch"
    with stand_in(strategies, "MCoreMetadata") as kind:
        mcore = kind()
        vars(mcore).update(vars(old()))
        (folder / "mcore.metadata").write_bytes(pickle.dumps(mcore, 4))
    with stand_in("pathlib._local", "PosixPath") as path:
        path.__reduce__ = lambda self: (path, ("/", "x"))
        posix = metadata(plain())
        posix.storage_meta = StorageMeta(checkpoint_id=path(), save_id="a")
        (folder / "posix_path.metadata").write_bytes(pickle.dumps(posix, 4))
    total = sum(file.stat().st_size for file in folder.iterdir())
    print(folder, len(list(folder.iterdir())), "files,", total, "bytes")


if __name__ == "__main__":
    main()
