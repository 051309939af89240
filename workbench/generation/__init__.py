"""Responses to prompts, in batches.

- ``responses``: prompts in, responses out
- ``prompts``: what a model is asked, as text and as tokens
- ``engines``: which way of decoding, batches by length, halved when out of memory
- ``decoder``: decoding with a cache of fixed size
- ``cache``: that cache and the attention over it
- ``kernel``: the Triton kernel of one decoding step
"""
