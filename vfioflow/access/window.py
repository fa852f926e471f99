"""The window in which devices of a set stand still while others may access them, on one side.

Source: arm, seal, and where the migration fails, replay here.  Destination: arm, take what the source
sealed, replay there.  What is replayed on one side is forgotten on the other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from vfioflow.access import codec
from vfioflow.access.queue import Access, AccessQueue, Held
from vfioflow.access.trap import Trap
from vfioflow.devices.base import Device
from vfioflow.errors import AccessError, VfioflowError
from vfioflow.policy import Policy
from vfioflow.states import Flags
from vfioflow.threads import finish, in_thread

__all__ = ["Window", "needs_one"]

T = TypeVar("T")


def needs_one(devices: Sequence[Device]) -> bool:
    """Whether a set has devices that others could access while they stand still."""
    return len(devices) > 1 and any(not d.info.flags & Flags.P2P for d in devices)


class Window:
    """One side's trap and queue, for the devices without P2P states among ``devices``.

    Everything raises AccessError, also for whatever the trap raises.
    """

    def __init__(self, trap: Trap, devices: Sequence[Device], policy: Policy) -> None:
        self.devices = tuple(d.name for d in devices if not d.info.flags & Flags.P2P)
        self.queue = AccessQueue(
            limit=policy.access_limit,
            limit_bytes=policy.access_bytes,
            reads=policy.access_reads,
            hold_limit=policy.access_hold,
        )
        self.replayed = 0
        self._trap = trap
        self._armed = False

    async def arm(self) -> None:
        """From now on nothing reaches the devices."""
        self._armed = True  # also where it fails halfway
        await _in_thread("arm", lambda: self._trap.arm(self.devices, self.queue))

    async def seal(self) -> bytes:
        """All devices stand still, and so do the vCPUs: what was queued, as bytes."""
        held = await _in_thread("collect", self._seal)
        self.check()
        data = codec.encode(held)
        if len(data) > codec.MAX_BYTES:
            raise AccessError(
                "", f"{len(data)} bytes of queued accesses are more than one message takes"
            )
        return data

    def _seal(self) -> Held:
        if not self._trap.collect(self.queue):
            self.queue.overflow()
        return self.queue.seal()

    def check(self) -> None:
        """Raise AccessError if an access came that could not be kept, or came too late."""
        if self.queue.failure:
            raise AccessError("", self.queue.failure)

    def take(self, held: Held) -> None:
        """What the source's queue held goes before what is trapped here."""
        self.queue.put_first(held)

    def close(self) -> str:
        """The devices run on the other side.  Returns what came too late to be carried there; "": nothing."""
        self.queue.close()
        return self.queue.failure

    async def abandon(self) -> None:
        """The devices here are to be reset, and what was queued is the other side's: pass accesses again."""
        if self._armed:
            self._armed = False
            await _in_thread("disarm", self._abandon)

    def _abandon(self) -> None:
        try:
            self._trap.collect(self.queue)
            self._trap.disarm(self.devices)
        finally:
            self.queue.close()

    async def replay(self) -> None:
        """The devices run: give them what was queued, in order, then let accesses pass again.

        Nothing where they were never armed, or it was done already.
        """
        if self._armed:
            await _in_thread("replay", lambda: self._replay(self._trap.deliver))
            self._armed = False

    async def put_back(self) -> dict[str, str]:
        """The same at a source whose migration has failed.

        A device that takes none of it gets none of the rest, so that the others get theirs, and accesses pass
        again.  Returns for each such device: why.
        """
        lost: dict[str, str] = {}

        def deliver(access: Access) -> None:
            if access.device in lost:
                return
            try:
                self._trap.deliver(access)
            except Exception as error:  # a trap is somebody else's code
                lost[access.device] = str(error) or type(error).__name__

        if self._armed:
            await _in_thread("replay", lambda: self._replay(deliver))
            self._armed = False
        return lost

    def _replay(self, deliver: Callable[[Access], None]) -> None:
        trap, queue = self._trap, self.queue
        while True:
            trap.collect(queue)
            self.replayed += queue.replay(deliver, read=trap.read, interrupt=trap.interrupt)
            if trap.disarm(self.devices):
                return


async def _in_thread(step: str, function: Callable[[], T]) -> T:
    """Run a part of the trap's; what must be done is done here where there is no thread.

    A cancellation waits for it: the trap is called once at a time.
    """
    must = step in ("replay", "disarm")
    try:
        return await finish(in_thread(function, name=step, or_here=must))
    except VfioflowError:
        raise
    except Exception as error:  # a trap is somebody else's code
        what = str(error) or type(error).__name__
        raise AccessError("", f"the trap failed to {step}: {what}") from error
