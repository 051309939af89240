"""Pruned models as drafts of the model they were cut from: what it accepts of theirs, and what that saves.

``inputs`` reads what is asked for, ``views`` makes a draft on the target's own weights, ``rule`` decides what
is accepted and says what that is worth, ``decoder`` and ``cached`` decode by it, ``acceptance`` and ``speed``
are the measurements.
"""
