"""vfioflow's commands as real processes."""

import json
import os
import subprocess
import sys
import tempfile
from contextlib import contextmanager


class Command:
    """A running vfioflow; its output is read line by line, so that a test waits for words.

    It has a journal of its own, unless it is told which.
    """

    def __init__(self, *args, prefix=(), stdin=subprocess.DEVNULL, pass_fds=()):
        self.state = tempfile.TemporaryDirectory(prefix="vfioflow-test-")
        self.process = subprocess.Popen(
            [*prefix, sys.executable, "-m", "vfioflow", *map(str, args)],
            stdin=stdin,
            pass_fds=pass_fds,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "COLUMNS": "80", "XDG_STATE_HOME": self.state.name},
        )
        self.log = ""

    def wait_for(self, words):
        """Read up to the line of standard error with these words, and return it."""
        for line in self.process.stderr:
            self.log += line
            if words in line:
                return line
        raise AssertionError(f"ended without saying {words!r}:\n{self.log}")

    def end(self):
        """Wait for its end: exit code, standard output, standard error."""
        self.log += self.process.stderr.read()
        out = self.process.stdout.read()
        return self.process.wait(), out, self.log

    def report(self):
        """Wait for its end: exit code, the report on standard output."""
        code, out, log = self.end()
        assert out.count("\n") == 1, (out, log)
        return code, json.loads(out)


@contextmanager
def running(*args, prefix=(), stdin=subprocess.DEVNULL, pass_fds=()):
    """A command that is ended when the test is; ``prefix`` goes before it, as "ip netns exec"."""
    command = Command(*args, prefix=prefix, stdin=stdin, pass_fds=pass_fds)
    try:
        yield command
    finally:
        command.process.kill()
        command.process.wait()
        command.process.stdout.close()
        command.process.stderr.close()
        command.state.cleanup()
