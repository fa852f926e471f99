"""Ways for events to reach whoever watches: several observers, a stream, a file, metrics, spans.

All are observers (:data:`vfioflow.events.Observer`), to be given to ``Source``, ``migrate`` or
``listen``.  ``metrics`` and ``spans`` need an extra each, and are imported from their own modules.
"""

from vfioflow.watching.fanout import fan_out
from vfioflow.watching.jsonlines import JsonLines, as_dict
from vfioflow.watching.stream import EventStream

__all__ = ["EventStream", "JsonLines", "as_dict", "fan_out"]
