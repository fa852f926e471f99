"""A VMM in Python that migrates through `vfioflow agent`: both ends of a migration, over one socket.

    vfioflow agent --socket /run/vfioflow/agent.sock &
    python client.py /run/vfioflow/agent.sock

In earnest the two ends are two agents on two hosts, and the devices are descriptors: see send_fd().
"""

import contextlib
import itertools
import json
import socket
import sys
import threading


class AgentError(Exception):
    """What the agent answers when something is wrong: .code, .data."""

    def __init__(self, error):
        super().__init__(error["message"])
        self.code = error["code"]
        self.data = error.get("data")


class Agent:
    """A connection to the agent.  hooks: by the names under which the agent calls them."""

    def __init__(self, path, hooks=None, on_event=print):
        self._sock = socket.socket(socket.AF_UNIX)
        self._sock.connect(path)
        self._hooks = hooks or {}
        self._on_event = on_event
        self._numbers = itertools.count(1)
        self._answers = {}
        self._here = threading.Condition()
        self._write = threading.Lock()
        self._closed = False
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def call(self, method, fds=(), **params):
        """Ask the agent and wait; descriptors go with the message."""
        number = next(self._numbers)
        self._send({"id": number, "method": method, "params": params}, fds)
        with self._here:
            self._here.wait_for(lambda: number in self._answers or self._closed)
            if number not in self._answers:
                raise ConnectionError("the agent has gone")
            answer = self._answers.pop(number)
        if "error" in answer:
            raise AgentError(answer["error"])
        return answer["result"]

    def close(self):
        """What still runs is cancelled by the agent, and this client's devices are closed."""
        if not self._closed:
            self._sock.shutdown(socket.SHUT_RDWR)
        self._reader.join()
        self._sock.close()

    def _send(self, message, fds=()):
        data = json.dumps({"jsonrpc": "2.0", **message}).encode() + b"\n"
        with self._write:
            sent = socket.send_fds(self._sock, [data], list(fds))
            self._sock.sendall(data[sent:])

    def _read(self):
        with self._sock.makefile("rb") as lines:
            for line in lines:
                message = json.loads(line)
                if "method" not in message:
                    with self._here:
                        self._answers[message["id"]] = message
                        self._here.notify_all()
                elif "id" in message:
                    threading.Thread(target=self._hook, args=(message,), daemon=True).start()
                else:
                    self._on_event(message["method"], message["params"])
        with self._here:
            self._closed = True
            self._here.notify_all()

    def _hook(self, message):
        """The agent asks: answer, or say why not, and the migration fails."""
        try:
            result = self._hooks[message["method"]](**message["params"])
        except Exception as error:
            said = {"error": {"code": -32000, "message": str(error)}}
        else:
            said = {"result": result}
        with contextlib.suppress(OSError):  # the agent may have gone meanwhile
            self._send({"id": message["id"], **said})


def send_fd(agent, name, fd):
    """Hand a VFIO device's descriptor over; it stays open here."""
    return agent.call("device.add", fds=[fd], name=name, fd=0)


def main(path):
    def note(text, answer=None):
        def hook(**_):
            print(text)
            return answer

        return hook

    def quiet(*_):
        """Of what the agent tells besides: nothing."""

    there = Agent(path, {"hook.start_vcpus": note("vCPUs start there")}, quiet)
    here = Agent(
        path,
        {
            "hook.stop_vcpus": note("vCPUs stop"),
            "hook.may_switch_over": note("may switch over", True),
        },
        quiet,
    )
    for agent in (there, here):
        agent.call("device.add", name="net0", simulated={"profile": "mlx5", "state_size": "32MiB"})
    port = there.call("destination.listen", address="tcp://127.0.0.1:0", hooks=["start_vcpus"])
    sent = here.call(
        "source.start", to=port["address"], hooks=["stop_vcpus", "may_switch_over"], hold=True
    )
    taken = there.call("destination.accept", listener=port["listener"])
    here.call("source.change", migration=sent["migration"], downtime_limit=0.5)
    here.call("source.go_on", migration=sent["migration"])
    ended = here.call("migration.wait", migration=sent["migration"])
    there.call("migration.wait", migration=taken["migration"])
    print(f"{ended['outcome']}: {ended['report']['bytes_total'] >> 20} MiB")
    print("here", here.call("device.list")["devices"][0]["state"])
    print("there", there.call("device.list")["devices"][0]["state"])
    here.close()
    there.close()


if __name__ == "__main__":
    main(sys.argv[1])
