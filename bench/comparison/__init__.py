"""The comparison of vfioflow with other programs that move bytes: ``python bench/compare.py``.

From the inside out: ``content`` (what is moved), ``wires``, ``ends`` (where from and to), ``programs``
(processes and their CPU time), ``movers`` and ``qemu`` (who moves), ``rounds`` (interleaving),
``summary`` (medians and ratios), ``tables`` and ``plot``; and the four comparisons ``raw``,
``compressed``, ``scale`` and ``quick``.
"""
