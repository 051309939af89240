"""Texts and instructions, by name or from a file, sampled with a seed.

- ``texts``: calibration texts
- ``instructions``: instruction sets
- ``sources``: rows of local files and hub sets, sampled
- ``files``: rows of a local file, whatever its form
- ``labels``: short names for sets and files
- ``chats``: rows that hold a whole chat
- ``export``: conversations for other trainers
- ``answers``: where in a response its final answer stands
- ``statements``: which number a sentence comes to
- ``quantities``: numbers as people write them
"""
