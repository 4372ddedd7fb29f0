"""Plans a run before its machine is rented: memory, traffic and time of the compiled step."""
