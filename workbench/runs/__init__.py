"""The run folder: results whole, with their provenance, and no stage computed twice.

- ``run``: the run folder and its stages
- ``keys``: what a stage depends on
- ``variant``: one state of a model, as data
- ``files``: atomic files, exact frames, digests
- ``journal``: rows written as they are made
- ``provenance``: versions, commit, command
- ``figures``: figures as files
- ``parameters``: what the notebooks' parameters cells assign
- ``progress``: what is printed while notebooks run
- ``lab``: copies of the notebooks for JupyterLab
- ``notebooks``: execute the numbered notebooks
- ``pages``: executed notebooks that show anywhere
"""
