"""The machine: vCPUs, memory map, buses, transports, boot protocols, platform devices."""
