"""All decisions about a run in memory, as programs that drivers perform: on threads, on asyncio, in simulated time.

`effects` lists what a program may ask of its driver. `run_state` is the data of one run and its ready queue. `run`,
`steps`, `inline` and `undo` are the programs, `outcome` says which outcome follows from what, and `emit` builds the
events that hooks receive.
"""
