"""The drivers: they perform the effects that the programs of `_protocol` yield, on threads and on asyncio."""
