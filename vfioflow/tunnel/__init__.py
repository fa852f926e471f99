"""One stream of bytes, which is no device's, over the connections that devices' streams take."""

from vfioflow.tunnel.receiving import Receiver, TunnelListener, listen
from vfioflow.tunnel.sending import Sender, send
from vfioflow.tunnel.summary import Summary

__all__ = ["Receiver", "Sender", "Summary", "TunnelListener", "listen", "send"]
