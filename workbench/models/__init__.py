"""Load a decoder and know it: its layers, its states, its size, its identity.

- ``loading``: from a name, a folder or the hub
- ``checkpoints``: is it a whole decoder? asked before any weight is read
- ``layers``: where the decoder layers are
- ``hooks``: residual states as a model runs
- ``batches``: texts to padded token batches
- ``costs``: parameters and FLOPs
- ``identity``: which model is this, to the bit
"""
