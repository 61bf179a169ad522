"""The names of the native library's module ``ecdsa``; ``ecdsa.pyi`` describes them."""

from fastledger._native import native_names

globals().update(native_names(__name__))
