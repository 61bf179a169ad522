"""Bytes on disk: the segment log (the truth), the LMDB index (derived) and the blob store.

Nothing here knows what a transaction means. Writes go through :class:`~fastledger.storage.files.OsFiles`, so
that a test can stop the machine at any of them.
"""
