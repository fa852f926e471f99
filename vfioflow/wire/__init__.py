"""The wire protocol: addresses, connections and control messages."""
