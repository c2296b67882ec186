"""A megatron_trainer.py in a session of its own, and what the programs tell to do with an output."""

import contextlib
import json
import os
import select
import shlex
import signal
import subprocess
import sys

import megatron_trainer
import runner

RELEASE = "0.19.2"
VOCAB = 100
DENSE = f"""
    --num-layers 4 --hidden-size 64 --ffn-hidden-size 96 --num-attention-heads 8 --group-query-attention
    --num-query-groups 4 --seq-length 64 --max-position-embeddings 64 --vocab-size {VOCAB}
    --make-vocab-size-divisible-by 8 --normalization RMSNorm --norm-epsilon 1e-6 --rotary-base 50000
    --position-embedding-type rope --swiglu --disable-bias-linear --untie-embeddings-and-output-weights
""".split()


class Trainer:
    def __init__(self, log):
        packages = runner.ROOT / ".venv" / f"megatron-core-{RELEASE}"
        assert packages.is_dir(), f"no {packages}: run tools/venv.sh"
        self.log = log
        with open(log, "w") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, megatron_trainer.__file__],
                env={**os.environ, "PYTHONPATH": str(packages), "OMP_NUM_THREADS": "1"},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                start_new_session=True,
            )

    def ask(self, world, *steps, seconds=400):
        job = json.dumps({"world": world, "steps": [{"vocab": VOCAB, **step} for step in steps]}, default=str)
        print(job, file=self.process.stdin, flush=True)
        ready, _, _ = select.select([self.process.stdout], [], [], seconds)
        assert ready, f"no answer within {seconds} s\n{self.log.read_text()[-3000:]}"
        answer = self.process.stdout.readline()
        assert answer, f"it ended\n{self.log.read_text()[-3000:]}"
        return json.loads(answer)

    def run(self, world, *steps, **how):
        answer = self.ask(world, *steps, **how)
        assert "results" in answer, answer["failed"]
        return answer["results"]

    def stop(self):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()


@contextlib.contextmanager
def started(folder):
    trainer = Trainer(folder / "trainer.log")
    try:
        yield trainer
    finally:
        trainer.stop()


def way_on(out):
    """The options that an output's manifest tells: {False: all of them, True: beside the args}."""
    remarks = json.loads((out / "mgr-manifest.json").read_text())["remarks"]
    commands, text = [], ""
    for line in (remark["now"] for remark in remarks["next"]):
        if line.startswith("#"):
            commands.append("")
        else:
            commands[-1] += line.removesuffix("\\") + " "
    assert len(commands) == 2, commands
    assert commands[1].split()[0] == "--use-checkpoint-args", text
    return {False: shlex.split(commands[0]), True: shlex.split(commands[1])}
