"""Runs programs without what CPython lacks on Windows: python -m tests.without_posix COMMAND..., each in its quotes.

A command is `experiments.image --workdir=...`; its exit code goes to stdout. What Windows has in place of these (locks,
its own account of memory) is not there either.
"""

import importlib
import os
import pathlib
import select
import shlex
import signal
import sys

MODULES = ("fcntl", "resource", "termios")
NAMES = {
    os: "fork getuid geteuid getpgid killpg memfd_create mkfifo posix_fallocate pread pwrite sched_getaffinity "
    "set_blocking sysconf O_DIRECTORY O_NOFOLLOW O_NONBLOCK O_CLOEXEC",
    select: "poll epoll",
    signal: "SIGALRM SIGHUP SIGPIPE SIGKILL SIGUSR1 SIGUSR2 alarm setitimer pthread_kill pthread_sigmask sigwait",
}


class Absent:
    """An importer of modules that are not there."""

    def find_spec(self, name, path=None, target=None):
        if name in MODULES:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def simulate():
    sys.meta_path.insert(0, Absent())
    for name in MODULES:
        sys.modules.pop(name, None)
    for module, names in NAMES.items():
        for name in names.split():
            if hasattr(module, name):
                delattr(module, name)
    read_text = pathlib.Path.read_text

    def read(self, *args, **options):
        if str(self).startswith("/proc/"):
            raise FileNotFoundError(str(self))
        return read_text(self, *args, **options)

    pathlib.Path.read_text = read


def main(commands):
    from jaxgan import flags

    for command in commands:
        module, *argv = shlex.split(command)
        script, code = importlib.import_module(module), 0
        try:
            flags.main(script.Config, getattr(script, "PRESETS", {}), script.main, argv)
        except SystemExit as ending:
            code = ending.code
        print(f"exit code {code}", flush=True)


if __name__ == "__main__":
    simulate()
    main(sys.argv[1:])
