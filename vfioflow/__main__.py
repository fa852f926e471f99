"""``python -m vfioflow``: the command line."""

from vfioflow.cli import main

main()
