"""Tables: frames into the shape a paper prints.

- ``layouts``: which rows and columns
- ``iterabre``: the tables of IteRABRe
- ``markup``: LaTeX, Markdown, HTML
- ``readings``: what blocks and trainings say, in a sentence of Markdown
- ``findings``: what scores, items and responses say
- ``sentences``: what readings are made of
"""
