class FabricCore:
    """The members of a fabric.  `vfioflow.devices.sim.Fabric` is its face."""

    def __init__(self) -> None: ...
    def tick(self) -> None:
        """One message from every device that may send to each of its peers."""
