"""Devices behind a vfio-user socket: implemented by another process of this host."""

from vfioflow.devices.vfio_user.device import VfioUserDevice
from vfioflow.devices.vfio_user.dma import VfioUserLog

__all__ = ["VfioUserDevice", "VfioUserLog"]
