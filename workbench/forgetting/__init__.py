"""How far a variant moved from its base.

- ``similarity``: Sentence-BERT similarity of responses
- ``changes``: length, form, a map
- ``shift``: what a shift foretells
- ``divergence``: next-token KL from the base
"""
