"""Win back what a cut cost: self-data distillation and LoRA.

- ``distillation``: the model rewrites its training data
- ``samples``: masks, and the order of training
- ``losses``: the loss of completions, in chunks
- ``trainer``: the training loop
- ``heal``: train an adapter, restartable
- ``adapters``: put on, taken off, merged
- ``records``: an adapter's folder, whole and unaltered
- ``config``: settings of the papers
- ``search``: the grid search, an Optuna study in a database
- ``study``: its database, and what outlives it
- ``launch``: plans for several GPUs
"""
