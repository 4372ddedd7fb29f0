"""Plans a run before you rent its machine: memory, communication and time of the compiled step.

In: an experiment and the name of a machine. Out: a `Plan`. The package allocates no arrays and does
not need the machine.
"""
