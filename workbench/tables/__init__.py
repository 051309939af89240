"""Tables: frames into the shape a paper prints.

- ``layouts``: which rows and columns
- ``markup``: LaTeX, Markdown, HTML
"""
