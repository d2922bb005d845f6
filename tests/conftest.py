"""What every test shares."""

import os

import hypothesis

# No deadlines: they measure the machine, not the code. In CI a failing example is printed so that it can be replayed.
hypothesis.settings.register_profile("home", deadline=None)
hypothesis.settings.register_profile("ci", deadline=None, print_blob=True)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") == "true" else "home")
