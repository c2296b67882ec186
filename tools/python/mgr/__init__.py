"""Checkpoints of Megatron, torch_dist, Hugging Face, HDF5 and DeepSpeed, tensor by tensor, without torch.

    import mgr

    with mgr.open("/data/llama/iter_0001000") as checkpoint:
        print(checkpoint)
        up = checkpoint["model.layers.0.mlp.up_proj.weight"]
        print(up.shape, up.dtype, up[:16].mean())
        for name, tensor in checkpoint.items():
            ...

    # the same model in another format, with a change
    with mgr.open("llama") as checkpoint:
        mgr.write("llama-tp2", checkpoint, lambda name: checkpoint[name][:] * 2 if "norm" in name
                  else checkpoint[name], mode="reshard",
                  target={"format": "megatron-torch", "tensor_parallel": 2})

    # the experts of one layer, with the values that mgr-upcycle gives them
    layer = mgr.upcycle(gate, up, down, layer=0, experts=8, ratio=0.5, seed=1234)
    layer.experts[3].up, layer.router

Tensors are the model's weights, unfused and unsharded, by the names that Hugging Face gives them,
whatever the files hold; `checkpoint.stored` is what the files hold, by their names. Rows are read
when they are asked for. bfloat16 comes as ml_dtypes' type where that is installed, else as
float32. Errors are `mgr.Error`, with the file, the tensor and the byte.

The library is libmgr.so.1: beside this module (as in the wheel), or $MGR_LIBRARY, or where the
system finds it. mgr/checkpoint.h says the rest.
"""

import collections
import collections.abc
import ctypes
import json
import math
import os
import pathlib

import numpy

try:
    from ml_dtypes import bfloat16 as _bfloat16
except ImportError:
    _bfloat16 = None

__all__ = ["Checkpoint", "Error", "Expert", "Layer", "Tensor", "compare", "formats", "open", "upcycle", "write"]

_ABI, _VERSION = 1, 3
_LOGICAL, _STORED = 0, 1
_NONE = 0xFFFFFFFF


class _Err(ctypes.Structure):
    _fields_ = [
        ("code", ctypes.c_int32),
        ("sys", ctypes.c_int32),
        ("rank", ctypes.c_int32),
        ("pad", ctypes.c_int32),
        ("msg", ctypes.c_char * 640),
        ("hint", ctypes.c_char * 200),
    ]


class _Info(ctypes.Structure):
    _fields_ = [
        ("name", ctypes.c_char_p),
        ("file", ctypes.c_char_p),
        ("dtype", ctypes.c_int),
        ("ndim", ctypes.c_uint32),
        ("shape", ctypes.c_uint64 * 8),
    ]


class Error(Exception):
    """What the library says; `code` is its name, such as "MGR_ERR_FORMAT"."""

    def __init__(self, err):
        hint = err.hint.decode(errors="replace")
        text = err.msg.decode(errors="replace")
        super().__init__(text + ("; " + hint if hint else ""))
        self.code = _library().mgr_code_name(err.code).decode()


def _settings(sections):
    """As the text of a configuration file: JSON is YAML."""
    return json.dumps(sections).encode()


def _check(code, err):
    if code:
        raise Error(err)


_loaded = None


def _library():
    global _loaded
    if _loaded is None:
        beside = pathlib.Path(__file__).with_name("libmgr.so.1")
        name = os.environ.get("MGR_LIBRARY") or (str(beside) if beside.exists() else "libmgr.so.1")
        _loaded = _declare(ctypes.CDLL(name))
    return _loaded


_Rows = ctypes.CFUNCTYPE(
    ctypes.c_int,
    ctypes.c_void_p,
    ctypes.c_uint32,
    ctypes.POINTER(_Info),
    ctypes.c_uint64,
    ctypes.c_uint64,
    ctypes.c_void_p,
    ctypes.POINTER(_Err),
)


def _declare(lib):
    text, u32, u64, handle = ctypes.c_char_p, ctypes.c_uint32, ctypes.c_uint64, ctypes.c_void_p
    err = ctypes.POINTER(_Err)
    for name, result, arguments in (
        ("mgr_checkpoint_abi", ctypes.c_int, []),
        ("mgr_checkpoint_open", ctypes.c_int, [text, ctypes.POINTER(handle), err]),
        ("mgr_checkpoint_close", None, [handle]),
        ("mgr_checkpoint_format", text, [handle]),
        ("mgr_checkpoint_about", text, [handle]),
        ("mgr_checkpoint_count", u32, [handle, ctypes.c_int]),
        ("mgr_checkpoint_at", ctypes.c_bool, [handle, ctypes.c_int, u32, ctypes.POINTER(_Info)]),
        (
            "mgr_checkpoint_read",
            ctypes.c_int,
            [handle, ctypes.c_int, u32, u64, u64, ctypes.c_int, handle, ctypes.c_size_t, err],
        ),
        ("mgr_checkpoint_version", ctypes.c_int, []),
        ("mgr_checkpoint_format_at", text, [u32]),
        ("mgr_checkpoint_open_with", ctypes.c_int, [text, text, ctypes.POINTER(handle), err]),
        ("mgr_checkpoint_writer_open", ctypes.c_int, [handle, text, text, ctypes.POINTER(handle), err]),
        ("mgr_checkpoint_writer_close", None, [handle]),
        ("mgr_checkpoint_writer_run", ctypes.c_int, [handle, _Rows, handle, err]),
        ("mgr_upcycler_open", ctypes.c_int, [text, u64, u64, ctypes.c_bool, ctypes.POINTER(handle), err]),
        ("mgr_upcycler_close", None, [handle]),
        ("mgr_upcycler_experts", u64, [handle]),
        ("mgr_upcycler_width", u64, [handle]),
        ("mgr_upcycler_layer", ctypes.c_int, [handle, u32, ctypes.c_int, handle, handle, handle, err]),
        ("mgr_upcycler_expert", ctypes.c_int, [handle, u32, ctypes.c_int, handle, handle, handle, err]),
        ("mgr_upcycler_router", ctypes.c_int, [handle, u32, ctypes.c_int, handle, err]),
        ("mgr_code_name", text, [ctypes.c_int]),
        ("mgr_dtype_name", text, [ctypes.c_int]),
        ("mgr_dtype_from_name", ctypes.c_int, [text]),
    ):
        function = getattr(lib, name, None)
        if function is None:
            raise ImportError("libmgr has no %s: this module is for version %d of it" % (name, _VERSION))
        function.restype, function.argtypes = result, arguments
    found = lib.mgr_checkpoint_abi()
    if found != _ABI:
        raise ImportError("libmgr has interface %d, this module is for %d" % (found, _ABI))
    return lib


def _numpy_type(name):
    """Of an element type of the library; and the one that it has to be cast to on the way."""
    if name == "bfloat16":
        return (numpy.dtype(_bfloat16), name) if _bfloat16 else (numpy.dtype("float32"), "float32")
    try:
        return numpy.dtype(name), name
    except TypeError:
        return None, name


class Tensor:
    """A tensor whose values are read when they are asked for: tensor[:], tensor[3], tensor[4:8, 0]."""

    def __init__(self, checkpoint, which, index, info):
        self._checkpoint, self._which, self._index = checkpoint, which, index
        self.name = info.name.decode(errors="replace")
        self.file = info.file.decode(errors="surrogateescape") if info.file else None
        self.shape = tuple(info.shape[: info.ndim])
        name = _library().mgr_dtype_name(info.dtype)
        self.stored_dtype = name.decode() if name else "unknown"
        self.dtype, self._read_as = _numpy_type(self.stored_dtype)

    @property
    def size(self):
        return math.prod(self.shape)

    def __len__(self):
        return self.shape[0]

    def __repr__(self):
        return "<mgr.Tensor %r %s %s>" % (self.name, list(self.shape), self.stored_dtype)

    def _rows(self, first, n):
        """Entries [first, first+n) of the first axis."""
        if self.dtype is None:
            raise TypeError("tensor %r has no type that numpy knows" % self.name)
        out = numpy.empty((n, *self.shape[1:]), self.dtype)
        inner = math.prod(self.shape[1:-1])
        lib, err = _library(), _Err(rank=-1)
        code = lib.mgr_checkpoint_read(
            self._checkpoint._open_handle(),
            self._which,
            self._index,
            first * inner,
            n * inner,
            lib.mgr_dtype_from_name(self._read_as.encode()),
            out.ctypes.data,
            out.nbytes,
            ctypes.byref(err),
        )
        if code:
            raise Error(err)
        return out

    def __getitem__(self, key):
        if not self.shape:
            return self._scalar()[key]
        key = key if isinstance(key, tuple) else (key,)
        first, rest = key[0], key[1:]
        n = self.shape[0]
        if isinstance(first, slice):
            start, stop, step = first.indices(n)
            low, high = (start, stop) if step > 0 else (stop + 1, start + 1)
            rows = self._rows(low, max(high - low, 0))
            return (rows if step == 1 else rows[:: step] if step > 0 else rows[::-1][::-step])[(slice(None), *rest)]
        if isinstance(first, (int, numpy.integer)):
            if not -n <= first < n:
                raise IndexError("tensor %r has %d rows, not row %d" % (self.name, n, first))
            row = int(first) % n
            return self._rows(row, 1)[0][rest] if rest else self._rows(row, 1)[0]
        return self._rows(0, n)[key]

    def _scalar(self):
        self.shape = (1,)
        try:
            return self._rows(0, 1).reshape(())
        finally:
            self.shape = ()

    def __iter__(self):
        return (self[i] for i in range(len(self)))

    def __array__(self, dtype=None, copy=None):
        return numpy.asarray(self[...] if not self.shape else self[:], dtype=dtype)


class _Tensors(collections.abc.Mapping):
    """Tensors by name, in the checkpoint's order. Of a name that several files have, the first."""

    def __init__(self, checkpoint, which):
        self._checkpoint, self._which, self._index = checkpoint, which, {}
        lib, info = _library(), _Info()
        for i in range(lib.mgr_checkpoint_count(checkpoint._open_handle(), which)):
            lib.mgr_checkpoint_at(checkpoint._open_handle(), which, i, ctypes.byref(info))
            self._index.setdefault(info.name.decode(errors="replace"), i)

    def __getitem__(self, name):
        info, index = _Info(), self._index[name]
        _library().mgr_checkpoint_at(self._checkpoint._open_handle(), self._which, index, ctypes.byref(info))
        return Tensor(self._checkpoint, self._which, index, info)

    def __iter__(self):
        return iter(self._index)

    def __len__(self):
        return len(self._index)


class Checkpoint(collections.abc.Mapping):
    """The model's weights by name; `stored` are the tensors that the files hold."""

    def __init__(self, path, settings):
        lib, err, handle = _library(), _Err(rank=-1), ctypes.c_void_p()
        self._handle = None
        self.path = os.fspath(path)
        said = _settings(settings) if settings else None
        _check(lib.mgr_checkpoint_open_with(os.fsencode(path), said, ctypes.byref(handle), ctypes.byref(err)), err)
        self._handle = handle
        self.format = lib.mgr_checkpoint_format(handle).decode()
        self.about = lib.mgr_checkpoint_about(handle).decode(errors="replace")
        self._logical = _Tensors(self, _LOGICAL)
        self.stored = _Tensors(self, _STORED)

    def _open_handle(self):
        if self._handle is None:
            raise ValueError("the checkpoint '%s' is closed" % self.path)
        return self._handle

    def close(self):
        if self._handle is not None:
            _library().mgr_checkpoint_close(self._handle)
        self._handle = None

    def __enter__(self):
        return self

    def __exit__(self, *ignored):
        self.close()

    def __del__(self):
        if getattr(self, "_handle", None) is not None:
            self.close()

    def __getitem__(self, name):
        return self._logical[name]

    def __iter__(self):
        return iter(self._logical)

    def __len__(self):
        return len(self._logical)

    def __repr__(self):
        return "<mgr.Checkpoint %r: %s, %s>" % (self.path, self.format, self.about)


def formats():
    """The names of the formats that can be opened, as source={"format": NAME} has them."""
    names = []
    while name := _library().mgr_checkpoint_format_at(len(names)):
        names.append(name.decode())
    return names


def open(path, **settings):
    """Open a checkpoint: a folder, or one .pt, .bin or .safetensors file. Only headers are read.

    `settings` are sections of a configuration file, for what a checkpoint does not say of itself:
    source={"config": "FOLDER"} of DeepSpeed's, source={"iteration": 1000}, model={"vocab_size": 50257}.
    """
    return Checkpoint(path, settings)


def compare(a, b):
    """What is not the same in two mappings of tensors, such as checkpoints: {name: words}; {} if nothing.

    Values are compared as numbers whatever their types, NaN as equal to NaN, a few MiB at a time.
    """
    found = {}
    for name in dict.fromkeys([*a, *b]):
        if name not in a or name not in b:
            found[name] = "only in the %s" % ("first" if name in a else "second")
        elif tuple(a[name].shape) != tuple(b[name].shape):
            found[name] = "%s and %s" % (list(a[name].shape), list(b[name].shape))
        elif differ := _count_differing(a[name], b[name]):
            found[name] = "%d of %d elements differ" % (differ, math.prod(a[name].shape))
    return found


def _count_differing(a, b):
    if not a.shape:
        pieces = [...]
    else:
        step = max(1, (4 << 20) // max(1, math.prod(a.shape[1:])))
        pieces = [slice(row, row + step) for row in range(0, a.shape[0], step)]
    count = 0
    for piece in pieces:
        x, y = numpy.asarray(a[piece]), numpy.asarray(b[piece])
        count += int(numpy.count_nonzero((x != y) & ~((x != x) & (y != y))))
    return count


def write(path, like, values, **settings):
    """Write the model of `like`, an open checkpoint, to the folder `path`.

    `values` gives the tensors by name: a mapping, or a function of the name. A value is whatever has
    rows, as a numpy array or a tensor of another checkpoint has; it is asked for once or a few times,
    and read a few MiB at a time. `settings` are sections of a configuration file: mode="reshard"
    writes the model as it is, else it becomes a mixture of `upcycle`; target={"format": ...} is any
    but hdf5. The folder appears when it is complete and read back; after an error it is not there.
    """
    lib, err, handle = _library(), _Err(rank=-1), ctypes.c_void_p()
    _check(
        lib.mgr_checkpoint_writer_open(
            like._open_handle(), os.fsencode(path), _settings(settings), ctypes.byref(handle), ctypes.byref(err)
        ),
        err,
    )
    given = _Given(values)
    try:
        code = lib.mgr_checkpoint_writer_run(handle, _Rows(given.rows), None, ctypes.byref(err))
        if given.error is not None:
            raise given.error
        _check(code, err)
    finally:
        lib.mgr_checkpoint_writer_close(handle)


class _Given:
    """What is written, by name; the last tensor is kept, for its next rows."""

    _USAGE = 10  # MGR_ERR_USAGE

    def __init__(self, values):
        self._find = values.__getitem__ if hasattr(values, "__getitem__") else values
        self._name, self._value, self.error = None, None, None

    def rows(self, context, index, info, row, n, out, err):
        try:
            self._fill(info.contents, row, n, out)
            return 0
        except BaseException as error:  # no exception may pass through C
            self.error = error
            return self._USAGE

    def _fill(self, info, row, n, out):
        lib, name = _library(), info.name.decode(errors="surrogateescape")
        shape = tuple(info.shape[: info.ndim])
        if name != self._name:
            value = self._find(name)
            found = tuple(value.shape)
            if found != shape:
                raise ValueError("tensor %r is %s, not %s" % (name, list(shape), list(found)))
            self._name, self._value = name, value
        rows = numpy.asarray(self._value[row : row + n])
        kind = lib.mgr_dtype_name(info.dtype).decode()
        bytes_ = _as_type(rows, kind).tobytes()
        ctypes.memmove(out, bytes_, len(bytes_))


def _as_type(rows, kind):
    """In C order, of an element type by its name; to bfloat16 without ml_dtypes by hand, to nearest even."""
    if kind != "bfloat16" or _bfloat16:
        return numpy.ascontiguousarray(rows, _bfloat16 if kind == "bfloat16" else kind)
    bits = numpy.ascontiguousarray(rows, numpy.float32).view(numpy.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(numpy.uint16)


Expert = collections.namedtuple("Expert", "gate up down")
Layer = collections.namedtuple("Layer", "experts router")


def upcycle(gate, up, down, layer=0, layers=None, **upcycle):
    """The experts of a layer and its router, as mgr-upcycle makes them.

    gate and up [ffn, hidden] and down [hidden, ffn] are float32, float16 or ml_dtypes' bfloat16, and so
    is what comes back; gate is None in an FFN without one. `layer` is the layer's number in the model,
    and `layers` how many that has, for keys that need it (layer_ratio).
    `upcycle` are the keys of that section: experts, method, ratio, seed, expert_width, scale ...
    """
    arrays = [None if a is None else numpy.ascontiguousarray(a) for a in (gate, up, down)]
    _, up, down = arrays
    kinds = {array.dtype for array in arrays if array is not None}
    if up.ndim != 2 or down.shape != up.shape[::-1] or len(kinds) != 1:
        raise ValueError("up %s and down %s are not an FFN of one type" % (list(up.shape), list(down.shape)))
    if gate is not None and arrays[0].shape != up.shape:
        raise ValueError("gate is %s, but up is %s" % (list(arrays[0].shape), list(up.shape)))
    ffn, hidden = up.shape
    lib, err, handle = _library(), _Err(rank=-1), ctypes.c_void_p()
    settings = _settings({"model": {"num_layers": layers or 0}, "upcycle": upcycle})
    _check(
        lib.mgr_upcycler_open(settings, hidden, ffn, gate is not None, ctypes.byref(handle), ctypes.byref(err)), err
    )
    try:
        return _layer(lib, handle, arrays, layer, err)
    finally:
        lib.mgr_upcycler_close(handle)


def _address(array):
    return None if array is None else array.ctypes.data


def _layer(lib, handle, arrays, layer, err):
    kind = arrays[1].dtype
    code = lib.mgr_dtype_from_name(kind.name.encode())
    hidden, width = arrays[2].shape[0], lib.mgr_upcycler_width(handle)
    count = lib.mgr_upcycler_experts(handle)
    _check(lib.mgr_upcycler_layer(handle, layer, code, *map(_address, arrays), ctypes.byref(err)), err)
    experts = []
    for e in range(count):
        shapes = ((width, hidden), (width, hidden), (hidden, width))
        made = [None if a is None else numpy.empty(s, kind) for a, s in zip(arrays, shapes)]
        _check(lib.mgr_upcycler_expert(handle, e, code, *map(_address, made), ctypes.byref(err)), err)
        experts.append(Expert(*made))
    router = numpy.empty((count, hidden), kind)
    _check(lib.mgr_upcycler_router(handle, layer, code, _address(router), ctypes.byref(err)), err)
    return Layer(experts, router)
