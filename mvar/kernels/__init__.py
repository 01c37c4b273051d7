"""Kernels: one function each, with back ends behind it."""
