"""How far a variant moved from its base.

- ``similarity``: Sentence-BERT similarity of responses
- ``changes``: length, form, a map, what it foretells
- ``divergence``: next-token KL from the base
"""
