"""Devices that can be migrated."""
