"""Iterative recovery (IteRABRe): remove a layer, win back what it cost, and again.

- ``iterate``: score, remove, recover, down to a number of layers
- ``recover``: distil the whole model into the pruned one, on one copy of the weights
- ``loss``: the loss of that, term by term
- ``attention``: attention matrices, compared one layer at a time
- ``baselines``: ShortGPT, LaCo, GRO's block, greedy by damage
"""
