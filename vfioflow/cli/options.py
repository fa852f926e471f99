"""Option types, and the options that several commands share."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import click

from vfioflow.devices.sizes import parse_duration, parse_rate, parse_size
from vfioflow.errors import ConfigError
from vfioflow.policy import Policy

__all__ = [
    "BANDWIDTH",
    "DURATION",
    "SIZE",
    "devices_option",
    "journal_directory_option",
    "journal_options",
    "json_option",
    "policy_options",
    "security_options",
]


if TYPE_CHECKING:
    from vfioflow.wire.security import Security

    # click's stubs know what a type makes of a text; its classes only from 8.4 on.
    _Float: TypeAlias = click.ParamType[float]
    _Int: TypeAlias = click.ParamType[int]
    _Any: TypeAlias = click.ParamType[Any]
else:
    _Float = _Int = _Any = click.ParamType


class _Duration(_Float):
    """Seconds: ``300ms``, ``0.3s``, ``0.3``, ``2min``."""

    name = "duration"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        if isinstance(value, int | float):
            return float(value)
        try:
            return parse_duration(value)
        except ConfigError as error:
            self.fail(str(error), param, ctx)


class _Size(_Int):
    """Bytes: ``1MiB``, ``65536``."""

    name = "size"
    _parse = staticmethod(parse_size)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        try:
            return self._parse(value)
        except ConfigError as error:
            self.fail(str(error), param, ctx)


class _Bandwidth(_Size):
    """Bytes per second: ``1GiB``, ``1GiB/s``; or bits per second: ``10Gbit``."""

    name = "bandwidth"
    _parse = staticmethod(parse_rate)


DURATION = _Duration()
SIZE = _Size()
BANDWIDTH = _Bandwidth()


@dataclass(frozen=True)
class _Option:
    type: _Any | type
    help: str
    metavar: str | None = None
    default: str | None = None
    """The default in words, where the value would not explain itself."""


_POLICY: dict[str, _Option] = {
    "downtime_limit": _Option(
        DURATION,
        "Longest time that the virtual machine may stand still, as 300ms or 0.3s. Pre-copy goes"
        " on until the predicted downtime is within it, so a lower limit means more rounds.",
        "TIME",
        "300ms",
    ),
    "max_bandwidth": _Option(
        BANDWIDTH,
        "Most bytes per second on the wire, all devices together: 1GiB, or 10Gbit. Leaves the"
        " rest of the link to the guests; the drain in the downtime is held to it too.",
        "RATE",
        "no limit",
    ),
    "compression": _Option(
        click.STRING,
        "'none'; 'zstd:LEVEL' leaves out zeros and compresses the rest, which pays only when the"
        " wire is slower than the compressor; 'auto' does so when it pays.",
        "none|auto|zstd:LEVEL",
    ),
    "compression_threads": _Option(
        click.INT,
        "Threads that compress, for all devices together; 0 is one per processor, at most 8.",
        "N",
    ),
    "channels": _Option(
        click.INT,
        "Data connections. More help where one TCP stream does not fill the link; 0 is one"
        " per device, at most 8.",
        "N",
    ),
    "chunk_size": _Option(
        SIZE,
        "Most device bytes in one frame, 4KiB to 64MiB. Each device holds one or two buffers of"
        " this size on either side.",
        "SIZE",
        "1MiB",
    ),
    "max_iterations": _Option(
        click.INT, "Pre-copy rounds after which the devices count as dirtying too fast.", "N"
    ),
    "precopy_timeout": _Option(
        DURATION, "Time of pre-copy after which they do, however many rounds.", "TIME", "300s"
    ),
    "on_no_convergence": _Option(
        click.Choice(["abort", "switchover"]),
        "What to do then: 'abort' leaves the devices running at the source; 'switchover' moves"
        " them although it will take longer than the downtime limit.",
    ),
    "digest": _Option(
        click.BOOL,
        "Whether each device's stream carries a running CRC32C that the destination checks"
        " before the hand-over.",
    ),
    "switchover_ack": _Option(
        click.BOOL,
        "Whether to stop the virtual machine only when the destination has loaded all initial"
        " data; without, slow loading counts as downtime.",
    ),
    "reconnect_timeout": _Option(
        DURATION,
        "Time to try to open a connection again that broke, and go on where it was; 0 ends the"
        " migration at once. Costs a copy of every byte.",
        "TIME",
        "0",
    ),
    "reconnect_stop_copy": _Option(
        click.Choice(["go-back", "wait"]),
        "What to do when it breaks while the virtual machine stands still: 'go-back' tries only"
        " for what is left of the downtime limit, 'wait' for all of the time above.",
    ),
    "reconnect_limit": _Option(
        DURATION,
        "At the destination: longest time to wait for a connection to come back, whatever the"
        " source asks for.",
        "TIME",
        "300s",
    ),
    "resolve_timeout": _Option(
        DURATION,
        "Time to ask again, over new connections (to be asked again, at the destination), when"
        " the last one was lost around the commit; then the hand-over is in doubt.",
        "TIME",
        "30s",
    ),
    "window": _Option(
        SIZE,
        "Most bytes that are kept to be sent again. Less than the wire holds (rate times round"
        " trip, and the sockets' buffers) slows it down.",
        "SIZE",
        "64MiB",
    ),
    "connect_timeout": _Option(
        DURATION, "Time for a connection, and for each answer while both set up.", "TIME", "10s"
    ),
    "stall_timeout": _Option(
        DURATION,
        "Time without any progress (bytes, a state change, an answer) that ends the migration.",
        "TIME",
        "30s",
    ),
    "access_queue": _Option(
        click.Choice(["off", "writes"]),
        "Whether devices without P2P states may migrate with others: 'writes' has accesses to one"
        " that stands still queued, carried and replayed.",
    ),
    "access_limit": _Option(click.INT, "Most writes that are queued.", "N"),
    "access_bytes": _Option(SIZE, "Most bytes that they take.", "SIZE", "16MiB"),
    "access_reads": _Option(
        click.Choice(["hold", "ones", "fail"]),
        "What becomes of a read meanwhile: it waits, is answered with all bits set, or fails the"
        " migration.",
    ),
    "access_hold": _Option(
        DURATION, "Time that a read may wait before the migration fails.", "TIME", "1s"
    ),
    "stream_factor": _Option(
        click.FLOAT,
        "Most bytes that the destination takes for a device, in multiples of the size it was"
        " offered with (1 GiB if that is more): pre-copy sends again what was dirtied.",
        "N",
    ),
}


def policy_options(
    *names: str, words: Mapping[str, str] = {}, **defaults: Any
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Options for fields of Policy, all or those named; the command gets ``policy``.

    ``words``, the help, and ``defaults`` are a command's own, where they differ from the policy's.
    """
    chosen = [f for f in fields(Policy) if not names or f.name in names]

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(command)
        def with_policy(**values: Any) -> Any:
            policy = Policy(**{field.name: values.pop(field.name) for field in chosen})
            return command(policy=policy, **values)

        wrapped: Callable[..., Any] = with_policy
        for field in reversed(chosen):
            own = field.name in defaults
            default = defaults[field.name] if own else field.default
            wrapped = _policy_option(field.name, default, own=own, words=words)(wrapped)
        return wrapped

    return decorate


def _policy_option(
    name: str, default: Any, *, own: bool, words: Mapping[str, str]
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    option = _POLICY[name]
    about = words.get(name, option.help)
    in_words = None if own else option.default
    flag = "--" + name.replace("_", "-")
    switch = isinstance(default, bool)
    return click.option(
        f"{flag}/--no-{flag[2:]}" if switch else flag,
        name,
        type=option.type,
        default=default,
        metavar=option.metavar,
        show_default=in_words is None,
        callback=_checked,
        help=f"{about}  [default: {in_words}]" if in_words else about,
    )


def _checked(ctx: click.Context, param: click.Parameter, value: Any) -> Any:
    """Judge an option by Policy itself, so that the message names the option."""
    assert param.name is not None
    try:
        Policy(**{param.name: value})
    except ConfigError as error:
        what = str(error).partition(": ")[2]
        raise click.BadParameter(f"{what}, not {value!r}", ctx, param) from None
    return value


def devices_option(
    *, required: bool = True, default: str = "four simulated devices, 1 GiB in all"
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """``--devices FILE.toml``; ``default`` says what happens without, where it is not required."""
    return click.option(
        "--devices",
        "devices_file",
        type=click.Path(dir_okay=False),
        metavar="FILE.toml",
        required=required,
        help="The devices, each a table [[device]] with a name and what it is."
        + ("" if required else f"  [default: {default}]"),
    )


def journal_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """``--journal DIR`` and ``--no-journal``; the command gets ``journal``, a Journal or None."""

    @functools.wraps(command)
    def with_journal(journal_directory: str | None, without_journal: bool, **values: Any) -> Any:
        from vfioflow.journal import Journal, default_directory

        if without_journal and journal_directory:
            raise click.UsageError("--journal and --no-journal exclude each other")
        journal = None if without_journal else Journal(journal_directory or default_directory())
        return command(journal=journal, **values)

    wrapped: Callable[..., Any] = with_journal
    wrapped = click.option(
        "--no-journal",
        "without_journal",
        is_flag=True,
        help="Record nothing: a crash around the commit then is a person's to sort out.",
    )(wrapped)
    return journal_directory_option(wrapped)


journal_directory_option = click.option(
    "--journal",
    "journal_directory",
    type=click.Path(file_okay=False),
    metavar="DIR",
    help="Where it is recorded what was decided, so that a side that was killed can go on. Virtual"
    " machines whose devices have the same names need one each."
    "  [default: $XDG_STATE_HOME/vfioflow, or ~/.local/state/vfioflow]",
)


_CERTIFICATES = {
    "source": "ca-cert.pem, client-cert.pem and client-key.pem",
    "destination": "ca-cert.pem, server-cert.pem and server-key.pem",
}


def security_options(
    side: Literal["source", "destination"],
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """``--psk``, ``--tls`` and a side's own name option; the command gets ``security``."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(command)
        def with_security(
            psk_file: str | None, tls_folder: str | None, tls_name: str | None, **values: Any
        ) -> Any:
            option = "--tls-hostname" if side == "source" else "--tls-peer"
            if psk_file is not None and tls_folder is not None:
                raise click.UsageError("--psk and --tls exclude each other")
            if tls_name is not None and tls_folder is None:
                raise click.UsageError(f"{option} needs --tls")
            return command(security=Names(psk_file, tls_folder, tls_name, side), **values)

        wrapped: Callable[..., Any] = with_security
        wrapped = click.option(
            "--tls-hostname" if side == "source" else "--tls-peer",
            "tls_name",
            metavar="NAME",
            help="The name in the destination's certificate.  [default: the host of --to]"
            if side == "source"
            else "The only name in a source's certificate that is taken.  [default: any of the CA's]",
        )(wrapped)
        wrapped = click.option(
            "--tls",
            "tls_folder",
            type=click.Path(),
            metavar="DIR",
            help="Encrypt, and know the other side by its certificate: a folder with"
            f" {_CERTIFICATES[side]}, as QEMU has them.",
        )(wrapped)
        return click.option(
            "--psk",
            "psk_file",
            type=click.Path(),
            metavar="FILE",
            help="Know the other side by a key that both have, and find what was changed on the way;"
            " hides nothing. `vfioflow key FILE` makes one.",
        )(wrapped)

    return decorate


@dataclass(frozen=True)
class Names:
    """What a command was told of keys and certificates, which are read when they are needed."""

    psk_file: str | None
    tls_folder: str | None
    tls_name: str | None
    side: Literal["source", "destination"]

    def read(self) -> Security:
        """Read them.  Raises ConfigError."""
        from vfioflow.wire.security import Security

        if self.psk_file is not None:
            return Security.from_psk_file(self.psk_file)
        if self.tls_folder is None:
            return Security()
        if self.side == "source":
            return Security.from_tls_dir(self.tls_folder, hostname=self.tls_name)
        return Security.from_tls_dir(self.tls_folder, peer=self.tls_name)


json_option = click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="Print the report, and nothing else, as one JSON object on standard output; also when"
    " the migration fails.",
)
