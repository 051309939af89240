"""Merges of healed variants of one pruning.

``slerp`` is the interpolation, ``variants`` merges what adapters changed, ``gain`` says whether it helped.
"""
