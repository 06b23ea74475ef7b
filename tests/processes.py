"""The `rvedit` command in processes of its own, forked from a server that has imported it once.

A fresh interpreter spends seconds on importing torch, and the tests start some hundred commands. A forked
one is as real a process: it has its own arguments, folder, environment and streams, is signalled and killed,
and ends with an exit code. What hangs on an interpreter's own start or end is tested with `subprocess`.
"""

import multiprocessing
import os
import signal
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from studio_server import free_port

_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(
    [
        "rvedit_cli.main",
        "rvedit.pipelines.loading",
        "rvedit.editing.edit_file",
        "rvedit.editing.long_video",
        "rvedit.datasets.prepare",
        "rvedit.training.run",
        "rvedit.training.editor",
    ]
)


class Done(NamedTuple):
    """How a command ended; a signal's number is negative."""

    returncode: int
    stdout: str
    stderr: str


class Command:
    """A running `rvedit ARGUMENTS`, as a Popen; `own_group` puts it and its workers in a process group."""

    def __init__(self, *arguments, cwd, environment=None, own_group=False):
        self._streams = tempfile.TemporaryDirectory()
        for name in ("stdout", "stderr"):  # one that is killed at once has written nothing
            (Path(self._streams.name) / name).touch()
        environment = dict(os.environ) if environment is None else environment
        words = [str(argument) for argument in arguments]
        settings = (words, str(cwd), environment, self._streams.name, own_group)
        self._process = _SERVER.Process(target=_main, args=settings)
        self._process.start()
        self.pid = self._process.pid

    def poll(self):
        """The exit code, or None while it runs."""
        return self._process.exitcode

    def send_signal(self, number):
        """Nothing happens where it has ended already."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def finish(self, timeout=300):
        """Wait for its end."""
        self._process.join(timeout)
        assert self.poll() is not None, f"still running after {timeout} s"
        streams = [(Path(self._streams.name) / name).read_text() for name in ("stdout", "stderr")]
        return Done(self.poll(), *streams)


def train_words(path, runs, *assignments):
    """The words of `rvedit train` after the program's name, with `--set` before each assignment."""
    sets = [word for assignment in assignments for word in ("--set", assignment)]
    return ["train", str(path), "--runs", str(runs), "--device", "cpu", *sets]


def start_two(path, runs, *assignments):
    """Start a training as the two processes that torchrun would start, without its waiting for imports."""
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "localhost"}
    shared |= {"MASTER_PORT": str(free_port()), "OMP_NUM_THREADS": "1"}
    return [
        Command(
            *train_words(path, runs, *assignments),
            cwd=runs,
            environment={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(2)
    ]


def run_two(path, runs, *assignments):
    """Run a training in two processes to its end."""
    processes = start_two(path, runs, *assignments)
    try:
        for process in processes:
            done = process.finish()
            assert done.returncode == 0, done.stderr
    finally:  # the others would wait for one that failed
        for process in processes:
            process.send_signal(signal.SIGKILL)


def on_two(function, *arguments):
    """Call `function(rank, *arguments)` in two processes; an error of one is raised here."""
    import torch

    torch.multiprocessing.start_processes(function, arguments, nprocs=2, start_method="forkserver")


def rvedit(*arguments, cwd, check=None, **environment):
    """Run a command to its end; `check` is the exit code that it must have."""
    done = Command(*arguments, cwd=cwd, environment={**os.environ, **environment}).finish()
    if check is not None:
        assert done.returncode == check, done.stderr
    return done


def _main(words, cwd, environment, streams, own_group):
    """What the forked process does."""
    if own_group:
        os.setsid()
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        file = os.open(f"{streams}/{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
        os.dup2(file, descriptor)
        os.close(file)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # also where the tests run in a job without it
    multiprocessing.set_start_method(None, force=True)  # the command's own workers start as they do elsewhere
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = ["rvedit", *words]
    from rvedit_cli.main import main

    main()
