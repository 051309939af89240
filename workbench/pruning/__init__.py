"""Take layers out: for a while, for good, on disk.

- ``removal``: without_layers and prune_
- ``surgery``: what has to follow when layers leave
- ``saving``: a folder that reloads as the same function
- ``spellings``: that folder in the words of transformers 4 and 5
"""
