"""Scores of models in memory, by the lm-evaluation-harness.

- ``evaluate``: task scores
- ``perplexity``: loss and perplexity on texts and corpora
- ``in_memory``: a model as the harness asks it, in bounded memory (``asking``, ``generating``)
- ``harness``: the harness run on tasks, its results as rows
- ``tasks``: which questions are asked, and their fingerprint
- ``dependencies``: the files that a task's scores depend on, by content
- ``index``: the harness's index of tasks and groups
- ``columns``: columns of a task's data that are missing or empty
- ``suites``: the papers' benchmarks as data, in ``suites.toml``
- ``offline``: public sets from files on disk
- ``longform``: QMSum, scored by ROUGE
- ``scores``: what scores say: headlines, categories, spreads
- ``recovery``: the share of the base's average, with its interval
- ``items``: items compared one by one
- ``depth``: scores against layers dropped
- ``variants``: many variants on one copy of the weights, ablations
- ``contamination``: training prompts in an evaluation set
"""
