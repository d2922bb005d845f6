"""The engines and their drivers: each driver performs the kernel's effects on threads or on asyncio."""
