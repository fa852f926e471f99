"""The methods of the agent, and how an error is told.  docs/agent.md has the table."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import msgspec
from pjrpc.server import AsyncDispatcher, MethodRegistry
from pjrpc.server.dispatcher import ParallelAsyncExecutor
from pjrpc.server.exceptions import JsonRpcError
from pjrpc.server.validators import BaseValidator, BaseValidatorFactory, ValidationError

from vfioflow import admission, inventory, planning
from vfioflow.admission.plain import facts_as_dict, findings_as_dicts, level_of
from vfioflow.agent import words
from vfioflow.agent.asking import RemotePending, RemoteTrap, decoded, hooks_of
from vfioflow.agent.client import Client, Log, Port
from vfioflow.agent.connection import Incoming
from vfioflow.devices.base import Device
from vfioflow.devices.config import KINDS
from vfioflow.devices.kernel import KernelDevice
from vfioflow.devices.tracking import DirtySet
from vfioflow.devices.vfio_user import VfioUserDevice
from vfioflow.errors import AdmissionError, ConfigError, DeviceError, VfioflowError
from vfioflow.listener import listen
from vfioflow.policy import Policy
from vfioflow.source import Limits, Source
from vfioflow.threads import finish, in_thread

__all__ = ["METHODS", "Call", "dispatcher", "told"]

_MOST_BITMAP = 4 << 20
"""Bytes of a report of what was written: in base64 it fits a message."""

ERROR_BASE = -32000
"""An error's code is this less its exit code: -32002 is ConfigError (exit code 2)."""


@dataclass(frozen=True, slots=True)
class Call:
    """Who asks, and the message that it came in."""

    client: Client
    incoming: Incoming


@dataclass(frozen=True, slots=True)
class _Entry:
    takes: type[msgspec.Struct]
    function: Callable[[Call, Any], Awaitable[Any]]


METHODS: dict[str, _Entry] = {}


def _method(name: str, takes: type[msgspec.Struct]) -> Callable[[Any], Any]:
    def add(function: Callable[[Call, Any], Awaitable[Any]]) -> Any:
        METHODS[name] = _Entry(takes, function)
        return function

    return add


class _Typed(BaseValidator, BaseValidatorFactory):
    """Makes a method's parameters what it takes."""

    def __init__(self, takes: type[msgspec.Struct]) -> None:
        self._takes = takes

    def build(self, method: Callable[..., Any]) -> _Typed:
        """It is the validator itself."""
        del method
        return self

    def validate_params(self, params: Any) -> dict[str, Any]:
        """Raises ValidationError."""
        try:
            return {"asked": msgspec.convert(params or {}, self._takes)}
        except msgspec.ValidationError as error:
            raise ValidationError(str(error)) from None


def dispatcher() -> AsyncDispatcher[Call]:
    """What takes a message's text apart, finds its method and makes the answer."""
    made: AsyncDispatcher[Call] = AsyncDispatcher(
        executor=ParallelAsyncExecutor(), max_batch_size=64
    )
    for name, entry in METHODS.items():
        registry = MethodRegistry(validator_factory=_Typed(entry.takes))
        made.add_methods(registry.add_method(_adapted(entry), name, pass_context=True))
    return made


def _adapted(entry: _Entry) -> Any:
    async def method(call: Call, asked: Any) -> Any:
        try:
            return await entry.function(call, asked)
        except VfioflowError as error:
            raise JsonRpcError(ERROR_BASE - error.exit_code, str(error), told(error)) from error

    return method


def told(error: VfioflowError) -> dict[str, Any]:
    """What a program may want to know of an error."""
    about: dict[str, Any] = {
        "type": type(error).__name__,
        "exit_code": error.exit_code,
        "notes": list(getattr(error, "__notes__", ())),
    }
    if isinstance(error, AdmissionError):
        about["reasons"] = dict(error.reasons)
    if isinstance(error, DeviceError):
        about |= {"device": error.device, "action": error.action, "errno": error.errno}
    return about


# --------------------------------------------------------------------- the agent


@_method("agent.info", words.Nothing)
async def agent_info(_: Call, __: words.Nothing) -> Any:
    """What this is, and what it can."""
    return {"version": version("vfioflow"), "protocol": 1, "methods": sorted(METHODS)}


# ------------------------------------------------------------------------ devices


@_method("device.add", words.DeviceAdd)
async def device_add(call: Call, asked: words.DeviceAdd) -> Any:
    """Open a device, or take one over."""
    ways = ("fd", "socket_fd", "device", "socket", "simulated")
    given = [way for way in ways if getattr(asked, way) is not None]
    if len(given) != 1:
        raise ConfigError(f"a device comes by one of {', '.join(ways)}; given: {given or 'none'}")
    device = await call.client.add(asked.name, lambda: _opened(call, asked))
    return _about(device)


def _taken(call: Call, index: int) -> int:
    try:
        return call.incoming.take(index)
    except LookupError:
        raise ConfigError(
            f"there is no descriptor {index}: send it with the message, in the same sendmsg"
        ) from None


def _opened(call: Call, asked: words.DeviceAdd) -> Device:
    """Blocking.  What it takes of the message's descriptors it also closes."""
    name = asked.name
    if asked.fd is not None:
        fd = _taken(call, asked.fd)
        try:
            return KernelDevice.from_fd(fd, name=name, driver=asked.driver)
        except BaseException:
            os.close(fd)
            raise
    if asked.device is not None:
        return KernelDevice.open(asked.device, name=name)
    driver = asked.driver or "vfio-user"
    if asked.socket_fd is not None:
        return VfioUserDevice.from_socket(
            _socket(_taken(call, asked.socket_fd)), name=name, driver=driver
        )
    if asked.socket is not None:
        return VfioUserDevice.connect(asked.socket, name=name, driver=driver)
    return KINDS["sim"].make(name, dict(asked.simulated or {}))


def _socket(fd: int) -> socket.socket:
    try:
        return socket.socket(fileno=fd)
    except OSError as error:
        os.close(fd)
        raise ConfigError(f"the descriptor is no socket: {error.strerror}") from None


def _listening(fd: int) -> int:
    """The same descriptor, if a listener can take it over; else it is closed.  Raises ConfigError."""
    sock = _socket(fd)
    tcp = sock.family in (socket.AF_INET, socket.AF_INET6)
    if tcp and sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        return sock.detach()
    sock.close()
    raise ConfigError("the descriptor is a socket that does not listen on TCP")


def _about(device: Device) -> dict[str, Any]:
    return facts_as_dict(inventory.facts_of(device.info)) | {"outlives": device.info.outlives}


@_method("device.list", words.Nothing)
async def device_list(call: Call, _: words.Nothing) -> Any:
    """What each device is, and the state that it is in; nothing is changed."""
    devices = list(call.client.devices.values())
    facts = await inventory.look(devices, timeout=Policy().stall_timeout)
    return {"devices": [facts_as_dict(each) for each in facts]}


@_method("device.remove", words.DeviceNamed)
async def device_remove(call: Call, asked: words.DeviceNamed) -> Any:
    """Close a device."""
    await call.client.remove(asked.name)


@_method("plan", words.Plan)
async def plan(call: Call, asked: words.Plan) -> Any:
    """Whether the set may migrate, and to ``to``; nothing is touched, here or there."""
    policy = words.policy_of(asked.policy)
    devices = call.client.chosen(asked.devices)
    facts = await inventory.look(devices, timeout=policy.stall_timeout, sized=True)
    answer = None
    if asked.to:
        security = await in_thread(asked.security.security, name="security")
        answer = await planning.ask(
            facts,
            asked.to,
            security=security,
            connect_timeout=policy.connect_timeout,
            timeout=2 * policy.stall_timeout,
            access_queue=policy.access_queue == "writes",
        )
    around = admission.Circumstances(policy=policy)
    there = None if answer is None else list(answer.devices)
    verdict = await in_thread(_judge, facts, around, there, name="plan")
    refused = {} if answer is None else answer.reasons
    return {
        "may": not verdict.reasons() and not refused,
        "level": level_of(verdict.level),
        "findings": findings_as_dicts(verdict),
        "destination_refuses": refused,
    }


def _judge(facts: Any, around: admission.Circumstances, there: Any) -> admission.Verdict:
    return admission.judge(facts, around, destination=there)


# --------------------------------------------------------------------- the source


@_method("source.start", words.SourceStart)
async def source_start(call: Call, asked: words.SourceStart) -> Any:
    """Begin to migrate the set to ``to``; goes on by itself."""
    client = call.client
    client.check_open()
    security = await in_thread(asked.security.security, name="security")
    devices = client.idle(asked.devices)
    name = client.number("m")
    pending = [RemotePending(client.connection, lambda: name, each) for each in asked.pending]
    source = Source(
        devices,
        asked.to,
        policy=words.policy_of(asked.policy),
        hooks=hooks_of(client.connection, lambda: name, asked.hooks),
        pending=pending,
        observer=client.observer(lambda: name, asked.events),
        journal=client.journal,
        session=asked.session,
        security=security,
        trap=_trap(client, name, lambda: name) if asked.trap else None,
    )
    if asked.hold:
        source.hold()
    return client.run(name, source, devices, pending).status()


def _trap(client: Client, name: str, migration: Callable[[], str]) -> RemoteTrap:
    trap = client.traps[name] = RemoteTrap(client.connection, migration)
    return trap


def _source(call: Call, name: str) -> Source:
    session = call.client.found(call.client.migrations, name, "migration").session
    if not isinstance(session, Source):
        raise ConfigError(f"migration {name} is a destination's: the source decides")
    return session


@_method("source.change", words.SourceChange)
async def source_change(call: Call, asked: words.SourceChange) -> Any:
    """Other limits, from the next decision and the next frame on."""
    source = _source(call, asked.migration)
    limits: Limits = {}
    if asked.downtime_limit is not msgspec.UNSET:
        limits["downtime_limit"] = asked.downtime_limit
    if asked.max_bandwidth is not msgspec.UNSET:
        limits["max_bandwidth"] = asked.max_bandwidth
    source.change(**limits)


@_method("source.hold", words.MigrationNamed)
async def source_hold(call: Call, asked: words.MigrationNamed) -> Any:
    """Do not switch over until ``source.go_on``."""
    _source(call, asked.migration).hold()


@_method("source.go_on", words.MigrationNamed)
async def source_go_on(call: Call, asked: words.MigrationNamed) -> Any:
    """Switch over as soon as it can."""
    _source(call, asked.migration).go_on()


@_method("pending.moved", words.Moved)
async def pending_moved(call: Call, asked: words.Moved) -> Any:
    """How far a pending source has come: a sign of life while it moves."""
    migration = call.client.found(call.client.migrations, asked.migration, "migration")
    part = call.client.found(migration.pending, asked.source, "pending source")
    part.moved = max(part.moved, asked.moved)


# ---------------------------------------------------------------- the destination


@_method("destination.listen", words.Listen)
async def destination_listen(call: Call, asked: words.Listen) -> Any:
    """Listen for migrations into the set."""
    client = call.client
    client.check_open()
    if bool(asked.address) == (asked.fd is not None):
        raise ConfigError("a listener needs an address or an fd, one of both")
    security = await in_thread(asked.security.security, name="security")
    devices = client.idle(asked.devices)
    port = Port(client.number("l"), frozenset(d.name for d in devices))
    policy = words.policy_of(asked.policy)
    address = asked.address if asked.fd is None else f"fd://{_listening(_taken(call, asked.fd))}"
    port.listener = listen(
        address,
        devices,
        policy=policy,
        hooks=hooks_of(
            client.connection,
            lambda: port.migration,
            asked.hooks,
            config_after_data=asked.config_after_data,
        ),
        observer=client.observer(lambda: port.migration, asked.events),
        journal=client.journal,
        security=security,
        trap=_trap(client, port.name, lambda: port.migration) if asked.trap else None,
    )
    await port.listener.__aenter__()
    client.ports[port.name] = port
    return {"listener": port.name, "address": port.listener.address}


@_method("destination.accept", words.ListenerNamed)
async def destination_accept(call: Call, asked: words.ListenerNamed) -> Any:
    """Wait for a source, and begin to take its devices over; goes on by itself."""
    client = call.client
    port = client.found(client.ports, asked.listener, "listener")
    busy = client.migrations.get(port.migration)
    if busy is not None and not busy.task.done():
        await asyncio.wait([busy.task])
    session = await port.listener.next_session()
    client.check_open()
    port.migration = client.number("m")
    devices = client.chosen(port.devices)
    return client.run(port.migration, session, devices).status()


@_method("destination.close", words.ListenerNamed)
async def destination_close(call: Call, asked: words.ListenerNamed) -> Any:
    """Listen no more; a migration that runs there is not touched."""
    port = call.client.found(call.client.ports, asked.listener, "listener")
    await call.client.close_port(port)


# --------------------------------------------------------------------- both sides


@_method("migration.status", words.MigrationNamed)
async def migration_status(call: Call, asked: words.MigrationNamed) -> Any:
    """Where it stands."""
    return call.client.found(call.client.migrations, asked.migration, "migration").status()


@_method("migration.cancel", words.MigrationNamed)
async def migration_cancel(call: Call, asked: words.MigrationNamed) -> Any:
    """End it: before the commit all goes back.  Answers at once; ``migration.wait`` says how it ended."""
    call.client.found(call.client.migrations, asked.migration, "migration").session.cancel()


@_method("migration.wait", words.MigrationNamed)
async def migration_wait(call: Call, asked: words.MigrationNamed) -> Any:
    """Wait for its end.  Its report, however it ended."""
    migration = call.client.found(call.client.migrations, asked.migration, "migration")
    await asyncio.wait([migration.task])
    error = None
    if not migration.task.cancelled():
        raised = migration.task.exception()
        if isinstance(raised, VfioflowError):
            error = {"message": str(raised), **told(raised)}
    return {
        **migration.status(),
        "failure": error,
        "report": json.loads(migration.session.report.to_json()),
    }


# ------------------------------------------- accesses to devices that stand still


@_method("access.write", words.AccessWrite)
async def access_write(call: Call, asked: words.AccessWrite) -> Any:
    """A store to a trapped device: answered when it is queued, or where all is replayed, done."""
    trap, queue = call.client.trap(asked.migration)
    data = decoded(asked.data, "access.write")
    async with trap.order:
        await in_thread(
            queue.write,
            *(asked.device, asked.region, asked.offset, data, asked.origin),
            name="access-write",
        )


@_method("access.read", words.AccessRead)
async def access_read(call: Call, asked: words.AccessRead) -> Any:
    """A load from one: answered by the policy's ``access_reads``."""
    trap, queue = call.client.trap(asked.migration)
    async with trap.order:
        pass  # no write that came before it is behind it
    where = (asked.device, asked.region, asked.offset, asked.width)
    data = await in_thread(queue.read, *where, name="access-read")
    return {"data": base64.b64encode(data).decode()}


@_method("access.interrupt", words.AccessInterrupt)
async def access_interrupt(call: Call, asked: words.AccessInterrupt) -> Any:
    """One has raised an interrupt: it is counted, and raised again by ``trap.interrupt``."""
    _, queue = call.client.trap(asked.migration)
    await in_thread(queue.interrupt, asked.device, asked.vector, name="access-interrupt")


# ------------------------------------------------------------------ dirty tracking


@_method("dirty.start", words.DirtyStart)
async def dirty_start(call: Call, asked: words.DirtyStart) -> Any:
    """Log what the set writes."""
    client = call.client
    devices = client.chosen(asked.devices)
    written = await in_thread(DirtySet, devices, name="log")
    name = client.number("d")
    log = client.logs[name] = Log(written, frozenset(device.name for device in devices))
    async with log.use:
        starting = in_thread(written.start, asked.ranges, asked.page_size, name="log-start")
        try:
            page_size = await finish(starting)
        except Exception:  # cancelled, it may have begun: it ends with the client
            del client.logs[name]
            raise
    return {"log": name, "page_size": page_size, "teller": written.teller}


@_method("dirty.report", words.DirtyReport)
async def dirty_report(call: Call, asked: words.DirtyReport) -> Any:
    """What was written since last asked."""
    log = call.client.found(call.client.logs, asked.log, "log")
    async with log.use:
        written = log.written
        if asked.length > (most := _MOST_BITMAP * 8 * written.page_size) > 0:
            raise ConfigError(
                f"{asked.length} bytes: ask for {most} at most, and for the rest after it"
            )
        bitmap = await finish(
            in_thread(written.report, asked.iova, asked.length, name="log-report")
        )
        return {
            "bitmap": base64.b64encode(bitmap).decode(),
            "page_size": written.page_size,
            "all_tracking": written.all_tracking,
        }


@_method("dirty.stop", words.LogNamed)
async def dirty_stop(call: Call, asked: words.LogNamed) -> Any:
    """End a log."""
    logs = call.client.logs
    log = call.client.found(logs, asked.log, "log")
    async with log.use:
        try:
            await finish(in_thread(log.written.stop, name="log-stop"))
        finally:
            logs.pop(asked.log, None)  # not before: until then its devices are in use


# --------------------------------------------------------------------- the journal


@_method("journal.pending", words.Nothing)
async def journal_pending(call: Call, _: words.Nothing) -> Any:
    """Sessions that have yet to end, and where; ``source.start`` with such a session settles it."""
    journal = call.client.journal
    stories = [] if journal is None else await in_thread(journal.pending, name="journal")
    return {
        "sessions": [
            {"session": story.session, "role": story.role, "step": str(story.step)}
            for story in stories
        ]
    }
