"""Boot protocols: from a file to segments in guest memory and a CPU's first state."""
