"""How redundant the layers are, how sure that is, what skipping them costs.

- ``angular``: the angular distance of every block
- ``influence``: Block Influence and removal similarity of single layers
- ``damage``: the loss when layers are really skipped
- ``sweep``: many sets of layers left out in one pass
- ``stability``: spread over texts and calibration sets
- ``blocks``: names of layers, frames of blocks, the best of each size
- ``strategies``: what else to remove: deepest, shallowest, random, greedy
"""
