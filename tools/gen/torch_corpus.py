#!/usr/bin/env python3
"""Make the fuzz corpora tests/data/corpus/{zip,pickle,torch} from real torch.save output.

    python3 tools/gen/torch_corpus.py tests/data/corpus

Needs torch and numpy. Crash files that a fuzzer found are named crash-* and are left alone; all
other files of the three folders are replaced. Random numbers are seeded, so two runs with the same
versions of Python and torch give the same files.
"""
import argparse
import collections
import enum
import io
import pathlib
import pickle
import random
import signal
import sys
import types
import zipfile

import numpy as np
import torch
from torch.utils.serialization import config


def fake_module(name):
    parts = name.split(".")
    for i in range(1, len(parts) + 1):
        sys.modules.setdefault(".".join(parts[:i]), types.ModuleType(".".join(parts[:i])))
    return sys.modules[name]


def fake_class(module, cls):
    cls.__module__, cls.__qualname__ = module, cls.__name__
    setattr(fake_module(module), cls.__name__, cls)
    return cls


class ModelType(enum.Enum):
    encoder_or_decoder = 1


class LossScaler:
    def __init__(self):
        self.cur_scale = 1.0


class Evil:
    def __reduce__(self):
        return eval, ("1",)


fake_class("megatron.core.enums", ModelType)
fake_class("deepspeed.runtime.fp16.loss_scaler", LossScaler)


def model(dtype=torch.bfloat16):
    """Views into one buffer, in the manner of Megatron's distributed optimizer."""
    buf = torch.arange(500).to(dtype)
    sd = collections.OrderedDict()
    sd["embedding.word_embeddings.weight"] = buf[10:10 + 48].view(12, 4)
    sd["decoder.layers.0.mlp.linear_fc1.weight"] = buf[100:100 + 64].view(16, 4)
    sd["decoder.layers.0.mlp.linear_fc2.weight"] = buf[200:200 + 64].view(16, 4).t()
    sd["decoder.layers.0.mlp.linear_fc1._extra_state"] = None
    sd["decoder.layers.0.mlp.linear_fc2._extra_state"] = io.BytesIO(b"abc")
    sd["decoder.layers.1._extra_state"] = torch.tensor([1, 2], dtype=torch.uint8)
    sd["decoder.final_layernorm.weight"] = torch.nn.Parameter(torch.ones(4))
    sd["scalar"] = torch.tensor(3.5)
    sd["empty"] = torch.zeros(0, 4)
    sd._metadata = collections.OrderedDict({"": {"version": 1}})
    return sd


def args():
    return argparse.Namespace(
        num_layers=2, lr=1e-4, name="gpt", params_dtype=torch.bfloat16,
        model_type=ModelType.encoder_or_decoder, save=pathlib.PosixPath("/tmp/x"), none=None,
        flag=True, betas=[0.9, 0.95], big=2 ** 70, neg=-(2 ** 40), np=np.float32(2.5),
        sig=signal.SIGTERM, empty=b"", raw=b"\x00\xff", cx=1j, st={1}, act=torch.tanh,
        init=torch.nn.init.xavier_normal_, dev=torch.device("cuda", 0), text="\u65e5\ud800",
        size=torch.Size([1, 2]))


def whole():
    recursive = [1]
    recursive.append(recursive)
    return {
        "args": args(), "checkpoint_version": 3.0, "iteration": 10, "model": model(),
        "optimizer": {"state": {0: {"exp_avg": torch.zeros(3), "step": 1}}},
        "opt_param_scheduler": {"max_lr": 1.0},
        "rng_state": [{"np": ("MT19937", np.arange(4, dtype=np.uint32), 4, 0, 0.0),
                       "random": (3, (2 ** 31, 2 ** 32 - 1), None), "recursive": recursive}],
        "scaler": LossScaler()}


def save(obj, **kwargs):
    out = io.BytesIO()
    torch.save(obj, out, **kwargs)
    return out.getvalue()


def member(raw, name):
    with zipfile.ZipFile(io.BytesIO(raw)) as archive:
        return archive.read(name)


def files():
    """name -> bytes of whole torch.save files."""
    out = {"megatron.pt": save(whole()), "protocol4.pt": save(whole(), pickle_protocol=4),
           "chunks.pt": save({"model0": model(torch.float16),
                              "model1": {"a": {"b": torch.ones(2)}}}),
           "evil.pt": save({"model": {"a": torch.ones(2)}, "x": Evil()}),
           "float8.pt": save({"model": {"a": torch.ones(2).to(torch.float8_e4m3fn)}}),
           "expanded.pt": save({"model": {"a": torch.ones(1).expand(1000)}}),
           # what follows holds addresses of this run
           "legacy.pt": save({"model": {"a": torch.ones(2)}},
                             _use_new_zipfile_serialization=False)[:60]}
    config.save.compute_crc32 = False
    out["nocrc.pt"] = save({"args": args(), "model": model()})
    out["nocrc_small.pt"] = save({"model": {"a": torch.ones(2)}})
    config.save.compute_crc32 = True
    return out


def info(name, method=zipfile.ZIP_STORED):
    """A member without the time of day."""
    out = zipfile.ZipInfo(name)
    out.compress_type = method
    return out


def zips():
    out = {}
    for name, method in (("stored", zipfile.ZIP_STORED), ("deflated", zipfile.ZIP_DEFLATED)):
        buf = io.BytesIO()
        with zipfile.ZipFile(buf, "w", method) as archive:
            archive.writestr(info("a/data.pkl", method), b"\x80\x02}." + b"x" * 50)
            archive.writestr(info("a/version", method), b"3\n")
            archive.comment = b"hello"
        out[name + ".zip"] = buf.getvalue()
    buf = io.BytesIO()
    with zipfile.ZipFile(buf, "w") as archive:
        with archive.open(info("a/data/0"), "w", force_zip64=True) as f:
            f.write(b"1234")
    out["zip64.zip"] = buf.getvalue()
    base = save({"model": {"a": torch.ones(2)}})
    lies = {
        "other_name": base.replace(b"archive/version", b"archive/Version", 1),
        "case": base.replace(b"archive/byteorder", b"archive/BYTEORDER", 1),
        "outside": base.replace(b"archive/byteorder", b"brchive/byteorder"),
        "twice": base.replace(b"archive/.format_version", b"archive/byteorder......"),
        "truncated": base[:-10],
        "disks": base[:-18] + b"\1" + base[-17:],
        "comment": base[:-1] + b"\1",
        "many": base[:-14] + b"\xff\xff\xff\xff" + base[-10:],
    }
    out.update({name + ".zip": data for name, data in lies.items()})
    out["plain.zip"] = base
    return out


def pickles(archives):
    out = {"%s.pkl" % name[:-3]: member(raw, "archive/data.pkl")
           for name, raw in archives.items() if not name.startswith(("legacy", "nocrc"))}
    deep = b"\x80\x02" + b"(" * 200 + b"t" * 200 + b"."
    out.update({
        "deep.pkl": deep,
        "lists.pkl": b"\x80\x02" + b"]" * 100 + b"a" * 99 + b".",
        "self.pkl": b"\x80\x02]q\x00h\x00a.",
        "os.pkl": b"\x80\x02cos\nsystem\nX\x02\x00\x00\x00id\x85R.",
        "stack_global.pkl": b"\x80\x04\x8c\x02os\x8c\x06system\x93.",
        "long0.pkl": b"\x80\x02\x8a\x00.", "memo.pkl": b"\x80\x02Nr\xff\xff\xff\xff.",
        "text.pkl": b"\x80\x02(I12\nL-5L\nF1.5\nU\x01aT\x01\x00\x00\x00bt.",
        "newobj_ex.pkl": b"\x80\x04cargparse\nNamespace\n)}\x92}\x8c\x01aNsb.",
        "getattr.pkl": b"\x80\x02c__builtin__\ngetattr\ncmegatron.x\nE\nX\x01\x00\x00\x00a\x86R.",
        "local_path.pkl": b"\x80\x02cpathlib._local\nPosixPath\nX\x01\x00\x00\x00/\x85R.",
        "odd.pkl": b"\x80\x02}(Nu.", "pop.pkl": b"\x80\x02K\x01(0K\x02K\x03(K\x04K\x05100.",
        "sets.pkl": pickle.dumps([{1, 2}, frozenset({3}), bytearray(b"x"), b"y", 2 ** 64], 5),
        "batch.pkl": pickle.dumps({i: i for i in range(1001)}, 2),
    })
    return out


TENSOR = (b"ctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storagectorch\n%s\n"
          b"X\x01\x00\x00\x00%sX\x03\x00\x00\x00cpu%stQ%s\x89ccollections\nOrderedDict\n)RtR")


def tensor(geometry, storage=b"FloatStorage", key=b"0", numel=b"K\x06"):
    value = TENSOR % (storage, key, numel, geometry)
    return b"\x80\x02}X\x05\x00\x00\x00model}X\x01\x00\x00\x00a" + value + b"ss."


def wrapped():
    """data.pkl for the archive that fuzz_torch.c builds."""
    return {
        "good": tensor(b"K\x00(K\x02K\x03t(K\x03K\x01t"),
        "offset": tensor(b"K\x01(K\x02K\x03t(K\x03K\x01t"),
        "bomb": tensor(b"K\x00(\x8a\x06\x00\x00\x00\x00\x00\x01K\x03t(K\x00K\x01t"),
        "overflow": tensor(b"K\x00(\x8a\x08\x00\x00\x00\x00\x00\x00\x00\x40K\x08t(K\x00K\x01t"),
        "negative": tensor(b"J\xff\xff\xff\xff(K\x02K\x03t(K\x03K\x01t"),
        "more": tensor(b"K\x00(K\x02K\x03t(K\x03K\x01t", numel=b"K\x07"),
        "key": tensor(b"K\x00(K\x02K\x03t(K\x03K\x01t", key=b"/"),
        "empty": tensor(b"K\x09(K\x00t(K\x01t", key=b"2", numel=b"K\x00"),
        "bytes": tensor(b"K\x00(K\x03t(K\x01t", storage=b"ByteStorage", key=b"1", numel=b"K\x03"),
        "cycle": b"\x80\x02}X\x05\x00\x00\x00model}q\x00X\x01\x00\x00\x00ah\x00ss.",
        "args": b"\x80\x02}(X\x04\x00\x00\x00args"
                + pickle.dumps(args(), 2)[2:-1] + b"X\x05\x00\x00\x00model}u.",
    }


def write(folder, items):
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.iterdir():
        if not old.name.startswith("crash-"):
            old.unlink()
    for name, data in items.items():
        (folder / name).write_bytes(data)
    total = sum(f.stat().st_size for f in folder.iterdir())
    print(folder, len(list(folder.iterdir())), "files,", total, "bytes")
    if total > 200000:
        sys.exit("%s is too large for the repository" % folder)


def main():
    random.seed(1)
    root = pathlib.Path(sys.argv[1])
    archives = files()
    write(root / "zip", zips())
    write(root / "pickle", pickles(archives))
    write(root / "torch", {**archives, **wrapped()})


if __name__ == "__main__":
    main()
