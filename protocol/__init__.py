"""What two processes must agree on: constants, memory, rings, messages, lifecycle."""
