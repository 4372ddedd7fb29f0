"""Plans of a run on machines that are not here: memory, traffic and time of the compiled step."""
