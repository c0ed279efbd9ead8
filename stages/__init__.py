"""The commands: one module each, which reads artifacts, calls the library and writes an artifact."""
