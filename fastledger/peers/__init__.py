"""The peer network as a sans-I/O machine: bytes and clock readings in, frames and events out.

``wire`` has frames and messages, ``session`` one link, ``scores`` offences and bans, ``addresses`` the address book,
``sync`` headers first, ``fetch`` blocks, ``compact`` new blocks, ``gossip`` transactions, ``blobs`` and
``snapshots`` large things by digest, ``network`` all of it together. Nothing here reads a clock, makes randomness of
its own, opens a socket or starts a thread.
"""
