"""Tables: many classifiers, many detectors, one tidy row each.

A chapter imports the file that it needs: `tasks` (one row to be), `grids` (YAML to tasks), `sweep` (tasks to a
table, resumable), `tables` (reading it), `heat_map`. Nothing is imported here.
"""
