"""What one clicks: small state objects with a view.

- ``picker``: choose a block
- ``look``: loss and answer with and without a block
- ``live``: the loss while a training runs
- ``recovery``: iterations of removal and recovery as they run
"""
