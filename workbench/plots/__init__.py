"""Figures: a tidy frame in, a go.Figure out. Nothing here shows, saves or computes with a model.

- ``style``: templates, colours, axes
- ``heatmaps``: distance and damage of all blocks
- ``blocks``: lines and comparisons of measures
- ``healing``: losses, reasons, grid search
- ``scores``: bars, scores against layers dropped, flips
- ``forgetting``: similarity, forms, divergence
- ``tokens``: one response with its tokens shaded
- ``paper``: which figures a run has
- ``portfolio``: all of them as files
"""
