"""Ways to damage a torch.save file, one lie at a time. Standard library only."""

import io
import pickle
import re
import struct
import zipfile


class Archive:
    """The members of a torch.save file, to be changed and written back (stored, CRCs right)."""

    def __init__(self, path):
        self.path = path
        with zipfile.ZipFile(path) as file:
            self.members = {info.filename: file.read(info) for info in file.infolist()}
        self.pickle_name = next(name for name in self.members if name.endswith("/data.pkl"))
        self.top = self.pickle_name[: -len("data.pkl")]

    @property
    def pickle(self):
        return self.members[self.pickle_name]

    @pickle.setter
    def pickle(self, content):
        self.members[self.pickle_name] = content

    def write(self, deflated=()):
        with zipfile.ZipFile(self.path, "w", zipfile.ZIP_STORED) as file:
            for name, content in self.members.items():
                kind = zipfile.ZIP_DEFLATED if name in deflated else zipfile.ZIP_STORED
                file.writestr(zipfile.ZipInfo(name), content, compress_type=kind)

    def tensors(self):
        """{name: (storage member, byte offset, number of bytes)} of the model, by the pickle."""

        class Stub:
            def __init__(self, *args):
                pass

            def __setstate__(self, state):
                self.__dict__.update(state if isinstance(state, dict) else {})

        class Reader(pickle.Unpickler):
            def find_class(self, module, name):
                if name.startswith("_rebuild_tensor"):
                    return lambda storage, offset, size, *rest: (storage, offset, size)
                if name == "OrderedDict":
                    return type("OrderedDict", (dict,), {})
                return name if module == "torch" else Stub

            def persistent_load(self, pid):
                return pid[1], pid[2]

        found = {}
        for name, value in Reader(io.BytesIO(self.pickle)).load()["model"].items():
            if isinstance(value, tuple) and name.endswith(("weight", "bias")):
                (kind, key), offset, size = value
                item = {"BFloat16Storage": 2, "HalfStorage": 2, "FloatStorage": 4}[kind]
                count = 1
                for n in size:
                    count *= n
                found[name] = (self.top + "data/" + key, offset * item, count * item)
        return found


def text_op(text):
    """The opcode that pushes a string."""
    raw = text.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def once(content, old, new):
    assert content.count(old) >= 1, old
    return content.replace(old, new, 1)


def set_int_arg(archive, name, value):
    """Give the whole number `name` of args another value."""
    key = text_op(name)
    at = archive.pickle.index(key) + len(key)
    memo = {b"q": 2, b"r": 5, b"\x94": 1}.get(archive.pickle[at : at + 1], 0)
    at += memo
    op = archive.pickle[at : at + 1]
    form = {b"K": "<B", b"M": "<H", b"J": "<i"}[op]
    end = at + 1 + struct.calcsize(form)
    archive.pickle = archive.pickle[:at] + b"J" + struct.pack("<i", value) + archive.pickle[end:]


def value_span(archive, name):
    """Start and end, in the pickle, of the value of the model's entry `name` (which is not the
    last one): from behind its key to the next key."""
    key = text_op(name)
    start = archive.pickle.index(key) + len(key)
    following = re.compile(rb"X(....)(?=(?:decoder|output_layer|embedding)\.)", re.DOTALL)
    return start, following.search(archive.pickle, start).start()


def add_tensor_after(archive, name, new_name):
    """Another entry with the same value behind the entry `name`."""
    start, end = value_span(archive, name)
    content = archive.pickle
    archive.pickle = content[:end] + text_op(new_name) + content[start:end] + content[end:]
    assert new_name in archive.tensors()


def rename_tensor(archive, name, new_name):
    archive.pickle = once(archive.pickle, text_op(name), text_op(new_name))
    assert new_name in archive.tensors() and name not in archive.tensors()


def flip_tensor_byte(archive, name, at=0):
    """One bit of one byte of a tensor, in its storage; the CRC will be right."""
    member, offset, count = archive.tensors()[name]
    content = bytearray(archive.members[member])
    assert at < count
    content[offset + at] ^= 1
    archive.members[member] = bytes(content)


def tensor_place(path, name, at):
    """The offset in the file at which byte `at` of a tensor stands."""
    member, offset, _ = Archive(path).tensors()[name]
    with zipfile.ZipFile(path) as file:
        header = file.getinfo(member).header_offset
    raw = path.read_bytes()
    name_length, extra = struct.unpack_from("<HH", raw, header + 26)
    return header + 30 + name_length + extra + offset + at


def central_entries(raw):
    """(offset of the central entry, member name) by the end-of-directory record; small files."""
    end = raw.rindex(b"PK\5\6")
    count, _, at = struct.unpack_from("<HII", raw, end + 10)
    if at == 0xFFFFFFFF:
        (at,) = struct.unpack_from("<Q", raw, raw.rindex(b"PK\6\6") + 48)
    for _ in range(count):
        assert raw[at : at + 4] == b"PK\1\2"
        name, extra, comment = struct.unpack_from("<HHH", raw, at + 28)
        yield at, raw[at + 46 : at + 46 + name].decode()
        at += 46 + name + extra + comment


def wrong_crc(path, select):
    """Falsify the CRC that the directory states for the members that select(name) chooses."""
    raw = bytearray(path.read_bytes())
    chosen = [at for at, name in central_entries(bytes(raw)) if select(name)]
    assert chosen
    for at in chosen:
        raw[at + 16] ^= 0xFF
    path.write_bytes(bytes(raw))
