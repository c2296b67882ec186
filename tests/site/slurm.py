"""A Slurm of one node in a folder of its own: own configuration, keys, ports, spool and logs, no systemd.

    with Slurm(folder) as slurm:
        state, code, log = slurm.run(script)      # ("COMPLETED", "0:0", text)

Needs root and (Debian) slurmctld slurmd slurm-client slurm-wlm-basic-plugins munge."""

import os
import pathlib
import re
import shutil
import socket
import subprocess
import time

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch")
PORT = 26817
CONFIGURATION = """\
ClusterName=test
SlurmctldHost={node}(127.0.0.1)
SlurmctldPort={port}
SlurmdPort={port1}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={dir}/munge.socket
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
StateSaveLocation={dir}/state
SlurmdSpoolDir={dir}/spool
SlurmctldPidFile={dir}/slurmctld.pid
SlurmdPidFile={dir}/slurmd.pid
SlurmctldLogFile={dir}/slurmctld.log
SlurmdLogFile={dir}/slurmd.log
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=1,sched_min_interval=0,requeue_setup_env_fail
ReturnToService=2
KillWait=5
MinJobAge=3600
JobRequeue=1
NodeName={node} NodeAddr=127.0.0.1 CPUs=2 RealMemory=8000 State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
SlurmdParameters=config_overrides
"""


def missing():
    if os.geteuid() != 0:
        return "needs root for a Slurm of its own"
    lacking = [name for name in PROGRAMS if not shutil.which(name)]
    return "no program %s" % lacking[0] if lacking else ""


class Slurm:
    def __init__(self, folder):
        self.folder = pathlib.Path(folder)
        self.env = dict(os.environ, SLURM_CONF=str(self.folder / "slurm.conf"))

    def ask(self, *argv):
        done = subprocess.run(argv, env=self.env, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        return done.stdout.strip()

    def _wait(self, what, condition, seconds=20):
        until = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < until, "%s; see %s" % (what, self.folder)
            time.sleep(0.1)

    def _daemon(self, *argv):
        subprocess.run([str(word) for word in argv], env=self.env, check=True, stdin=subprocess.DEVNULL,
                       stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def __enter__(self):
        for name in ("state", "spool"):
            (self.folder / name).mkdir(parents=True)
        self.folder.chmod(0o755)
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o600)
        (self.folder / "slurm.conf").write_text(CONFIGURATION.format(
            node=socket.gethostname().split(".")[0], dir=self.folder, port=PORT, port1=PORT + 1))
        self._daemon("munged", "--force", "--key-file=%s" % key, "--socket=%s/munge.socket" % self.folder,
                     "--num-threads=2", "--pid-file=%s/munged.pid" % self.folder,
                     "--log-file=%s/munged.log" % self.folder, "--seed-file=%s/munge.seed" % self.folder)
        self._daemon("slurmctld")
        self._daemon("slurmd")
        self._wait("slurmd is not idle", lambda: re.search("idle|mixed|alloc", self.ask("sinfo", "-h", "-o", "%T")))
        return self

    def submit(self, script, *options):
        return self.ask("sbatch", "--parsable", *options, str(script))

    def field(self, job, name):
        found = re.search(r"\b%s=(\S+)" % name, self.ask("scontrol", "show", "job", job))
        return found.group(1) if found else ""

    def wait_for_end(self, job, seconds=240):
        self._wait("job %s does not end" % job, lambda: self.ask("squeue", "-h", "-j", job) == "", seconds)

    def run(self, script, *options, seconds=240, until=None):
        """Submit, and wait until the job is out of the queue for good; `until` is a text in its log, and what is then called."""
        log = self.folder / (pathlib.Path(script).stem + ".log")
        job = self.submit(script, "--output=%s" % log, *options)
        if until:
            self._wait("no '%s'" % until[0], lambda: log.exists() and until[0] in log.read_text(), seconds)
            until[1]()
        self.wait_for_end(job, seconds)
        return self.field(job, "JobState"), self.field(job, "ExitCode"), log.read_text()

    def __exit__(self, *_):
        self.ask("scancel", "--user=root")
        for name in ("slurmd", "slurmctld", "munged"):
            try:
                pid = int((self.folder / (name + ".pid")).read_text())
                os.kill(pid, 15)
                until = time.monotonic() + 10
                while pathlib.Path("/proc/%d" % pid).exists() and time.monotonic() < until:
                    time.sleep(0.05)
                os.kill(pid, 9)
            except (OSError, ValueError):
                pass
