"""Win back what a cut cost: self-data distillation and LoRA.

- ``distillation``: the model rewrites its training data
- ``samples``: what of an example is learned
- ``order``: when each is seen
- ``losses``: the loss of completions, in chunks
- ``trainer``: the training loop
- ``arguments``: what the Trainer is told
- ``validation``: held-out loss while it trains
- ``folders``: what is its own, and what is done
- ``heal``: train an adapter, restartable
- ``adapters``: put on, taken off, merged
- ``records``: an adapter's folder, whole and unaltered
- ``config``: settings of the papers
- ``search``: the grid search, an Optuna study in a database
- ``study``: its database, and what outlives it
- ``launch``: plans for several GPUs
"""

import logging

# peft, which several files here import before anything else, imports it where it is installed; it warns of
# optional packages of its own
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
