"""Texts and instructions, by name or from a file, sampled with a seed.

- ``texts``: calibration texts
- ``instructions``: instruction sets
- ``sources``: rows of local files and hub sets, sampled
- ``export``: conversations for other trainers
- ``answers``: final answers, found and compared
"""
