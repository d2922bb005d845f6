"""All decisions about a run, as programs that drivers perform: on threads, on asyncio, or in simulated time.

`effects` lists what a program may ask of its driver. `run_state` is the data of one run and its ready queue. `run`,
`steps`, `inline` and `undo` are the programs. `outcome` derives the status in which a run ends, and `emit` builds the
events that hooks receive.
"""
