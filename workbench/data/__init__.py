"""Texts and instructions, by name or from a file, sampled with a seed.

- ``texts``: calibration texts
- ``instructions``: instruction sets
- ``sources``: rows of local files and hub sets, sampled
- ``files``: rows of a local file, whatever its form
- ``chats``: rows that hold a whole chat
- ``answers``: final answers, found and compared
"""
