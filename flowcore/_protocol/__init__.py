"""All decisions of flowcore, as programs that drivers run: on threads, on asyncio, in simulated time.

`states` says which outcome follows from what. `execution` is the data of one run and its ready queue. `effects` are what
a program may ask of its driver. `run`, `steps` and `undo` are the programs, and `tell` is how hooks hear of it all.
"""
