"""The names of the native library's module ``hashing``; ``hashing.pyi`` describes them."""

from fastledger._native import native_names

globals().update(native_names(__name__))
