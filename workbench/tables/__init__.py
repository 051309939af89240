"""Tables: frames into the shape a paper prints.

- ``layouts``: the run in one table, its trainings
- ``sdd``: the tables of SDD
- ``paper``: the tables of a run
- ``iterabre``: the tables of IteRABRe
- ``markup``: LaTeX, Markdown, HTML
- ``readings``: what blocks and trainings say, in a sentence of Markdown
- ``findings``: what scores and items say
- ``shifts``: what responses say
- ``sentences``: what readings are made of
"""
