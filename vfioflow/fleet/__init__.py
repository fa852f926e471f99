"""Many virtual machines leave a host over one wire: in which order, and how many at once.  Pure."""
