"""Immutable values of the chain and their one codec. Nothing here touches a disk or a clock."""
