"""What build.py puts together: queries, panels, the three dashboards, and the rules."""
