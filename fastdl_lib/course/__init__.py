"""The commands: execute, check and release notebooks; record a machine."""
