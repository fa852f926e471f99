"""Options for those who watch from outside: a file of events, and metrics."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from vfioflow.events import Observer

__all__ = ["Watchers", "observing_options"]


@dataclass(frozen=True)
class Watchers:
    """Who watches besides the screen; nothing is opened yet."""

    events_file: str | None
    metrics_address: str | None

    @contextmanager
    def beside(self, screen: Observer) -> Iterator[Observer]:
        """An observer for all of them.  Raises ConfigError: a file or address cannot be had."""
        from vfioflow.watching import JsonLines, fan_out

        with ExitStack() as stack:
            observers = [screen]
            if self.events_file is not None:
                observers.append(stack.enter_context(JsonLines(self.events_file)))
            if self.metrics_address is not None:
                observers.append(_serve(self.metrics_address, stack))
            yield fan_out(observers) if len(observers) > 1 else screen


def _serve(address: str, stack: ExitStack) -> Observer:
    from vfioflow.cli.console import complain
    from vfioflow.watching.metrics import Metrics, Server
    from vfioflow.wire.address import Address

    where = Address.parse(address)
    metrics = Metrics()
    server = stack.enter_context(Server(metrics, where.host, where.port))
    complain(f"metrics on http://{where.host}:{server.port}/metrics", kind="")
    return metrics.observer()


def observing_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """``--events`` and ``--metrics``; the command gets ``watchers``."""

    @functools.wraps(command)
    def with_watchers(events_file: str | None, metrics_address: str | None, **values: Any) -> Any:
        return command(watchers=Watchers(events_file, metrics_address), **values)

    for option in (
        click.option(
            "--metrics",
            "metrics_address",
            metavar="tcp://HOST:PORT",
            help="Serve metrics for Prometheus there over HTTP, while the command runs. Whoever reaches"
            " it may read them. Needs the extra `metrics`.",
        ),
        click.option(
            "--events",
            "events_file",
            type=click.Path(dir_okay=False),
            metavar="FILE",
            help="Append every event to FILE, a JSON object a line.",
        ),
    ):
        with_watchers = option(with_watchers)
    return with_watchers
