"""The demo world: a small closed land that the project writes itself, from a seed and with no outside text.

`world` holds who and what exists and the facts about them, `grammar` the sentences of the stories and their
minimal pairs, `problems` the word problems, `german` the second language, and `documents` mixes them all into
training documents and keeps what is held out for tests apart.
"""
