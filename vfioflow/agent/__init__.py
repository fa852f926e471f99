"""The engine behind a UNIX socket, for VMMs in other languages: JSON-RPC 2.0, with descriptors handed over.

Needs the extra ``agent``.  What it speaks is in docs/agent.md.
"""

from vfioflow.agent.server import Agent

__all__ = ["Agent"]
