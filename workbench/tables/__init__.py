"""Tables: frames into the shape a paper prints.

- ``layouts``: which rows and columns
- ``markup``: LaTeX, Markdown, HTML
- ``readings``: what a table says, in a sentence of Markdown
"""
