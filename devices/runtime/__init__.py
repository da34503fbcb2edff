"""What every device process has in common: loop, rings, control conversation, seal, start."""
