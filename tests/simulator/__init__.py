"""A whole federation in one thread: real nodes over a virtual clock, network and disk, from one seed.

``docs/simulator.md`` tells what is simulated, what is not, and how a seed is run again.
"""
