"""What a release of transformers makes of a model's folder: loaded strictly, run, generated with.

Releases.ask(release, do=..., ...) answers from a release of tools/requirements-transformers.txt, each in
one interpreter of its own (this file, run as a program), or, for CURRENT, in this one."""

import contextlib
import json
import os
import pathlib
import subprocess
import sys

import each_expert

ROOT = pathlib.Path(__file__).resolve().parents[2]
CURRENT = "5"  # of tools/requirements-interop.txt


def pinned():
    """The releases of transformers 4 that tools/venv.sh installs."""
    lines = (ROOT / "tools" / "requirements-transformers.txt").read_text().splitlines()
    return [line.split()[0] for line in lines if line and not line.startswith("#")]


ALL = (*pinned(), CURRENT)


class Releases:
    """Use as a fixture of the module: `with Releases() as releases`."""

    def __init__(self):
        self.running = {}

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in self.running.values():
            process.stdin.close()
        for process in self.running.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=10)
            process.kill()

    def start(self, release):
        packages = ROOT / ".venv" / f"transformers-{release}"
        assert packages.is_dir(), f"no {packages}: run tools/venv.sh"
        return subprocess.Popen(
            [sys.executable, __file__],
            env={**os.environ, "PYTHONPATH": str(packages), "OMP_NUM_THREADS": "2"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, release, **job):
        """The answer of `do` (see below); what the release raises is an AssertionError here."""
        job = {key: str(value) if isinstance(value, pathlib.Path) else value for key, value in job.items()}
        if release == CURRENT:
            return answer(job)
        if release not in self.running:
            self.running[release] = self.start(release)
        process = self.running[release]
        print(json.dumps(job), file=process.stdin, flush=True)
        line = process.stdout.readline()
        assert line, f"transformers {release} ended: {process.poll()}"
        got = json.loads(line)
        assert "raised" not in got, f"transformers {release}: {got['raised']}"
        return got


# ---- in the release ------------------------------------------------------------------------------

loaded = {}  # the last folder's model: several questions are asked about one


def load(folder):
    import torch
    import transformers

    if folder not in loaded:
        spelling = "dtype" if int(transformers.__version__.split(".")[0]) > 4 else "torch_dtype"
        config = transformers.AutoConfig.from_pretrained(folder)
        two = getattr(config, "is_encoder_decoder", False)
        auto = transformers.AutoModelForSeq2SeqLM if two else transformers.AutoModelForCausalLM
        model, info = auto.from_pretrained(
            folder,
            attn_implementation="eager",
            output_loading_info=True,
            **{spelling: torch.float32},
        )
        wrong = {key: sorted(map(str, value)) for key, value in info.items() if value}
        if wrong:
            raise ValueError(f"not loaded strictly: {wrong}")
        loaded.clear()
        loaded[folder] = model.eval()
    return loaded[folder]


def about(job):
    """The class, and what the configuration came to say."""
    model = load(job["folder"])
    return {"class": type(model).__name__, "config": json.loads(model.config.to_json_string(use_diff=False))}


def logits(job):
    """With `each`, each expert must count."""
    import torch

    model, ids = load(job["folder"]), torch.tensor(job["ids"])
    if job.get("each"):
        each_expert.counts(model, ids)
    with torch.no_grad():
        return {"logits": model(ids).logits.tolist()}


def seq2seq(job):
    import torch

    with torch.no_grad():
        out = load(job["folder"])(input_ids=torch.tensor(job["ids"]), decoder_input_ids=torch.tensor(job["answer"]))
    return {"logits": out.logits.tolist()}


def generate(job):
    """`new` greedy tokens behind each row of `ids`, of which `mask` says what is no padding."""
    import torch

    with torch.no_grad():
        out = load(job["folder"]).generate(
            torch.tensor(job["ids"]),
            attention_mask=torch.tensor(job["mask"]),
            max_new_tokens=job["new"],
            min_new_tokens=job["new"],
            do_sample=False,
            pad_token_id=job.get("pad", 0),
        )
    return {"tokens": out[:, len(job["ids"][0]) :].tolist()}


def follow(job):
    """What the lines that an output's manifest tells make of it."""
    import torch

    names = {}
    exec("\n".join(job["lines"]), names)
    model = names["model"].eval()
    with torch.no_grad():
        logits = model(torch.tensor(job["ids"])).logits.float().tolist()
    return {"logits": logits, "dtype": str(model.dtype), "class": type(model).__name__}


def fields(job):
    """Every key that a config.json of these model_types may have, for all that the classes show."""
    import inspect
    import re

    from transformers import AutoConfig

    found = {}
    for family in job["families"]:
        try:
            config = AutoConfig.for_model(family)
        except ValueError:  # it came later
            continue
        files = [pathlib.Path(inspect.getfile(c)).read_text() for c in type(config).__mro__[:2]]
        makers = re.findall(r"    def (?:__init__|__post_init__)\(.*?(?=\n    def )", "".join(files), re.S)
        names = {*config.to_dict(), *re.findall(r'kwargs\.pop\(\s*"(\w+)"', "".join(makers))}
        names |= {n for n, p in inspect.signature(type(config).__init__).parameters.items() if p.kind != p.VAR_KEYWORD}
        found[family] = sorted(names - {"self", "args", "kwargs"})
    return {"fields": found}


def answer(job):
    known = (about, logits, seq2seq, generate, fields, follow)
    return {function.__name__: function for function in known}[job["do"]](job)


def main():
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the libraries print is no answer
    for line in sys.stdin:
        try:
            got = answer(json.loads(line))
        except Exception as error:  # whatever it is, the test that asked wants to know
            got = {"raised": f"{type(error).__name__}: {error}"}
        print(json.dumps(got), file=answers, flush=True)


if __name__ == "__main__":
    main()
