"""A report as one page of HTML.  Needs ``pip install "vfioflow[report]"``."""

from vfioflow.page.html import comparison, page

__all__ = ["comparison", "page"]
