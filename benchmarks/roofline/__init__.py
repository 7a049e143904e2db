"""Theoretical lower bounds on the time of a network on a device."""
