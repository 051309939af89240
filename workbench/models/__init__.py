"""Load a decoder, and its layers, residual states, size and identity.

- ``loading``: from a name, a folder or the hub
- ``checkpoints``: is it a decoder-only model? asked before any weight is read
- ``layers``: where the decoder layers are
- ``hooks``: residual states as a model runs
- ``chat``: chats as text and as tokens
- ``templates``: chat templates, on a fixed day and under limits
- ``batches``: texts to padded token batches, and a measure of each text
- ``costs``: parameters and FLOPs
- ``identity``: which model is this, to the bit
"""
