"""Texts and instructions, by name or from a file, sampled with a seed.

- ``texts``: calibration texts
- ``instructions``: instruction sets
- ``sources``: rows of local files and hub sets, sampled
- ``answers``: final answers, found and compared
"""
