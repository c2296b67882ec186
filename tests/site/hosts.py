"""Several hosts on one machine: each is a set of Linux namespaces with a name, an address, a /dev/shm and processes of
its own; a bridge in the host "head" joins them. They share the machine's files, as nodes share a parallel file system.

    with Hosts(folder, 2) as hosts:
        hosts.mpiexec(["-n", 4, "--hosts", "h1,h2", program])      # launched on head, ranks on h1 and h2
        hosts.cut("h2")                                            # pull the cable
        hosts.kill("h2")                                           # a power failure

Needs root, iproute2 and util-linux. Nothing of the machine's own network is touched."""

import os
import pathlib
import shlex
import signal
import subprocess
import time

NET = "10.213.7"  # these addresses exist inside the namespaces alone
SETUP = """
set -e
hostname "$1"
mount --bind "$2/hosts" /etc/hosts
if [ "$1" != head ]; then
    mount -t proc proc /proc
    mount -t tmpfs -o mode=1777 shm /dev/shm
    cat /proc/sys/kernel/random/uuid >"$2/$1.boot"
    mount --bind "$2/$1.boot" /proc/sys/kernel/random/boot_id
fi
ip link set lo up
: >"$2/$1.ready"
sleep infinity &
wait
"""


def sh(*argv):
    subprocess.run([str(word) for word in argv], check=True, stdin=subprocess.DEVNULL)


class Hosts:
    def __init__(self, folder, count):
        self.folder = pathlib.Path(folder)
        self.names = ["h%d" % (i + 1) for i in range(count)]
        self.keepers = {}  # host: the process that unshare started, and the pid that is in the namespaces
        self.pids = {}

    def __enter__(self):
        self.folder.mkdir(parents=True)
        lines = ["127.0.0.1 localhost", NET + ".254 head"]
        lines += ["%s.%d %s" % (NET, i + 1, name) for i, name in enumerate(self.names)]
        (self.folder / "hosts").write_text("\n".join(lines) + "\n")
        launcher = self.folder / "launcher"  # stands for ssh: launcher [-x] HOST COMMAND...
        launcher.write_text(
            '#!/bin/sh\n[ "$1" = -x ] && shift\nhost=$1\nshift\n'
            'exec nsenter -t "$(cat "%s/$host.pid")" -m -u -n -r -w -i -p -- env -i PATH="$PATH" HOME=/ '
            'LD_LIBRARY_PATH="$LD_LIBRARY_PATH" OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 sh -c "$*"\n'
            % self.folder
        )
        launcher.chmod(0o755)
        try:
            self._add("head", [])
            self._on("head", "ip link add br0 type bridge")
            self._on("head", "ip addr add %s.254/24 dev br0" % NET)
            self._on("head", "ip link set br0 up")
            for i, name in enumerate(self.names):
                self._add(name, ["--ipc", "--pid", "--fork"])
                sh("ip", "link", "add", "to-" + name, "netns", self.pids["head"], "type", "veth",
                   "peer", "name", "eth0", "netns", self.pids[name])
                self._on("head", "ip link set to-%s master br0" % name)
                self._on("head", "ip link set to-%s up" % name)
                self._on(name, "ip addr add %s.%d/24 dev eth0" % (NET, i + 1))
                self._on(name, "ip link set eth0 up")
        except BaseException:
            self.__exit__()
            raise
        return self

    def _add(self, name, flags):
        argv = ["unshare", "--mount", "--propagation", "private", "--net", "--uts"] + flags
        keeper = subprocess.Popen(
            argv + ["bash", "-c", SETUP, "-", name, str(self.folder)],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )
        self.keepers[name] = keeper
        until = time.monotonic() + 10
        while not (self.folder / (name + ".ready")).exists():
            assert keeper.poll() is None and time.monotonic() < until, "host %s does not start" % name
            time.sleep(0.02)
        children = pathlib.Path("/proc/%d/task/%d/children" % (keeper.pid, keeper.pid)).read_text().split()
        self.pids[name] = int(children[0]) if "--fork" in flags else keeper.pid
        (self.folder / (name + ".pid")).write_text(str(self.pids[name]))

    def enter(self, name):
        """The words in front of a command that make it run on host `name`."""
        shared = [] if name == "head" else ["-i", "-p"]
        return ["nsenter", "-t", str(self.pids[name]), "-m", "-u", "-n", "-r", "-w"] + shared + ["--"]

    def _on(self, name, command):
        sh(*self.enter(name), *shlex.split(command))

    def mpich(self, argv):
        """MPICH's mpiexec on head, with the launcher that reaches the hosts."""
        return self.enter("head") + ["mpiexec.mpich", "-launcher", "ssh", "-launcher-exec",
                                     str(self.folder / "launcher")] + [str(word) for word in argv]

    def openmpi(self, argv):
        """Open MPI's; give it --host h1:2,h2:2."""
        mca = {
            "plm_rsh_agent": self.folder / "launcher", "pml": "ob1", "btl": "tcp,self,vader",
            "btl_vader_single_copy_mechanism": "none", "btl_tcp_if_include": NET + ".0/24",
            "oob_tcp_if_include": NET + ".0/24",
        }
        words = [word for key, value in mca.items() for word in ("--mca", key, str(value))]
        return self.enter("head") + [
            "env", "OMPI_ALLOW_RUN_AS_ROOT=1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1", "mpirun.openmpi",
        ] + words + [str(word) for word in argv]

    def cut(self, name, state="down"):
        self._on("head", "ip link set to-%s %s" % (name, state))

    def kill(self, name):
        os.kill(self.pids[name], signal.SIGKILL)  # process 1 of its namespace: all others end with it

    def __exit__(self, *_):
        # head has no process namespace: who is in its network is of our making
        head = self.pids.get("head")
        mates = mates_in_network(head) if head else []
        for pid in [pid for name, pid in self.pids.items() if name != "head"] + mates:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        for keeper in self.keepers.values():
            keeper.kill()
            keeper.wait()


def mates_in_network(pid):
    """All processes whose network namespace is that of `pid`."""
    network, found = os.readlink("/proc/%d/ns/net" % pid), []
    for entry in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            if os.readlink(entry / "ns" / "net") == network:
                found.append(int(entry.name))
        except OSError:
            pass
    return found
